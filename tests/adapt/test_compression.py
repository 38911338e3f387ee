"""Filter pruning, groupable convolutions and the prior of few objects, on a detector of a few channels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from acclimate import workflow
from acclimate.adapt.groupable import Groupable
from acclimate.adapt.methods import method
from acclimate.adapt.objective import Objective
from acclimate.adapt.prior import entropy
from acclimate.config import AdaptConfig, Config
from acclimate.data import formats
from acclimate.data.formats import LabelledSet
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.export.base import frozen_copy
from acclimate.models.dense import DenseDetector
from acclimate.models.deploy import deploy
from acclimate.models.detector import DetectorSpec, build, load, save, specify
from acclimate.models.groupable import GatheredConv2d
from acclimate.models.predict import network
from acclimate.models.pruning import prune
from acclimate.models.slimmable import macs
from acclimate.run import Manifest, Run
from acclimate.scenes.sets import generate
from acclimate.structures import Annotations, Batch
from tiny_job import settings


def detector(**options: Any) -> DenseDetector:
    torch.manual_seed(0)
    values = {"classes": ("a", "b"), "image_size": (64, 64), "backbone": "test_efficientnet", "strides": (8, 16)}
    return DenseDetector(DetectorSpec(**{**values, "channels": 16, "depth": 1, **options}))


def batch(seed: int = 0) -> Batch:
    images = 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    box = Annotations(np.float32([[8, 8, 40, 40]]), np.array([0]), np.array([False]))
    return Batch(weak=images, strong=images, targets=[box, box])


NOTHING = LabelledSet("nothing", "coco", ("a", "b"), ())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_pruning_keeps_the_filters_of_the_largest_norm_and_the_spec_says_so(norm: str) -> None:
    whole = detector(norm=norm)
    stem = next(part for part in whole.backbone.modules() if isinstance(part, torch.nn.Conv2d))
    norms = stem.weight.abs().sum((1, 2, 3)).sort(descending=True).values
    before = macs(whole)
    prune(whole, 0.5)
    kept = next(part for part in whole.backbone.modules() if isinstance(part, torch.nn.Conv2d)).weight
    torch.testing.assert_close(kept.abs().sum((1, 2, 3)), norms[: len(kept)])
    assert len(kept) < len(norms)
    assert macs(whole) < 0.5 * before
    again = build(whole.spec)
    again.load_state_dict(whole.state_dict())
    image = torch.rand(1, 3, 64, 64)
    for made, other in zip(again.eval()(image), whole.eval()(image), strict=True):
        torch.testing.assert_close(made, other)


def test_keeping_every_channel_changes_their_order_alone() -> None:
    whole = detector().eval()
    image = 255 * torch.rand(1, 3, 64, 64)
    expected = whole(image)
    prune(whole, 1.0)
    for made, other in zip(whole(image), expected, strict=True):
        torch.testing.assert_close(made, other, rtol=1e-3, atol=1e-4)
    with pytest.raises(AcclimateError, match="cut already"):
        prune(whole, 0.5)


def test_what_is_pruned_is_trained_by_one_key() -> None:
    whole = detector()
    config = AdaptConfig.model_validate({"supervised": 1.0, "pruning": {"keep": 0.5}})
    made = method(config, whole, NOTHING)
    objective = Objective(whole, made.terms, 0.9, warm=False)
    assert set(whole.spec.widths or ()) == {0.5}
    sum(objective(batch(), None, 0.0).values()).backward()
    assert all(parameter.grad is not None for parameter in whole.parameters())


@pytest.mark.parametrize("options", [{"pruning": {}}, {"groupable": {}}])
def test_what_finishes_a_detector_has_to_be_beside_something_to_learn(options: dict[str, Any]) -> None:
    with pytest.raises(AcclimateError, match=r"set adapt\.supervised above 0"):
        method(AdaptConfig.model_validate(options), detector(), NOTHING)


def test_groupable_convolutions_are_grouped_in_what_is_kept() -> None:
    whole = detector()
    options = {"supervised": 1.0, "teacher": None, "groupable": {"groups": 2, "settle": 0.5, "every": 1}}
    made = method(AdaptConfig.model_validate(options), whole, NOTHING)
    objective = Objective(whole, made.terms, 0.9, warm=False)
    (term,) = (one for one in made.terms if isinstance(one, Groupable))
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    between = []
    for step in range(8):
        losses = objective(batch(step), None, step / 8)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        objective.after_step(step)
        between.append(float(losses.get("groupable/between", torch.zeros(())).detach()))
    assert between[3] < between[0]
    assert between[4:] == [0.0] * 4
    average = objective.average.eval()
    image = 255 * torch.rand(1, 3, 64, 64)
    expected = average(image)
    before = macs(average)
    deploy(average)
    grouped = [part for part in average.modules() if isinstance(part, GatheredConv2d)]
    assert len(grouped) == len(term._layers)
    assert macs(average) < before
    for found, other in zip(average(image), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-4)


def test_the_prior_of_few_objects_is_the_entropy_of_normalised_scores() -> None:
    assert float(entropy(torch.full((8,), 0.3))) == pytest.approx(math.log(8))
    assert float(entropy(torch.tensor([0.4]))) == pytest.approx(0, abs=1e-6)
    scores = torch.tensor([0.9, 0.1], requires_grad=True)
    (gradient,) = torch.autograd.grad(entropy(scores), scores)
    # Going down it, the large score grows against the small one.
    assert gradient[0] < 0 < gradient[1]
    whole = detector()
    made = method(AdaptConfig.model_validate({"teacher": None, "prior": 0.5}), whole, NOTHING)
    losses = Objective(whole, made.terms, 0.9, warm=False)(batch(), None, 0.0)
    assert 0 < losses["prior/entropy"] < 0.5 * math.log(100)


@pytest.mark.parametrize("compressed", ["pruning.keep", "groupable.groups"])
def test_from_adaptation_to_an_int8_artifact(compressed: str, tmp_path: Path) -> None:
    """A few steps from a run that was never trained: the artifact is as small, and computes the same."""
    for seed, name in enumerate(("source", "target")):
        generate(tmp_path / name, 4, (64, 96), seed)
    images = tmp_path / "target" / "images"
    values = settings(tmp_path, tmp_path / "job")
    small = {"backbone": "test_efficientnet", "strides": [8, 16], "channels": 16, "depth": 1}
    values |= {"source": {"path": str(tmp_path / "source")}, "target": str(images), "model": values["model"] | small}
    config = Config.model_validate(
        {k: v for k, v in values.items() if k not in {"source_test", "target_test", "oracle"}}
    )
    torch.manual_seed(0)
    start = Run.create(tmp_path / "start", Manifest(verb="train"))
    save(build(specify(config.model, formats.read(config.source).classes)), start.path)
    start.write("config.json", config)
    start.finish("done")
    value = {"pruning.keep": "0.5", "groupable.groups": "2"}[compressed]
    few = ["schedule.steps=4", "schedule.batch_size=2", "schedule.workers=0", "schedule.lr=1e-2"]
    overrides = [f"adapt.{compressed}={value}", "adapt.supervised=1", *few]
    run = workflow.adapt(start.path, images, tmp_path / "adapted", overrides)
    artifact = Artifact.open(workflow.export(run.path, precision="int8", images=4))

    whole, made = load(start.path), load(run.path)
    graph = onnx.load(artifact.file(".onnx")).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    rounded = [
        node for node in graph.node if node.op_type == "Conv" and makers.get(node.input[1]) == "DequantizeLinear"
    ]
    groups = [next(each.i for each in node.attribute if each.name == "group") for node in rounded]
    if compressed == "pruning.keep":
        assert artifact.manifest.notes.macs_m < 0.5 * macs(whole) / 1e6  # type: ignore[operator]
        assert artifact.manifest.notes.parameters == sum(one.numel() for one in frozen_copy(made).parameters())
    else:
        settled = [name for name, part in frozen_copy(made).named_modules() if isinstance(part, GatheredConv2d)]
        assert len(settled) > 3
        assert groups.count(2) >= len(settled)
        assert artifact.manifest.notes.macs_m < macs(whole) / 1e6  # type: ignore[operator]
    reference, predictor = network(made), Predictor(artifact)
    for path in sorted(images.iterdir()):
        canvas, _ = predictor.prepare(read_image(path))
        for ours, theirs in zip(predictor.run(canvas), reference(canvas), strict=True):
            assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95
