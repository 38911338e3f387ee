"""Messages to a webhook and to a broker: a server of Python's own, and mosquitto where it is installed."""

from __future__ import annotations

import contextlib
import getpass
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from acclimate.edge import outbox
from acclimate.edge.outbox import Message, Mqtt, Outbox, Receiver, Refused, Webhook
from acclimate.errors import AcclimateError

PATIENCE_S = 30


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(outbox, "LONGEST_WAIT_S", 0.05)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.01)


def event(number: int) -> Message:
    return Message("event", "gate", {"event": "alarm", "frame": number})


class Hook(ThreadingHTTPServer):
    """Answers each POST with the next of `statuses`, then with 204; keeps what it got with a receipt."""

    def __init__(self, statuses: Sequence[int] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.statuses, self.got, self.asked = list(statuses), [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/in?site=1"


class _Answer(BaseHTTPRequestHandler):
    server: Hook
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        self.server.asked.append((self.path, dict(self.headers)))
        if status < 300:
            self.server.got += body["messages"]
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        return


def test_a_webhook_gets_each_message_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through errors that pass; one that it refuses is given up and counted."""
    monkeypatch.setenv(Webhook.TOKEN, "a-token")
    with Hook([500, 429, 503]) as hook:
        with Outbox(Webhook(hook.address)) as box:
            for number in range(250):
                box.put(event(number))
            box.put(Message("detections", "gate", {"frame": 1}))
            until(lambda: len(hook.got) == 250)
        assert [message["frame"] for message in hook.got] == list(range(250)), "detections were not asked for"
        assert hook.got[0] == {"kind": "event", "source": "gate", "event": "alarm", "frame": 0}
        path, headers = hook.asked[0]
        assert (path, headers["Authorization"], headers["Content-Type"]) == (
            "/in?site=1", "Bearer a-token", "application/json",
        )  # fmt: skip
        assert len(hook.asked) <= 3 + 250
        assert (box.sent, box.unsent) == (250, 0)
        hook.statuses = [400]
        with Outbox(Webhook(hook.address)) as box:
            box.put(event(0))
            until(lambda: box.unsent == 1)
            box.put(event(1))
            until(lambda: box.sent == 1)
        hook.shutdown()


class Away(Receiver):
    """Is not there until it is."""

    name = "away"

    def __init__(self) -> None:
        self.there, self.got, self.closed = threading.Event(), [], False

    def send(self, messages: Sequence[Message]) -> None:
        if not self.there.is_set():
            raise OSError("away")
        self.got += messages

    def close(self) -> None:
        self.closed = True


def test_who_is_away_holds_nobody_up_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WAITING", 50)
    receiver = Away()
    with Outbox(receiver, detections=True) as box:
        began = time.monotonic()
        for number in range(2000):
            box.put(Message("detections", "", {"frame": number}))
        for number in range(10):
            box.put(event(number))
        assert time.monotonic() - began < 2, "a frame waits for nobody"
        receiver.there.set()
        until(lambda: box.sent + box.unsent == 2010)
    assert [one.line["frame"] for one in receiver.got if one.kind == "event"] == list(range(10)), "detections go first"
    lines = [one.line["frame"] for one in receiver.got if one.kind == "detections"]
    assert lines == sorted(lines)
    assert lines[-1] == 1999
    assert len(lines) <= 50 + outbox.AT_ONCE
    assert box.unsent == 2000 - len(lines)
    assert receiver.closed


def test_at_the_end_what_cannot_be_sent_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "LEAVE_S", 0.1)
    with Outbox(Away()) as box:
        for number in range(7):
            box.put(event(number))
    assert box.unsent == 7
    assert "7 messages are left unsent" in caplog.text
    assert caplog.text.count("trying again") == 1, "told once"


def test_addresses_that_cannot_be_are_told_without_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for make, address in ((Webhook, "ftp://me:secret@host/x"), (Webhook, "host"), (Mqtt, "http://me:secret@h")):
        with pytest.raises(AcclimateError, match="give an address such as") as raised:
            make(address)
        assert "secret" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(AcclimateError, match=r"paho-mqtt"):
        Mqtt("mqtt://host/site")
    assert issubclass(Refused, Exception)


@contextlib.contextmanager
def mosquitto(folder: Path, port: int) -> Iterator[None]:
    settings = folder / "mosquitto.conf"
    # Started by root, it would become a user of its own, who cannot look into a test's folders.
    settings.write_text(
        f"user {getpass.getuser()}\nlistener {port} 127.0.0.1\n"
        f"allow_anonymous false\npassword_file {folder / 'passwords'}\n"
    )
    if not (folder / "passwords").exists():
        subprocess.run(["mosquitto_passwd", "-c", "-b", str(folder / "passwords"), "me", "p:w"], check=True)
    process = subprocess.Popen(["mosquitto", "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        until(listens)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="mosquitto is not installed")
def test_a_broker_gets_events_and_detections_even_if_it_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another client receives from Eclipse Mosquitto, before and after it was stopped and started again."""
    paho = pytest.importorskip("paho.mqtt.client")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv(Mqtt.PASSWORD, "p:w")
    got: list[tuple[str, bytes]] = []

    def listen() -> object:
        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        client.username_pw_set("me", "p:w")
        client.on_connect = lambda client, *_: client.subscribe("site/#", qos=1)
        subscribed: list[object] = []
        client.on_subscribe = lambda *arguments: subscribed.append(arguments)
        client.on_message = lambda client, data, message: got.append((message.topic, message.payload))
        client.connect("127.0.0.1", port)
        client.loop_start()
        until(lambda: bool(subscribed))
        return client

    with contextlib.ExitStack() as stack:
        box = stack.enter_context(Outbox(Mqtt(f"mqtt://me@127.0.0.1:{port}/site"), detections=True))
        box.put(event(0))
        time.sleep(0.1)
        with mosquitto(tmp_path, port):
            client = listen()
            box.put(Message("detections", "gate", {"frame": 7, "detections": []}))
            until(lambda: box.sent == 2)
            until(lambda: ("site/status", b"online") in got and "site/gate/detections" in dict(got))
            client.disconnect()
            client.loop_stop()
        box.put(event(1))
        time.sleep(0.2)
        with mosquitto(tmp_path, port):
            client = listen()
            until(lambda: box.sent == 3)
            stack.close()
            until(lambda: got[-1] == ("site/status", b"offline"))
            client.disconnect()
            client.loop_stop()
    lines = [json.loads(payload) for topic, payload in got if topic == "site/gate/detections"]
    assert lines == [{"kind": "detections", "source": "gate", "frame": 7, "detections": []}]
    assert box.unsent == 0


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="mosquitto is not installed")
def test_a_wrong_password_is_told_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("paho.mqtt.client")
    monkeypatch.setattr(outbox, "LEAVE_S", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mosquitto(tmp_path, port), Outbox(Mqtt(f"mqtt://me:wrong@127.0.0.1:{port}/site")) as box:
        box.put(event(0))
        until(lambda: "trying again" in caplog.text)
    assert box.unsent == 1
    assert "not authori" in caplog.text.lower()
    assert "wrong" not in caplog.text
