"""Loading, the same for every engine: it needs its own package alone, finds outputs by name, and says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import coloured_squares as squares
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact, ArtifactManifest
from acclimate.edge.engines.base import Engine, Network
from acclimate.errors import AcclimateError
from acclimate.export import EXPORTERS, exporter
from acclimate.installation import hint
from acclimate.run import file_digest

TRAINING = ("torch", "onnx", "timm", "onnxscript", "nncf", "pnnx", "litert_torch", "torchao")
SLOW = {"litert", "executorch"}
"""Converters that take seconds for the smallest network."""
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in engines.ENGINES]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """What was exported here so far, by engine; see `artifact`."""
    return {}


@pytest.fixture
def artifact(
    request: pytest.FixtureRequest, artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """An fp32 artifact for the engine that the test is about."""
    name: str = request.param
    if missing := exporter(name).missing():
        pytest.skip(missing)
    if name not in artifacts:
        folder = tmp_path_factory.mktemp("artifacts") / f"{name}-fp32"
        artifacts[name] = exporter(name).export(squares.SquareDetector(), folder, "fp32")
    return artifacts[name]


def load(artifact: Artifact, threads: int = 1) -> Network:
    return engines.engine(artifact.manifest.runtime).load(artifact, threads)


def test_what_is_exported_can_be_loaded_and_what_is_loaded_exported() -> None:
    assert list(engines.ENGINES) == list(EXPORTERS)
    for name in engines.ENGINES:
        assert engines.engine(name).name == exporter(name).name == name
    assert {"onnx"} <= set(engines.available()) <= set(engines.ENGINES)


def test_an_unknown_engine_is_refused_with_those_that_are_known() -> None:
    known = "executorch, litert, ncnn, onnx, openvino"
    with pytest.raises(AcclimateError, match=rf"unknown runtime 'tflite' \(known: {known}\)"):
        engines.engine("tflite")


class Absent(Engine):
    name: ClassVar[str] = "engine"
    packages: ClassVar[tuple[str, ...]] = ("json", "no_such_engine")
    extra: ClassVar[str] = "engine"

    def open(self, artifact: Artifact, threads: int) -> Network:
        raise AssertionError("it is not installed")


def test_what_is_missing_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.ENGINES, "engine", __name__)
    said = f"engine needs no_such_engine: {hint('engine')}"
    assert engines.engine("engine").missing() == said
    assert "engine" not in engines.available()
    manifest = ArtifactManifest(
        name="a",
        runtime="engine",
        precision="fp32",
        classes=("a",),
        image_size=(32, 32),
        decode=squares.SquareDetector().decode_options(),
    )
    for asked in (
        lambda: engines.engine("engine").load(Artifact(Path("a"), manifest), 1),
        engines.engine("engine").distributions,
        engines.engine("engine").version,
    ):
        with pytest.raises(AcclimateError) as caught:
            asked()
        assert str(caught.value) == said


def test_the_version_names_the_package_that_pip_knows() -> None:
    from importlib import metadata

    assert engines.engine("onnx").version() == f"onnxruntime {metadata.version('onnxruntime')}"


@pytest.mark.parametrize("artifact", EVERY, indirect=True)
def test_loading_needs_its_own_package_alone(artifact: Artifact) -> None:
    """And nobody is told of it: OpenVINO reports its use unless the package for that is absent."""
    engine = engines.engine(artifact.manifest.runtime)
    own = engine.packages
    if "torch" in engine.distributions():
        pytest.skip("its runtime without torch is for Python 3.12 and newer")
    others = [package for name in engines.ENGINES for package in engines.engine(name).packages if package not in own]
    program = (
        "import sys\n"
        f"for name in {[*TRAINING, *others]}: sys.modules[name] = None\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from acclimate.edge.predict import Predictor\n"
        f"found = Predictor.load(Path({str(artifact.folder)!r}))(np.zeros((50, 60, 3), np.uint8))\n"
        "print(len(found), 'openvino_telemetry' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0 False\n"), done.stderr


@pytest.mark.parametrize("artifact", EVERY, indirect=True)
def test_outputs_come_in_the_order_of_the_manifest(artifact: Artifact) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, *squares.CANVAS)).astype(np.float32)
    turned = artifact.manifest.model_copy(update={"output_names": artifact.manifest.output_names[::-1]})
    for ours, theirs in zip(load(Artifact(artifact.folder, turned))(image), load(artifact)(image)[::-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("artifact", EVERY, indirect=True)
def test_what_is_read_next_leaves_what_was_read_before_and_the_image(artifact: Artifact) -> None:
    """ncnn's first layer, a division here, computes in place where it may."""
    run = load(artifact)
    first = run(np.zeros((1, 3, *squares.CANVAS), np.float32))
    before = [output.copy() for output in first]
    image = np.full((1, 3, *squares.CANVAS), 255, np.float32)
    run(image)
    assert (image == 255).all()
    for a, b in zip(first, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("artifact", EVERY, indirect=True)
def test_a_damaged_file_is_one_line(artifact: Artifact, tmp_path: Path) -> None:
    for name in artifact.manifest.files:
        (tmp_path / name).write_bytes(b"nothing")
    files = {name: file_digest(tmp_path / name) for name in artifact.manifest.files}
    damaged = Artifact(tmp_path, artifact.manifest.model_copy(update={"files": files}))
    said = r"model\.\w+: (ONNX Runtime|OpenVINO|ncnn|LiteRT|ExecuTorch) does not accept"
    with pytest.raises(AcclimateError, match=said) as it:
        load(damaged)
    assert "\n" not in str(it.value)


@pytest.mark.parametrize("artifact", EVERY, indirect=True)
def test_an_output_of_another_name_is_told(artifact: Artifact) -> None:
    manifest = artifact.manifest.model_copy(update={"output_names": ("logits", "sides")})
    with pytest.raises(AcclimateError, match=r"has no (input or )?output sides; export the artifact again"):
        load(Artifact(artifact.folder, manifest))


@pytest.mark.parametrize("artifact", ["openvino"], indirect=True)
def test_openvino_computes_in_fp32_on_the_threads_that_are_asked_for(artifact: Artifact, monkeypatch) -> None:
    """Left to itself it takes bfloat16 where the processor has it."""
    from acclimate.edge.engines.openvino import package

    asked = {}
    real = package().Core.compile_model

    def spy(self, *arguments, **options):
        compiled = real(self, *arguments, **options)
        asked.update({key: compiled.get_property(key) for key in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS")})
        return compiled

    monkeypatch.setattr(package().Core, "compile_model", spy)
    for threads in (1, 2):
        load(artifact, threads)
        assert asked["INFERENCE_NUM_THREADS"] == threads
        assert asked["INFERENCE_PRECISION_HINT"].get_type_name() == "f32"


@pytest.mark.parametrize("artifact", ["onnx"], indirect=True)
def test_onnx_runs_on_the_threads_that_are_asked_for(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked = []
    real = onnxruntime.InferenceSession

    def spy(file: str, options: onnxruntime.SessionOptions, providers: Sequence[str]) -> onnxruntime.InferenceSession:
        asked.append((options.intra_op_num_threads, list(providers)))
        return real(file, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    for threads in (1, 2):
        load(artifact, threads)
    assert asked == [(1, ["CPUExecutionProvider"]), (2, ["CPUExecutionProvider"])]


@pytest.mark.parametrize("artifact", ["ncnn"], indirect=True)
def test_ncnn_runs_on_the_threads_that_are_asked_for(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import ncnn

    made = []
    monkeypatch.setattr(ncnn, "Net", lambda real=ncnn.Net: made.append(real()) or made[-1])
    for threads in (1, 2):
        load(artifact, threads)
        assert made[-1].opt.num_threads == threads


@pytest.mark.slow
@pytest.mark.parametrize("artifact", ["executorch"], indirect=True)
def test_executorch_runs_each_network_on_the_threads_that_it_asked_for(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads are one pool a process, which a network that was loaded before must not use once it is another."""
    from acclimate.edge.engines import executorch

    monkeypatch.setattr(executorch, "_POOL", executorch._Pool())
    asked: list[int] = []
    for runtime in (executorch._Light, executorch._Whole):
        real = runtime.set_threads
        monkeypatch.setattr(
            runtime, "set_threads", lambda self, threads, real=real: (asked.append(threads), real(self, threads))
        )
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, *squares.CANVAS)).astype(np.float32)
    one, two = load(artifact, 1), load(artifact, 2)
    expected = one(image)
    for run in (two, two, one, two):
        for ours, theirs in zip(run(image), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert asked == [1, 2, 1, 2, 1, 2]


def test_litert_runs_on_the_threads_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its converter is often not there: the file is none, and is refused after it was asked for."""
    if missing := engines.engine("litert").missing():
        pytest.skip(missing)
    from ai_edge_litert import interpreter

    asked = []

    class Spy(interpreter.Interpreter):
        def __init__(self, **options: object) -> None:
            asked.append(options["num_threads"])
            super().__init__(**options)

    monkeypatch.setattr(interpreter, "Interpreter", Spy)
    file = tmp_path / "model.tflite"
    file.write_bytes(b"not a model")
    manifest = ArtifactManifest(
        name="a",
        runtime="litert",
        precision="fp32",
        classes=("a",),
        image_size=(32, 32),
        decode=squares.SquareDetector().decode_options(),
        files={file.name: file_digest(file)},
    )
    for threads in (1, 2):
        with pytest.raises(AcclimateError, match=r"model\.tflite: LiteRT does not accept it") as caught:
            engines.engine("litert").load(Artifact(tmp_path, manifest), threads)
        assert "\n" not in str(caught.value)
    assert asked == [1, 2]
