"""What a runtime is, the table of runtimes, and how an artifact is written whatever the runtime.

Importing this module, or a runtime's own, needs the base package alone: a device loads artifacts through it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from acclimate import __version__
from acclimate.edge.artifact import Artifact, ArtifactManifest, Calibration, MixedPrecision, Reference
from acclimate.errors import AcclimateError
from acclimate.run import digest, file_digest, write_text, writing

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

Precision = Literal["fp32", "fp16", "int8"]
Network = Callable[[NDArray[np.float32]], list[NDArray[Any]]]
"""The loaded graph: images (1, 3, H, W) float32 RGB 0..255 -> the outputs in the order of the manifest's names."""


class Runtime(Protocol):
    """Exports a detector for one inference engine, and loads what it exported."""

    precisions: ClassVar[tuple[Precision, ...]]
    """What it exports; another one is refused before anything is trained or measured."""

    def export(self, detector: Detector, folder: Path, precision: Precision, calibration: Sequence[Path]) -> Artifact:
        """Write `detector` to `folder` as an artifact; an artifact that is there is replaced.

        Args:
            detector: any device, any mode; left as it was.
            folder: the artifact's folder, whose name becomes the artifact's.
            precision: of weights and activations.
            calibration: unlabelled target images; read for "int8" alone.

        Raises:
            AcclimateError: the runtime cannot carry this precision or detector, no usable calibration image, or
                the folder cannot be written.
        """

    def load(self, artifact: Artifact, threads: int) -> Network:
        """The graph, ready to run on `threads` threads.

        Raises:
            AcclimateError: the runtime is not installed, or does not accept the model file.
        """


class Quantiser(Protocol):
    """A detector's graph with its calibration images, to be quantised with some layers left in floating point."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of what is quantised unless told otherwise, from the input on: each a layer and what follows it."""

    def network(self, in_float: Collection[str]) -> Network:
        """The quantised network, ready to run on one thread, with the layers `in_float` left as they are."""


Choose = Callable[[Quantiser], Collection[str]]
"""Which layers of a graph stay in floating point."""


@runtime_checkable
class Mixes(Protocol):
    """A runtime whose INT8 artifacts may have chosen layers in floating point."""

    def export_mixed(
        self, detector: Detector, folder: Path, calibration: Sequence[Path], choose: Choose | None = None
    ) -> Artifact:
        """`Runtime.export` in INT8, with the layers in fp32 that `choose` names; it may try the graph before.

        Raises:
            AcclimateError: as `Runtime.export` does, and what `choose` raises; no artifact is written then.
        """


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table: where the runtime is, what it needs to load and to export, which extra installs it.

    `also` names a function that says what exporting lacks beside packages, in one line; empty where it lacks nothing.
    """

    target: str
    load: tuple[str, ...]
    export: tuple[str, ...]
    extra: str
    also: str = ""


RUNTIMES = {
    "eager": Entry("acclimate.runtimes.eager:Eager", ("torch",), ("torch", "timm"), "train"),
    "onnx": Entry("acclimate.runtimes.onnx:Onnx", ("onnxruntime",), ("torch", "onnx", "onnxscript"), "train"),
    "openvino": Entry(
        "acclimate.runtimes.openvino:OpenVino",
        ("openvino",),
        ("torch", "onnx", "onnxscript", "openvino", "nncf"),
        "openvino",
    ),
    "ncnn": Entry("acclimate.runtimes.ncnn:Ncnn", ("ncnn",), ("torch", "onnx", "onnxscript", "ncnn", "pnnx"), "ncnn"),
    "litert": Entry(
        "acclimate.runtimes.litert:LiteRt",
        ("ai_edge_litert",),
        ("torch", "ai_edge_litert"),
        "litert",
        "acclimate.runtimes.litert:no_converter",
    ),
}
"""Every runtime, by the name that `--runtime` and the manifest use."""


def runtime(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        AcclimateError: there is none of that name.
    """
    entry = RUNTIMES.get(name)
    if entry is None:
        raise AcclimateError(f"unknown runtime {name!r} (known: {', '.join(RUNTIMES)})")
    return cast(Runtime, _named(entry.target)())


def _named(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def why_not(name: str, purpose: Literal["load", "export"] = "load") -> str:
    """What is missing for a runtime of the table, in one line; empty where nothing is."""
    entry = RUNTIMES[name]
    missing = [module for module in getattr(entry, purpose) if importlib.util.find_spec(module) is None]
    if not missing:
        return str(_named(entry.also)()) if entry.also and purpose == "export" else ""
    extras = {"load": entry.extra, "export": ",".join(dict.fromkeys(["train", entry.extra]))}
    return f"{name} needs {', '.join(missing)}: pip install 'acclimate[{extras[purpose]}]'"


def distributions(name: str) -> list[str]:
    """The packages, as `pip` names them, that bring what the runtime `name` loads artifacts with.

    Raises:
        AcclimateError: there is none of that name, or its packages are not installed.
    """
    runtime(name)
    if missing := why_not(name):
        raise AcclimateError(missing)
    carriers = metadata.packages_distributions()
    return sorted({carriers[module][0] for module in RUNTIMES[name].load})


def engine(name: str) -> str:
    """The package that runs artifacts of the runtime `name` here, with its version.

    Raises:
        AcclimateError: see `distributions`.
    """
    return ", ".join(f"{package} {metadata.version(package)}" for package in distributions(name))


def check_export(name: str, precisions: Sequence[str], key: str) -> None:
    """Refuse what cannot be exported here, before time is spent on what leads up to it.

    Raises:
        AcclimateError: there is no runtime `name`, its packages are missing, or it does not carry one of
            `precisions`, which came from the option `key`.
    """
    carried = runtime(name).precisions
    if missing := why_not(name, "export"):
        raise AcclimateError(missing)
    for precision in precisions:
        if precision not in carried:
            raise AcclimateError(f"{key}: {name} does not export {precision}; choose {' or '.join(carried)}")


def available(purpose: Literal["load", "export"] = "load") -> list[str]:
    """The runtimes whose packages are installed here."""
    return [name for name in RUNTIMES if not why_not(name, purpose)]


def write_artifact(
    name: str,
    detector: Detector,
    folder: Path,
    precision: Precision,
    build: Callable[[Path], None],
    calibration: Calibration | None = None,
    notes: dict[str, Any] | None = None,
) -> Artifact:
    """Let `build` write the model files into an empty folder, then put them in place with their manifest.

    Nothing is seen at `folder` until the artifact is whole; one that is already there stays until then.

    Raises:
        AcclimateError: `folder` holds something that is no artifact, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "artifact.json").exists())):
        raise AcclimateError(f"{folder}: exists and is not an artifact; choose another folder")
    run = folder.parent.parent
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with writing(folder):
            build(temporary)
            manifest = ArtifactManifest(
                name=folder.name,
                runtime=name,
                precision=precision,
                classes=detector.spec.classes,
                image_size=detector.spec.image_size,
                orientation=detector.spec.reading.orientation,
                intensity=detector.spec.reading.intensity,
                output_names=detector.output_names,
                decode=detector.decode_options(),
                files={file.name: file_digest(file) for file in sorted(temporary.iterdir())},
                calibration=calibration,
                source_run=str(run) if (run / "run.json").is_file() else "",
                version=__version__,
                notes=notes or {},
            )
            write_text(temporary / "artifact.json", manifest.model_dump_json(indent=1) + "\n")
            temporary.chmod(0o755)
            if folder.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
                folder.replace(old)
                temporary.replace(folder)
                shutil.rmtree(old)
            else:
                temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Artifact(folder, manifest)


def annotate(
    artifact: Artifact,
    *,
    source_run: str | None = None,
    reference: Reference | None = None,
    mixed: MixedPrecision | None = None,
    **notes: Any,
) -> Artifact:
    """`artifact` with what its manifest lacks: `source_run`, reference, mixed precision and notes; on disk too."""
    manifest = artifact.manifest.model_copy(
        update={
            "source_run": artifact.manifest.source_run if source_run is None else source_run,
            "reference": artifact.manifest.reference if reference is None else reference,
            "mixed": artifact.manifest.mixed if mixed is None else mixed,
            "notes": {**artifact.manifest.notes, **notes},
        }
    )
    write_text(artifact.folder / "artifact.json", manifest.model_dump_json(indent=1) + "\n")
    return Artifact(artifact.folder, manifest)


def check_precision(precision: str, supported: Sequence[str], name: str, why: str) -> None:
    """Refuse a precision that a runtime does not carry.

    Raises:
        AcclimateError: with `why`.
    """
    if precision not in supported:
        raise AcclimateError(f"{name} does not export {precision}: {why}; use {' or '.join(supported)}")


def describe_calibration(paths: Sequence[Path]) -> Calibration:
    """Which images an artifact was calibrated on: how many, from where, and a digest of their names and sizes."""
    folders = sorted({path.parent.name for path in paths})
    return Calibration(
        images=len(paths),
        digest=digest([(path.name, path.stat().st_size) for path in paths]),
        source=", ".join(folders[:3]) + (" ..." if len(folders) > 3 else ""),
    )


def frozen_copy(detector: Detector) -> Detector:
    """A copy to export from: on the CPU, fp32, evaluation mode, without gradients; the original stays as it is.

    Of a slimmable detector it is the plain one of the width that it has.

    Raises:
        AcclimateError: a weight is not finite.
    """
    import torch

    from acclimate.models.slimmable import SlimmableDetector

    copied = detector.extract() if isinstance(detector, SlimmableDetector) else copy.deepcopy(detector)
    copied = copied.cpu().float().eval().requires_grad_(False)
    broken = [name for name, value in copied.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise AcclimateError(
            f"the detector's weights are not finite ({len(broken)} tensors, first {broken[0]}): its training diverged; "
            "train again with a smaller learning rate"
        )
    return copied


def complexity(frozen: Detector) -> dict[str, float]:
    """Multiply-accumulates of one image (millions, convolutions and matrix products) and the parameters.

    Args:
        frozen: what `frozen_copy` returns.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        frozen(torch.zeros(1, 3, *frozen.spec.image_size))
    return {
        "macs_m": round(counter.get_total_flops() / 2e6, 3),
        "parameters": sum(parameter.numel() for parameter in frozen.parameters()),
    }


def check_same(name: str, run: Network, frozen: Detector) -> None:
    """Refuse a conversion that computes something else, as converters do with operations that they half know.

    It is held to 5 % of the largest value of each output, on noise: what tells right from wrong, not good from better,
    which `acclimate verify` tells on real images.

    Args:
        name: the runtime's.
        run: the converted network.
        frozen: what it was converted from.

    Raises:
        AcclimateError: an output differs.
    """
    import torch

    image = np.random.default_rng(0).uniform(0, 255, (1, 3, *frozen.spec.image_size)).astype(np.float32)
    with torch.inference_mode():
        expected = [output.numpy() for output in frozen(torch.from_numpy(image))]
    for output, ours, theirs in zip(frozen.output_names, run(image), expected, strict=True):
        if ours.shape != theirs.shape or not np.abs(ours - theirs).max() <= 0.05 * max(1.0, np.abs(theirs).max()):
            raise AcclimateError(f"{name} computes {output} of this detector wrongly; use another runtime")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print progress and warn about their own deprecations; none of it is for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
