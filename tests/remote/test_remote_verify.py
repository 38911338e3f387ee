"""The same verification, on another machine: over the loopback always, and between two hosts where they can be made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_agent import Running, running

import coloured_squares as squares
from acclimate import cli, workflow
from acclimate.edge.artifact import Artifact
from acclimate.export import base
from acclimate.remote.client import DeviceError
from acclimate.remote.identity import address
from acclimate.run import Run
from acclimate.verification.measure import EvaluationSet, Material, Scope, verify
from acclimate.verification.record import load, saved, verifications
from acclimate.workflow import delivery

pytestmark = pytest.mark.usefixtures("squares_are_a_kind")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A finished run with an int8 artifact, and a labelled set."""
    run, scenes = squares.exported(tmp_path_factory.mktemp("remote"), 4, "int8")
    return run.path / "artifacts" / "onnx-int8", scenes


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("device") / "home") as found:
        yield found


def shown(scenes) -> Material:
    return Material([EvaluationSet(scenes, "squares_test", "target")])


def test_it_is_the_verification_of_the_device(made, device: Running) -> None:
    artifact, scenes = made
    here = verify(Artifact.open(artifact), shown(scenes), scope=Scope(runs=3))
    with delivery._on_device(device.address, artifact, None, 1, None) as remote:
        there = verify(Artifact.open(artifact), shown(scenes), scope=Scope(runs=3), device=remote)
    assert there.accuracy == here.accuracy
    assert there.accuracy["squares_test"].artifact_ap50 == pytest.approx(1.0)
    assert there.parity == here.parity
    assert there.parity is not None
    assert there.parity.matched == 16
    assert there.passed
    assert there.latency.images == 3
    assert {**there.machine, **here.machine} == there.machine, "the same machine, and how to know it"
    assert there.machine["fingerprint"] == device.address.fingerprint
    assert there.machine["device"] == device.address.name
    assert (load(saved(artifact)), load(saved(artifact, there.machine))) == (here, there)
    beside = artifact / f"verification.127.0.0.1-{device.address.fingerprint[:8]}.json"
    assert verifications(artifact) == [artifact / "verification.json", beside]
    found = {one.model: one for one in Run.open(artifact.parent.parent).evaluations() if one.data == "squares_test"}
    assert set(found) == {"onnx-int8", f"onnx-int8 on {device.address.name}"}


def test_from_the_command_line(made, device: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact, _ = made
    file = device.agent.identity.write_device_file(tmp_path / "device.toml", "127.0.0.1", device.address.port)
    shutil.copytree(artifact, tmp_path / "copied")
    workflow.package(tmp_path / "copied", tmp_path / "site.zip")
    asked = ["verify", str(tmp_path / "site.zip"), "--device", str(file)]
    assert cli.main([*asked, "--budget", "size_mb=1,max_ap50_drop=none"]) == 0
    assert "PASSED" in capsys.readouterr().out
    (there,) = verifications(tmp_path / "site.zip")
    assert there.name == f"site.verification.127.0.0.1-{device.address.fingerprint[:8]}.json"
    written = json.loads(there.read_text())
    assert written["machine"]["fingerprint"] == device.address.fingerprint
    assert written["machine"]["runtime"].startswith("onnxruntime ")
    assert cli.main(["verify", str(tmp_path / "site.zip"), "--fingerprint", "0" * 64]) == 2
    assert "name it with --device" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "site.zip"), "--device", str(file), "--budget", "threads=4096"]) == 2
    assert "threads" in capsys.readouterr().err


def test_a_device_that_goes_away_is_no_image_without_detections(made, device: Running, monkeypatch) -> None:
    artifact, scenes = made
    monkeypatch.setattr("acclimate.remote.client.PAUSE_S", 0.0)
    with delivery._on_device(device.address, artifact, None, 1, None) as remote:
        remote.close()
        monkeypatch.setattr(remote._connection, "port", 1)
        with pytest.raises(DeviceError, match="cannot be reached"):
            verify(Artifact.open(artifact), shown(scenes), scope=Scope(runs=3), device=remote)


@pytest.mark.slow
def test_what_was_measured_elsewhere_is_measured_again(made, device: Running, tmp_path: Path) -> None:
    artifact, _ = made
    copied = shutil.copytree(artifact, tmp_path / "copied")
    here = workflow.verify(copied, anew="nothing")
    there = workflow.verify(copied, anew="nothing", device=device.address)
    assert (here.digest, here.machine.get("device")) == (there.digest, None)
    assert there.machine["device"] == device.address.name
    assert workflow.verify(copied, anew="nothing", device=device.address).latency == there.latency
    assert workflow.verify(copied, anew="nothing").latency == here.latency


@pytest.fixture
def hosts() -> Iterator[tuple[str, str, str]]:
    """Two network namespaces joined by a cable: the device's name, the desk's name, the device's address."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts need root and iproute2 (on Debian: apt-get install iproute2)")
    edge, desk = (f"acc-{name}-{os.getpid()}" for name in ("edge", "desk"))

    def ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)

    if (made := ip("netns", "add", edge, check=False)).returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        ip("netns", "add", desk)
        ip("link", "add", "veth-edge", "netns", edge, "type", "veth", "peer", "name", "veth-desk", "netns", desk)
        for name, end, number in ((edge, "veth-edge", 1), (desk, "veth-desk", 2)):
            ip("-n", name, "addr", "add", f"10.203.77.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
        yield edge, desk, "10.203.77.1"
    finally:
        for name in (edge, desk):
            ip("netns", "del", name, check=False)


@pytest.mark.slow
def test_between_two_hosts(made, hosts: tuple[str, str, str], tmp_path: Path) -> None:
    edge, desk, where = hosts
    # Without its run: another process does not know this kind of detector.
    artifact = shutil.copytree(made[0], tmp_path / "site")
    for earlier in verifications(artifact):
        earlier.unlink()
    base.annotate(Artifact.open(artifact), source_run="")
    program = [sys.executable, "-m", "acclimate"]
    agent = subprocess.Popen(
        ["ip", "netns", "exec", edge, *program, "agent", "--home", str(tmp_path / "home"), "--bind", where],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline().startswith(f"listening on {where}:7443")
        while not (tmp_path / "home" / "device.toml").is_file():
            time.sleep(0.05)
        asked = [*program, "verify", str(artifact), "--device", str(tmp_path / "home" / "device.toml")]
        limits = ["--budget", "size_mb=1,max_ap50_drop=none"]
        done = subprocess.run(
            ["ip", "netns", "exec", desk, *asked, *limits], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (file,) = verifications(artifact)
        verified = json.loads(file.read_text())
        known = address(str(tmp_path / "home" / "device.toml"))
        assert verified["machine"]["device"] == f"{where}:7443"
        assert verified["machine"]["fingerprint"] == known.fingerprint
        # From here the device cannot be seen: the two hosts are on a network of their own.
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"{where}:7443: " in done.stderr
    finally:
        agent.terminate()
        assert agent.wait(20) == 0
