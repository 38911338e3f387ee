"""Events and detections on their way to somebody else: a webhook or an MQTT broker, whenever they can be reached.

Frames never wait for a network. What is to be sent goes into a queue of bounded length; a thread for each receiver
empties it and tries again for as long as the receiver is away. Where a queue is full the oldest detections go first,
and what goes is counted.
"""

from __future__ import annotations

import abc
import contextlib
import http.client
import importlib
import json
import logging
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from acclimate.edge.credentials import masked, secret
from acclimate.errors import AcclimateError
from acclimate.installation import hint

log = logging.getLogger(__name__)

WAITING = 1000
"""Messages of each kind that wait for a receiver, at most."""
AT_ONCE = 100
"""Messages in one request to a webhook."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""Between two tries the wait doubles from the first to the longest."""
TIMEOUT_S = 10.0
"""For a receiver to answer."""
LEAVE_S = 5.0
"""At the end, what still waits is sent for so long."""

Kind = Literal["event", "detections"]


@dataclass(frozen=True, slots=True)
class Message:
    """One line of a source's journal."""

    kind: Kind
    source: str
    """Its name; empty where there is only one."""
    line: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "source": self.source, **self.line}


class Refused(Exception):  # noqa: N818 - it is no error of ours
    """The receiver does not take these messages, and will not however often they are sent."""


class Receiver(abc.ABC):
    """Where messages go. All but the constructor is called in one thread."""

    name: str
    """For the log, without secrets."""

    @abc.abstractmethod
    def send(self, messages: Sequence[Message]) -> None:
        """Hand over messages; returns when they have arrived.

        Raises:
            OSError: it cannot be reached; the same messages come again later.
            Refused: it does not take them.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End the connection."""


class Webhook(Receiver):
    """An address that takes `{"messages": [...]}` by POST; any status from 200 to 299 is a receipt.

    `ACCLIMATE_WEBHOOK_TOKEN`, where it is set, goes along as a bearer token. Redirections are not followed.
    """

    TOKEN = "ACCLIMATE_WEBHOOK_TOKEN"

    def __init__(self, address: str) -> None:
        """Nothing is asked of the address yet.

        Raises:
            AcclimateError: it is none of http or https.
        """
        parts = _parts(address, "--webhook", "http://host:port/path", ("http", "https"))
        self.name = masked(address)
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": "acclimate"}
        if token := secret(self.TOKEN):
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection: http.client.HTTPConnection | None = None

    def send(self, messages: Sequence[Message]) -> None:
        """See `Receiver.send`."""
        body = json.dumps({"messages": [message.as_json() for message in messages]}).encode()
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.request("POST", self._path, body, self._headers)
            answer = self._connection.getresponse()
            answer.read(1 << 16)
            if answer.getheader("Content-Length") is None or answer.will_close:
                self.close()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise OSError(str(error) or type(error).__name__) from None
        if 200 <= answer.status < 300:
            return
        self.close()
        if answer.status in {408, 425, 429} or answer.status >= 500:
            raise OSError(f"status {answer.status}")
        raise Refused(f"status {answer.status}")

    def close(self) -> None:
        """See `Receiver.close`."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)


class Mqtt(Receiver):
    """A broker: `PREFIX/SOURCE/event` and `PREFIX/SOURCE/detections`, at least once each (QoS 1), as JSON.

    `PREFIX/status` is retained: `online`, and `offline` when the process ends or the broker loses it (its last will).
    Without several sources there is no `SOURCE` in a topic.
    """

    PASSWORD = "ACCLIMATE_MQTT_PASSWORD"

    def __init__(self, address: str) -> None:
        """Nothing is asked of the broker yet.

        Raises:
            AcclimateError: the address is none of mqtt or mqtts with a prefix of topics, or paho-mqtt is not installed.
        """
        parts = _parts(address, "--mqtt", "mqtt://host:1883/prefix", ("mqtt", "mqtts"))
        self._prefix = unquote(parts.path).strip("/") or "acclimate"
        if re.search(r"[#+\0]", self._prefix):
            raise AcclimateError(f"--mqtt {masked(address)}: a topic has no # and no +")
        try:
            paho = importlib.import_module("paho.mqtt.client")
        except ImportError:
            raise AcclimateError(f"--mqtt needs paho-mqtt: {hint('mqtt')}") from None
        self.name = masked(address)
        self._host, self._port = parts.hostname or "", parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.will_set(f"{self._prefix}/status", "offline", qos=1, retain=True)
        self._client.on_connect = self._told
        self._client.connect_timeout = TIMEOUT_S
        if parts.username:
            password = unquote(parts.password) if parts.password else secret(self.PASSWORD) or None
            self._client.username_pw_set(unquote(parts.username), password)
        if parts.scheme == "mqtts":
            self._client.tls_set()
        self._answered = threading.Event()
        self._refusal = ""
        self._running = False

    def send(self, messages: Sequence[Message]) -> None:
        """See `Receiver.send`."""
        if not self._client.is_connected():
            self._connect()
        receipts = []
        for message in messages:
            topic = "/".join(filter(None, (self._prefix, message.source, message.kind)))
            receipts.append(self._client.publish(topic, json.dumps(message.as_json()), qos=1))
        until = time.monotonic() + TIMEOUT_S
        for receipt in receipts:
            try:
                receipt.wait_for_publish(max(0.0, until - time.monotonic()))
            except (ValueError, RuntimeError) as error:
                self._disconnect()
                raise OSError(str(error)) from None
            if not receipt.is_published():
                self._disconnect()
                raise OSError("the broker gives no receipt")

    def close(self) -> None:
        """See `Receiver.close`."""
        if self._client.is_connected():
            with contextlib.suppress(ValueError, RuntimeError):
                self._client.publish(f"{self._prefix}/status", "offline", qos=1, retain=True).wait_for_publish(1.0)
        self._disconnect()

    def _connect(self) -> None:
        self._disconnect()
        self._answered.clear()
        self._client.connect(self._host, self._port, keepalive=30)
        self._client.loop_start()
        self._running = True
        if not self._answered.wait(TIMEOUT_S) or self._refusal:
            refusal = self._refusal or "the broker does not answer"
            self._disconnect()
            raise OSError(refusal)
        self._client.publish(f"{self._prefix}/status", "online", qos=1, retain=True)

    def _told(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._refusal = str(reason) if reason.is_failure else ""
        self._answered.set()

    def _disconnect(self) -> None:
        if self._running:
            self._client.disconnect()
            self._client.loop_stop()
        self._running = False


class Outbox:
    """Sends to one receiver, in a thread; use it in a `with` statement.

    Attributes:
        sent: messages that have arrived.
        unsent: messages that were given up: refused, or older than those that there is room for.
    """

    def __init__(self, receiver: Receiver, *, detections: bool = False) -> None:
        """Send to `receiver`: events, and lines of detections where `detections`."""
        self._receiver, self._detections = receiver, detections
        self._events: deque[Message] = deque()
        self._lines: deque[Message] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._until = float("inf")
        self.sent = 0
        self.unsent = 0
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def __enter__(self) -> Outbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._until = time.monotonic() + LEAVE_S
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(LEAVE_S + TIMEOUT_S)
        with self._changed:
            left = len(self._events) + len(self._lines)
            self.unsent += left
        if left:
            log.warning("%s: %d messages are left unsent", self._receiver.name, left)

    def put(self, message: Message) -> None:
        """Send a message as soon as that can be; returns at once."""
        if message.kind == "detections" and not self._detections:
            return
        waiting = self._events if message.kind == "event" else self._lines
        with self._changed:
            if len(waiting) >= WAITING:
                waiting.popleft()
                self.unsent += 1
            waiting.append(message)
            self._changed.notify_all()

    def _run(self) -> None:
        wait = FIRST_WAIT_S
        try:
            while batch := self._next():
                try:
                    self._receiver.send(batch)
                    self.sent += len(batch)
                    if wait > FIRST_WAIT_S:
                        log.warning("%s: is back", self._receiver.name)
                    wait = FIRST_WAIT_S
                except Refused as refusal:
                    log.warning("%s: refused %d messages (%s)", self._receiver.name, len(batch), refusal)
                    self.unsent += len(batch)
                except OSError as error:
                    if wait == FIRST_WAIT_S:
                        log.warning("%s: %s; trying again until it is there", self._receiver.name, error)
                    self._back(batch)
                    if time.monotonic() + wait > self._until:
                        return
                    self._closing.wait(wait) if not self._closing.is_set() else time.sleep(min(wait, 0.2))
                    wait = min(2 * wait, LONGEST_WAIT_S)
        finally:
            with contextlib.suppress(OSError):
                self._receiver.close()

    def _next(self) -> list[Message]:
        """The messages to send next, events first; none at the end."""
        with self._changed:
            while not (self._events or self._lines):
                if self._closing.is_set():
                    return []
                self._changed.wait()
            waiting = self._events or self._lines
            return [waiting.popleft() for _ in range(min(AT_ONCE, len(waiting)))]

    def _back(self, batch: list[Message]) -> None:
        """Put messages that could not be sent before those that wait, as far as there is room."""
        with self._changed:
            waiting = self._events if batch[0].kind == "event" else self._lines
            room = max(0, WAITING - len(waiting))
            self.unsent += max(0, len(batch) - room)
            waiting.extendleft(reversed(batch[-room:] if room else []))


def _parts(address: str, option: str, example: str, schemes: Sequence[str]) -> Any:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise AcclimateError(f"{option} {masked(address)}: give an address such as {example}")
    return parts
