"""The agent: runs on a device and measures there, for a desk that has its device file, the packages that it is sent.

It answers HTTP/1.1 over TLS 1.3, and does these things alone:

    GET  /health                              the machine, and which runtimes it has
    GET  /packages/SHA, /images/SHA           is it there, and how much of it
    PUT  /packages/SHA, /images/SHA           a file of that SHA-256; Content-Range goes on with a broken upload
    POST /packages/SHA/detect?threads=N&raw=1 what is in the image that is the body; with the raw outputs
    POST /packages/SHA/bench                  latency and memory on images that were sent, in a process of its own

A package is looked through (`edge.package.unpack`) before it is put where the others are, and nothing in it is run but
its network, by a process that cannot read the agent's own folder (`remote.closed`). Whatever the desk sends has a
bound: bytes of a header, of a body, of the disk, connections, and seconds (`Limits`). A problem is answered with one
line, `{"error": ...}`, and never with a traceback.

Why asyncio and h11: `http.server` calls itself unfit for what is not trusted; it has no deadline for a whole request,
so a client that sends a byte a second keeps a thread. The web frameworks bring ten packages and more to a device. h11
is one small package in Python that only parses, and strictly; asyncio has the deadlines and the TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import json
import logging
import os
import re
import signal
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import h11
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acclimate import __version__, machine
from acclimate.edge import bench
from acclimate.edge.artifact import Artifact
from acclimate.edge.engines import available, engine
from acclimate.edge.package import differences
from acclimate.edge.signing import Signed
from acclimate.errors import AcclimateError
from acclimate.remote import closed, worker
from acclimate.remote.identity import Identity
from acclimate.remote.store import KINDS, Kind, Store

log = logging.getLogger(__name__)

MOST_IMAGES = 64
"""A measurement of latency takes no more images."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take of the agent."""

    connections: int = 16
    """That have shown the token."""
    connections_of_one: int = 8
    """Of these, from one address."""
    strangers: int = 64
    """Connections beside these that have not shown it yet."""
    header_bytes: int = 16 * 1024
    header_s: float = 10.0
    """For the handshake, and for a request's header from its first byte."""
    hurried_s: float = 2.0
    """The same for who has not shown the token, while half of the strangers' places are taken."""
    idle_s: float = 60.0
    """Between two requests of a connection."""
    stall_s: float = 20.0
    """Without a byte of a body, or with an answer that is not read."""
    slowest: float = 16 * 1024
    """Bytes a second of a body, on average over all of it after `stall_s`."""
    turn_s: float = 60.0
    """Until what another client asked for is done."""
    detect_s: float = 60.0
    bench_s: float = 600.0
    package_bytes: int = 256 * 2**20
    image_bytes: int = 32 * 2**20
    question_bytes: int = 64 * 1024
    disk_bytes: int = 2**30


class _Refused(Exception):  # noqa: N818 - it is an answer
    """A request that gets `status` and one line of why."""

    def __init__(self, status: int, why: str, **facts: Any) -> None:
        super().__init__(why)
        self.status, self.facts = status, {"error": " ".join(why.split()), **facts}


class _Gone(Exception):  # noqa: N818 - nobody is left to be told
    """The client has closed the connection, or was too slow for its own request to be answered."""


@dataclass(eq=False, slots=True)
class _Guest:
    """A connection, from when it is accepted until it is closed."""

    address: str
    known: bool = False
    """Has shown the token."""
    task: asyncio.Task[None] | None = None


class _Question(BaseModel):
    """The body of a bench request."""

    model_config = ConfigDict(extra="forbid")

    threads: int = Field(ge=1)
    runs: int = Field(ge=1, le=2000)
    images: list[str] = Field(max_length=MOST_IMAGES)


class Agent:
    """Answers desks until it is told to stop."""

    def __init__(self, home: Path, limits: Limits | None = None, signer: Path | None = None) -> None:
        """Take up the identity and the store in `home`, or make them.

        Args:
            home: a folder of the agent's own.
            limits: what a client may take.
            signer: a public key that every package must be signed with; None means that none need be.

        Raises:
            AcclimateError: see `Identity.open`; or `home` cannot be written.
        """
        self.limits = limits or Limits()
        self.identity = Identity.open(home)
        self._store = Store(home / "store", self.limits.disk_bytes, "" if signer is None else Signed(signer))
        self._home = home
        self._guests: list[_Guest] = []
        """The oldest first."""
        # One network runs at a time: two would measure each other.
        self._turn = asyncio.Lock()
        self._detector: _Detector | None = None
        self._cores = machine.usable_cores()

    async def serve(self, host: str, port: int, ready: Callable[[str, int], None], stop: asyncio.Event) -> None:
        """Answer on `host`:`port` until `stop` is set.

        Args:
            host: a name or address of this machine; 0.0.0.0 means all.
            port: 0 means any that is free.
            ready: called with the address once it listens.
            stop: ends it.

        Raises:
            AcclimateError: it cannot listen there.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.identity.certificate, self.identity.key)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=self.limits.strangers)
        except OSError as error:
            raise AcclimateError(
                f"{host}:{port}: cannot listen there ({error.strerror}); choose another --bind"
            ) from None
        if not closed.supported():
            log.warning(
                "this system cannot close %s to the process that runs models (Linux 5.13 with Landlock can); "
                "take packages only from whom you trust",
                self._home,
            )
        with listener:
            listener.setblocking(False)
            ready(*listener.getsockname()[:2])
            accepting = asyncio.create_task(self._accept(listener, context))
            await stop.wait()
            accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting
        await self._end_detector()

    async def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Take every connection: a client that nobody knows may cost another such its place, never a known one."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    client, peer = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("a connection could not be accepted: %s", error)
                    await asyncio.sleep(0.1)
                    continue
                while self._strangers() >= self.limits.strangers:
                    self._evict()
                guest = _Guest(peer[0])
                self._guests.append(guest)
                guest.task = group.create_task(self._held(client, context, guest))
                # Whoever is to be let go, or has sent something, has its turn before the next one is accepted.
                await asyncio.sleep(0)

    def _strangers(self) -> int:
        return sum(not guest.known for guest in self._guests)

    def _evict(self) -> None:
        """Let the oldest stranger go, of the address that has most of them."""
        count = Counter(guest.address for guest in self._guests if not guest.known)
        address, _ = count.most_common(1)[0]
        guest = next(guest for guest in self._guests if not guest.known and guest.address == address)
        log.debug("%s: gave its place to another client", address)
        self._guests.remove(guest)
        if guest.task is not None:
            guest.task.cancel()

    def welcome(self, guest: _Guest) -> None:
        """From now on the connection keeps its place: it has shown the token.

        Raises:
            _Refused: there are as many as there may be.
        """
        if guest.known:
            return
        known = [other.address for other in self._guests if other.known]
        if len(known) >= self.limits.connections or known.count(guest.address) >= self.limits.connections_of_one:
            raise _Refused(503, f"{len(known)} clients are connected, and no more are served at once; try again later")
        guest.known = True

    def patience(self, guest: _Guest) -> float:
        """Seconds for the handshake, or for a header."""
        crowded = not guest.known and 2 * self._strangers() > self.limits.strangers
        return min(self.limits.hurried_s, self.limits.header_s) if crowded else self.limits.header_s

    async def _held(self, client: socket.socket, context: ssl.SSLContext, guest: _Guest) -> None:
        """One connection, whatever comes of it."""
        try:
            await self._connection(client, context, guest)
        except (_Gone, OSError):
            log.debug("%s: gone", guest.address)
        except Exception:
            log.exception("%s: the connection failed", guest.address)
        finally:
            client.close()
            if guest in self._guests:
                self._guests.remove(guest)

    async def _connection(self, client: socket.socket, context: ssl.SSLContext, guest: _Guest) -> None:
        loop = asyncio.get_running_loop()
        client.setblocking(False)
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            client,
            ssl=context,
            ssl_handshake_timeout=self.patience(guest),
            ssl_shutdown_timeout=2.0,
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await _Conversation(self, reader, writer, guest).run()
        except asyncio.CancelledError:
            # Nobody waits for a stranger's farewell.
            transport.abort()
            raise
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(3):
                    await writer.wait_closed()
            transport.abort()

    def authorised(self, header: bytes) -> bool:
        """Whether an Authorization header shows the token; in the same time whatever it holds."""
        return hmac.compare_digest(header, b"Bearer " + self.identity.token.encode())

    async def answer(self, request: _Request) -> dict[str, Any] | bytes:
        """What a request of someone who may ask gets: facts, or bytes.

        Raises:
            _Refused: with the status and the reason.
        """
        match request.path:
            case ["health"]:
                request.allow("GET")
                limits = {name: getattr(self.limits, name) for name in ("package_bytes", "image_bytes", "disk_bytes")}
                return {"version": __version__, "machine": machine.facts(), "runtimes": available(), **limits}
            case [kind, digest] if kind in KINDS and _DIGEST.fullmatch(digest):
                if request.allow("GET", "PUT") == "GET":
                    return await self._state(kind, digest)
                return await self._upload(request, kind, digest)
            case ["packages", digest, "detect"] if _DIGEST.fullmatch(digest):
                request.allow("POST")
                return await self._detect(request, digest)
            case ["packages", digest, "bench"] if _DIGEST.fullmatch(digest):
                request.allow("POST")
                return await self._bench(request, digest)
        raise _Refused(404, "the agent knows no such path")

    async def _state(self, kind: Kind, digest: str) -> dict[str, Any]:
        if not self._store.has(kind, digest):
            return {"there": False, "received": self._store.received(kind, digest)}
        if kind == "images":
            return {"there": True}
        with self._store.using(kind, digest) as place:
            try:
                loaded = await asyncio.to_thread(Artifact.open, place / "artifact")
                runtime = engine(loaded.manifest.runtime).version()
            except AcclimateError as error:
                raise _Refused(422, str(error).replace(f"{place}/", "")) from None
            return {"there": True, "differences": differences(place / "requirements.txt"), "runtime": runtime}

    async def _upload(self, request: _Request, kind: Kind, digest: str) -> dict[str, Any]:
        length = request.length()
        start, total = 0, length
        if (stated := request.headers.get(b"content-range")) is not None:
            found = _RANGE.fullmatch(stated.decode("ascii", "replace"))
            if found is None or int(found[1]) + length != int(found[2]) + 1 or int(found[2]) >= int(found[3]):
                raise _Refused(400, "Content-Range is not bytes FIRST-LAST/TOTAL of what Content-Length says")
            start, total = int(found[1]), int(found[3])
        largest = self.limits.package_bytes if kind == "packages" else self.limits.image_bytes
        if not 0 < total <= largest or self._store.need(kind, total) > self.limits.disk_bytes:
            raise _Refused(
                413, f"{total} bytes: the agent takes up to {largest} of {kind}, on {self.limits.disk_bytes}"
            )
        if self._store.has(kind, digest):
            raise _Refused(409, "is there already")
        if self._store.reserved(kind, digest):
            raise _Refused(409, "another connection is sending it")
        received = self._store.received(kind, digest)
        if start not in {0, received}:
            raise _Refused(409, f"the upload goes on at byte {received}", received=received)
        if start == 0:
            self._store.forget(kind, digest)
        with contextlib.ExitStack() as stack:
            try:
                part = stack.enter_context(self._store.reserve(kind, digest, total))
            except AcclimateError as error:
                raise _Refused(507, str(error)) from None
            stack.enter_context(_disk(lambda: self._store.forget(kind, digest)))
            with open(part, "ab") as file:
                async for chunk in request.body(largest):
                    file.write(chunk)
            received = part.stat().st_size
            if received < total:
                return {"there": False, "received": received}
            try:
                await asyncio.to_thread(self._store.finish, kind, digest)
            except AcclimateError as error:
                raise _Refused(422, str(error)) from None
        # A verification sends a package and dozens of images.
        log.log(logging.INFO if kind == "packages" else logging.DEBUG, "took %s (%d bytes)", digest[:12], total)
        return {"there": True}

    async def _detect(self, request: _Request, digest: str) -> bytes:
        threads = request.number("threads", 1, self._cores)
        raw = request.number("raw", 0, 1) if "raw" in request.query else 0
        image = b"".join([chunk async for chunk in request.body(self.limits.image_bytes)])
        with self._package(digest) as place:
            async with self._my_turn(), _deadline(self.limits.detect_s, "the image"):
                detector = await self._detector_of(place, threads)
                try:
                    return await detector.ask(image, worker.RAW if raw else worker.PLAIN)
                except BaseException as error:
                    # Also when the client has gone: half an answer in the pipe would be the next one's.
                    if not isinstance(error, _Refused) or error.status != 422:
                        await self._end_detector()
                    raise

    async def _bench(self, request: _Request, digest: str) -> dict[str, Any]:
        data = b"".join([chunk async for chunk in request.body(self.limits.question_bytes)])
        try:
            question = _Question.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise _Refused(400, f"{'.'.join(map(str, first['loc'])) or 'the question'}: {first['msg']}") from None
        if question.threads > self._cores:
            raise _Refused(422, f"{question.threads} threads: the device has {self._cores} cores")
        with self._package(digest) as place, contextlib.ExitStack() as stack:
            images = []
            for one in question.images:
                if not _DIGEST.fullmatch(one) or not self._store.has("images", one):
                    raise _Refused(404, f"image {one[:64]!r} is not here; send it first")
                images.append(stack.enter_context(self._store.using("images", one)))
            async with self._my_turn():
                await self._end_detector()
                log.info("measuring %s on %d images", digest[:12], len(images))
                async with _deadline(self.limits.bench_s, "the measurement"):
                    return await _measured(self._home, place, images, question)

    @contextlib.contextmanager
    def _package(self, digest: str) -> Iterator[Path]:
        """The artifact's folder in a package that was sent, which stays meanwhile."""
        if not self._store.has("packages", digest):
            raise _Refused(404, "the package is not here; send it first")
        with self._store.using("packages", digest) as place:
            yield place / "artifact"

    @contextlib.asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        try:
            await asyncio.wait_for(self._turn.acquire(), self.limits.turn_s)
        except TimeoutError:
            raise _Refused(503, "the device measures something else; try again later") from None
        try:
            yield
        finally:
            self._turn.release()

    async def _detector_of(self, place: Path, threads: int) -> _Detector:
        current = self._detector
        if current is None or (current.place, current.threads) != (place, threads):
            await self._end_detector()
            current = self._detector = await _Detector.start(self._home, place, threads)
            try:
                await current.loaded()
            except BaseException:
                await self._end_detector()
                raise
        return current

    async def _end_detector(self) -> None:
        current, self._detector = self._detector, None
        if current is not None:
            await current.end()


async def _measured(home: Path, artifact: Path, images: list[Path], question: _Question) -> dict[str, Any]:
    """What a process of `edge.bench` measures; it is ended when nobody waits for it any more."""
    process = await asyncio.create_subprocess_exec(
        *closed.command(home, [artifact, *images], bench.command(artifact, question.threads, question.runs)),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(question.threads)}, start_new_session=True,
    )  # fmt: skip
    try:
        found, said = await process.communicate("\n".join(str(path.absolute()) for path in images).encode())
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        why = bench.reason(said.decode(errors="replace"), process.returncode)
        raise _Refused(422, f"the latency process failed: {why}".replace(f"{artifact}/", ""))
    return bench.Bench.model_validate_json(found).model_dump()


class _Detector:
    """The process that detects."""

    def __init__(self, process: asyncio.subprocess.Process, place: Path, threads: int) -> None:
        self.place, self.threads = place, threads
        self._process = process

    @classmethod
    async def start(cls, home: Path, place: Path, threads: int) -> _Detector:
        program = [sys.executable, "-m", "acclimate.remote.worker", str(place), "--threads", str(threads)]
        process = await asyncio.create_subprocess_exec(
            *closed.command(home, [place], program),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)}, start_new_session=True,
        )  # fmt: skip
        return cls(process, place, threads)

    async def loaded(self) -> None:
        """Wait until the artifact is loaded.

        Raises:
            _Refused: it cannot be.
        """
        try:
            await self._answer()
        except _Refused as refused:
            raise _Refused(500, str(refused)) from None

    async def ask(self, image: bytes, wanted: int) -> bytes:
        """The arrays of `worker.pack` for an image file.

        Raises:
            _Refused: 422, the image cannot be read; 500, the process ended over it.
        """
        stdin = cast(asyncio.StreamWriter, self._process.stdin)
        with contextlib.suppress(ConnectionError):
            stdin.write(worker.HEAD.pack(len(image), wanted) + image)
            await stdin.drain()
        return await self._answer()

    async def _answer(self) -> bytes:
        stdout = cast(asyncio.StreamReader, self._process.stdout)
        try:
            size, kind = worker.HEAD.unpack(await stdout.readexactly(worker.HEAD.size))
            data = await stdout.readexactly(size)
        except asyncio.IncompleteReadError:
            status = await self._process.wait()
            raise _Refused(500, f"the process that detects ended over it (exit status {status})") from None
        if kind == worker.PROBLEM:
            raise _Refused(422, data.decode(errors="replace").replace(f"{self.place}/", ""))
        return data

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class _Conversation:
    """One connection: requests one after the other, each within its limits."""

    def __init__(self, agent: Agent, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, guest: _Guest) -> None:
        self.limits = agent.limits
        self._agent, self._reader, self._writer, self._guest = agent, reader, writer, guest
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.header_bytes)
        self._method = b""

    async def run(self) -> None:
        """Until the client goes, or something is wrong with what it sends."""
        while True:
            try:
                event = await self._first()
                if event is None:
                    return
                await self._one(event)
            except h11.RemoteProtocolError as error:
                await self._refuse(_Refused(error.error_status_hint, f"not a request that the agent reads: {error}"))
                return
            except TimeoutError:
                await self._refuse(_Refused(408, "the request took too long to arrive"))
                return
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                await self._linger()
                return
            self._http.start_next_cycle()

    async def _first(self) -> h11.Request | None:
        """The next request's header; None when the client has gone in between."""
        pending = self._http.next_event()
        if pending is h11.NEED_DATA and not self._http.trailing_data[0]:
            try:
                async with asyncio.timeout(
                    self.limits.idle_s if self._guest.known else self._agent.patience(self._guest)
                ):
                    data = await self._reader.read(2**16)
            except TimeoutError:
                # Nothing was asked, so nothing is answered: the client would take it for its next answer.
                return None
            self._http.receive_data(data)
            pending = self._http.next_event()
        async with asyncio.timeout(self._agent.patience(self._guest)):
            while pending is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(2**16))
                pending = self._http.next_event()
        return pending if isinstance(pending, h11.Request) else None

    async def _one(self, event: h11.Request) -> None:
        request, self._method = _Request(self, event), event.method
        try:
            if not self._agent.authorised(request.headers.get(b"authorization", b"")):
                raise _Refused(401, "no token, or not this agent's; take its device file")
            self._agent.welcome(self._guest)
            facts = await self._agent.answer(request)
        except _Refused as refused:
            await self._refuse(refused)
            return
        except (_Gone, TimeoutError, h11.RemoteProtocolError, ConnectionError):
            raise
        except Exception:
            log.exception("%s: %s %s failed", self._guest.address, event.method, event.target)
            await self._refuse(_Refused(500, "the agent failed; its log on the device says how"))
            return
        log.debug("%s: %s /%s", self._guest.address, request.method, "/".join(request.path))
        await self._reply(200, facts)

    async def _refuse(self, refused: _Refused) -> None:
        log.log(
            logging.INFO if self._guest.known else logging.DEBUG,
            "%s: refused (%d %s)",
            self._guest.address,
            refused.status,
            refused,
        )
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._reply(refused.status, refused.facts)

    async def _reply(self, status: int, facts: dict[str, Any] | bytes) -> None:
        if isinstance(facts, dict):
            body, kind = json.dumps(facts).encode(), b"application/json"
        else:
            body, kind = facts, b"application/octet-stream"
        headers = [(b"Content-Type", kind), (b"Content-Length", str(len(body)).encode())]
        # What is left of a body that was refused is not read, so nothing can follow it.
        if self._http.their_state is h11.SEND_BODY:
            with contextlib.suppress(h11.RemoteProtocolError):
                self._http.next_event()
        if self._http.their_state is not h11.DONE:
            headers.append((b"Connection", b"close"))
        data = h11.Data(data=b"" if self._method == b"HEAD" else body)
        for event in (h11.Response(status_code=status, headers=headers), data, h11.EndOfMessage()):
            self._writer.write(self._http.send(event) or b"")
        try:
            async with asyncio.timeout(self.limits.stall_s):
                await self._writer.drain()
        except TimeoutError:
            raise _Gone from None

    async def _linger(self) -> None:
        """Read on for a moment: a connection that is closed over unread bytes loses the answer on its way."""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(1):
                for _ in range(64):
                    if not await self._reader.read(2**16):
                        return

    async def body(self, length: int) -> AsyncIterator[bytes]:
        """The parts of a request's body of `length` bytes.

        Raises:
            TimeoutError: it comes too slowly.
            _Gone: the client has closed the connection.
        """
        if self._http.they_are_waiting_for_100_continue:
            self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        loop = asyncio.get_running_loop()
        latest = loop.time() + self.limits.stall_s + length / self.limits.slowest
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout_at(min(latest, loop.time() + self.limits.stall_s)):
                    data = await self._reader.read(2**16)
                if not data:
                    raise _Gone
                self._http.receive_data(data)
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise _Gone


class _Request:
    """A request's header, read with care."""

    def __init__(self, conversation: _Conversation, event: h11.Request) -> None:
        self._conversation = conversation
        self.method = event.method.decode("ascii", "replace")
        self.headers = dict(event.headers)
        try:
            parts = urlsplit(event.target.decode("ascii"))
            self.query = parse_qs(parts.query, max_num_fields=8)
            self.path = parts.path.strip("/").split("/")
        except ValueError:
            self.query, self.path = {}, []

    def allow(self, *methods: str) -> str:
        """The method, which must be one of these."""
        if self.method not in methods:
            raise _Refused(405, f"{self.method[:20]}: here the agent takes {' and '.join(methods)}")
        return self.method

    def number(self, name: str, lowest: int, highest: int) -> int:
        """A number of the query."""
        text = self.query.get(name, [""])[-1]
        if not text.isascii() or not text.isdigit() or len(text) > 9 or not lowest <= int(text) <= highest:
            raise _Refused(422, f"{name}={text[:20]}: a whole number from {lowest} to {highest}")
        return int(text)

    def length(self) -> int:
        """What Content-Length says; h11 has looked that it is a number and that the body is as long."""
        stated = self.headers.get(b"content-length")
        if stated is None or b"transfer-encoding" in self.headers:
            raise _Refused(411, "the agent takes no body without Content-Length")
        return int(stated)

    async def body(self, largest: int) -> AsyncIterator[bytes]:
        """The body in parts, of `largest` bytes at most."""
        length = self.length()
        if length > largest:
            raise _Refused(413, f"{length} bytes: the agent takes {largest} here")
        async for chunk in self._conversation.body(length):
            yield chunk


@contextlib.contextmanager
def _disk(forget: Callable[[], None]) -> Iterator[None]:
    """Turn a full disk into an answer, and give back what was taken."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        forget()
        raise _Refused(507, "the device's disk is full") from None


@contextlib.asynccontextmanager
async def _deadline(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise _Refused(503, f"{what} took longer than {seconds:.0f} s") from None


def run(agent: Agent, host: str, port: int, ready: Callable[[str, int], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        agent: what answers.
        host: the address to listen at.
        port: 0 is any free port.
        ready: told the address and the port once it listens.

    Raises:
        AcclimateError: see `Agent.serve`.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await agent.serve(host, port, ready, stop)

    asyncio.run(main())
