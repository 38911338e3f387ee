"""The live page: who may ask, what it answers, that nobody can hold it up, and how it looks in a real browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from acclimate.edge import page as pages
from acclimate.edge.page import Page, View
from acclimate.errors import AcclimateError
from acclimate.structures import Detections

TOKEN = "a-token-of-one-s-own"
STATUS: dict[str, Any] = {
    "status": "ok",
    "artifact": {"name": "onnx-int8", "runtime": "onnx", "precision": "int8", "digest": "0123456789abcdef"},
    "source": {"where": "rtsp://a-camera-with-a-rather-long-name.example/stream/1", "present": True, "reopened": 2},
    "frame": 41,
    "time": "2026-01-02T03:04:05.678Z",
    "frames": 42,
    "rate": 12.5,
    "dropped": 7,
    "drift": {
        "score": 0.42, "level": 0.1, "outside": 2.0, "alarm": False, "alarms": 1, "detector": True, "to_learn": 0,
    },
    "counts": {"now": 2.5, "usual": 3.1, "share": 0.2, "state": "usual", "alarms": 0},
    "latency_ms": 41.5,
    "output": {"lines": 42, "unwritten": 0},
    "collected": 12,
    "detections": [{"box": [1, 2, 3, 4], "label": 0, "name": "<b>car</b>", "score": 0.91}],
}  # fmt: skip


def view() -> View:
    image = np.full((96, 1200, 3), 90, np.uint8)
    boxes = Detections(np.float32([[100, 20, 300, 80]]), np.array([0]), np.float32([0.9]))
    return View(("car",), lambda: STATUS, (41, image, boxes))


@pytest.fixture
def local() -> Iterator[int]:
    with Page({"": view()}, "127.0.0.1", 0, None) as page:
        yield port_of(page)


@pytest.fixture
def guarded() -> Iterator[int]:
    with Page({"": view()}, "127.0.0.1", 0, TOKEN) as page:
        yield port_of(page)


def port_of(page: Page) -> int:
    return int(page.address.split(":")[2].split("/")[0])


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def test_what_it_answers(local: int) -> None:
    code, headers, body = ask(local, "/")
    assert code == 200
    assert b"<title>acclimate watch</title>" in body
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    code, headers, body = ask(local, "/health")
    assert (code, headers["Content-Type"], json.loads(body)) == (200, "application/json", STATUS)
    code, headers, body = ask(local, "/frame.jpg?n=41")
    assert (code, headers["Content-Type"]) == (200, "image/jpeg")
    picture = simplejpeg.decode_jpeg(body)
    assert picture.shape == (77, 960, 3), "no wider than needed"
    assert np.abs(picture.astype(int) - 90).max() > 60, "the box is drawn"
    assert ask(local, "/../../etc/passwd")[0] == 404
    assert ask(local, "/", "POST")[0] == 501
    code, headers, body = ask(local, "/health", "HEAD")
    assert (code, body) == (200, b"")


def test_health_is_an_error_where_no_frames_come(monkeypatch: pytest.MonkeyPatch, local: int) -> None:
    monkeypatch.setitem(STATUS, "status", "gone")
    code, _, body = ask(local, "/health")
    assert (code, json.loads(body)["status"]) == (503, "gone")


def test_no_frame_yet() -> None:
    with Page({"": View(("car",), lambda: STATUS)}, "127.0.0.1", 0, None) as page:
        assert ask(port_of(page), "/frame.jpg")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_another_name_for_this_machine_is_refused(local: int, host: str) -> None:
    assert ask(local, "/health", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8350"])
def test_its_own_names_are_not(local: int, host: str) -> None:
    assert ask(local, "/health", Host=host)[0] == 200


def test_the_token_is_asked_for_everywhere(guarded: int) -> None:
    for path in ("/", "/health", "/frame.jpg", "/?token=", "/?token=wrong", "/health?token=a-token-of-one-s-owm"):
        code, _, body = ask(guarded, path)
        assert code == 401
        assert TOKEN.encode() not in body
    assert ask(guarded, "/health", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guarded, f"/health?token={TOKEN}")[0] == 200
    code, headers, _ = ask(guarded, f"/?token={TOKEN}")
    assert (code, headers["Location"]) == (303, "/")
    assert "HttpOnly" in headers["Set-Cookie"]
    cookie = headers["Set-Cookie"].split(";")[0]
    assert ask(guarded, "/", Cookie=cookie)[0] == 200
    assert ask(guarded, "/", Cookie=f"{cookie.split('=')[0]}=wrong")[0] == 401
    assert ask(guarded, "/", Cookie="broken\x01; ;=")[0] == 401


def test_elsewhere_than_on_this_machine_a_token_is_made() -> None:
    with Page({"": view()}, "0.0.0.0", 0, None) as page:
        token = page.address.partition("?token=")[2]
        assert len(token) >= 20
        assert ask(port_of(page), "/health")[0] == 401
        assert ask(port_of(page), "/health", Authorization=f"Bearer {token}")[0] == 200
    with Page({"": view()}, "0.0.0.0", 0, None) as other:
        assert token not in other.address


def test_an_address_that_is_taken_and_a_weak_token(local: int) -> None:
    with pytest.raises(AcclimateError, match="choose another --port"):
        Page({"": view()}, "127.0.0.1", local, None)
    with pytest.raises(AcclimateError, match="at least 12"):
        Page({"": view()}, "127.0.0.1", 0, "short")


def test_slow_clients_hold_nobody_up_and_are_closed(monkeypatch: pytest.MonkeyPatch, local: int) -> None:
    monkeypatch.setattr(pages, "DEADLINE_S", 1.0)
    before = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", local), timeout=30) for _ in range(pages.CONNECTIONS)]
    for one in slow:
        one.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
    until = time.monotonic() + 30
    while threading.active_count() < before + pages.CONNECTIONS and time.monotonic() < until:
        time.sleep(0.01)
    crowded = socket.create_connection(("127.0.0.1", local), timeout=30)
    with contextlib.suppress(ConnectionError):
        assert crowded.recv(10) == b"", "one too many is closed at once"
    answered = False
    while not answered and time.monotonic() < until:
        for one in slow:
            with contextlib.suppress(OSError):
                one.sendall(b"x")
        with contextlib.suppress(OSError, http.client.HTTPException):
            answered = ask(local, "/health")[0] == 200
    assert answered, "those that took too long made room"
    for one in (*slow, crowded):
        one.close()


def test_nonsense_is_refused_and_it_goes_on(local: int) -> None:
    for nonsense in (
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 70_000 + b"\r\n\r\n",
        b"GET http://[",
    ):
        with (
            contextlib.suppress(ConnectionError),
            contextlib.closing(socket.create_connection(("127.0.0.1", local), timeout=30)) as one,
        ):
            one.sendall(nonsense)
            one.shutdown(socket.SHUT_WR)
            assert b" 200 " not in one.recv(4000)
    assert ask(local, "/health")[0] == 200


FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(chromium), args=FLAGS)
        yield started
        started.close()


def wait_for(page: Any, condition: str) -> None:
    """Playwright's own waiting evaluates text inside the page, which its policy forbids."""
    until = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < until, condition
        page.wait_for_timeout(50)


@contextlib.contextmanager
def visit(browser: Any, address: str, width: int = 1200, scheme: str = "light") -> Iterator[Any]:
    """The page with a picture in it; what it asks for and complains about is in `page.asked` and `page.said`."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.asked, page.said = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(address)
    wait_for(page, "document.getElementById('picture').naturalWidth > 0")
    yield page
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1200, "light"), (1200, "dark")])
def test_in_a_browser(browser: Any, width: int, scheme: str) -> None:
    with (
        Page({"": view()}, "127.0.0.1", 0, TOKEN) as served,
        visit(browser, served.address, width, scheme) as page,
    ):
        assert page.text_content("#state") == "in its domain"
        assert page.text_content("#rate") == "12.5"
        assert page.text_content("#dropped") == "7"
        assert page.text_content("#score") == "0.4"
        assert page.text_content("#found") == "<b>car</b> 0.91", "names are text, never markup"
        assert page.evaluate("document.getElementById('picture').naturalWidth") == 960
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        outside = """() => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
            e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 60))"""
        assert page.evaluate(outside) == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(247, 247, 245)", "dark": "rgb(20, 23, 26)"}[scheme]
        own = served.address.partition("?")[0]
        # The browser itself asks for /favicon.ico, which is not there.
        assert all(url.startswith(own) for url in page.asked)
        assert [text for text in page.said if "404" not in text] == []
        assert "token" not in page.url, "the token does not stay in the address"


@pytest.mark.browser
def test_the_page_follows_what_happens(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Page({"": view()}, "127.0.0.1", 0, None) as served, visit(browser, served.address) as page:
        monkeypatch.setitem(STATUS, "status", "alarm")
        wait_for(page, "document.getElementById('state').textContent === 'drift alarm'")
        monkeypatch.setitem(STATUS, "status", "gone")
        monkeypatch.setitem(STATUS, "source", {"where": "0", "present": False, "reopened": 0})
        wait_for(page, "document.getElementById('came').textContent === 'gone; trying again'")
        assert page.text_content("#state") == "no frames"
    # Its server is gone now.


@pytest.mark.browser
def test_the_page_says_when_the_device_is_gone(browser: Any) -> None:
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(Page({"": view()}, "127.0.0.1", 0, None))
        page = stack.enter_context(visit(browser, served.address))
        served.__exit__()
        wait_for(page, "document.getElementById('state').textContent === 'the device does not answer'")
        stack.pop_all()
        page.context.close()


@pytest.mark.browser
def test_a_script_from_outside_would_not_run(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text, policy = pages._document()
    changed = text.replace(b"</main>", b"</main><script>document.title = 'taken'</script>")
    monkeypatch.setattr(pages, "_document", lambda: (changed, policy))
    with Page({"": view()}, "127.0.0.1", 0, None) as served, visit(browser, served.address) as page:
        assert page.title() == "acclimate watch"
        assert any("Content Security Policy" in said for said in page.said)
