"""The live page of `watch`: what the camera sees, and how it goes, for a browser or a monitoring system.

Four addresses and nothing else: `/`, `/frame.jpg`, `/health` and `/history`, of several sources with `?source=NAME`.
Python's own server is enough for that and adds nothing to the device; what it lacks is here: few connections at a time,
each with a deadline, and a check of who asks.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import simplejpeg

from acclimate.edge.draw import draw
from acclimate.errors import AcclimateError
from acclimate.structures import Detections, Image

log = logging.getLogger(__name__)

CONNECTIONS = 8
"""At a time; another one is closed at once."""
DEADLINE_S = 10.0
"""A connection is closed after so long, however slowly its other end reads or writes."""
WIDEST = 960
"""A picture is not wider, in pixels."""


@dataclass(slots=True, eq=False)
class View:
    """What the page shows: the loop puts the newest frame here, and the page takes it when somebody looks."""

    classes: Sequence[str]
    status: Callable[[], dict[str, Any]]
    """Of the process, as JSON-like values; called in a thread of the page."""
    latest: tuple[int, Image, Detections] | None = None
    """Number, (H, W, 3) RGB, boxes; replaced whole."""
    history: Callable[[], dict[str, Any]] = dict
    """What the page draws over time, see `edge.timeline`; called likewise."""


class Page:
    """Serves the page in a thread of its own; use it in a `with` statement.

    Attributes:
        address: where it is, with the token where there is one.
    """

    def __init__(self, views: Mapping[str, View], bind: str, port: int, token: str | None) -> None:
        """Begin to listen.

        On a loopback address nothing is asked of who is on this machine, but a page of another site that resolves its
        own name to this address (DNS rebinding) is refused. Everywhere else, and where one is given, the token is
        needed: as a bearer token, or once as `?token=`, which becomes a cookie.

        Args:
            views: what the page shows of each source, by its name.
            bind: the address to listen at.
            port: 0 is any free port.
            token: what a reader needs; where there is none and the address is not a loopback one, a token is made.

        Raises:
            AcclimateError: the address cannot be listened at, or the token is too short or not made of letters, digits,
                - and _.
        """
        if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{12,}", token):
            raise AcclimateError("--token: at least 12 letters, digits, - or _; leave it out and one is made")
        local = _is_loopback(bind)
        self._token = token or ("" if local else secrets.token_urlsafe(18))
        try:
            self._server = _Server(bind, port, views, self._token, local)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AcclimateError(f"{bind}:{port}: cannot be listened at ({reason}); choose another --port") from None
        host = f"[{bind}]" if ":" in bind else bind
        shown = f"?token={self._token}" if self._token else ""
        self.address = f"http://{host}:{self._server.server_address[1]}/{shown}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="page", daemon=True)

    def __enter__(self) -> Page:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.close_all()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = CONNECTIONS

    def __init__(self, bind: str, port: int, views: Mapping[str, View], token: str, local: bool) -> None:
        self.address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        super().__init__((bind, port), _Handler)
        self.views, self.token, self.local = views, token, local
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self._encoding = threading.Lock()
        self._encoded: dict[str, tuple[int, bytes]] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            crowded = len(self._open) >= CONNECTIONS
            if not crowded:
                self._open[request] = time.monotonic()
        if crowded:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called by the server's loop twice a second: end the connections that took too long."""
        oldest = time.monotonic() - DEADLINE_S
        with self._lock:
            late = [request for request, since in self._open.items() if since < oldest]
        for request in late:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def close_all(self) -> None:
        with self._lock:
            waiting = list(self._open)
        for request in waiting:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that go away in the middle are no event.
        log.debug("page: a connection ended early", exc_info=True)

    def status(self, name: str) -> dict[str, Any]:
        """What is known of a source, with the state of each in `sources` where there are several."""
        status = self.views[name].status()
        if len(self.views) > 1:
            states = {each: view.status()["status"] for each, view in self.views.items()}
            status |= {"name": name, "sources": states}
        return status

    def picture(self, name: str) -> bytes | None:
        """The newest frame of a source as a JPEG with boxes, drawn once however many ask."""
        with self._encoding:
            view = self.views[name]
            latest = view.latest
            if latest is None:
                return None
            number, image, detections = latest
            if name not in self._encoded or self._encoded[name][0] != number:
                scale = min(1.0, WIDEST / image.shape[1])
                if scale < 1:
                    size = (round(image.shape[1] * scale), max(1, round(image.shape[0] * scale)))
                    image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
                    detections = Detections(detections.boxes * np.float32(scale), detections.labels, detections.scores)
                drawn = draw(image, detections, view.classes)
                self._encoded[name] = number, simplejpeg.encode_jpeg(drawn, quality=80, colorspace="RGB")
            return self._encoded[name][1]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = DEADLINE_S / 2
    server_version = "acclimate"
    sys_version = ""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if not self._host_is_ours():
            self._answer(HTTPStatus.FORBIDDEN, b"asked for under a name that is not this machine's\n")
            return
        if self.server.token and not self._is_known(parts.query):
            self._answer(HTTPStatus.UNAUTHORIZED, b"the address needs the token: /?token=...\n")
            return
        if parts.path == "/" and "token=" in parts.query:
            cookie = f"{self._cookie_name()}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            self._answer(HTTPStatus.SEE_OTHER, b"", Location="/", Set_Cookie=cookie)
        elif parts.path == "/":
            text, policy = _document()
            self._answer(HTTPStatus.OK, text, "text/html; charset=utf-8", Content_Security_Policy=policy)
        elif parts.path not in {"/health", "/history", "/frame.jpg"}:
            self._answer(HTTPStatus.NOT_FOUND, b"/, /frame.jpg, /health and /history are all there is\n")
        elif (name := self._source(parts.query)) is None:
            self._answer(HTTPStatus.NOT_FOUND, b"there is no source of that name\n")
        elif parts.path == "/health":
            status = self.server.status(name)
            code = HTTPStatus.SERVICE_UNAVAILABLE if status["status"] == "gone" else HTTPStatus.OK
            self._answer(code, json.dumps(status).encode() + b"\n", "application/json")
        elif parts.path == "/history":
            history = self.server.views[name].history()
            self._answer(HTTPStatus.OK, json.dumps(history).encode() + b"\n", "application/json")
        else:
            picture = self.server.picture(name)
            if picture is None:
                self._answer(HTTPStatus.NOT_FOUND, b"no frame yet\n")
            else:
                self._answer(HTTPStatus.OK, picture, "image/jpeg")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, code: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8", **headers: str) -> None:
        self.send_response(code)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in {**fixed, **{key.replace("_", "-"): value for key, value in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _source(self, query: str) -> str | None:
        """The source that is asked for, the first where none is named; None where there is none of that name."""
        name = parse_qs(query).get("source", [next(iter(self.server.views))])[0]
        return name if name in self.server.views else None

    def _cookie_name(self) -> str:
        # Cookies are shared by all ports of a host.
        return f"acclimate_{self.server.server_address[1]}"

    def _is_known(self, query: str) -> bool:
        offered = [self.headers.get("Authorization", "").removeprefix("Bearer "), *parse_qs(query).get("token", [])[:1]]
        with contextlib.suppress(CookieError):
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie_name())
            offered.append(cookie.value if cookie else "")
        wanted = self.server.token.encode()
        return any(hmac.compare_digest(text.encode(errors="replace"), wanted) for text in offered)

    def _host_is_ours(self) -> bool:
        if not self.server.local or self.server.token:
            return True
        return _is_loopback(urlsplit(f"//{self.headers.get('Host', '')}").hostname or "")

    def log_message(self, format: str, *arguments: object) -> None:
        # The base class prints each request, with the token in it.
        return


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=1)
def _document() -> tuple[bytes, str]:
    """The page, and a policy that lets it run its own style and script and ask this server, nothing else."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def digest_of(tag: str) -> str:
        found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert found is not None
        return "'sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode() + "'"

    policy = (
        f"default-src 'none'; style-src {digest_of('style')}; script-src {digest_of('script')}; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy
