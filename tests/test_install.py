"""The base package alone, in an empty environment: what a device gets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest

pytestmark = [pytest.mark.install, pytest.mark.slow]

TRAINING = {"torch", "torchvision", "timm", "accelerate", "onnx", "onnxscript", "safetensors", "hotcoco", "scipy"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The bin folder of an empty environment with the wheel in it that is built from the source distribution."""
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        pytest.skip("no uv here to make an environment with (make environment)")
    folder = tmp_path_factory.mktemp("device")
    pins = str(repository / "constraints.txt")
    build = [uv, "build", "--quiet", "--python", sys.executable, "--build-constraints", pins, "--out-dir", "dist"]
    subprocess.run([*build, str(repository)], cwd=folder, check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, "env"], cwd=folder, check=True)
    python = folder / "env" / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--constraints", pins, str(wheel)]
    subprocess.run(install, cwd=folder, check=True)
    return python.parent


def test_what_is_built_holds_the_package_and_nothing_else(base: Path, repository: Path) -> None:
    dist = base.parents[1] / "dist"
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    named = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (repository / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert named == {path.relative_to(repository / "src").as_posix() for path in files}
    with tarfile.open(source) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert tops == {
        "src",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "constraints.txt",
        "PKG-INFO",
        ".gitignore",
    }
    told = metadata.PathDistribution(next((base.parent).glob("lib/*/site-packages/acclimate-*.dist-info"))).metadata
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == "<3.14,>=3.11"
    assert told.get_all("Project-URL") is None, "there is no place yet that an address could be true of"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told["Keywords"]


def acclimate(base: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(base / "acclimate"), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_base_package_brings_no_training_library(base: Path) -> None:
    program = "from importlib import metadata; print(*(d.name.lower() for d in metadata.distributions()))"
    done = subprocess.run([str(base / "python"), "-c", program], capture_output=True, text=True, check=True)
    installed = set(done.stdout.split())
    assert "acclimate" in installed
    assert installed & TRAINING == set()
    assert not [name for name in installed if name.startswith("nvidia")]


def test_everything_for_the_device_loads(base: Path, tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, acclimate, acclimate.edge, acclimate.edge.engines.onnx, acclimate.export.onnx\n"
        "for found in pkgutil.iter_modules(acclimate.edge.__path__):\n"
        "    importlib.import_module(f'acclimate.edge.{found.name}')\n"
        "print(acclimate.__file__)\n"
    )
    done = subprocess.run(
        [str(base / "python"), "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(base.parent)


def test_the_doctor_is_content_and_help_answers(base: Path, tmp_path: Path) -> None:
    doctor = acclimate(base, tmp_path, "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert re.search(r"\[[a-z,]*train[a-z,]*\]", doctor.stdout)
    assert "predict" in acclimate(base, tmp_path, "--help").stdout


def test_a_verb_that_needs_training_says_how_to_get_it(base: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "images").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "set" / "images" / "1.png"), np.zeros((64, 64, 3), np.uint8))
    index = {
        "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 30, 30]}],
        "categories": [{"id": 1, "name": "car"}],
    }
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(index))
    (tmp_path / "job.toml").write_text('[source]\npath = "set"\n')
    done = acclimate(base, tmp_path, "train", "job.toml", "--out", "runs/source")
    assert done.returncode == 2
    assert "[train]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_agent_says_how_to_get_what_it_needs(base: Path, tmp_path: Path) -> None:
    done = acclimate(base, tmp_path, "agent")
    assert done.returncode == 2
    assert "[agent]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_detects_there_what_it_detects_here(base: Path, tmp_path: Path) -> None:
    import torch

    from acclimate.config import ModelConfig
    from acclimate.edge.predict import predict_folder
    from acclimate.export import exporter
    from acclimate.models import detector as models

    torch.manual_seed(0)
    detector = models.build(models.specify(ModelConfig(size="nano", image_size=(96, 128)), ["car"]), "none").eval()
    artifact = exporter("onnx").export(detector, tmp_path / "artifact", "fp32", ())
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "1.png"), picture)

    done = acclimate(base, tmp_path, "predict", "artifact", "images", "--out", "there", "--threshold", "0.005")
    assert done.returncode == 0, done.stdout + done.stderr
    # The same as a package, packed there and run by itself.
    packed = acclimate(base, tmp_path, "package", "artifact", "--out", "site.zip")
    assert packed.returncode == 0, packed.stdout + packed.stderr
    (tmp_path / "artifact").rename(tmp_path / "away")
    done = subprocess.run(
        [str(base / "python"), "site.zip", "predict", "images", "--out", "packed", "--threshold", "0.005"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "away").rename(tmp_path / "artifact")
    predict_folder(artifact.folder, tmp_path / "images", tmp_path / "here", threshold=0.005)
    (there,) = json.loads((tmp_path / "there" / "detections.json").read_text())["images"]
    (from_package,) = json.loads((tmp_path / "packed" / "detections.json").read_text())["images"]
    (here,) = json.loads((tmp_path / "here" / "detections.json").read_text())["images"]
    assert here["detections"]
    assert there["detections"] == here["detections"]
    assert from_package["detections"] == here["detections"]
