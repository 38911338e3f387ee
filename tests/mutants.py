"""Realistic mistakes at the seams between parts, and the tests that notice each: writes docs/mutants.md.

    python tests/mutants.py                    every mutant, some ten minutes
    python tests/mutants.py --only NAME ...    a few, without writing the page

Each mutant changes one place in a copy of the source; the tests named for it run against the copy, and at least one has
to fail. Before that they all have to pass on the source as it is. The default suite does not run this, but it holds the
table against the source and the tests (`test_mutants.py`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "mutants.md"
SHARED = (
    "accelerate", "cv2", "hotcoco", "hypothesis", "onnx", "onnxruntime", "pydantic", "rich.progress",
    "safetensors.torch", "scipy.optimize", "scipy.stats", "timm", "torch", "torchvision", "typer",
)  # fmt: skip
"""Imported once, before the children begin."""
FAILED = 1
"""pytest's status where tests ran and at least one failed."""


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
        name: of one or two words.
        seam: between which parts it lies.
        what: it does, for a reader.
        file: below src/acclimate.
        before: the code that is replaced; it stands there once.
        after: what replaces it.
        tests: that have to notice, relative to tests/.
    """

    name: str
    seam: str
    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "two-stage boxes",
        "detector -> teacher",
        "the teacher's share for losses that move boxes misses a second stage's",
        "adapt/teacher.py",
        'moves = step.detector.loss_kinds[name] == "box"',
        'moves = name == "box"',
        ("adapt/test_teacher.py::test_the_losses_that_move_boxes_are_known_by_their_kind",),
    ),
    Mutant(
        "unmeasured passes",
        "record -> judge",
        "a limit that was not measured counts as kept",
        "verification/judge.py",
        "value=None, passed=None,",
        "value=None, passed=True,",
        ("verification/test_judge.py::test_nothing_passes_unmeasured",),
    ),
    Mutant(
        "letterbox truncates",
        "image -> canvas",
        "the sides on the canvas are cut to whole pixels where they are rounded",
        "edge/images.py",
        "return scale, (max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale)))",
        "return scale, (max(1, int(picture[0] * scale)), max(1, int(picture[1] * scale)))",
        ("edge/test_images.py::test_the_sides_on_the_canvas_are_rounded",),
    ),
    Mutant(
        "best set's loss",
        "record -> judge",
        "the loss of an artifact is that of the set on which it loses least",
        "verification/record.py",
        "return max(drops, default=None)",
        "return min(drops, default=None)",
        ("verification/test_measure.py::test_a_loss_is_that_of_the_worst_set",),
    ),
    Mutant(
        "weight of boxes",
        "detector -> loop",
        "the box loss of the dense detector weighs as much as the class loss",
        "models/dense.py",
        "BOX_WEIGHT = 2.0",
        "BOX_WEIGHT = 1.0",
        ("models/test_dense.py::test_losses_are_those_of_the_assignment",),
    ),
    Mutant(
        "offsets of the class before",
        "desk -> device",
        "the device moves a second stage's box by the offsets of the class before its own",
        "edge/decode.py",
        "moves[where, labels + 1]",
        "moves[where, labels]",
        ("edge/test_decode.py::test_two_stage_outputs_become_what_torchvision_makes_of_them",),
    ),
    Mutant(
        "corners of cells",
        "desk -> device",
        "locations are the corners of their cells, for training and for the device alike",
        "boxes/locations.py",
        "np.stack([x, y], axis=1) + 0.5",
        "np.stack([x, y], axis=1) + 0.0",
        ("boxes/test_boxes.py::test_locations_are_the_centres_of_the_cells_of_padded_convolutions",),
    ),
    Mutant(
        "calibration reads otherwise",
        "calibration -> export",
        "INT8 is calibrated on pictures read in another way than the detector reads them",
        "export/base.py",
        "calibration_canvases(calibration, frozen.spec.image_size, frozen.spec.reading)",
        "calibration_canvases(calibration, frozen.spec.image_size)",
        ("export/test_base.py::test_pictures_are_read_alike_in_calibration_and_on_the_device",),
    ),
    Mutant(
        "artifact forgets how to read",
        "export -> device",
        "the artifact does not say how its pictures are to be turned",
        "models/predict.py",
        "        orientation=spec.reading.orientation,\n",
        "",
        ("export/test_base.py::test_pictures_are_read_alike_in_calibration_and_on_the_device",),
    ),
    Mutant(
        "any threads' latency",
        "record -> judge",
        "a budget of four threads is held against the latency on one",
        "verification/record.py",
        "bench = next((bench for bench in self.benches if bench.threads == threads), None)",
        "bench = self.latency",
        ("verification/test_judge.py::test_latency_is_that_of_the_budgets_threads",),
    ),
    Mutant(
        "last checkpoint",
        "selection -> checkpoint",
        "the choice is recorded, and the last checkpoint is kept",
        "select/score.py",
        "    load_weights(detector, checkpoints[chosen_step])\n",
        "    load_weights(detector, checkpoints[max(checkpoints)])\n",
        ("select/test_score.py::test_the_trained_checkpoint_is_chosen_and_left_in_the_detector",),
    ),
    Mutant(
        "student is kept",
        "EMA -> export",
        "a run keeps the student's weights, and so exports them, in place of the average's",
        "training/recipe.py",
        "models.save(objective.average, run.path)",
        "models.save(objective.detector, run.path)",
        ("training/test_recipe.py::test_a_run_keeps_the_average_and_not_the_student",),
    ),
    Mutant(
        "labels by number",
        "label mapping -> evaluation",
        "detections keep the detector's class numbers where the set orders its classes otherwise",
        "evaluate.py",
        "table = np.array([wanted.index(name) if name in wanted else -1 for name in classes], np.int64)",
        "table = np.arange(len(classes))",
        ("test_evaluate.py::test_relabel_goes_by_name",),
    ),
    Mutant(
        "schedule starts anew",
        "resume -> schedule",
        "a run that goes on begins its learning rate from the start",
        "adapt/engine.py",
        "    acc.register_for_checkpointing(scheduler)\n",
        "",
        ("adapt/test_engine.py::test_a_run_interrupted_at_every_step_goes_on_exactly",),
    ),
    Mutant(
        "unturned boxes",
        "label file -> image",
        "boxes stay where they lay on the picture as it is stored, when it is turned",
        "data/formats/raw.py",
        "if frame.written != reading.orientation and frame.header.orientation != 1:",
        "if frame.written == reading.orientation and frame.header.orientation != 1:",
        ("data/test_orientation.py::test_a_coco_index_tells_its_frame_by_its_sizes",),
    ),
    Mutant(
        "strong view teaches",
        "views -> teacher",
        "pseudo-labels come from the view that the student is trained on",
        "adapt/teacher.py",
        'found = step.average.decode(step.average_raw("target_weak"))',
        'found = step.average.decode(step.average_raw("target_strong"))',
        ("adapt/test_teacher.py::test_target_boxes_are_the_teachers_sure_detections_and_the_doubtful_are_ignored",),
    ),
    Mutant(
        "stale labels",
        "label file -> job",
        "a label file that changed between two verbs is not read again",
        "data/formats/looked.py",
        "        if looks.still():\n",
        "        if looks:\n",
        ("data/test_looked.py::test_a_change_between_two_readings_is_seen",),
    ),
    Mutant(
        "unchecked package",
        "package -> device",
        "a file that was changed on its way is unpacked all the same",
        "edge/package.py",
        "if file_digest(folder / name) != expected:",
        'if file_digest(folder / name) == "":',
        ("edge/test_package.py::test_a_missing_or_added_file_is_named",),
    ),
    Mutant(
        "learnt frames tested",
        "labels -> verification",
        "an artifact is verified on frames whose labels it has learnt",
        "workflow/delivery.py",
        "            refuse_tested(stages.labelled_frames(run), test.truth.paths, test.name)\n",
        "            pass\n",
        ("workflow/test_delivery.py::test_frames_that_were_learnt_are_no_test_of_an_artifact",),
    ),
    Mutant(
        "another model's record",
        "training -> verification",
        "parity with weights that were trained over counts as measured",
        "verification/measure.py",
        "return record.digest == digest and same and (not weights or record.reference == weights)",
        "return record.digest == digest and same",
        ("verification/test_measure.py::test_weights_that_were_trained_over_are_compared_anew",),
    ),
)


def mutated(mutant: Mutant, folder: Path) -> Path:
    """A copy of the source below `folder` with the mistake in it."""
    source = folder / "src"
    # Byte code goes along, so that only what is changed is compiled.
    shutil.copytree(REPOSITORY / "src", source, ignore=shutil.ignore_patterns("*.egg-info"))
    file = source / "acclimate" / mutant.file
    text = file.read_text()
    assert text.count(mutant.before) == 1, f"{mutant.name}: {mutant.before!r} stands {text.count(mutant.before)} times"
    file.write_text(text.replace(mutant.before, mutant.after))
    return source


def run(tests: tuple[str, ...], source: Path) -> tuple[int, str]:
    """The status of these tests on a source, and what pytest said."""
    with tempfile.TemporaryFile("w+") as said:
        # What does not change is imported once; a child has it, and nothing of the package.
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), sys.stdout.fileno())
            os.dup2(said.fileno(), sys.stderr.fileno())
            os.environ["PYTHONPATH"] = str(source)
            sys.path.insert(0, str(source))
            arguments = ["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
            status = int(pytest.main(arguments))
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return status, said.read()


def tried(mutant: Mutant) -> str:
    """The test that notices a mutant; empty where none does.

    Raises:
        SystemExit: the tests did not run.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        status, said = run(mutant.tests, mutated(mutant, Path(folder)))
    if status == 0:
        return ""
    failed = re.search(r"^FAILED tests/(\S+?::\w+)", said, re.MULTILINE)
    if status != FAILED or failed is None:
        raise SystemExit(f"{mutant.name}: the tests did not run:\n{said[-2000:]}")
    return failed[1]


def page(killers: dict[str, str]) -> str:
    """docs/mutants.md: of each mutant the test that notices it."""
    lines = [
        "# Mutants",
        "",
        "A test suite is as good as the mistakes that it notices. Most of these lie at a seam between two parts, where",
        "each part for itself looks right. The first five once survived all tests.",
        f"`python tests/mutants.py` makes each of the {len(killers)} in a copy of the source, runs the tests that have",
        "to notice it, and writes this page; a mutant that survives ends it with an error.",
        "",
        "| mutant | seam | what goes wrong | where | noticed by |",
        "|---|---|---|---|---|",
    ]
    for one in MUTANTS:
        if one.name in killers:
            file, test = killers[one.name].split("::")
            lines.append(f"| {one.name} | {one.seam} | {one.what} | `{one.file}` | `{test}` in `tests/{file}` |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants; the page is not written")
    wanted = parser.parse_args().only
    os.chdir(REPOSITORY)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in SHARED:
        importlib.import_module(name)
    mutants = [one for one in MUTANTS if wanted is None or one.name in wanted]
    tests = tuple(dict.fromkeys(test for one in mutants for test in one.tests))
    status, said = run(tests, REPOSITORY / "src")
    if status != 0:
        raise SystemExit(f"the tests fail without any mutant:\n{said[-3000:]}")
    killers = {}
    for one in mutants:
        start = time.monotonic()
        killers[one.name] = tried(one)
        told = killers[one.name] or "SURVIVES"
        print(f"{one.name}: {told} ({time.monotonic() - start:.0f} s)", flush=True)
    survivors = [name for name, killer in killers.items() if not killer]
    if survivors:
        raise SystemExit(f"no test notices: {', '.join(survivors)}")
    if wanted is None:
        PAGE.write_text(page(killers))
        print(f"page: {PAGE}")


if __name__ == "__main__":
    main()
