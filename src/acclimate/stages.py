"""What every stage of a job shares: its run folder, whether its inputs changed, and a manifest that stays true."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from acclimate.config import Added, Config, Options, parse
from acclimate.errors import AcclimateError, OtherInputsError
from acclimate.run import Manifest, Run, digest, writing

if TYPE_CHECKING:
    from accelerate import Accelerator

    from acclimate.data.formats import LabelledSet, UnlabelledSet
    from acclimate.models.detector import Detector

_T = TypeVar("_T")
log = logging.getLogger(__name__)


def done_before(out: Path, manifest: Manifest, console: Console | None) -> Run | None:
    """The run in `out` where it is finished and has the same inputs; None where there is something to do.

    Raises:
        OtherInputsError: the folder holds a run with other inputs.
        AcclimateError: it holds a run that is damaged.
    """
    if not (out / "run.json").is_file():
        return None
    found = Run.open(out)
    if (found.manifest.verb, found.manifest.digest) != (manifest.verb, manifest.digest):
        raise OtherInputsError(
            f"{out}: holds another run ({found.manifest.verb}, {found.manifest.status}) with other inputs; "
            "choose another --out, or delete the folder",
            found.manifest.digest,
        )
    if not found.done:
        return None
    finished(out)
    if console is not None:
        console.print(f"{out}: done; nothing to do", markup=False, highlight=False)
    return found


def start(acc: Accelerator, out: Path, manifest: Manifest, console: Console | None) -> Run:
    """Create the run folder, or take up the unfinished one that is there; by the first process alone.

    Raises:
        AcclimateError: `out` holds something else, is damaged, or cannot be written.
    """
    if acc.is_main_process:
        if console is not None and (out / "run.json").is_file():
            console.print(f"{out}: {Run.open(out).manifest.status}; going on", markup=False, highlight=False)
        Run.create(out, manifest.model_copy(update={"command": repeat()}))
    acc.wait_for_everyone()
    return Run.open(out)


@contextlib.contextmanager
def running(run: Run, acc: Accelerator, config: Config, facts: dict[str, Any]) -> Iterator[None]:
    """Keep the manifest true about how the run stands, however it ends."""
    from acclimate.adapt.engine import discard_state

    began = time.monotonic()
    if acc.is_main_process:
        run.write("config.json", config.model_dump(mode="json"))
        run.manifest = run.manifest.model_copy(update={"status": "running"})
        run.note(processes=acc.num_processes, device=str(acc.device), **facts)
    status: Literal["interrupted", "failed", "done"] = "failed"
    try:
        yield
        status = "done"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if status == "done":
            acc.wait_for_everyone()
        if acc.is_main_process:
            # A full disk must not hide what went wrong before.
            with contextlib.suppress(*(() if status == "done" else (AcclimateError,))):
                run.finish(status, time.monotonic() - began)
            if status == "done":
                discard_state(run)


def finished(path: Path) -> Run:
    """The run at `path`, which must be whole.

    Raises:
        AcclimateError: it is no run, not finished, or its files are gone.
    """
    run = Run.open(path)
    if not run.done:
        raise AcclimateError(
            f"{path}: the run is not finished ({run.manifest.status}); run its command again first"
            + (f": {run.manifest.command}" if run.manifest.command else "")
        )
    for name in ("config.json", "spec.json", "model.safetensors"):
        if not run.has(name):
            raise AcclimateError(f"{path / name}: is missing from a finished run; delete {path} and run again")
    return run


def configuration(run: Run) -> Config:
    """The resolved configuration of a run; options that this version does not know are left out, with a warning.

    Raises:
        AcclimateError: config.json is missing or damaged.
    """
    file = run.path / "config.json"
    values = run.read("config.json")
    if not isinstance(values, dict):
        raise AcclimateError(f"{file}: damaged; delete {run.path} and run again")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
    for *parents, leaf in unknown:
        section: Any = values
        for parent in parents:
            section = section[parent]
        section.pop(leaf)
    if unknown:
        names = ", ".join(".".join(map(str, loc)) for loc in unknown)
        log.warning("%s: written by acclimate %s; left out: %s", file, run.manifest.version, names)
    return parse(Config, values, where=str(file))


def take_place(path: Path, stage: Callable[[], _T], console: Console | None) -> _T:
    """Run a stage; a run or a generated set from other inputs that is in its way moves to `previous/` beside it.

    Raises:
        AcclimateError: as the stage does, or what was there cannot be moved.
    """
    try:
        return stage()
    except OtherInputsError as error:
        aside = path.parent / "previous" / f"{path.name}-{error.digest}"
        number = 1
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{path.name}-{error.digest}-{number}")
        with writing(aside):
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
        if console is not None:
            console.print(f"{path}: its inputs changed; the earlier one is now {aside}", markup=False, highlight=False)
        return stage()


OWN_SECTION = {"two-stage": "two_stage", "ssd": "ssd", "slimmable": "slimmable"}
"""The section of `model` that one kind of detector alone looks at."""


def plain(config: Config, *sections: str) -> dict[str, Any]:
    """The sections that determine a result; how it is loaded and logged does not, nor does an option that was added
    later and does what was done before (`config.Added`)."""
    values = config.model_dump(mode="json", include=set(sections))
    for section in sections:
        if isinstance(options := getattr(config, section), Options):
            _leave_out_added(options, values[section])
    if "model" in values:
        # What is said of other kinds of detector changes nothing, nor does an option that they gain in a later version.
        for kind, own in OWN_SECTION.items():
            if config.model.kind != kind:
                del values["model"][own]
    for section in values.values():
        if isinstance(section, dict):
            for key in ("workers", "cache_mb", "log_every"):
                section.pop(key, None)
    return values


def _leave_out_added(options: Options, values: dict[str, Any]) -> None:
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if any(isinstance(mark, Added) and value == mark.before for mark in field.metadata):
            del values[name]
        elif isinstance(value, Options):
            _leave_out_added(value, values[name])


def labelled_digest(images: LabelledSet) -> str:
    """Of a set's classes, files, boxes and outlines."""
    state = hashlib.sha256(repr(images.classes).encode())
    # Nothing where pictures are read in the usual way: runs made before there was another stay what they are.
    state.update(repr(images.reading.model_dump(exclude_defaults=True) or "").strip("'").encode())
    for image in images.images:
        state.update(f"{image.path}:{_size(image.path)}".encode())
        for array in (image.annotations.boxes, image.annotations.labels, image.annotations.ignore):
            state.update(array.tobytes())
        for outline in image.annotations.outlines or ():
            for polygon in outline:
                state.update(polygon.tobytes())
    return state.hexdigest()[:16]


def unlabelled_digest(images: UnlabelledSet) -> str:
    """Of a set's files."""
    return digest([(str(path), _size(path)) for path in images.paths])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def describe(images: LabelledSet) -> dict[str, Any]:
    """A labelled set, for the manifest."""
    return {
        "name": images.name,
        "format": images.format,
        "images": len(images),
        "boxes": sum(int((~image.annotations.ignore).sum()) for image in images.images),
        "classes": list(images.classes),
        "problems": [str(problem) for problem in images.problems][:20],
        "problem_count": len(images.problems),
    }


def class_boxes(images: LabelledSet) -> dict[str, int]:
    """How many boxes each class has, ignored ones left out."""
    counts = dict.fromkeys(images.classes, 0)
    for image in images.images:
        for label in image.annotations.labels[~image.annotations.ignore]:
            counts[images.classes[int(label)]] += 1
    return counts


def repeat() -> str:
    """The command line of this process, for the report's "how to repeat"."""
    name = Path(sys.argv[0]).name
    return shlex.join(["acclimate", *sys.argv[1:]]) if name in {"acclimate", "__main__.py", "cli.py"} else name


def one_process(verb: str) -> None:
    """Refuse a verb that several processes would do several times over.

    Raises:
        AcclimateError: this is one of several processes of `torchrun`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AcclimateError(f"{verb} runs in one process; start `train` and `adapt` with torchrun, then {verb} alone")


def to_device(detector: Detector) -> Detector:
    """The detector on the accelerator, where there is one."""
    import torch

    return detector.to("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def counting(console: Console | None, title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback for (done, all): a bar on a terminal, a line at the end elsewhere."""
    if console is None:
        yield lambda done, total: None
        return
    if not console.is_terminal:

        def line(done: int, total: int) -> None:
            if done == total:
                console.print(f"{title}: {total}", markup=False, highlight=False)

        yield line
        return
    columns = (TextColumn(title, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
