"""Zero-shot detectors as labellers: what the library's own processing makes of them, a prompt a class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import small_transformers as detectors
import small_zero_shot as small
from acclimate.errors import AcclimateError
from acclimate.labelling.zero_shot import LOWEST, ZeroShot, label
from acclimate.structures import Detections, Image

PROMPTS = {"auto": "car", "walker": "a person walking", "plate": "traffic sign"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def write(family: str) -> Path:
        if family not in folders:
            folders[family] = small.write(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return write


@pytest.fixture(scope="module")
def image() -> Image:
    """Wider than high, and of three rows of blocks, which looks like channels to a careless reader."""
    blocks = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(10, 0).repeat(10, 1))


def best_of(found: Detections) -> dict[int, float]:
    return {label: float(found.scores[found.labels == label].max()) for label in set(found.labels.tolist())}


@pytest.mark.parametrize("family", small.MADE)
def test_detections_are_well_formed(family: str, written: Callable[[str], Path], image: Image) -> None:
    labeller = ZeroShot(str(written(family)), PROMPTS)
    assert labeller.classes == tuple(PROMPTS)
    found = labeller.detect(image)
    assert len(found) > 0
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() >= LOWEST
    assert set(found.labels.tolist()) <= {0, 1, 2}
    assert (found.boxes >= 0).all()
    assert (found.boxes <= np.array([90, 60, 90, 60])).all()
    again = ZeroShot(str(written(family)), PROMPTS).detect(image)
    np.testing.assert_array_equal(found.boxes, again.boxes)


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_a_class_of_grounding_dino_has_the_best_score_of_its_words(
    family: str, written: Callable[[str], Path], image: Image
) -> None:
    """One class alone: the library's own post-processing takes the best of all words, for the same boxes."""
    from PIL import Image as Pillow
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    processor = AutoProcessor.from_pretrained(written(family))
    model = AutoModelForZeroShotObjectDetection.from_pretrained(written(family)).eval()
    inputs = processor(images=Pillow.fromarray(image), text="a person walking.", return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    # The first token begins the text; then come three words, a full stop and the end.
    scores = output.logits[0].sigmoid()[:, 1:4].amax(1)
    found = ZeroShot(str(written(family)), {"walker": "a person walking"}).detect(image)
    assert float(found.scores[0]) == pytest.approx(float(scores.max()), abs=1e-4)
    x, y, w, h = (output.pred_boxes[0, scores.argmax()] * torch.tensor([90, 60, 90, 60])).tolist()
    np.testing.assert_allclose(
        found.boxes[0], np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [90, 60, 90, 60]), atol=0.1
    )


def test_a_class_of_owl_has_the_score_of_its_prompt(written: Callable[[str], Path], image: Image) -> None:
    """Prompts do not see one another, so a class alone has the scores that it has among others."""
    together = best_of(ZeroShot(str(written("owlv2")), PROMPTS).detect(image))
    for place, (name, prompt) in enumerate(PROMPTS.items()):
        alone = best_of(ZeroShot(str(written("owlv2")), {name: prompt}).detect(image))
        # Of a box the best class alone is kept.
        if place in together and alone:
            assert together[place] <= alone[0] + 1e-5
    assert together


def test_sam_is_asked_for_each_class_as_the_library_asks(written: Callable[[str], Path], image: Image) -> None:
    from PIL import Image as Pillow
    from transformers import Sam3Model, Sam3Processor

    processor = Sam3Processor.from_pretrained(written("sam3"))
    model = Sam3Model.from_pretrained(written("sam3")).eval()
    found = ZeroShot(str(written("sam3")), PROMPTS).detect(image)
    for place, prompt in enumerate(PROMPTS.values()):
        inputs = processor(images=Pillow.fromarray(image), text=prompt, return_tensors="pt")
        with torch.inference_mode():
            (theirs,) = processor.post_process_object_detection(model(**inputs), LOWEST, [(60, 90)])
        best = theirs["scores"].argmax()
        ours = found.boxes[found.labels == place]
        assert 0 < len(ours) <= len(theirs["scores"])
        assert best_of(found)[place] == pytest.approx(float(theirs["scores"][best]), abs=1e-4)
        np.testing.assert_allclose(ours[0], theirs["boxes"][best].numpy().clip(0, [90, 60, 90, 60]), atol=0.1)


def test_images_are_labelled_in_their_own_pixels(written: Callable[[str], Path], image: Image, tmp_path: Path) -> None:
    from PIL import Image as Pillow

    Pillow.fromarray(image).save(tmp_path / "one.png")
    (tmp_path / "two.png").write_bytes(b"none")
    problems: list[str] = []
    labeller = ZeroShot(str(written("owlv2")), PROMPTS)
    found = label(labeller, [tmp_path / "one.png", tmp_path / "two.png"], report=problems.append)
    assert [path.name for path in found] == ["one.png"]
    (one,) = found.values()
    assert one.size == (90, 60)
    np.testing.assert_array_equal(one.detections.boxes, labeller.detect(image).boxes)
    assert len(problems) == 1


def test_what_is_no_zero_shot_detector_is_one_line(tmp_path: Path) -> None:
    detectors.write("rt_detr", tmp_path / "theirs", ("a",))
    with pytest.raises(AcclimateError, match="model_type 'rt_detr' is no zero-shot detector that is known: Grounding"):
        ZeroShot(str(tmp_path / "theirs"), PROMPTS)
    with pytest.raises(AcclimateError, match="no checkpoint folder"):
        ZeroShot(str(tmp_path), PROMPTS)
