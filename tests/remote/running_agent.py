"""An agent in a thread of the test's process, on a free port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from acclimate.remote.agent import Agent, Limits
from acclimate.remote.identity import Address

IMPATIENT = Limits(
    connections=6,
    connections_of_one=5,
    strangers=8,
    header_s=1.0,
    hurried_s=0.3,
    idle_s=5.0,
    stall_s=1.0,
    slowest=2**20,
    package_bytes=2**20,
    image_bytes=2**18,
    disk_bytes=4 * 2**20,
)
"""Limits that a test can reach."""


@dataclass(frozen=True)
class Running:
    agent: Agent
    address: Address
    home: Path

    def kept(self, kind: str) -> list[str]:
        """Names of what the agent's store holds in one of its folders."""
        return sorted(path.name for path in (self.home / "store" / kind).iterdir())

    def dial(self) -> ssl.SSLSocket:
        """A connection that shows nothing yet."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(socket.create_connection((self.address.host, self.address.port), 20))

    def say(self, data: bytes, patience: float = 20) -> bytes:
        """What comes back for `data`, until the agent closes, or has answered."""
        with self.dial() as connection:
            connection.settimeout(patience)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                connection.sendall(data)
            answer = b""
            with contextlib.suppress(OSError):
                while part := connection.recv(2**16):
                    answer += part
                    head, found, body = answer.partition(b"\r\n\r\n")
                    if found and len(body) >= _length(head):
                        break
            return answer

    def request(self, method: str, path: str, body: bytes = b"", *headers: str, token: str | None = None) -> bytes:
        """A request's bytes, with the token."""
        shown = self.address.token if token is None else token
        lines = [f"{method} {path} HTTP/1.1", "Host: device", f"Authorization: Bearer {shown}", *headers]
        if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


@contextlib.contextmanager
def running(home: Path, limits: Limits | None = None) -> Iterator[Running]:
    agent = Agent(home, limits)
    listening, stop = threading.Event(), asyncio.Event()
    found: dict[str, object] = {}

    def ready(host: str, port: int) -> None:
        found.update(host=host, port=port, loop=asyncio.get_running_loop())
        listening.set()

    thread = threading.Thread(target=lambda: asyncio.run(agent.serve("127.0.0.1", 0, ready, stop)), daemon=True)
    thread.start()
    assert listening.wait(30)
    identity = agent.identity
    try:
        yield Running(agent, Address("127.0.0.1", found["port"], identity.fingerprint, identity.token), home)
    finally:
        found["loop"].call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()
