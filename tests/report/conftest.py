"""Run folders as the verbs leave them, made through the Run API with invented but plausible numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from acclimate import diagnosis, report
from acclimate.data.formats.raw import LabelledImage, LabelledSet
from acclimate.edge.artifact import Artifact, ArtifactManifest, Decode
from acclimate.report import pictures
from acclimate.report.content import gather
from acclimate.report.sections import outcomes
from acclimate.run import Candidate, ClassAP, Evaluation, Manifest, Resamples, Run, Selection
from acclimate.structures import Annotations, Detections

CLASSES = ("car", "person", "bicycle", "sign")


def draws(ap: float, chance: float) -> str:
    """A bootstrap of an AP: what all models have in common, and of each its own share of chance."""
    common = np.random.default_rng(0).normal(0, 0.03, 300)
    own = np.random.default_rng(int(1e6 * abs(ap))).normal(0, chance, 300)
    return " ".join(str(round(1e5 * value)) for value in ap + common + own)


def evaluation(
    role: str,
    ap50: float,
    model: str = "eager",
    classes: Sequence[str] = CLASSES,
    chance: float | None = 0.002,
    lost: Mapping[str, float] = {},
) -> Evaluation:
    """`chance` is the spread of a difference; None is an evaluation of an earlier version, which did not tell it.
    `lost` is taken from single classes."""
    spread = np.linspace(0.12, -0.12, len(classes))
    by_class = {name: ap50 + d - lost.get(name, 0.0) for name, d in zip(classes, spread, strict=True)}
    known = {
        "digest": f"{role}-set",
        "resamples": Resamples(
            ap=draws(ap50 * 0.55, chance or 0),
            ap50=draws(ap50, chance or 0),
            classes={name: draws(value, chance or 0) for name, value in by_class.items()},
        ),
    }
    return Evaluation(
        data=f"{role}_test",
        role=role,  # type: ignore[arg-type]
        model=model,
        images=100,
        ap=ap50 * 0.55,
        ap50=ap50,
        ap75=ap50 * 0.5,
        classes={
            name: ClassAP(ap=by_class[name] * 0.55, ap50=by_class[name], boxes=int(400 * (1 + d)))
            for name, d in zip(classes, spread, strict=True)
        },
        **(known if chance is not None else {}),  # type: ignore[arg-type]
    )


def verification(
    name: str,
    *,
    latency_ms: float,
    size_mb: float,
    eager: float,
    ap50: float,
    limits: Mapping[str, float] = {"latency_ms": 10.0, "size_mb": 4.0, "max_ap50_drop": 0.01},
) -> dict[str, Any]:
    """What `verify` writes for an artifact with these measurements."""
    return {
        "artifact": name,
        "runtime": "onnx",
        "precision": name.rpartition("-")[2],
        "digest": "0" * 16,
        "budget": dict(limits),
        "accuracy": {
            "target_test": {
                "role": "target",
                "images": 100,
                "artifact_ap": ap50 * 0.55,
                "artifact_ap50": ap50,
                "eager_ap": eager * 0.55,
                "eager_ap50": eager,
                "difference_ap50": ap50 - eager,
            }
        },
        "parity": {
            "images": 32,
            "matched": 187,
            "unmatched": 3,
            "score_max": 0.081,
            "score_mean": 0.0064,
            "iou_min": 0.88,
            "iou_mean": 0.981,
            "box_px_max": 2.1,
            "box_px_mean": 0.31,
            "raw_max": {"logits": 0.91, "distances": 0.44},
            "worst": [],
        },
        "latency": {
            "threads": 1,
            "images": 32,
            "runs": 200,
            "median_ms": latency_ms,
            "p95_ms": latency_ms * 1.13,
            "iqr_ms": 0.2,
            "cpu_ms": latency_ms,
            "load_ms": 80.0,
            "peak_memory_mb": 118.0,
            "idle_memory_mb": 60.0,
            "parts": {"prepare": 0.4, "network": latency_ms - 1.2, "finish": 0.8},
        },
        "size_mb": size_mb,
        "peak_memory_mb": 118.0,
        "macs_m": 412.0,
        "machine": {"processor": "Example CPU at 3.0 GHz", "cores": "2", "runtime": "onnxruntime 1.32.0"},
        "notes": [],
    }


def train_log(run: Run, steps: int, *, start: float = 2.4, terms: Sequence[str] = ("supervised",)) -> None:
    random = np.random.default_rng(1)
    for step in range(10, steps + 1, 10):
        lr = 1e-3 * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        fall = start * math.exp(-2.2 * step / steps)
        parts = {
            f"{term}/{loss}": share * fall / len(terms) * float(1 + 0.1 * random.standard_normal())
            for term in terms
            for loss, share in (("class", 0.6), ("box", 0.4))
        }
        run.log(
            step=step,
            loss=sum(parts.values()),
            **parts,
            lr=lr,
            images_per_s=float(50 + 2 * random.standard_normal()),
        )


def street(seed: int) -> tuple[np.ndarray[Any, Any], Detections]:
    """A grey street with a few coloured blocks, and their boxes."""
    random = np.random.default_rng(seed)
    image = np.full((240, 320, 3), (150, 155, 160), np.uint8)
    image[140:] = (105, 105, 108)
    boxes = []
    for _ in range(5):
        x, y = random.integers(10, 250), random.integers(90, 170)
        w, h = random.integers(20, 60), random.integers(20, 60)
        cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), random.integers(60, 200, 3).tolist(), -1)
        boxes.append((x, y, x + w, y + h))
    scores = np.sort(random.uniform(0.3, 0.95, len(boxes)))[::-1]
    labels = random.integers(0, len(CLASSES), len(boxes))
    return image, Detections(np.array(boxes, np.float32), labels.astype(np.int64), scores.astype(np.float32))


def write_diagnosis(run: Run, images: Sequence[Path], found: Sequence[Detections], classes: Sequence[str]) -> None:
    """What a model that finds `found` gets right and wrong in streets; every third image has a false box too."""
    labelled, seen = [], []
    for i, (path, detections) in enumerate(zip(images, found, strict=True)):
        _, truth = street(i)
        nothing = np.zeros(len(truth), bool)
        labelled.append(LabelledImage(path, 240, 320, Annotations(truth.boxes, truth.labels, nothing)))
        false = Detections(np.float32([[2, 2, 14, 20]]), np.array([i % len(classes)]), np.float32([0.5 + 0.1 * i / 6]))
        seen.append(detections if i % 3 else merged(detections, false))
    truth_set = LabelledSet("fog-test", "coco", tuple(classes), tuple(labelled))
    told = diagnosis.diagnose(seen, truth_set, data="target_test", role="target", image_size=(240, 320))
    diagnosis.save(run, "target_test", told)


def merged(a: Detections, b: Detections) -> Detections:
    parts = [(getattr(a, name), getattr(b, name)) for name in ("boxes", "labels", "scores")]
    return Detections(*(np.concatenate(part) for part in parts))


def write_run(
    root: Path,
    name: str,
    verb: str = "train",
    *,
    source_ap50: float | None = None,
    target_ap50: float | None = None,
    notes: dict[str, Any] | None = None,
    parents: tuple[str, ...] = (),
    classes: Sequence[str] = CLASSES,
    artifacts: Sequence[dict[str, Any]] = (),
    log: bool = True,
    chosen: bool = False,
    seen: float | None = None,
    schedule: int = 400,
    chance: float | None = 0.002,
    lost: Mapping[str, float] = {},
) -> Path:
    """One finished run folder below `root`; `seen` is the share of the objects that its pictures show as found."""
    command = f"acclimate {verb} example.toml --out runs/{name}"
    run = Run.create(
        root / "runs" / name,
        Manifest(verb=verb, digest=name, command=command, parents=parents, notes=notes or {}, seed=3),
    )
    run.write(
        "config.json",
        {
            "seed": 3,
            "train": {"steps": 600, "lr": 0.001},
            "schedule": {"steps": schedule},
            "model": {"size": "nano"},
            "source_test": {"path": "scenes/clear-test/annotations.json"},
            "target_test": {"path": "scenes/fog-test/annotations.json"},
        },
    )
    if log:
        train_log(run, 600, terms=("supervised", "teacher") if verb == "adapt" else ("supervised",))
    for role, ap50 in (("source", source_ap50), ("target", target_ap50)):
        if ap50 is not None:
            run.write(f"evaluations/{role}_test.json", evaluation(role, ap50, "eager", classes, chance, lost))
    if chosen:
        candidates = []
        for i, step in enumerate(range(100, 700, 100)):
            scores = {"stability": 0.5 + 0.06 * i - 0.008 * i * i, "agreement": 0.61 + 0.02 * (-1) ** i}
            hindsight = (target_ap50 or 0.4) - 0.004 * (i - 4) ** 2
            candidates.append(Candidate(step=step, scores=scores, hindsight_ap50=hindsight))
        run.write(
            "selection.json",
            Selection(
                rule="stability",
                chosen_step=500,
                candidates=tuple(candidates),
                rank_correlation={"stability": 0.73, "agreement": -0.07},
            ),
        )
    for verified in artifacts:
        folder = f"artifacts/{verified['artifact']}"
        manifest = ArtifactManifest(
            name=verified["artifact"],
            runtime=verified["artifact"].partition("-")[0],
            precision=verified["precision"],
            classes=tuple(classes),
            image_size=(240, 320),
            decode=Decode(strides=(8, 16, 32)),
        )
        run.write(f"{folder}/artifact.json", manifest)
        if "budget" in verified:
            digest = Artifact(run.path / folder, manifest).digest
            run.write(f"{folder}/verification.json", {**verified, "digest": digest})
    if seen is not None:
        images, found = [], []
        for i in range(6):
            image, detections = street(i)
            path = root / "target" / f"{i:03d}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), image[:, :, ::-1])
            images.append(path)
            found.append(detections[: max(1, round(seen * len(detections)))])
        pictures.save(run, images, found, classes)
        if target_ap50 is not None:
            write_diagnosis(run, images, found, classes)
    run.finish("done", 184.0)
    return run.path


def write_job(
    root: Path, adapted_ap50: float = 0.52, *, latency_ms: float = 7.2, int8_ap50: float | None = None
) -> tuple[list[Path], Path]:
    """A whole job: ([source, adapted], oracle); the baseline lies beside them."""
    int8_ap50 = adapted_ap50 - 0.004 if int8_ap50 is None else int8_ap50
    problem = "target/017.jpg: truncated; left out"
    learned = {"name": "clear-train", "format": "coco", "images": 300, "boxes": 2211, "classes": list(CLASSES)}
    source = write_run(
        root,
        "source",
        source_ap50=0.662,
        target_ap50=0.403,
        seen=0.4,
        notes={"role": "source", "source": {**learned, "problems": []}, "start": "timm weights"},
    )
    adapted = write_run(
        root,
        "adapted",
        "adapt",
        source_ap50=0.655,
        target_ap50=adapted_ap50,
        parents=("runs/source",),
        chosen=True,
        seen=1.0,
        notes={"source": {**learned, "problems": []}, "target": {"images": 298, "problems": [problem]}},
        artifacts=[
            verification("onnx-fp32", latency_ms=12.4, size_mb=6.8, eager=adapted_ap50, ap50=adapted_ap50),
            verification("onnx-int8", latency_ms=latency_ms, size_mb=1.9, eager=adapted_ap50, ap50=int8_ap50),
        ],
    )
    write_run(
        root,
        "baseline",
        "adapt",
        source_ap50=0.67,
        target_ap50=0.43,
        parents=("runs/source",),
        seen=0.6,
        notes={"role": "baseline", "source": {**learned, "problems": []}},
    )
    oracle = write_run(root, "oracle", target_ap50=0.592, source_ap50=0.51, notes={"role": "oracle"})
    return [source, adapted], oracle


@pytest.fixture(scope="session")
def measured() -> Callable[..., dict[str, Any]]:
    """`verification` for tests that set its numbers."""
    return verification


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run` below this test's own folder."""
    return functools.partial(write_run, tmp_path)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., tuple[list[Path], Path]]:
    """`write_job` below this test's own folder."""
    return functools.partial(write_job, tmp_path)


@pytest.fixture(scope="session")
def crowded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several adapted runs with long names, many artifacts, long class names, no oracle, and a missed budget."""
    root = tmp_path_factory.mktemp("crowded")
    classes = ("traffic_light_red", "speed limit 30", "a_class_name_so_long_that_no_phone_has_room_for_it_on_a_line")
    runs = [write_run(root, "source", source_ap50=0.6, target_ap50=0.5, classes=classes)]
    for i in range(3):
        ap50 = 0.3 + 0.05 * i
        exported = [
            verification(name, latency_ms=latency_ms + i, size_mb=5.0, eager=ap50, ap50=ap50 - 0.02)
            for name, latency_ms in (("onnx-fp32", 14.0), ("onnx-int8", 9.5), ("openvino-int8", 12.0))
        ]
        run = write_run(
            root,
            f"adapted-with-a-name-that-goes-on-and-on-seed-{i}",
            "adapt",
            source_ap50=0.5,
            target_ap50=ap50,
            classes=classes,
            chosen=True,
            artifacts=exported,
            notes={"target": {"images": 10, "problems": [f"{'folder/' * 12}{k}.jpg: truncated" for k in range(30)]}},
        )
        runs.append(run)
    return report.write(runs, root / "report.html")


@pytest.fixture(scope="session")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole job whose budget is met."""
    root = tmp_path_factory.mktemp("report")
    runs, oracle = write_job(root)
    outcomes.illustrate(gather(runs, oracle=oracle))
    return report.write(runs, root / "report.html", oracle=oracle)
