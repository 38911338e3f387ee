"""What every export shares: it is checked, the detector frozen, the artifact named, tried on its engine and written.

Importing this module, or an exporter's own, needs the base package alone; torch is imported when something is exported.
"""

from __future__ import annotations

import abc
import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import cv2
import numpy as np

from acclimate.edge import engines
from acclimate.edge.artifact import (
    Artifact,
    ArtifactManifest,
    Calibration,
    HalfPrecision,
    MixedPrecision,
    Notes,
    Reference,
    write_manifest,
)
from acclimate.edge.engines.base import Network, not_installed
from acclimate.edge.images import DEFAULT, Reading, letterbox, read_image, to_input
from acclimate.errors import AcclimateError
from acclimate.run import digest, file_digest, writing_folder
from acclimate.structures import Image

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

log = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "int8"]
INPUT = "images"
"""What the graph's input is called."""
THUMBNAIL = (48, 64)
"""(height, width) on which an image is asked whether it shows something."""
FLAT = 2.0
"""A standard deviation of the grey values, of 255, below which it is of one colour."""
UNRELATED = 0.25
"""A correlation of neighbouring places below which it is noise."""


class Graph(Protocol):
    """A detector's graph with its calibration images, to be quantised with some layers left in floating point."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of what is quantised unless told otherwise, from the input on: each a layer and what follows it."""

    def write(self, folder: Path, in_float: Collection[str] = ()) -> None:
        """Write the model files of the INT8 version into `folder`, with the layers `in_float` left as they are."""


class Quantiser:
    """A `Graph` that can be tried: what `Choose` looks at."""

    def __init__(self, graph: Graph, load: Callable[[Path], Network]) -> None:
        self._graph, self._load = graph, load

    @property
    def layers(self) -> Sequence[str]:
        """See `Graph.layers`."""
        return self._graph.layers

    def network(self, in_float: Collection[str]) -> Network:
        """The quantised network, ready to run on one thread, with the layers `in_float` left in floating point."""
        # A folder of its own: an engine may map the files, which another trial must not write into.
        with tempfile.TemporaryDirectory() as folder:
            self._graph.write(Path(folder), in_float)
            return self._load(Path(folder))


Choose = Callable[[Quantiser], Collection[str]]
"""Which layers of a graph stay in floating point."""


class Exporter(abc.ABC):
    """Exports a detector for one engine. A subclass converts, and quantises where it carries INT8; no more."""

    name: ClassVar[str]
    """The engine's."""
    precisions: ClassVar[tuple[Precision, ...]]
    """What it exports; another one is refused before anything is trained or measured."""
    why_no_other: ClassVar[str]
    """The reason, for whoever asks for another one."""
    packages: ClassVar[tuple[str, ...]]
    """Modules that exporting imports beside torch and the engine's own."""
    extra: ClassVar[str] = ""
    """The extra of acclimate that installs them where neither `train` nor the engine's does."""
    compared: ClassVar[bool] = False
    """Whether a floating-point network is held against the detector, as its converter half knows some operations."""

    def export(
        self,
        detector: Detector,
        folder: Path,
        precision: Precision,
        calibration: Sequence[Path] = (),
        choose: Choose | None = None,
    ) -> Artifact:
        """Write `detector` to `folder` as an artifact; an artifact that is there is replaced.

        Nothing is seen at `folder` until the artifact is whole; one that is already there stays until then.

        Args:
            detector: any device, any mode; left as it was.
            folder: the artifact's folder, whose name becomes the artifact's.
            precision: of weights and activations. INT8 keeps the last layers in fp32, and mostly the first.
            calibration: unlabelled target images; read for "int8" alone.
            choose: names further layers of INT8 that stay in fp32; it may try the graph before.

        Raises:
            AcclimateError: the engine cannot carry this precision or detector, a package is missing, no calibration
                image is usable, `folder` holds something that is no artifact or cannot be written; and what `choose`
                raises. No artifact is written then.
        """
        if precision not in self.precisions:
            known = " or ".join(self.precisions)
            raise AcclimateError(f"{self.name} does not export {precision}: {self.why_no_other}; use {known}")
        if missing := self.missing():
            raise AcclimateError(missing)
        frozen = frozen_copy(detector)
        canvases: list[Image] = []
        calibrated = None
        if precision == "int8":
            canvases, used = calibration_canvases(calibration, frozen.spec.image_size, frozen.spec.reading)
            calibrated = describe_calibration(used, canvases)
        manifest = self._manifest(Path(folder), frozen, precision, calibrated)
        manifest = manifest.model_copy(update={"notes": complexity(frozen, self.made_with())})

        def build(place: Path) -> HalfPrecision | None:
            if precision != "int8":
                half = self.convert(frozen, place, precision)
                if self.compared:
                    self.compare(frozen, place, precision)
                return half
            with tempfile.TemporaryDirectory() as scratch:
                graph = self.quantise(frozen, canvases, Path(scratch))
                tried = Quantiser(graph, lambda trial: self._network(trial, manifest))
                graph.write(place, choose(tried) if choose is not None else ())
            check_finite(self._network(place, manifest), canvases[:4])
            return None

        return write_artifact(Path(folder), manifest, build)

    @abc.abstractmethod
    def convert(self, frozen: Detector, folder: Path, precision: Precision) -> HalfPrecision | None:
        """Write the model files of a floating-point network into `folder`; which layers had to stay out of fp16.

        The input is called `INPUT`, and the outputs as `frozen.output_names` says.

        Args:
            frozen: what `frozen_copy` returns.
            folder: empty.
            precision: one of `precisions`, but for INT8.
        """

    def quantise(self, frozen: Detector, canvases: Sequence[Image], scratch: Path) -> Graph:
        """The detector's graph, ready to be quantised; of an exporter that carries INT8.

        Args:
            frozen: what `frozen_copy` returns.
            canvases: calibration images, (H, W, 3) uint8, RGB.
            scratch: a folder for as long as the graph is used.
        """
        raise NotImplementedError(f"{self.name} carries no INT8")

    def compare(self, frozen: Detector, folder: Path, precision: Precision) -> None:
        """Refuse what `convert` wrote into `folder` where it does not compute what the detector does.

        Raises:
            AcclimateError: see `check_same`.
        """
        check_same(self.name, self._network(folder, self._manifest(folder, frozen, precision, None)), frozen, precision)

    def missing(self) -> str:
        """What is not installed of what exporting needs, in one line; empty where nothing is."""
        engine = engines.engine(self.name)
        extra = ",".join(filter(None, ("train", engine.extra, self.extra)))
        return not_installed(self.name, list(dict.fromkeys(("torch", *self.packages, *engine.packages))), extra)

    def made_with(self) -> tuple[str, ...]:
        """The packages that export here, with their versions."""
        carriers = metadata.packages_distributions()
        modules = ("torch", *self.packages, *engines.engine(self.name).packages)
        found = sorted({carriers[module][0] for module in modules if module in carriers})
        return tuple(f"{package} {metadata.version(package)}" for package in found)

    def _manifest(
        self, folder: Path, frozen: Detector, precision: Precision, calibration: Calibration | None
    ) -> ArtifactManifest:
        from acclimate.models.predict import manifest_of

        run = folder.parent.parent
        return manifest_of(frozen, folder.name, self.name, precision).model_copy(
            update={"calibration": calibration, "source_run": str(run) if (run / "run.json").is_file() else ""}
        )

    def _network(self, folder: Path, manifest: ArtifactManifest) -> Network:
        """The model files in `folder` on their engine, on one thread."""
        return engines.engine(self.name).load(_artifact(folder, manifest), 1)


def _artifact(folder: Path, manifest: ArtifactManifest) -> Artifact:
    """An artifact of the model files that are in `folder`."""
    files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
    return Artifact(folder, manifest.model_copy(update={"files": files}))


def write_artifact(folder: Path, manifest: ArtifactManifest, build: Callable[[Path], HalfPrecision | None]) -> Artifact:
    """Let `build` write the model files into an empty folder, then put them in place with their manifest.

    Raises:
        AcclimateError: `folder` holds something that is no artifact, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "artifact.json").exists())):
        raise AcclimateError(f"{folder}: exists and is not an artifact; choose another folder")
    with writing_folder(folder) as temporary:
        half = build(temporary)
        written = _artifact(temporary, manifest.model_copy(update={"half": half})).manifest
        written = write_manifest(temporary, written)
    return Artifact(folder, written)


def annotate(
    artifact: Artifact,
    *,
    source_run: str | None = None,
    reference: Reference | None = None,
    mixed: MixedPrecision | None = None,
    calibration: Calibration | None = None,
    suggested: Mapping[str, float] | None = None,
    identity: str | None = None,
) -> Artifact:
    """`artifact` with what its manifest lacks, which is what is given; on disk too.

    Args:
        artifact: whose manifest is written.
        source_run: the run that it was exported from.
        reference: what its domain looks like.
        mixed: the layers that stay in fp32.
        calibration: what INT8 was calibrated on.
        suggested: a threshold for each class, by its name.
        identity: digest of the weights and options that it was made from.
    """
    manifest = artifact.manifest.model_copy(
        update={
            "source_run": artifact.manifest.source_run if source_run is None else source_run,
            "reference": artifact.manifest.reference if reference is None else reference,
            "mixed": artifact.manifest.mixed if mixed is None else mixed,
            "calibration": artifact.manifest.calibration if calibration is None else calibration,
            "suggested": artifact.manifest.suggested if suggested is None else dict(suggested),
            "notes": artifact.manifest.notes.model_copy(update={} if identity is None else {"identity": identity}),
        }
    )
    return Artifact(artifact.folder, write_manifest(artifact.folder, manifest))


def describe_calibration(paths: Sequence[Path], canvases: Sequence[Image]) -> Calibration:
    """Which images an artifact is calibrated on: how many, from where, a digest of their contents, how many are empty.

    Args:
        paths: image files.
        canvases: what they show, (H, W, 3) uint8, RGB.
    """
    folders = sorted({path.parent.name for path in paths})
    return Calibration(
        images=len(paths),
        digest=digest([file_digest(path) for path in paths]),
        empty=sum(shows_nothing(canvas) for canvas in canvases),
        source=", ".join(folders[:3]) + (" ..." if len(folders) > 3 else ""),
    )


def shows_nothing(image: Image) -> bool:
    """Whether an image (H, W, 3) is of one colour, or noise: neighbouring places of it have nothing in common.

    Noise of a camera averages out over the places of a thumbnail, so a dark or grainy picture shows something.
    """
    size = (min(THUMBNAIL[1], image.shape[1]), min(THUMBNAIL[0], image.shape[0]))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32).mean(axis=2)
    # What a letterbox fills is no content.
    rows, columns = (small.std(axis=axis) > 0 for axis in (1, 0))
    small = small[rows][:, columns]
    if small.size < 16 or small.std() < FLAT:
        return True
    centred = small - small.mean()
    neighbours = ((centred[:, 1:] * centred[:, :-1]).mean(), (centred[1:] * centred[:-1]).mean())
    return bool(max(neighbours) < UNRELATED * centred.var())


def frozen_copy(detector: Detector) -> Detector:
    """A copy to export from: on the CPU, fp32, evaluation mode, without gradients; the original stays as it is.

    Of a bank it is the plain one of the width or path that it has; parts that have another form for the device
    (`models.deploy`) have that.

    Raises:
        AcclimateError: a weight is not finite.
    """
    import torch

    from acclimate.models.deploy import deploy

    copied = detector.plain().cpu().float().eval().requires_grad_(False)
    broken = [name for name, value in copied.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise AcclimateError(
            f"the detector's weights are not finite ({len(broken)} tensors, first {broken[0]}): its training diverged; "
            "train again with a smaller learning rate"
        )
    deploy(copied)
    return copied.requires_grad_(False)


def complexity(frozen: Detector, made_with: tuple[str, ...] = ()) -> Notes:
    """Multiply-accumulates and parameters of what `frozen_copy` returns; `made_with` is noted beside them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        frozen(torch.zeros(1, 3, *frozen.spec.image_size))
    return Notes(
        macs_m=round(counter.get_total_flops() / 2e6, 3),
        parameters=sum(parameter.numel() for parameter in frozen.parameters()),
        made_with=made_with,
        eager_only=("masks",) if frozen.spec.has_masks else (),
    )


def check_same(name: str, run: Network, frozen: Detector, precision: Precision = "fp32") -> None:
    """Refuse a conversion that computes something else, as converters do with operations that they half know.

    It is held to 5 % of the largest value of each output, on noise: what tells right from wrong, not good from better,
    which `acclimate verify` tells on real images.

    Args:
        name: the runtime's.
        run: the converted network.
        frozen: what it was converted from.
        precision: to what.

    Raises:
        AcclimateError: an output differs, or there is none.
    """
    import torch

    image = np.random.default_rng(0).uniform(0, 255, (1, 3, *frozen.spec.image_size)).astype(np.float32)
    with torch.inference_mode():
        expected = [output.numpy() for output in frozen(torch.from_numpy(image))]
    try:
        outputs = run(image)
    except AcclimateError:
        raise AcclimateError(f"{name} does not run what is converted of this detector; use another runtime") from None
    for output, ours, theirs in zip(frozen.output_names, outputs, expected, strict=True):
        if ours.shape != theirs.shape or not np.abs(ours - theirs).max() <= 0.05 * max(1.0, np.abs(theirs).max()):
            where, way_out = ("", "") if precision == "fp32" else (f" in {precision}", "export fp32, or ")
            raise AcclimateError(
                f"{name} computes {output} of this detector wrongly{where}; {way_out}use another runtime"
            )


def calibration_canvases(
    paths: Sequence[Path], size: tuple[int, int], reading: Reading = DEFAULT
) -> tuple[list[Image], list[Path]]:
    """The images on the network's canvas, (H, W, 3) each, and which of `paths` they came from.

    What cannot be read is left out with a warning.

    Raises:
        AcclimateError: there is none.
    """
    canvases, used, problems = [], [], []
    for path in paths:
        try:
            canvases.append(letterbox(read_image(path, reading), size)[0])
        except AcclimateError as error:
            problems.append(str(error))
        else:
            used.append(path)
    if not canvases:
        first = f" (first: {problems[0]})" if problems else ""
        raise AcclimateError(
            f"int8 needs calibration images from the target, and none of {len(paths)} could be read{first}; "
            "give a folder of unlabelled target images with --calibration"
        )
    for problem in problems:
        log.warning("left out of the calibration: %s", problem)
    return canvases, used


def check_finite(run: Network, canvases: Sequence[Image]) -> None:
    """Run the quantised network on `canvases`, (H, W, 3) each.

    Raises:
        AcclimateError: an output is not finite.
    """
    if not all(np.isfinite(output).all() for canvas in canvases for output in run(to_input(canvas))):
        raise AcclimateError("int8: the quantised network's output is not finite; export fp32 instead")


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
