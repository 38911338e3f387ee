"""Detectors of `transformers`: what the library's own models, processors and losses say, from checkpoints on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import small_transformers as small
from acclimate.adapt.suppression import DomainSpecificSuppression
from acclimate.config import ModelConfig, SuppressionConfig
from acclimate.edge.images import read_image
from acclimate.errors import AcclimateError
from acclimate.models import detector as detectors
from acclimate.models import transformers as ours
from acclimate.models.transfer import with_classes
from acclimate.scenes.sets import generate
from acclimate.structures import Annotations, Image

CLASSES = ("car", "person", "sign")
FAMILIES = list(small.CONFIGURATIONS)
SIZE = (small.SIDE, small.SIDE)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def write(family: str) -> Path:
        if family not in folders:
            folders[family] = small.write(family, tmp_path_factory.mktemp(family), CLASSES)
        return folders[family]

    return write


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("scenes") / "one"
    generate(folder, 1, (96, 96), 0)
    return cv2.resize(read_image(next((folder / "images").iterdir())), SIZE, interpolation=cv2.INTER_AREA)


def as_input(*images: Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() for image in images])


def box(*corners: float, label: int = 0, ignore: bool = False) -> Annotations:
    return Annotations(np.float32([corners]), np.array([-1 if ignore else label]), np.array([ignore]))


def joined(*parts: Annotations) -> Annotations:
    fields = [[getattr(one, name) for one in parts] for name in ("boxes", "labels", "ignore")]
    return Annotations(*(np.concatenate(field) for field in fields))


def library_targets(*targets: Annotations) -> list[dict[str, torch.Tensor]]:
    """As the library's processors make them."""
    made = []
    for one in targets:
        boxes = torch.from_numpy(one.boxes) / small.SIDE
        shares = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        made.append({"class_labels": torch.from_numpy(one.labels), "boxes": shares})
    return made


def compare(family: str, folder: Path, picture: Image) -> None:
    from PIL import Image as Pillow
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    inputs = processor(images=Pillow.fromarray(picture), return_tensors="pt")
    with torch.inference_mode():
        output = model(pixel_values=inputs["pixel_values"])
        # That of LW-DETR takes the best 100, where the others take as many as there are queries.
        limit = {"top_k": small.QUERIES} if family == "lw_detr" else {}
        expected = processor.post_process_object_detection(
            output, threshold=0.01, target_sizes=torch.tensor([SIZE]), **limit
        )[0]
        detector = ours.from_checkpoint(folder)
        found = detector.decode(detector(as_input(picture)))[0]
    scores, labels, boxes = (expected[key].numpy() for key in ("scores", "labels", "boxes"))
    boxes = np.clip(boxes, 0, small.SIDE)
    some = (boxes[:, 2:] > boxes[:, :2]).all(1)
    order = np.argsort(-scores[some], kind="stable")
    scores, labels, boxes = (values[some][order] for values in (scores, labels, boxes))
    assert len(found) == len(scores) >= 10
    assert scores.max() - scores.min() > 0.01
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    apart = np.abs(boxes[:, None] - found.boxes[None]).max(-1)
    apart[labels[:, None] != found.labels[None]] = np.inf
    partner = apart.argmin(1)
    assert len(set(partner)) == len(partner)
    assert apart.min(1).max() <= 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_detections_are_the_librarys(family: str, written: Callable[[str], Path], scene: Image) -> None:
    compare(family, written(family), scene)


@pytest.mark.data
@pytest.mark.parametrize("family", FAMILIES)
def test_detections_on_real_images_are_the_librarys(
    family: str, written: Callable[[str], Path], shared_data: Path
) -> None:
    for part in ("blood-cells/bccd/images/test", "robocup-msl/home/images/test"):
        folder = shared_data / part
        file = min(path for path in folder.iterdir() if path.suffix in {".jpg", ".png"})
        compare(family, written(family), cv2.resize(read_image(file), SIZE, interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_the_librarys(family: str, written: Callable[[str], Path], scene: Image) -> None:
    """In training, with denoising queries where there are any: these are drawn, so both draw the same."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    model = AutoModelForObjectDetection.from_pretrained(written(family)).train()
    detector = ours.from_checkpoint(written(family)).train()
    processor = AutoImageProcessor.from_pretrained(written(family))
    targets = (joined(box(4, 6, 30, 40), box(20, 10, 60, 50, label=2)), box(8, 8, 24, 30, label=1))
    pictures = scene, np.ascontiguousarray(scene[::-1])
    pixels = processor(images=[torch.from_numpy(one).permute(2, 0, 1) for one in pictures], return_tensors="pt")
    torch.manual_seed(0)
    expected = model(pixel_values=pixels["pixel_values"], labels=library_targets(*targets))
    torch.manual_seed(0)
    losses = detector.losses(detector.features(as_input(*pictures)), targets)
    assert set(losses) == set(detector.loss_kinds)
    torch.testing.assert_close(losses["class"] + losses["box"], expected.loss, rtol=1e-4, atol=1e-4)
    sum(losses.values(), torch.zeros(())).backward()
    without = [name for name, one in detector.named_parameters() if one.requires_grad and one.grad is None]
    assert without == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_query_in_an_ignored_region_has_no_class_loss(
    family: str, written: Callable[[str], Path], scene: Image
) -> None:
    detector = ours.from_checkpoint(written(family)).train()
    features = detector.features(as_input(scene))
    everywhere = box(0, 0, small.SIDE, small.SIDE, ignore=True)
    with torch.no_grad():
        torch.manual_seed(0)
        background = detector.losses(features, [Annotations.empty()])
        ignored = detector.losses(features, [everywhere])
        assert background["class"] > 1
        # Boxes that reach over the border by more than a half are outside.
        assert ignored["class"] < 0.05 * background["class"]
        real = box(4, 6, 30, 40)
        torch.manual_seed(0)
        labelled = detector.losses(features, [real])
        torch.manual_seed(0)
        both = detector.losses(features, [joined(real, box(100, 100, 120, 120, ignore=True))])
        for name, loss in labelled.items():
            torch.testing.assert_close(both[name], loss)


@pytest.mark.parametrize("family", ["rt_detr", "lw_detr"])
def test_a_student_that_says_the_same_in_another_order_has_nothing_to_learn(
    family: str, written: Callable[[str], Path], scene: Image
) -> None:
    detector = ours.from_checkpoint(written(family))
    pictures = as_input(scene, np.ascontiguousarray(scene[::-1]))
    features = detector.features(pictures)
    raw = detector.head(features)
    order = torch.randperm(raw[0].shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = tuple(output[:, order] for output in raw)
    same = detector.distillation(features, shuffled, 0.0, raw)
    assert float(same["box"]) < 1e-4
    assert float(same["class"]) < 1e-6
    moved = (shuffled[0] + 2, shuffled[1] * 0.9)
    apart = detector.distillation(features, moved, 0.0, raw)
    assert float(apart["box"]) > 0.01
    assert float(apart["class"]) > 0.01
    # The best possible teacher of no box teaches none.
    assert float(detector.distillation(features, shuffled, 1.1, raw)["box"]) == 0


def test_the_matching_is_the_cheapest() -> None:
    """Of all 24 ways to pair four queries."""
    from itertools import permutations

    generator = torch.Generator().manual_seed(3)
    scores, other_scores = (torch.rand(1, 4, 2, generator=generator) for _ in range(2))
    boxes, other_boxes = (0.2 + 0.3 * torch.rand(1, 4, 4, generator=generator) for _ in range(2))
    own, other = ours.match(scores, boxes, other_scores, other_boxes)

    def cost(rows: Any, columns: Any) -> float:
        from torchvision.ops import generalized_box_iou

        overlap = generalized_box_iou(ours.corners(boxes[0]), ours.corners(other_boxes[0]))
        total = 0.0
        for row, column in zip(rows, columns, strict=True):
            total += ours.CLASS_WEIGHT * float((scores[0, row] - other_scores[0, column]).abs().sum())
            total += ours.L1_WEIGHT * float((boxes[0, row] - other_boxes[0, column]).abs().sum())
            total -= ours.GIOU_WEIGHT * float(overlap[row, column])
        return total

    best = min(cost(range(4), one) for one in permutations(range(4)))
    assert cost(own[0].tolist(), other[0].tolist()) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_run_folder_says_it_all(
    family: str, written: Callable[[str], Path], scene: Image, tmp_path: Path
) -> None:
    detector = ours.from_checkpoint(written(family))
    with torch.inference_mode():
        expected = detector(as_input(scene))
        copied = copy.deepcopy(detector)(as_input(scene))
    detectors.save(detector, tmp_path)
    loaded = detectors.load(tmp_path)
    with torch.inference_mode():
        for one, other, third in zip(expected, loaded(as_input(scene)), copied, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)
    pointers = [value.data_ptr() for value in detector.state_dict().values() if value.numel()]
    assert len(set(pointers)) == len(pointers), "the average of the weights would follow a shared one twice as fast"


def test_a_shared_head_is_saved_once_and_stays_shared(tmp_path: Path, scene: Image) -> None:
    from transformers import AutoModelForObjectDetection

    model = small.model_of("deimv2", CLASSES, share_bbox_head=True)
    model.save_pretrained(tmp_path / "theirs")
    small.processor_of("deimv2").save_pretrained(tmp_path / "theirs")
    detector = ours.from_checkpoint(tmp_path / "theirs")
    expected = AutoModelForObjectDetection.from_pretrained(tmp_path / "theirs").eval()
    with torch.inference_mode():
        logits, boxes = detector(as_input(scene))
        output = expected(as_input(scene) / 255)
        torch.testing.assert_close(boxes, output.pred_boxes, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, output.logits, rtol=1e-4, atol=1e-4)
    detectors.save(detector, tmp_path)
    with torch.inference_mode():
        assert torch.equal(detectors.load(tmp_path)(as_input(scene))[1], boxes)


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_are_taken_by_name(family: str, written: Callable[[str], Path], scene: Image) -> None:
    whole = ours.from_checkpoint(written(family))
    with torch.inference_mode():
        expected = whole(as_input(scene))[0].sigmoid().amax()
        picked = with_classes(ours.from_checkpoint(written(family)), {"sign": "sign", "auto": "car"})
        assert picked.spec.classes == ("sign", "auto")
        layers = {name for name in picked.class_rows() if not name.endswith("denoising_class_embed")}
        for name in layers:
            mine, theirs = picked.get_submodule(name), whole.get_submodule(name)
            assert torch.equal(mine.weight, theirs.weight[[2, 0]])
            assert torch.equal(mine.bias, theirs.bias[[2, 0]])
        if (name := "model.model.denoising_class_embed") in picked.class_rows():
            assert torch.equal(picked.get_submodule(name).weight, whole.get_submodule(name).weight[[2, 0, 3]])
        assert picked(as_input(scene))[0].shape[-1] == 2
        assert expected > 0


def test_training_starts_from_the_classes_of_the_same_name(written: Callable[[str], Path]) -> None:
    config = ModelConfig.model_validate(
        {"kind": "transformers", "transformers": {"checkpoint": str(written("rt_detr"))}}
    )
    spec = detectors.specify(config, ["sign", "dog"])
    assert spec.image_size == SIZE
    assert spec.strides == (8, 16, 32)
    made = detectors.build(spec, "auto")
    assert made.spec.start.endswith("with its classes sign")
    theirs = ours.from_checkpoint(written("rt_detr"))
    name = "model.model.enc_score_head"
    assert torch.equal(made.get_submodule(name).weight[0], theirs.get_submodule(name).weight[2])
    wider = config.model_copy(update={"image_size": (64, 96)})
    larger = detectors.build(
        detectors.specify(
            ModelConfig.model_validate(wider.model_dump(exclude_unset=True) | {"image_size": (64, 96)}), ["sign"]
        )
    )
    assert larger(torch.rand(1, 3, 64, 96))[1].shape == (1, small.QUERIES, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_methods_ask_for(family: str, written: Callable[[str], Path], scene: Image) -> None:
    detector = ours.from_checkpoint(written(family)).train()
    pictures = as_input(scene, np.ascontiguousarray(scene[::-1]))
    features = detector.features(pictures)
    assert [round(small.SIDE / level.shape[-1]) for level in features] == list(detector.spec.strides)
    regions = detector.regions(features, 6)
    assert [tuple(one.shape) for one in regions] == [(6, 4), (6, 4)]
    assert all((one >= 0).all() and (one <= small.SIDE).all() for one in regions)
    vectors = detector.instances(features, [torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([[16.0, 16, 60, 60]] * 2)])
    assert vectors.shape == (3, sum(level.shape[1] for level in features))
    vectors.sum().backward()
    assert any(parameter.grad is not None for parameter in detector.backbone.parameters())
    # The queries that are kept, in training as in evaluation.
    assert detector.head(detector.features(pictures))[0].shape == (2, small.QUERIES, len(CLASSES))


def test_suppression_acts_on_the_backbone_behind_its_frozen_normalisation(
    written: Callable[[str], Path], scene: Image
) -> None:
    detector = ours.from_checkpoint(written("rt_detr")).train()
    suppression = DomainSpecificSuppression.create(SuppressionConfig(), detector)
    losses = detector.losses(detector.features(as_input(scene)), [box(4, 6, 30, 40)])
    sum(losses.values(), torch.zeros(())).backward()
    weights = [layer.weight for layer in suppression.layers.values() if layer.weight.grad is not None]
    before = [float((weight.grad * weight).sum().abs()) for weight in weights]
    suppression()
    after = [float((weight.grad * weight).sum().abs()) for weight in weights]
    assert len(weights) > 5
    assert sum(before) > 0
    assert sum(after) < 1e-4 * sum(before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "detr"}, "model_type 'detr' is none of the families that are known: RT-DETR, "),
        ({"d_model": "wide"}, "config.json: "),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line(
    change: dict[str, Any], said: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(written("rt_detr"), tmp_path / "theirs")
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(AcclimateError, match=said) as told:
        ours.from_checkpoint(folder)
    assert "\n" not in str(told.value)


def test_bad_input_is_one_line(written: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="no checkpoint folder"):
        ours.from_checkpoint(tmp_path)
    with pytest.raises(AcclimateError, match="nobody/nothing: neither a folder nor in the hub's cache"):
        ours.from_checkpoint("nobody/nothing")
    with pytest.raises(AcclimateError, match="do not fit"):
        ours.from_checkpoint(written("lw_detr"), (60, 70))
    with pytest.raises(AcclimateError, match="needs a checkpoint folder"):
        detectors.specify(ModelConfig(kind="transformers"), ["a"])
    import shutil

    folder = shutil.copytree(written("rt_detr"), tmp_path / "theirs")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(AcclimateError, match="cannot be loaded") as told:
        ours.from_checkpoint(folder)
    assert "\n" not in str(told.value)
