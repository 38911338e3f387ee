"""The agent does what it says, refuses everything else in one line, and goes on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_agent import IMPATIENT, Running, running

import coloured_squares as squares
from acclimate.edge.artifact import Artifact, write_manifest
from acclimate.edge.images import read_image
from acclimate.edge.package import pack
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.export import exporter
from acclimate.remote import client, closed
from acclimate.remote.client import DeviceError, Remote
from acclimate.remote.identity import Address
from acclimate.remote.store import Store

ABSENT = "0" * 64


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "onnx-fp32"
    return exporter("onnx").export(squares.SquareDetector(), folder, "fp32", []).folder


@pytest.fixture(scope="module")
def package(artifact: Path) -> Path:
    pack(artifact, artifact.parent / "site.zip", ["numpy==0.1"])
    return artifact.parent / "site.zip"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("device") / "home", IMPATIENT) as found:
        yield found


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_S", 0.2)


@pytest.fixture
def remote(device: Running) -> Iterator[Remote]:
    found = Remote(device.address)
    yield found
    found.close()


def said(answer: bytes, status: int) -> str:
    """The one line of a refusal with this status."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    facts = json.loads(body)
    text = facts["error"]
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def serves(device: Running) -> bool:
    found = Remote(device.address)
    found.close()
    return found.machine["fingerprint"] == device.address.fingerprint


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_it_detects_what_is_detected_here(remote: Remote, artifact: Path, package: Path, tmp_path: Path) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 3, scale=2)
    unlike = remote.install(package, 2)
    assert unlike == [f"numpy {np.__version__} instead of 0.1"]
    here = Predictor.load(artifact)
    for path in scenes.paths:
        expected = here(read_image(path))
        assert len(expected)
        outputs, found = remote.outputs(path)
        for one in (found, remote.detect(path)):
            for name in ("boxes", "labels", "scores"):
                np.testing.assert_array_equal(getattr(one, name), getattr(expected, name))
                assert getattr(one, name).dtype == getattr(expected, name).dtype
        raw = here.run(here.prepare(read_image(path))[0])
        for ours, theirs in zip(outputs, raw, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert remote.machine["runtime"].startswith("onnxruntime ")
    assert remote.machine["device"] == remote.address.name


def test_it_measures_in_a_process_of_its_own(remote: Remote, package: Path, tmp_path: Path) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 2)
    remote.install(package, 2)
    found = remote.bench(scenes.paths, threads=1, runs=3)
    assert (found.threads, found.runs, found.images) == (1, 3, 2)
    assert 0 < found.median_ms <= found.p95_ms
    assert found.peak_memory_mb > found.idle_memory_mb > 10
    assert remote.bench([], threads=1, runs=2).images == 0
    assert len(remote.detect(scenes.paths[0])) == 4, "the process that detects starts anew"


def test_a_bad_image_is_the_images_fault(remote: Remote, package: Path, tmp_path: Path) -> None:
    remote.install(package, 2)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG cut")
    for path, match in ((bad, "bad.png: the image: not a readable image"), (tmp_path / "none.png", "cannot be read")):
        with pytest.raises(AcclimateError, match=match) as caught:
            remote.detect(path)
        assert not isinstance(caught.value, DeviceError)
    good = squares.write_scenes(tmp_path / "scenes", 1).paths[0]
    assert len(remote.detect(good)) == 4
    large = tmp_path / "large.png"
    large.write_bytes(bytes(IMPATIENT.image_bytes + 1))
    with pytest.raises(AcclimateError, match=r"large.png: is 0.3 MB, and the agent takes up to 0.3 MB"):
        remote.detect(large)
    answer = remote._ask("POST", f"/packages/{ABSENT}/detect?threads=1", large.read_bytes())
    assert (answer[0], json.loads(answer[1])["error"]) == (413, "262145 bytes: the agent takes 262144 here")


def test_what_is_there_is_not_sent_again(remote: Remote, package: Path) -> None:
    remote.install(package, 2)
    sent: list[int] = []
    remote.install(package, 2, progress=lambda done, total: sent.append(done))
    assert sent == []


def test_a_broken_upload_goes_on_where_it_broke(
    device: Running, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(artifact, tmp_path / "other.zip", ["numpy==0.2"])
    data = (tmp_path / "other.zip").read_bytes()
    digest, half = sha(data), len(data) // 2
    with device.dial() as connection:
        connection.sendall(device.request("PUT", f"/packages/{digest}", data)[: half - len(data)])
        while device.agent._store.received("packages", digest) < half:
            time.sleep(0.01)
    assert digest not in device.kept("packages")
    monkeypatch.setattr(client, "CHUNK", 1000)
    sent: list[int] = []
    remote = Remote(device.address)
    remote.install(tmp_path / "other.zip", 2, progress=lambda done, total: sent.append(done))
    remote.close()
    assert digest in device.kept("packages")
    assert device.kept("incoming") == []
    assert (sent[0], sent[-1]) == (half + 1000, len(data))


def test_an_upload_in_parts(device: Running, package: Path) -> None:
    data = package.read_bytes() + b"tail"
    digest, half = sha(data), len(package.read_bytes()) // 2
    first = f"Content-Range: bytes 0-{half - 1}/{len(data)}"
    answer = device.say(device.request("PUT", f"/images/{digest}", data[:half], first))
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"there": False, "received": half}
    wrong = f"Content-Range: bytes {half + 1}-{len(data) - 1}/{len(data)}"
    answer = device.say(device.request("PUT", f"/images/{digest}", data[half + 1 :], wrong))
    assert f"the upload goes on at byte {half}" in said(answer, 409)
    rest = f"Content-Range: bytes {half}-{len(data) - 1}/{len(data)}"
    answer = device.say(device.request("PUT", f"/images/{digest}", data[half:], rest))
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"there": True}
    assert (device.home / "store" / "images" / digest).read_bytes() == data
    assert "is there already" in said(device.say(device.request("PUT", f"/images/{digest}", data)), 409)


def test_the_token_is_asked_for_first(device: Running) -> None:
    token = device.address.token
    for wrong in ("", "x", token[:-1], token + "x", token.swapcase(), "\xe9" * 10):
        for path in ("/health", "/nowhere", f"/packages/{ABSENT}"):
            assert "no token" in said(device.say(device.request("GET", path, token=wrong)), 401)
    bare = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert "no token" in said(device.say(bare), 401)
    basic = bare[:-2] + b"Authorization: Basic " + token.encode() + b"\r\n\r\n"
    assert "no token" in said(device.say(basic), 401)
    # A body that nobody may send is not waited for.
    large = device.request("PUT", f"/images/{ABSENT}", b"x", "Content-Length: 60000", token="wrong")
    assert "no token" in said(device.say(large), 401)
    with pytest.raises(DeviceError, match="no token, or not this agent's"):
        Remote(Address(device.address.host, device.address.port, device.address.fingerprint, "wrong"))
    assert serves(device)


def test_another_certificate_is_sent_nothing(device: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("something was sent to a device that is not the one")

    monkeypatch.setattr(client._Pinned, "request", never)
    with pytest.raises(DeviceError, match=f"its fingerprint is {device.address.fingerprint}, not {ABSENT}"):
        Remote(Address(device.address.host, device.address.port, ABSENT, device.address.token))


def test_nobody_there(device: Running) -> None:
    with pytest.raises(DeviceError, match="cannot be reached"):
        Remote(Address("127.0.0.1", 1, ABSENT, "token"))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", f"/packages/{ABSENT}", 405),
        ("POST", "/health", 405),
        ("GET", f"/packages/{ABSENT}/detect", 405),
        ("PATCH", f"/packages/{ABSENT}/bench", 405),
        ("OPTIONS", "*", 404),
        ("GET", "/", 404),
        ("GET", f"/packages/../../{ABSENT}", 404),
        ("GET", f"/incoming/{ABSENT}", 404),
        ("PUT", f"/packages/{ABSENT[:-1]}", 404),
        ("PUT", f"/packages/{ABSENT[:-1]}%2e", 404),
        ("PUT", "/packages/" + "A" * 64, 404),
        ("GET", "/packages/" + "\xe9" * 64, 400),
        ("POST", f"/packages/{ABSENT}/run", 404),
        ("POST", f"/packages/{ABSENT}/detect?threads=1", 404),
        ("POST", f"/packages/{ABSENT}/detect?threads=-1", 422),
        ("POST", f"/packages/{ABSENT}/detect?threads=99999999", 422),
        ("POST", f"/packages/{ABSENT}/detect?threads=1&raw=2", 422),
        ("POST", f"/packages/{ABSENT}/detect?" + "a=1&" * 50, 404),
    ],
)
def test_what_it_does_not_do(device: Running, method: str, path: str, status: int) -> None:
    said(device.say(device.request(method, path, b"x" if method == "POST" else b"")), status)


def test_methods_that_http_treats_apart(device: Running, caplog: pytest.LogCaptureFixture) -> None:
    ask = device.request
    for data in (
        ask("HEAD", "/health"),
        ask("CONNECT", "device:80"),
        ask("GET", "/health", b"", "Upgrade: websocket", "Connection: upgrade"),
        ask("PUT", f"/images/{ABSENT}", b"", "Content-Length: 5", "Expect: 100-continue"),
        ask("GET", "/health").replace(b"HTTP/1.1", b"HTTP/1.0"),
        ask("GET", "/health").replace(b"HTTP/1.1", b"HTTP/2.0"),
        ask("GET", "/health") * 3,
    ):
        assert device.say(data, patience=0.5).startswith(b"HTTP/1.1 ")
    assert serves(device)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_odd_bodies(device: Running) -> None:
    where = f"/images/{ABSENT}"
    ask = device.request
    assert "takes up to" in said(device.say(ask("PUT", where, b"", "Content-Length: 9999999999")), 413)
    assert "takes up to" in said(device.say(ask("PUT", where)), 413)
    chunked = ask("PUT", where, b"1\r\nx\r\n0\r\n\r\n", "Transfer-Encoding: chunked")
    assert "without Content-Length" in said(device.say(chunked), 411)
    both = ask("PUT", where, b"1\r\nx\r\n0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 1")
    assert device.say(both).startswith(b"HTTP/1.1 4")
    for length in ("-1", "1e3", "0x10", "1, 2", "½"):
        said(device.say(ask("PUT", where, b"", f"Content-Length: {length}")), 400)
    for stated in ("bytes 0-0/2", "bytes 1-0/1", "bytes */1", "0-1", "bytes 0-99999999999999999999/1", "\xff"):
        assert device.say(ask("PUT", where, b"ab", f"Content-Range: {stated}")).startswith(b"HTTP/1.1 400 ")
    questions = ("{", "[]", '{"threads": 0, "runs": 1, "images": []}', '{"threads": 1, "runs": 1e9, "images": []}',
                 '{"threads": 1, "runs": 1, "images": [], "shell": "true"}', "\x00" * 100)  # fmt: skip
    for question in questions:
        said(device.say(ask("POST", f"/packages/{ABSENT}/bench", question.encode())), 400)
    assert device.kept("incoming") == []


def test_a_bench_of_what_is_not_there(device: Running, package: Path) -> None:
    remote = Remote(device.address)
    remote.install(package, 2)
    remote.close()
    where = f"/packages/{sha(package.read_bytes())}/bench"
    for threads, image, status in ((10**6, [], 422), (1, [ABSENT], 404), (1, ["../../token"], 404)):
        question = json.dumps({"threads": threads, "runs": 1, "images": image}).encode()
        said(device.say(device.request("POST", where, question)), status)


def test_a_flood_of_strangers_does_not_keep_a_desk_out(tmp_path: Path) -> None:
    """Connections that show nothing, as fast as they can be made, while a desk asks anew and anew."""
    with running(tmp_path / "home", replace(IMPATIENT, strangers=32)) as device:
        first = Remote(device.address)
        stop = threading.Event()

        def flood() -> None:
            held: list[socket.socket] = []
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    held.append(socket.create_connection((device.address.host, device.address.port), 5))
                    time.sleep(0.001)
                if len(held) > 100:
                    held.pop(0).close()
            for connection in held:
                connection.close()

        floods = [threading.Thread(target=flood) for _ in range(2)]
        for thread in floods:
            thread.start()
        try:
            time.sleep(0.3)
            assert all(serves(device) for _ in range(12))
            assert first._told("GET", "/health")["version"], "who has shown the token keeps its connection"
        finally:
            stop.set()
            for thread in floods:
                thread.join()
        first.close()


def test_who_has_shown_the_token_is_counted_apart(tmp_path: Path) -> None:
    with running(tmp_path / "home", replace(IMPATIENT, connections_of_one=3, idle_s=30.0)) as device:
        desks = [Remote(device.address) for _ in range(3)]
        with pytest.raises(DeviceError, match="3 clients are connected, and no more are served at once"):
            Remote(device.address)
        desks.pop().close()
        for _ in range(50):
            with contextlib.suppress(DeviceError):
                desks.append(Remote(device.address))
                break
            time.sleep(0.1)
        assert len(desks) == 3
        for desk in desks:
            desk.close()


@pytest.mark.skipif(not closed.supported(), reason="this system cannot close a folder to a process (no Landlock)")
def test_the_process_that_detects_cannot_read_the_agents_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "store" / "a").mkdir(parents=True)
    for file in (home / "agent.key", home / "store" / "a" / "model", home / "store" / "other", tmp_path / "beside"):
        file.write_text("text")
    tries = "\n".join([
        "import sys",
        "for path in sys.argv[1:]:",
        "    try: print(open(path).read())",
        "    except PermissionError: print('closed')",
        "for path in sys.argv[1:3]:",
        "    try: print(open(path, 'a').write('x'))",
        "    except PermissionError: print('closed')",
        "import onnxruntime, numpy",
    ])  # fmt: skip
    files = ["home/agent.key", "home/store/a/model", "home/store/other", "beside"]
    told = subprocess.run(
        closed.command(home, [home / "store" / "a"], [sys.executable, "-c", tries, *files]),
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.split() == ["closed", "text", "closed", "text", "closed", "closed"]


def test_an_agent_that_starts_anew_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path / "home", IMPATIENT) as device:
        tries: list[int] = []
        connect = socket.create_connection

        def refused_twice(*arguments: object, **options: object) -> socket.socket:
            tries.append(1)
            if len(tries) < 3:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
            return connect(*arguments, **options)

        monkeypatch.setattr(socket, "create_connection", refused_twice)
        assert serves(device)
        assert len(tries) == 3


def test_a_header_without_end(device: Running) -> None:
    start = device.request("GET", "/health")[:-2]
    said(device.say(start + b"X: " + b"y" * 40_000), 431)
    said(device.say(b"GET /" + b"y" * 40_000), 431)
    said(device.say(start + b"".join(b"X-%d: y\r\n" % n for n in range(5_000)) + b"\r\n"), 431)
    assert serves(device)


def test_a_client_that_is_slow_is_let_go(device: Running) -> None:
    """More clients than there is room for, each with a part of a request and then silence."""
    whole = device.request("PUT", f"/images/{ABSENT}", b"x" * 1000)
    slow = []
    for count in (0, 1, 30, 100, len(whole) - 500, len(whole) - 1) * 2:
        try:
            connection = device.dial()
            connection.sendall(whole[:count])
        except OSError:
            continue
        slow.append(connection)
    assert len(slow) >= IMPATIENT.connections_of_one
    assert serves(device)
    for connection in slow:
        connection.close()
    assert "too long to arrive" in said(device.say(whole[:-1]), 408)
    assert "too long to arrive" in said(device.say(whole[:30]), 408)
    assert device.say(b"") == b"", "who asks nothing gets no answer"


def test_a_body_that_trickles_is_refused(tmp_path: Path) -> None:
    with running(tmp_path / "home", replace(IMPATIENT, stall_s=0.5, slowest=10_000)) as device:
        with device.dial() as connection:
            connection.sendall(device.request("PUT", f"/images/{ABSENT}", b"", "Content-Length: 2000"))
            connection.settimeout(0.1)
            answer = b""
            for _ in range(200):
                try:
                    connection.sendall(b"x")
                    while part := connection.recv(2**16):
                        answer += part
                    break
                except TimeoutError:
                    continue
        assert "too long to arrive" in said(answer, 408)
        assert device.kept("images") == []


def test_a_package_that_is_not_what_it_seems(device: Running, package: Path, artifact: Path, tmp_path: Path) -> None:
    before = device.kept("packages")
    whole = package.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    put = device.request
    answer = device.say(put("PUT", f"/packages/{sha(b'other')}", whole))
    assert "did not arrive as it was sent" in said(answer, 422)
    for data in (bytes(changed), whole[:-10], whole + b"x", b"PK\x05\x06" + bytes(18), os.urandom(5000)):
        text = said(device.say(put("PUT", f"/packages/{sha(data)}", data)), 422)
        assert "package" in text
        assert str(device.home) not in text
    slip = BytesIO()
    with zipfile.ZipFile(slip, "w") as archive:
        archive.writestr("package.json", "{}")
        archive.writestr("../../../evil", "x")
    said(device.say(put("PUT", f"/packages/{sha(slip.getvalue())}", slip.getvalue())), 422)
    assert not list(device.home.parent.rglob("evil"))
    assert device.kept("packages") == before
    assert not [name for name in device.kept("incoming") if name.startswith("packages")]


def test_a_model_that_no_runtime_takes(device: Running, artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"no network")
    files = {"model.onnx": sha(b"no network")}
    write_manifest(folder, Artifact.open(artifact).manifest.model_copy(update={"files": files}))
    pack(folder, tmp_path / "site.zip", [])
    image = squares.write_scenes(tmp_path / "scenes", 1).paths[0]
    remote = Remote(device.address)
    remote.install(tmp_path / "site.zip", 2)
    with pytest.raises(DeviceError, match=r"model\.onnx: ONNX Runtime does not accept it") as caught:
        remote.detect(image)
    assert str(device.home) not in str(caught.value)
    with pytest.raises(DeviceError, match=r"the latency process failed: .*ONNX Runtime does not accept it"):
        remote.bench([image], 1, 2)
    remote.close()


def test_a_model_that_would_carry_the_agents_key_away_is_not_run(
    device: Running, artifact: Path, tmp_path: Path
) -> None:
    """Its weights are said to lie in the file of the key, by a way out of the package and by its whole path."""
    key = device.home / "agent.key"
    assert b"PRIVATE KEY" in key.read_bytes()
    image = squares.write_scenes(tmp_path / "scenes", 1).paths[0]
    for number, location in enumerate((f"../../../../{key.name}", str(key))):
        model = onnx.load(artifact / "model.onnx")
        stolen = onnx.TensorProto(name="stolen", data_type=onnx.TensorProto.UINT8, dims=[32])
        stolen.data_location = onnx.TensorProto.EXTERNAL
        for name, value in (("location", location), ("offset", "0"), ("length", "32")):
            stolen.external_data.add(key=name, value=value)
        model.graph.initializer.append(stolen)
        model.graph.node.append(onnx.helper.make_node("Identity", ["stolen"], ["sent"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info("sent", onnx.TensorProto.UINT8, [32]))
        folder = tmp_path / f"thief-{number}"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        files = {"model.onnx": sha((folder / "model.onnx").read_bytes())}
        write_manifest(folder, Artifact.open(artifact).manifest.model_copy(update={"files": files}))
        pack(folder, tmp_path / f"{number}.zip", [])
        with contextlib.closing(Remote(device.address)) as remote:
            remote.install(tmp_path / f"{number}.zip", 2)
            with pytest.raises(DeviceError, match="keeps weights in other files"):
                remote.outputs(image)
            with pytest.raises(DeviceError, match="keeps weights in other files"):
                remote.bench([image], 1, 2)


def test_the_process_that_detects_may_die(device: Running, remote: Remote, package: Path, tmp_path: Path) -> None:
    image = squares.write_scenes(tmp_path / "scenes", 1).paths[0]
    remote.install(package, 2)
    remote.detect(image)
    detector = device.agent._detector
    assert detector is not None
    os.kill(detector._process.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match="the process that detects ended over it"):
        remote.detect(image)
    assert len(remote.detect(image)) == 4


def test_a_full_disk_is_told(device: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "finish", full)
    data = b"an image"
    answer = device.say(device.request("PUT", f"/images/{sha(data)}", data))
    assert "disk is full" in said(answer, 507)
    assert f"images-{sha(data)}.part" not in device.kept("incoming")


def test_a_fault_of_the_agents_is_told_without_a_traceback(
    device: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Store, "has", broken)
    text = said(device.say(device.request("GET", f"/images/{ABSENT}")), 500)
    assert text == "the agent failed; its log on the device says how"
    assert "ZeroDivisionError: secret" in caplog.text
    monkeypatch.undo()
    assert serves(device)


def test_a_new_start_keeps_what_is_whole(tmp_path: Path, package: Path) -> None:
    data = package.read_bytes()
    with running(tmp_path / "home", IMPATIENT) as device:
        first = device.address
        remote = Remote(first)
        remote.install(package, 2)
        remote.close()
        part = device.request("PUT", f"/images/{ABSENT}", b"ab", "Content-Range: bytes 0-1/3")
        assert b'"received": 2' in device.say(part)
        assert len(device.kept("incoming")) == 1
    with running(tmp_path / "home", IMPATIENT) as device:
        assert (device.address.fingerprint, device.address.token) == (first.fingerprint, first.token)
        assert device.kept("packages") == [sha(data)]
        assert device.kept("incoming") == []
        assert Artifact.open(tmp_path / "home" / "store" / "packages" / sha(data) / "artifact")


TEXT = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40)
REQUEST = st.builds(
    lambda method, path, headers, body: (
        f"{method} {path} HTTP/1.1\r\n".encode("latin-1")
        + b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)
        + b"\r\n"
        + body
    ),
    st.sampled_from(["GET", "PUT", "POST", "HEAD", "CONNECT", "get", "", "\x00"]) | TEXT,
    st.sampled_from(["/health", f"/packages/{ABSENT}", f"/images/{ABSENT}", f"/packages/{ABSENT}/detect?threads=1"])
    | TEXT,
    st.lists(
        st.tuples(
            st.sampled_from(["Host", "Authorization", "Content-Length", "Content-Range", "Transfer-Encoding", "Expect"])
            | TEXT,
            st.sampled_from(["TOKEN", "0", "5", "-1", "chunked", "100-continue", "bytes 0-4/5", "bytes 3-4/5"]) | TEXT,
        ),
        max_size=6,
    ),
    st.binary(max_size=60),
)


@settings(max_examples=60)
@given(data=REQUEST | st.binary(max_size=300).map(lambda junk: junk + b"\r\n\r\n"))
def test_any_bytes_get_a_refusal_or_nothing(device: Running, data: bytes) -> None:
    data = data.replace(b"TOKEN", b"Bearer " + device.address.token.encode())
    with device.dial() as connection:
        connection.settimeout(0.2)
        connection.sendall(data)
        try:
            answer = connection.recv(2**16)
        except TimeoutError:
            answer = b""
    assert b"Traceback" not in answer
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert ABSENT not in device.kept("packages") + device.kept("images")
    if not answer.startswith(b"HTTP/1.1 2"):
        assert b"secret" not in answer


def test_changed_requests_leave_no_trace(device: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Valid requests with bytes changed, cut, doubled and put in at random places."""
    rng = random.Random(0)
    where = f"/packages/{ABSENT}"
    valid = [
        device.request("GET", "/health"),
        device.request("PUT", f"/images/{ABSENT}", b"x" * 200, "Content-Range: bytes 0-199/200"),
        device.request("PUT", where, b"x" * 300),
        device.request("POST", f"{where}/detect?threads=1&raw=1", b"x" * 100),
        device.request("POST", f"{where}/bench", b'{"threads": 1, "runs": 2, "images": []}'),
    ]
    inserted = [b"\r\n", b"\x00", b"Content-Length: 3\r\n", b": ", b"%00", b"../", b"\xff" * 5]
    for _ in range(60):
        data = bytearray(rng.choice(valid) * rng.randint(1, 2))
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[place] = rng.randrange(256)
                case 1:
                    del data[place : place + rng.randint(1, 20)]
                case 2:
                    data[place:place] = data[place : place + rng.randint(1, 20)]
                case _:
                    data[place:place] = rng.choice(inserted)
        answer = b""
        with device.dial() as connection, contextlib.suppress(TimeoutError):
            connection.settimeout(0.05)
            connection.sendall(data)
            answer = connection.recv(2**16)
        assert not answer or answer.startswith(b"HTTP/1.1 ")
        assert b"Traceback" not in answer
    assert serves(device)
    assert ABSENT not in device.kept("images") + device.kept("packages")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
