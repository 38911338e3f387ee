"""What `acclimate doctor` sees, on this machine and on ones described to it."""

from __future__ import annotations

import io
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from acclimate import doctor, installation
from acclimate.doctor import Check
from acclimate.installation import hint
from acclimate.models import weights

X86 = """\
processor	: 0
model name	: Some Processor
flags		: fpu sse2 avx2 avx512f avx512_vnni amx_int8

processor	: 1
model name	: Some Processor
flags		: fpu sse2 avx2 avx512f avx512_vnni amx_int8
"""
ARM = """\
processor	: 0
Features	: fp asimd evtstrm crc32 asimddp
Model		: Small Board Model B
"""


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def printed(checks: list[Check], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    doctor.show(checks, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Let the named distributions (dashes as underscores) have these versions; None removes one."""
    real = metadata.version

    def version(package: str) -> str:
        key = package.replace("-", "_")
        if key not in versions:
            return real(package)
        found = versions[key]
        if found is None:
            raise metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(metadata, "version", version)


def test_nothing_required_is_missing_here() -> None:
    checks = doctor.diagnose()
    assert not doctor.required_missing(checks)
    found = by_name(checks)
    assert platform.python_version() in found["Python"].detail
    assert found["numpy"].detail == metadata.version("numpy")
    assert "CPU" in found["onnxruntime"].detail
    assert "GiB" in found["memory"].detail
    assert {"machine", "device", "training", "runtimes", "extras"} == {check.area for check in checks}


def test_the_first_look_imports_nothing_heavy() -> None:
    program = (
        "import sys; from acclimate import doctor; doctor.show(doctor.diagnose());"
        "sys.exit(bool({'torch', 'torchvision', 'timm', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_processors_features_are_named() -> None:
    assert doctor.cpu_features(X86) == ["AVX2", "AVX-512", "AVX-512 VNNI", "AMX INT8"]
    assert doctor.cpu_features(ARM) == ["NEON", "dot product"]
    assert doctor.cpu_features("") == []
    assert doctor.cpu_features("vulnerability: avx2 not affected") == []


@pytest.mark.parametrize(("text", "name", "state"), [(X86, "Some Processor", "ok"), (ARM, "Small Board", "ok")])
def test_the_processor_is_read(monkeypatch: pytest.MonkeyPatch, text: str, name: str, state: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    check = doctor._processor()
    assert check.state == state
    assert name in check.detail


def test_a_processor_without_int8_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "model name : Old\nflags : sse2 avx2\n")
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    check = doctor._processor()
    assert check.state == "warn"
    assert "INT8" in check.way_out


def test_the_disk_of_a_folder_that_is_not_there_yet_is_its_parents(tmp_path: Path) -> None:
    check = by_name(doctor.diagnose(folder=tmp_path / "runs" / "new"))["disk"]
    assert str(tmp_path) in check.detail
    assert not (tmp_path / "runs").exists()


def test_a_device_without_the_training_extra_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [requirement.name for requirement in installation.required("train")]
    assert "torch" in names
    pretend(monkeypatch, **dict.fromkeys(names))
    checks = doctor.diagnose()
    assert not doctor.required_missing(checks)
    training = [check for check in checks if check.area == "training"]
    assert [(check.name, check.state) for check in training] == [("extra train", "absent")]
    assert training[0].way_out == hint("train")


def test_a_required_package_that_is_absent_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, simplejpeg=None)
    checks = doctor.diagnose()
    assert doctor.required_missing(checks)
    assert by_name(checks)["simplejpeg"].way_out
    assert "acclimate cannot work here yet: simplejpeg" in printed(checks)


def test_a_release_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, numpy="1.20.0", timm="0.4.12")
    found = by_name(doctor.diagnose())
    for name, release in (("numpy", "1.20.0"), ("timm", "0.4.12")):
        assert found[name].state == "warn"
        assert f"{release}, but {name}>=" in found[name].detail


def test_another_build_of_opencv_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, opencv_python_headless=None, opencv_python="4.12.0")
    assert by_name(doctor.diagnose())["opencv-python-headless"].state == "ok"


def test_onnxruntime_that_does_not_load_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert by_name(doctor.diagnose())["onnxruntime"].state == "missing"


@pytest.mark.parametrize(
    ("torch", "stated", "fits"),
    [
        ("2.14.1", ["numpy", "torch>=2.14.0"], True),
        ("2.14.1+cu130", ["torch>=2.14.0"], True),
        ("2.13.0", ["torch>=2.14.0"], False),
        ("2.13.0+cpu", ["torch (>=2.14.0)"], False),
        ("2.11.0+cpu", ["torch==2.11.0"], True),
        ("2.12.0", ["torch==2.11.0"], False),
        ("2.12.0", ["numpy", "torch==2.11.0; extra == 'other'"], True),
        ("2.12.0", None, True),
    ],
)
def test_torchvision_that_wants_another_torch_is_told(
    monkeypatch: pytest.MonkeyPatch, torch: str, stated: list[str] | None, fits: bool
) -> None:
    pretend(monkeypatch, torch=torch, torchvision="0.99.0")
    real = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda package: stated if package == "torchvision" else real(package))
    check = by_name(doctor.diagnose())["torchvision"]
    assert check.state == ("ok" if fits else "warn")
    assert fits or (torch in check.detail and "constraints.txt" in check.way_out)


def test_switched_off_downloads_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "PACKAGED", {})
    check = by_name(doctor.diagnose())["pretrained weights"]
    assert check.state == "warn"
    assert "model.weights" in check.way_out
    (tmp_path / "models--timm--lcnet_050.ra2_in1k").mkdir()
    kept = by_name(doctor.diagnose())["pretrained weights"]
    assert kept.state == "ok"
    assert "1 kept" in kept.detail


def test_a_deep_look_imports_torch_and_asks_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "_reachable", lambda host: bool(asked.append(host)))
    found = by_name(doctor.diagnose(deep=True))
    assert asked == [doctor.HUB]
    assert "does not answer" in found["pretrained weights"].detail
    assert found["CUDA"].state == "ok"


def test_torch_that_does_not_load_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    checks = [check for check in doctor.diagnose(deep=True) if check.detail.startswith("cannot be imported")]
    assert [(check.name, check.state) for check in checks] == [("torch", "warn")]
    assert "\n" not in checks[0].detail


def test_an_unreachable_host_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: tuple[str, int], timeout: float) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(doctor.socket, "create_connection", refuse)
    assert doctor._reachable("nowhere.invalid") is False


def test_brackets_are_printed_as_they_are() -> None:
    check = Check("training", "extra [train]", "warn", "[red]", "pip install 'acclimate[train]'")
    text = printed([check])
    assert "acclimate[train]" in text
    assert "extra [train]" in text
    assert "[red]" in text


def test_a_narrow_terminal_leaves_commands_whole() -> None:
    check = Check("device", "numpy", "missing", "not installed", "pip install --force-reinstall acclimate")
    assert "numpy: pip install --force-reinstall acclimate\n" in printed([check], width=30)


def test_every_runtime_of_the_table_has_a_line() -> None:
    from acclimate.edge.engines import ENGINES

    lines = [check for check in doctor.diagnose() if check.area == "runtimes"]
    assert [check.name for check in lines] == list(ENGINES)


def test_the_extras_that_no_other_line_lists_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cryptography=None, h11="0.1", river="0.22.0")
    found = by_name(doctor.diagnose())
    assert (found["extra watch"].state, found["extra watch"].way_out) == ("ok", "")
    assert "river 0.22.0" in found["extra watch"].detail
    assert found["extra agent"].state == "warn"
    assert "cryptography not installed, h11 0.1, but h11>=" in found["extra agent"].detail
    assert found["extra agent"].way_out == hint("agent")
    stated = {name for name in metadata.metadata("acclimate").get_all("Provides-Extra", []) if name != "dev"}
    runtimes = {check.name for check in doctor.diagnose() if check.area == "runtimes"}
    assert stated <= {"train", *runtimes, *doctor.EXTRAS}


def test_a_runtime_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from acclimate.edge.engines.ncnn import Ncnn

    monkeypatch.setattr(Ncnn, "packages", ("no_such_package",))
    check = by_name(doctor.diagnose())["ncnn"]
    assert check.state == "absent"
    assert check.way_out == f"ncnn needs no_such_package: {hint('ncnn')}"
