"""The verb evaluate: how well a run's detector does on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from acclimate import diagnosis, stages, trackers
from acclimate.config import DataConfig, parse
from acclimate.errors import AcclimateError
from acclimate.progress import counting
from acclimate.run import Evaluation, Notes, Role, Run, counted, digest, locked

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector
    from acclimate.models.slimmable import SlimmableDetector


def evaluate(
    path: str | Path,
    data: DataConfig,
    name: str = "target_test",
    role: Role = "target",
    *,
    hindsight: bool = False,
    masks: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """AP of a run's eager detector on a labelled set; saved as evaluations/NAME.json of the run, and where it is right
    and wrong as diagnoses/NAME.json.

    This is the place, with `verify`, where target labels are read; nothing chooses by it.

    Args:
        path: a finished run.
        data: the labelled set.
        name: of the set, and so of the file.
        role: whose domain it is of.
        hindsight: whether every checkpoint of the run is evaluated too, and selection.json learns how well each
            label-free score ranked them.
        masks: whether the AP of its masks is measured too.
        console: where progress goes.

    Raises:
        AcclimateError: the run is not finished or the set cannot be used, or its detector has no masks.
    """
    run = stages.finished(Path(path))
    with locked(run.path, "evaluate"):
        return _evaluate(run, data, name, role, hindsight, masks, console)


def _evaluate(
    run: Run, data: DataConfig, name: str, role: Role, hindsight: bool, masks: bool, console: Console | None
) -> Evaluation:
    from acclimate.adapt.engine import checkpoints
    from acclimate.data import formats
    from acclimate.data.labelled import refuse_tested
    from acclimate.evaluate import average_precision, evaluate_detector, mask_average_precision, predictions_of
    from acclimate.models import detector as models
    from acclimate.models.predict import having_masks, predict_masks
    from acclimate.select.score import rank

    detector = models.to_device(models.load(run.path))
    with_masks = having_masks(detector, run.path) if masks else None
    truth = formats.read(data, detector.spec.classes, masks=masks, reading=detector.spec.reading)
    refuse_tested(stages.labelled_frames(run), truth.paths, name)
    found = predictions_of(detector, truth, name)
    result = average_precision(found, truth, data=name, role=role)
    if with_masks is not None:
        shapes = predict_masks(with_masks, truth.paths)
        if truth.classes != detector.spec.classes:
            raise AcclimateError(f"{name}: masks are measured of a set with the detector's own classes")
        ap, ap50 = mask_average_precision(shapes, truth)
        result = result.model_copy(update={"mask_ap": ap, "mask_ap50": ap50})
        if console is not None:
            console.print(f"masks on {name}: AP50 {ap50:.3f}, AP {ap:.3f}", markup=False, highlight=False)
    size = detector.spec.image_size
    diagnosis.save(run, name, diagnosis.diagnose(found, truth, data=name, role=role, image_size=size))
    run.write(f"evaluations/{name}.json", result)
    selection = run.selection()
    if hindsight and selection is not None:
        scores = {}
        for step, file in checkpoints(run).items():
            models.load_weights(detector, file)
            scores[step] = evaluate_detector(detector, truth, name, role).ap50
        run.write("selection.json", rank(selection, scores))
    if hindsight and run.has("search/candidates.json"):
        _widths_in_hindsight(run, detector, truth, name, role, console)
    last = max((int(line.get("step", 0)) for line in run.metrics()), default=0)
    with trackers.tracked(run, {}) as track:
        track(last, {f"{name}/ap50": result.ap50, f"{name}/ap": result.ap})
    noted = run.manifest.notes
    sets = {**noted.evaluated_on, name: {**data.model_dump(mode="json"), "role": role}}
    evaluated = {**noted.evaluated, name: digest(stages.labelled_digest(truth))}
    run.note(Notes(evaluated=evaluated, evaluated_on=sets))
    if console is not None:
        console.print(
            f"{run.path.name} on {name}: AP50 {result.ap50:.3f}, AP {result.ap:.3f}, "
            f"{counted(result.images, result.unreadable)}",
            markup=False, highlight=False,
        )  # fmt: skip
    return result


def _widths_in_hindsight(
    run: Run, detector: Detector, truth: LabelledSet, name: str, role: Role, console: Console | None
) -> None:
    """AP of widths that a search judged, and how well UPEM ordered them, into search/hindsight.json of the bank."""
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.evaluate import evaluate_detector
    from acclimate.models.statistics import IMAGES, recalibrate
    from acclimate.select import search as searching
    from acclimate.select.record import Candidates

    judged = parse(Candidates, run.read("search/candidates.json"), where=str(run.path / "search/candidates.json"))
    config = stages.configuration(run)
    seen = choose(formats.unlabelled(Path(judged.target)).paths, IMAGES, config.seed)
    known = []
    chosen = searching.spread(judged.candidates, searching.EVALUATIONS)
    with counting(console, "widths evaluated in hindsight") as tick:
        for done, candidate in enumerate(chosen, 1):
            plain = cast("SlimmableDetector", detector).extract(candidate.width)
            recalibrate(plain, seen)
            measured = evaluate_detector(plain, truth, name, role)
            known.append((candidate, measured.ap, measured.ap50))
            tick(done, len(chosen))
    result = searching.hindsight(name, known)
    run.write("search/hindsight.json", result)
    if console is not None and result.tau:
        told = ", ".join(f"{order} {tau:.2f}" for order, tau in result.tau.items())
        console.print(f"Kendall's tau with AP50 over {len(known)} widths: {told}", highlight=False)
