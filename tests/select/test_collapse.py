"""A self-training that collapses, made on purpose, and the choice of a checkpoint that must not follow it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from acclimate.adapt.engine import accelerator, checkpoints, fit
from acclimate.adapt.objective import Objective, Term
from acclimate.adapt.supervised import Supervised
from acclimate.adapt.teacher import Teacher
from acclimate.config import AugmentConfig, ScheduleConfig, TeacherConfig
from acclimate.data.dataset import Loader, TrainingSets, Views
from acclimate.data.formats import LabelledImage, LabelledSet, UnlabelledSet
from acclimate.evaluate import evaluate_detector
from acclimate.models.detector import Detector, DetectorSpec, build, load_weights, save_weights
from acclimate.run import Manifest, Run
from acclimate.select.score import PLAUSIBLE, choose_checkpoint, rank
from acclimate.structures import Annotations, Image

SIDE = 64
CLASSES = ("square", "disc")
COLOURS = np.array([[60, 60, -30], [-40, 50, 50], [50, -30, 40], [-20, -20, 60]], float)
"""Of squares, discs, and the same shapes in colours that are no objects."""
AUGMENT = AugmentConfig(scale=(0.8, 1.25), style=0.3)


def picture(rng: np.random.Generator, target: bool) -> tuple[Image, Annotations]:
    """One to four shapes on cloudy grey; on the target they are faint and blurred, and the picture is noisier."""
    clouds = rng.normal(0, 22 if target else 18, (8, 8)).astype(np.float32)
    grey = cv2.resize(clouds, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    canvas = rng.uniform(60, 130) + grey[..., None] + rng.normal(0, 12 if target else 6, (SIDE, SIDE, 3))
    contrast = rng.uniform(0.3, 0.75) if target else 1.0
    boxes, labels, taken = [], [], []
    for _ in range(rng.integers(1, 5)):
        width, kind = int(rng.integers(10, 22)), int(rng.integers(4))
        x, y = (int(place) for place in rng.integers(2, SIDE - width - 2, 2))
        if any(max(abs(x - a), abs(y - b)) < (width + c) // 2 + 6 for a, b, c in taken):
            continue
        taken.append((x, y, width))
        shape = np.zeros((SIDE, SIDE), np.float32)
        if kind % 2 == 0:
            shape[y : y + width, x : x + width] = 1
        else:
            cv2.circle(shape, (x + width // 2, y + width // 2), width // 2, 1.0, -1)
        canvas = canvas + shape[..., None] * COLOURS[kind] * contrast
        if kind < 2:
            boxes.append([x, y, x + width, y + width])
            labels.append(kind)
    if target:
        canvas = cv2.GaussianBlur(canvas, (0, 0), 0.9)
    truth = Annotations(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.zeros(len(labels), bool)
    )
    return np.clip(canvas, 0, 255).astype(np.uint8), truth


def pictures(folder: Path, count: int, seed: int, target: bool) -> LabelledSet:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        canvas, truth = picture(rng, target)
        path = folder / f"{i:03}.png"
        assert cv2.imwrite(str(path), canvas[..., ::-1])
        images.append(LabelledImage(path, SIDE, SIDE, truth))
    return LabelledSet(folder.name, "coco", CLASSES, tuple(images))


def trained(
    detector: Detector,
    terms: list[Term],
    out: Path,
    source: LabelledSet,
    target: UnlabelledSet | None,
    **schedule: float,
) -> tuple[Detector, Run]:
    options = ScheduleConfig.model_validate(
        {"batch_size": 8, "warmup": 10, "workers": 0, "precision": "fp32", **schedule}
    )
    objective = Objective(detector, terms, options.ema, warm=target is None)
    run = Run.create(out, Manifest(verb="train" if target is None else "adapt"))
    loader = Loader(TrainingSets(source, target), Views((SIDE, SIDE), AUGMENT), options, 0)
    fit(run, objective, loader, options, accelerator("fp32"))
    return objective.average, run


def test_the_choice_does_not_follow_a_self_training_that_collapses(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = pictures(tmp_path / "source", 120, 1, target=False)
    few = pictures(tmp_path / "target", 4, 2, target=True)
    test = pictures(tmp_path / "test", 60, 3, target=True)
    spec = DetectorSpec(
        classes=CLASSES, image_size=(SIDE, SIDE), backbone="test_efficientnet", strides=(8, 16), channels=24, depth=1
    )  # fmt: skip
    average, _ = trained(
        build(spec), [Supervised()], tmp_path / "start", source, None,
        steps=250, lr=5e-3, ema=0.97, checkpoint_every=250,
    )  # fmt: skip
    save_weights(average, tmp_path / "start.safetensors")
    start = build(spec)
    load_weights(start, tmp_path / "start.safetensors")
    # Hardly any labels, four images, a teacher that follows at once, and every box of a score of a tenth is believed.
    taught = Teacher.create(TeacherConfig(threshold=0.1, regression=1.0), start, source)
    detector, run = trained(
        start, [Supervised(0.02), taught], tmp_path / "adapted", source, UnlabelledSet(few.paths),
        steps=120, lr=2e-3, ema=0.9, checkpoint_every=12,
    )  # fmt: skip

    candidates = {0: tmp_path / "start.safetensors", **checkpoints(run)}
    truth: dict[int, float] = {}
    for step, file in candidates.items():
        load_weights(detector, file)
        truth[step] = evaluate_detector(detector, test, "test", "target").ap50
    boxes = np.concatenate([image.annotations.labels for image in source.images])
    rates = (np.bincount(boxes, minlength=2) / len(source)).tolist()
    selection = rank(choose_checkpoint(detector, candidates, few.paths, AUGMENT, 0, rates), truth)

    best = max(truth.values())
    assert truth[120] < best - 0.3, "it did not collapse"
    assert truth[selection.chosen_step] >= best - 0.02, (truth, selection)
    # Every ruined checkpoint is refused by its counts alone, whatever the rule says of it.
    plausible = {one.step: one.scores["plausible"] for one in selection.candidates}
    ruined = [step for step, ap50 in truth.items() if ap50 < best - 0.3]
    assert max(plausible[step] for step in ruined) < PLAUSIBLE * plausible[0]
    # What the choice went by before rises as it collapses.
    by_consensus = max(selection.candidates, key=lambda candidate: candidate.scores["consensus"])
    assert truth[by_consensus.step] < best - 0.3
