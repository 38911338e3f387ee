"""Mixed precision by trial: INT8 layers that change detections most go back to floating point until they agree again.

What is compared are detections of the quantised and of the eager network on unlabelled target images, by the agreement
that also compares two views (`score.agreement`). Each layer is quantised alone once, which gives its sensitivity; then
the smallest number of layers in that order is found by bisection, so that few networks are made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from acclimate.data.dataset import choose, plain_images
from acclimate.edge.artifact import MixedPrecision, Sensitivity
from acclimate.edge.decode import decode
from acclimate.edge.engines import Network
from acclimate.edge.images import to_input
from acclimate.errors import AcclimateError
from acclimate.export.base import Quantiser
from acclimate.models.detector import Detector
from acclimate.models.predict import network
from acclimate.select.score import SHOWN, agreement
from acclimate.structures import Detections

IMAGES = 32
"""Target images that detections are compared on."""
FEWEST = 8
"""With fewer that INT8 was not calibrated on, all are compared."""
Progress = Callable[[int, int], None]
Measure = Callable[[Collection[str]], float]
"""How the network agrees with fp32 where these layers are in floating point, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What is asked of INT8: to agree with fp32.

    Attributes:
        tolerance: the least agreement, 0 to 1.
        images: the image files that detections are compared on.
    """

    tolerance: float
    images: Sequence[Path]


def held_out(paths: Sequence[Path], calibration: Sequence[Path], seed: int) -> tuple[Path, ...]:
    """Up to `IMAGES` of the target images `paths` to compare detections on, others than `calibration` if there are."""
    rest = sorted(set(paths) - set(calibration))
    return choose(rest if len(rest) >= FEWEST else paths, IMAGES, seed)


def measure(quantiser: Quantiser, detector: Detector, images: Sequence[Path]) -> Measure:
    """The agreement with `detector` on `images`, by which layers stay in floating point.

    Args:
        quantiser: the detector's graph.
        detector: on the CPU, in evaluation mode.
        images: target images, without labels; those that cannot be read are left out.

    Raises:
        AcclimateError: none can be read, or the detector shows nothing on any, so there is nothing to agree on.
    """
    canvases = [canvas for _, canvas, _ in plain_images(images, detector.spec.image_size, detector.spec.reading)]

    def detect(run: Network) -> list[Detections]:
        options, size = detector.decode_options(), detector.spec.image_size
        return [decode(run(to_input(canvas)), options, size)[0] for canvas in canvases]

    expected = detect(network(detector))
    if not any(len(found.above(SHOWN)) for found in expected):
        raise AcclimateError(
            f"the tolerance cannot be measured: the detector shows no box above {SHOWN} on {len(canvases)} images; "
            "calibrate on images with objects, or export without a tolerance"
        )
    return lambda in_float: agreement(expected, detect(quantiser.network(in_float)))


def mix(
    layers: Sequence[str], agrees: Measure, tolerance: float, images: int, progress: Progress | None = None
) -> MixedPrecision:
    """The fewest of the most sensitive layers in floating point with which the agreement is at least `tolerance`.

    It is the fewest where putting one more back does not lower the agreement; what is returned was measured and holds
    either way.

    Args:
        layers: what may be quantised.
        agrees: the measure.
        tolerance: the agreement that is asked for.
        images: that `agrees` looks at; kept in the result.
        progress: told how many layers have been quantised alone, of how many.

    Raises:
        AcclimateError: it cannot be had with a single layer quantised.
    """
    before = agrees(())
    if before >= tolerance:
        return MixedPrecision(
            tolerance=tolerance, images=images, before=before, after=before, layers=len(layers), in_float=()
        )
    alone = []
    for done, layer in enumerate(layers):
        rest = [other for other in layers if other != layer]
        alone.append(Sensitivity(layer=layer, agreement=agrees(rest)))
        if progress is not None:
            progress(done + 1, len(layers))
    alone.sort(key=lambda one: one.agreement)
    order = [one.layer for one in alone]
    # All but the least sensitive one in floating point was measured by the scan.
    after = alone[-1].agreement if alone else before
    if not alone or after < tolerance:
        raise AcclimateError(
            f"int8: the agreement with fp32 is {before:.3f}, and not {tolerance:g} with any layer quantised; "
            "fine-tune the run for INT8 (acclimate adapt ... adapt.quantisation={}), ask for a smaller tolerance, or "
            "export fp32"
        )
    too_few, enough = 0, len(order) - 1
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if (reached := agrees(order[:middle])) >= tolerance:
            enough, after = middle, reached
        else:
            too_few = middle
    return MixedPrecision(
        tolerance=tolerance,
        images=images,
        before=before,
        after=after,
        layers=len(layers),
        in_float=tuple(order[:enough]),
        alone=tuple(alone),
    )
