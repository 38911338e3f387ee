"""A detector in PyTorch: its raw outputs as an engine gives them, and what it finds in image files."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acclimate import __version__
from acclimate.boxes.fusion import mirrored
from acclimate.edge.artifact import Artifact, ArtifactManifest, Running, Tiles
from acclimate.edge.engines import Network
from acclimate.edge.images import Letterbox, Reading, letterbox, read_image
from acclimate.edge.predict import AS_IT_SAYS, Mask, Predictor
from acclimate.edge.tiles import Piece, cut, together
from acclimate.errors import AcclimateError
from acclimate.models import detector as models
from acclimate.models.detector import Detector, device_of, evaluating
from acclimate.models.masks import paste
from acclimate.run import file_digest
from acclimate.structures import Detections, View

if TYPE_CHECKING:
    from acclimate.models.two_stage import TwoStageDetector

log = logging.getLogger(__name__)

PLAIN = View()
"""The images as they are."""


def network(detector: Detector) -> Network:
    """A detector in evaluation mode as numpy in, numpy out: the reference that engines are compared with."""
    device = device_of(detector)

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            outputs = detector(torch.from_numpy(images).to(device))
        return [output.float().cpu().numpy() for output in outputs]

    return run


def predict(
    detector: Detector,
    paths: Sequence[Path],
    batch_size: int = 16,
    *,
    report: Callable[[str], None] = log.warning,
    view: View = PLAIN,
    tiles: Tiles | None = None,
) -> list[Detections | None]:
    """What an eager detector finds, in the order of `paths` and the pixels of the original images; None for an image
    that cannot be read.

    The detector runs in evaluation mode, without gradients, and gets its modes back. Images are read ahead in
    a thread, as the detector's specification says. Of an image that cannot be read `report` is told in one line.

    Args:
        detector: on whatever device it is, where it also runs.
        paths: image files.
        batch_size: images a forward pass.
        report: called with each problem.
        view: how they are looked at.
        tiles: how they are cut before the detector sees them, as on the device (`edge.tiles`).

    Raises:
        AcclimateError: the view has another scale than 1, and the detector's boxes are made for one size.
    """
    device = device_of(detector)
    size = _canvas(detector, view.scale)
    detections: list[Detections | None] = []
    with evaluating(detector):
        # The pieces of one picture may be very many.
        for batch in _read_ahead(paths, size, detector.spec.reading, 1 if tiles else batch_size, view.flip, tiles):
            pieces = [piece for seen in batch for piece in seen.pieces]
            found: list[Detections] = []
            for start in range(0, len(pieces), batch_size):
                some = np.stack([piece.canvas for piece in pieces[start : start + batch_size]])
                canvases = torch.from_numpy(some).to(device)
                found += detector.decode(detector(canvases.permute(0, 3, 1, 2).float()), size)
            placed = [piece.placed.to_image(one) for piece, one in zip(pieces, found, strict=True)]
            for seen in batch:
                own, placed = placed[: len(seen.pieces)], placed[len(seen.pieces) :]
                if seen.problem:
                    report(seen.problem)
                detections.append(_united(detector, seen.pieces, own, view.flip) if own else None)
    return detections


def _united(detector: Detector, pieces: Sequence[Piece], found: Sequence[Detections], flip: bool) -> Detections:
    """What was found in all pieces of a picture, in its pixels as it is stored."""
    whole = found[0]
    if len(pieces) > 1:
        options = detector.decode_options()
        whole = together(pieces, found, options.nms_iou, options.max_detections)
    return mirrored(whole, float(pieces[0].picture[1])) if flip else whole


Masked = tuple[Detections, list[dict[str, Any]]]
"""What is found in an image, and the mask of each as COCO's run lengths, of the image's size."""


def predict_masks(
    detector: TwoStageDetector, paths: Sequence[Path], *, report: Callable[[str], None] = log.warning
) -> list[Masked | None]:
    """What an eager detector with a mask branch finds, in the order of `paths`; None for an image that cannot be read.

    `hotcoco.mask.decode` makes an array (H, W) of a mask, and `edge.draw.draw` shows it.

    Args:
        detector: with `model.two_stage.masks`, on whatever device it is.
        paths: image files.
        report: called with each problem.

    Raises:
        AcclimateError: the detector has no mask branch.
    """
    device = device_of(detector)
    found: list[Masked | None] = []
    with evaluating(detector):
        for batch in _read_ahead(paths, detector.spec.image_size, detector.spec.reading, 1, False):
            if not batch[0].pieces:
                report(batch[0].problem)
                found.append(None)
                continue
            placed = batch[0].pieces[0].placed
            image = torch.from_numpy(batch[0].pieces[0].canvas).to(device).permute(2, 0, 1)[None].float()
            features = detector.features(image)
            on_image = placed.to_image(detector.decode(detector.head(features))[0])
            found.append((on_image, [one.run_lengths for one in _masks(detector, features, on_image, placed)]))
    return found


def _masks(detector: TwoStageDetector, features: Sequence[Tensor], found: Detections, placed: Letterbox) -> list[Mask]:
    """The masks of what was found in a picture, in its pixels, by the features (1, C, H_l, W_l) of its canvas.

    A mask spans its box, so it is asked for the box as it is in the picture: one that reaches into the border around
    it is cut there.
    """
    from hotcoco import mask as coco

    scaled = Detections(found.boxes * np.float32(placed.scale), found.labels, found.scores)
    size, masks = (placed.height, placed.width), []
    for shape, box in zip(detector.masks(features, [scaled])[0], found.boxes, strict=True):
        pixels = paste(shape[None], box[None], size)[0] >= 0.5
        written = coco.encode(np.asfortranarray(pixels))
        masks.append(Mask(pixels, {"size": list(written["size"]), "counts": written["counts"].decode()}))
    return masks


def having_masks(detector: Detector, run: Path) -> TwoStageDetector:
    """The detector of a run, where it has a mask branch.

    Raises:
        AcclimateError: it has none.
    """
    if not detector.spec.has_masks:
        raise AcclimateError(f"{run}: its detector has no masks; train one with model.two_stage.masks = true")
    return cast("TwoStageDetector", detector)


def manifest_of(
    detector: Detector, name: str, runtime: str, precision: Literal["fp32", "fp16", "int8"]
) -> ArtifactManifest:
    """What an artifact says of its detector, without the files that it consists of.

    Args:
        detector: as it is exported.
        name: of the artifact.
        runtime: what computes.
        precision: of weights and activations.
    """
    spec = detector.spec
    return ArtifactManifest(
        name=name,
        runtime=runtime,
        precision=precision,
        classes=spec.classes,
        image_size=spec.image_size,
        orientation=spec.reading.orientation,
        intensity=spec.reading.intensity,
        output_names=detector.output_names,
        decode=detector.decode_options(),
        version=__version__,
    )


class RunPredictor(Predictor):
    """A run's detector in PyTorch in the place of an artifact's network, which gives no masks: this one does."""

    def __init__(self, run: Path, threads: int = 1, running: Running = AS_IT_SAYS) -> None:
        """Load the detector of a finished run, on the accelerator where there is one.

        Args:
            run: its folder.
            threads: as of `Predictor`; the detector has those of the process.
            running: what is to be otherwise than the specification says.

        Raises:
            AcclimateError: the detector has no masks, or cannot be loaded; or pictures are to be cut into tiles, of
                which each would have masks of its own, or another provider than PyTorch is to compute.
        """
        if running.tiles is not None or running.provider is not None:
            raise AcclimateError(
                f"{run}: masks are those of whole pictures, made by PyTorch; leave out --tiles and --provider"
            )
        self._detector = having_masks(models.to_device(models.load(run)), run)
        manifest = manifest_of(self._detector, run.name, "torch", "fp32")
        files = {"model.safetensors": file_digest(run / "model.safetensors")}
        super().__init__(Artifact(run, running.of(manifest.model_copy(update={"files": files}))), threads)

    def _loaded(self) -> Network:
        return network(self._detector)

    def masks(self, pieces: Sequence[Piece], found: Detections) -> list[Mask]:
        """See `Predictor.masks`."""
        if not len(found):
            return []
        with torch.inference_mode():
            features = self._detector.features(torch.from_numpy(pieces[0].canvas).to(device_of(self._detector)))
            return _masks(self._detector, features, found, pieces[0].placed)


def _canvas(detector: Detector, scale: float) -> tuple[int, int]:
    """(height, width) of a view, whole cells of the coarsest level."""
    if scale == 1:
        return detector.spec.image_size
    if not detector.any_size:
        raise AcclimateError(
            f"scale {scale:g}: the boxes of a {detector.spec.kind} detector are made for one input size; look at scale "
            "1 (a mirrored view is possible), or train a dense one"
        )
    stride = max(detector.spec.strides)
    height, width = (max(1, round(scale * side / stride)) * stride for side in detector.spec.image_size)
    return height, width


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is seen of an image: canvases (H, W, 3) uint8, none where it cannot be read, and why."""

    pieces: list[Piece]
    problem: str = ""


def _read_ahead(
    paths: Sequence[Path],
    size: tuple[int, int],
    reading: Reading,
    batch_size: int,
    flip: bool,
    tiles: Tiles | None = None,
) -> Iterator[list[_Seen]]:
    def read(batch: Sequence[Path]) -> list[_Seen]:
        return [_seen(path, size, reading, flip, tiles) for path in batch]

    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor(1) as reader:
        coming: deque[Future[list[_Seen]]] = deque()
        for batch in batches:
            coming.append(reader.submit(read, batch))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _seen(path: Path, size: tuple[int, int], reading: Reading, flip: bool, tiles: Tiles | None) -> _Seen:
    try:
        image = read_image(path, reading)
        image = np.ascontiguousarray(image[:, ::-1]) if flip else image
        return _Seen(cut(image, tiles, lambda part: letterbox(part, size)))
    except AcclimateError as error:
        return _Seen([], str(error))
