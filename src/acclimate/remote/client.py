"""The desk's side of the wire: a device with an agent, as `verify` sees it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from acclimate.edge.bench import Bench
from acclimate.errors import AcclimateError
from acclimate.remote import worker
from acclimate.remote.identity import Address
from acclimate.run import file_digest, parsed
from acclimate.structures import Detections

TRIES = 5
"""A broken connection is taken up again so often, with pauses that double from `PAUSE_S`; an upload goes on there."""
PAUSE_S = 0.5
CONNECT_S = 10.0
ANSWER_S = 150.0
"""An answer takes no longer, unless the device measures; by then the agent itself has refused."""
BENCH_S = 700.0
LARGEST_ANSWER = 256 * 2**20
CHUNK = 256 * 1024


class DeviceError(AcclimateError):
    """The device is at fault, or the way to it; what is asked of it next fails likewise."""


class RefusedError(AcclimateError):
    """The agent answered that it will not; `status` is HTTP's, `facts` what it said beside the reason."""

    def __init__(self, message: str, status: int, facts: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status, self.facts = status, facts


class _Pinned(http.client.HTTPSConnection):
    """Knows the device by its certificate, and sends nothing to another one."""

    def __init__(self, address: Address) -> None:
        # The certificate itself is compared, so no authority need vouch for it, and its name and dates say nothing.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().__init__(address.host, address.port, timeout=CONNECT_S, context=context)
        self._address = address

    def connect(self) -> None:
        try:
            super().connect()
        except TimeoutError:
            raise DeviceError(
                f"{self._address.name}: no answer within {CONNECT_S:.0f} s; is it the right address?"
            ) from None
        certificate = self.sock.getpeercert(binary_form=True) or b""
        found = hashlib.sha256(certificate).hexdigest()
        if not hmac.compare_digest(found, self._address.fingerprint):
            self.close()
            raise DeviceError(
                f"{self._address.name}: is not the device that is meant: its fingerprint is {found}, not "
                f"{self._address.fingerprint}; if the agent was set up anew, take its new device file"
            )


class Remote:
    """A device with an agent. After `install`, it is what `verify` measures on."""

    def __init__(self, address: Address) -> None:
        """Connect, and ask what the device is.

        Raises:
            DeviceError: it cannot be reached, is another one, or refuses the token.
        """
        self.address = address
        self._connection = _Pinned(address)
        self._package, self._threads, self._outputs = "", 1, 0
        facts = self._told("GET", "/health")
        self._largest = {"packages": facts.get("package_bytes", 0), "images": facts.get("image_bytes", 0)}
        found = facts.get("machine")
        self.machine: dict[str, str] = {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
        self.machine |= {"device": address.name, "fingerprint": address.fingerprint}
        self.machine["agent"] = str(facts.get("version", ""))

    def close(self) -> None:
        self._connection.close()

    def install(
        self, package: Path, outputs: int, threads: int = 1, progress: Callable[[int, int], None] | None = None
    ) -> list[str]:
        """Send a package, unless it is there, and use it from now on.

        Args:
            package: the file.
            outputs: how many raw outputs its network has.
            threads: of the network in `detect` and `outputs`.
            progress: called with the bytes sent and those in all.

        Returns:
            What is installed there in another version than the package names.

        Raises:
            DeviceError: it cannot be sent, or the agent does not take it.
        """
        self._package = self._upload("packages", package, progress)
        self._threads, self._outputs = threads, outputs
        facts = self._told("GET", f"/packages/{self._package}")
        self.machine["runtime"] = str(facts.get("runtime", ""))
        unlike = facts.get("differences")
        return [str(line) for line in unlike] if isinstance(unlike, list) else []

    @property
    def cores(self) -> int:
        """How many threads the device can run at once, as it says."""
        told = self.machine.get("cores", "")
        return int(told) if told.isdecimal() else 1

    def detect(self, path: Path) -> Detections:
        """See `verification.measure.Device`."""
        return self._found(path, raw=False)[1]

    def outputs(self, path: Path) -> tuple[list[NDArray[Any]], Detections]:
        """The raw outputs (1, ...) and the detections; see `verification.measure.Device`."""
        found = self._found(path, raw=True)
        if len(found[0]) != self._outputs:
            raise DeviceError(f"{self.address.name}: answered with {len(found[0])} outputs instead of {self._outputs}")
        return found

    def bench(self, paths: Sequence[Path], threads: int, runs: int) -> Bench:
        """See `verification.measure.Device`."""
        images = [self._upload("images", path) for path in paths]
        question = json.dumps({"threads": threads, "runs": runs, "images": images}).encode()
        facts = self._told_of(*self._ask("POST", f"/packages/{self._package}/bench", question, patience=BENCH_S))
        try:
            return Bench.model_validate(facts)
        except ValidationError:
            raise DeviceError(f"{self.address.name}: answered with no measurement; is it an agent?") from None

    def _found(self, path: Path, raw: bool) -> tuple[list[NDArray[Any]], Detections]:
        try:
            image = path.read_bytes()
        except OSError as error:
            raise AcclimateError(f"{path}: cannot be read ({error.strerror})") from None
        self._check_size("images", path, len(image))
        where = f"/packages/{self._package}/detect?threads={self._threads}&raw={int(raw)}"
        status, data = self._ask("POST", where, image)
        if status == http.client.UNPROCESSABLE_ENTITY:
            try:
                self._facts(status, data)
            except RefusedError as error:
                raise AcclimateError(f"{path}: {error}") from None
        if status != http.client.OK:
            self._told_of(status, data)
        try:
            return worker.unpack(data)
        except ValueError as error:
            raise DeviceError(f"{self.address.name}: answered with {error}; is it an agent?") from None

    def _check_size(self, kind: str, file: Path, size: int) -> None:
        largest = self._largest[kind]
        if isinstance(largest, int) and size > largest:
            raise AcclimateError(f"{file}: is {size / 1e6:.1f} MB, and the agent takes up to {largest / 1e6:.1f} MB")

    def _upload(self, kind: str, file: Path, progress: Callable[[int, int], None] | None = None) -> str:
        """Send a file unless it is there; a broken upload goes on where it broke. The file's SHA-256."""
        digest, total = file_digest(file), file.stat().st_size
        self._check_size(kind, file, total)
        where = f"/{kind}/{digest}"
        for attempt in range(TRIES):
            state = self._told("GET", where)
            if state.get("there"):
                return digest
            try:
                received = state.get("received")
                self._send(where, file, received if isinstance(received, int) else 0, total, progress)
                return digest
            except (OSError, http.client.HTTPException) as error:
                self.close()
                reason = str(error) or type(error).__name__
            except RefusedError as refusal:
                # Another offset than ours, or the agent has not noticed yet that an earlier connection broke.
                if refusal.status != http.client.CONFLICT:
                    raise DeviceError(f"{self.address.name}: {refusal}") from None
                reason = str(refusal)
            if attempt < TRIES - 1:
                time.sleep(PAUSE_S * 2**attempt)
        raise DeviceError(
            f"{self.address.name}: {file.name} could not be sent ({reason}); the same command goes on there"
        )

    def _send(
        self, where: str, file: Path, start: int, total: int, progress: Callable[[int, int], None] | None
    ) -> None:
        def rest() -> Iterator[bytes]:
            sent = start
            with open(file, "rb") as stream:
                stream.seek(start)
                while chunk := stream.read(CHUNK):
                    yield chunk
                    sent += len(chunk)
                    if progress is not None:
                        progress(sent, total)

        headers = {"Content-Length": str(total - start), "Content-Range": f"bytes {start}-{total - 1}/{total}"}
        try:
            status, data = self._exchange("PUT", where, rest(), headers, ANSWER_S)
        except (BrokenPipeError, ConnectionResetError):
            # The agent may have said why before it closed; asking for the state says it as well.
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = self._connection.getresponse()
                self._facts(answer.status, answer.read(LARGEST_ANSWER))
            raise
        self._facts(status, data)

    def _told(self, method: str, where: str) -> dict[str, Any]:
        """The facts of an answer that is no refusal."""
        return self._told_of(*self._ask(method, where))

    def _told_of(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            return self._facts(status, data)
        except RefusedError as refusal:
            raise DeviceError(f"{self.address.name}: {refusal}") from None

    def _facts(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            facts = parsed(data)
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise DeviceError(f"{self.address.name}: answered {status} in another language; is it an agent?")
        if status >= http.client.BAD_REQUEST:
            said = " ".join(str(facts.get("error", f"answered {status}")).split())
            raise RefusedError(said[:1000], status, facts)
        return facts

    def _ask(self, method: str, where: str, body: bytes = b"", patience: float = ANSWER_S) -> tuple[int, bytes]:
        """Ask, over a new connection if the one that is there has gone. Every question may be asked twice."""
        for attempt in range(TRIES):
            try:
                return self._exchange(method, where, body, {"Content-Length": str(len(body))}, patience)
            except TimeoutError:
                self.close()
                raise DeviceError(f"{self.address.name}: no answer within {patience:.0f} s") from None
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # Refused is what an agent that is just starting anew does, too.
                reason = str(error) or type(error).__name__
            if attempt < TRIES - 1:
                time.sleep(PAUSE_S * 2**attempt)
        raise DeviceError(f"{self.address.name}: cannot be reached ({reason}); is `acclimate agent` running there?")

    def _exchange(
        self, method: str, where: str, body: bytes | Iterator[bytes], headers: dict[str, str], patience: float
    ) -> tuple[int, bytes]:
        connection = self._connection
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(patience)
        connection.request(method, where, body, {**headers, "Authorization": f"Bearer {self.address.token}"})
        answer = connection.getresponse()
        data = answer.read(LARGEST_ANSWER)
        if not answer.isclosed():
            self.close()
        return answer.status, data
