"""What every stage of a job shares: its run folder, whether its inputs changed, and a manifest that stays true."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ValidationError
from rich.console import Console

from acclimate import __version__
from acclimate.config import Added, Config, Options, parse
from acclimate.errors import AcclimateError, OtherInputsError
from acclimate.inputs import FILE, Inputs, differences, size_of
from acclimate.locks import HeldError
from acclimate.run import (
    Manifest,
    Notes,
    Run,
    Session,
    SetNotes,
    digest,
    discard_state,
    exchange,
    listed,
    locked,
    writing,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from acclimate.data.formats import LabelledSet, UnlabelledSet

_T = TypeVar("_T")
log = logging.getLogger(__name__)


def known(out: Path, manifest: Manifest, inputs: Inputs) -> Run | None:
    """The run in `out`, which has the same inputs; None where there is none.

    A run whose only difference is that files cannot be read any more is the same: see `Inputs.damaged_since`.

    Raises:
        OtherInputsError: the folder holds a run with other inputs; the line names what differs, with both values.
        AcclimateError: it holds a run that is damaged.
    """
    if not (out / "run.json").is_file():
        return None
    found = Run.open(out)
    if (found.manifest.verb, found.manifest.digest) == (manifest.verb, manifest.digest):
        return found
    if found.manifest.verb == manifest.verb and found.has(FILE):
        damaged = inputs.damaged_since(found.read(FILE))
        if damaged:
            more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            log.warning("%s: cannot be read any more%s; left out of a run that began with it", damaged[0], more)
            return found
    raise OtherInputsError(
        f"{out}: holds another run ({found.manifest.verb}, {found.manifest.status}) with other inputs"
        f"{_what_differs(found, manifest, inputs)}; choose another --out, or delete the folder",
        found.manifest.digest,
        manifest.digest,
    )


def _what_differs(found: Run, manifest: Manifest, inputs: Inputs) -> str:
    if found.manifest.verb != manifest.verb:
        return ""
    was, now = found.manifest.notes.role, manifest.notes.role
    if was != now:
        return f": its role is {now} and was {was}"
    try:
        # Earlier versions kept no more than the configuration.
        before = found.read(FILE) if found.has(FILE) else {"settings": _settings_as(found, inputs)}
        told = differences(before, inputs.as_json())
    except AcclimateError:
        return ""
    return f": {told}" if told else ""


def _settings_as(found: Run, inputs: Inputs) -> dict[str, Any]:
    """The configuration of a run, as far as `inputs` has settings."""
    config = configuration(found)
    return plain(config, *(name for name in inputs.settings if name in Config.model_fields))


def done(found: Run | None, console: Console | None) -> bool:
    """Whether there is nothing to do, as the run of these inputs is finished; the console is told.

    Raises:
        AcclimateError: it is finished and has lost a file.
    """
    if found is None or not found.done:
        return False
    finished(found.path)
    # A process that was killed as it finished may have left it.
    discard_state(found)
    if console is not None:
        console.print(f"{found.path}: done; nothing to do", markup=False, highlight=False)
    return True


def start(
    acc: Accelerator, out: Path, manifest: Manifest, inputs: Inputs, begun: Run | None, console: Console | None
) -> Run:
    """Create the run folder, or take up the unfinished one that is there; by the first process alone.

    Args:
        acc: says which process this is.
        out: the run folder.
        manifest: of a new run.
        inputs: of a new run.
        begun: the unfinished run, as `known` found it.
        console: is told that it goes on.

    Raises:
        AcclimateError: `out` holds something else, is damaged, or cannot be written.
    """
    if acc.is_main_process:
        if begun is None:
            begun = Run.create(out, manifest.model_copy(update={"command": repeat()}))
        elif console is not None:
            console.print(f"{out}: {begun.manifest.status}; going on", markup=False, highlight=False)
        if not begun.has(FILE):
            begun.write(FILE, inputs.as_json())
    acc.wait_for_everyone()
    return Run.open(out)


@contextlib.contextmanager
def running(run: Run, acc: Accelerator, config: Config, facts: Notes) -> Iterator[None]:
    """Keep the manifest true about how the run stands, however it ends.

    Its note `sessions` says from which step on each process worked on the run, and what it computed with: processes,
    threads and device change the order of sums, and so the last digits of what is learnt.

    Args:
        run: whose manifest it is.
        acc: what the run computes with.
        config: the run's configuration.
        facts: of the manifest's notes.
    """
    import torch

    from acclimate.adapt.engine import reached

    began = time.monotonic()
    if acc.is_main_process:
        run.write("config.json", config.model_dump(mode="json"))
        run.manifest = run.manifest.model_copy(update={"status": "running"})
        session = Session(
            from_step=reached(run),
            processes=acc.num_processes,
            threads=torch.get_num_threads(),
            device=str(acc.device),
            torch=torch.__version__,
            version=__version__,
            host=socket.gethostname(),
        )
        sessions = (*run.manifest.notes.sessions, session)
        run.note(facts | Notes(sessions=sessions, processes=session.processes, device=session.device))
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


def bank(path: Path, kind: str = "") -> Run:
    """The finished run at `path`, whose detector has widths or paths to choose among; of one kind where that is named.

    Raises:
        AcclimateError: as `finished` does; or the detector has nothing to choose among, or is of another kind.
    """
    from acclimate.models import detector as models

    run = finished(path)
    spec = models.specification(run.path)
    fits = spec.kind == kind if kind else models.family(spec.kind).bank
    if fits and getattr(spec, "path", None) is None:
        return run
    kinds = [kind] if kind else models.banks()
    raise AcclimateError(
        f"{run.path}: its detector is {spec.kind} and has one width; train one with model.kind={' or '.join(kinds)} "
        "and start there"
    )


@contextlib.contextmanager
def measured_in(artifact: Path, verb: str, console: Console | None) -> Iterator[Path]:
    """Where an artifact's folder, or a package, can be measured by a verb that stores what it finds there.

    It is `artifact` itself, in a run that nobody else writes into meanwhile; where that cannot be written it is a copy
    that goes again, and the console is told that nothing is stored.

    Raises:
        HeldError: somebody else writes there.
    """
    if not artifact.exists():
        yield artifact
        return
    run = artifact.parent.parent if (artifact.parent.parent / "run.json").is_file() else None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run or artifact, verb))
            with tempfile.TemporaryFile(dir=artifact.parent if artifact.is_file() else artifact):
                pass
        except HeldError:
            raise
        except (AcclimateError, OSError) as error:
            reason = str(error).partition(";")[0] if isinstance(error, AcclimateError) else error.strerror
            if console is not None:
                said = f"{artifact}: cannot be written ({reason}); what {verb} measures is told and not stored"
                console.print(said, markup=False, highlight=False)
            yield _copied(artifact, run, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="acclimate-"))))
            return
        yield artifact


def _copied(artifact: Path, run: Path | None, folder: Path) -> Path:
    """A copy of an artifact below `folder`, in a run that has the files of the one that it is in."""
    if artifact.is_file():
        return Path(shutil.copy(artifact, folder))
    copied = folder / "run" / "artifacts" / artifact.name
    if run is not None:
        (folder / "run").mkdir()
        for name in ("run.json", "config.json", "spec.json", "model.safetensors"):
            (folder / "run" / name).symlink_to((run / name).resolve())
    shutil.copytree(artifact, copied)
    copied.chmod(0o755)
    return copied


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

    Where `previous/` holds the one with the wanted inputs, that is taken back.

    Raises:
        AcclimateError: as the stage does, or what was there cannot be moved.
    """

    def say(text: str) -> None:
        if console is not None:
            console.print(text, markup=False, highlight=False)

    try:
        return stage()
    except OtherInputsError as error:
        with locked(path, "run"), writing(path.parent / "previous"):
            aside = _free(path, error.digest)
            earlier = _earlier(path, error.wanted)
            aside.parent.mkdir(parents=True, exist_ok=True)
            if earlier is None:
                path.rename(aside)
                say(f"{path}: its inputs changed; the earlier one is now {aside}")
            else:
                # In one step where the system can: a kill leaves both, one at each place.
                if exchange(earlier, path):
                    earlier.rename(aside)
                else:
                    path.rename(aside)
                    earlier.rename(path)
                say(f"{path}: taken back from {earlier}; what was there is now {aside}")
        return stage()


def _free(path: Path, digest: str) -> Path:
    """A place in `previous/` for what is at `path`."""
    aside = path.parent / "previous" / f"{path.name}-{digest}"
    number = 1
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{path.name}-{digest}-{number}")
    return aside


def _earlier(path: Path, wanted: str) -> Path | None:
    """The run, or the generated set, of these inputs that had been at `path`; a finished one first."""
    found: list[tuple[bool, Path]] = []
    for place in listed(path.parent / "previous", f"{glob.escape(path.name)}-*"):
        if not (place / "run.json").is_file():
            # A generated set; who takes it looks at what it is.
            found += [(False, place)] if place.name == f"{path.name}-{wanted}" else []
            continue
        with contextlib.suppress(AcclimateError):
            run = Run.open(place)
            found += [(not run.done, place)] if run.manifest.digest == wanted else []
    return min(found)[1] if found else None


def plain(config: Config, *sections: str) -> dict[str, Any]:
    """The sections that determine a result; how it is loaded and logged does not, nor does an option that was added
    later and does what was done before (`config.Added`)."""
    values = config.model_dump(mode="json", include=set(sections))
    for section in sections:
        if isinstance(options := getattr(config, section), Options):
            _leave_out_added(options, values[section])
    if "model" in values:
        # What is said of other kinds of detector changes nothing, nor does an option that they gain in a later version.
        for name, options in config.model.of_kinds.items():
            if options is not config.model.own:
                values["model"].pop(name, None)
        if not config.model.has_blocks:
            values["model"].pop("conv", None)
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


def labelled_frames(run: Run) -> dict[str, str]:
    """SHA-256 of the target frames that a run, or one that it was made from, has learnt from with their labels; and
    which run that was."""
    found: dict[str, str] = {}
    waiting, seen = [run.path], set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (path / "run.json").is_file():
            continue
        seen.add(path)
        manifest = Run.open(path).manifest
        labelled = manifest.notes.labelled
        for content in labelled.sha256 if labelled is not None else ():
            found.setdefault(content, str(path))
        waiting += map(Path, manifest.parents)
    return found


def labelled_digest(images: LabelledSet) -> str:
    """Of a set's classes, files, boxes, their visible parts and outlines."""
    state = hashlib.sha256(repr(images.classes).encode())
    # Nothing where pictures are read in the usual way: runs made before there was another stay what they are.
    state.update(repr(images.reading.model_dump(exclude_defaults=True) or "").strip("'").encode())
    for image in images.images:
        state.update(f"{image.path}:{size_of(image.path)}".encode())
        for array in (image.annotations.boxes, image.annotations.labels, image.annotations.ignore):
            state.update(array.tobytes())
        if image.annotations.visible is not None:
            state.update(image.annotations.visible.tobytes())
        for outline in image.annotations.outlines or ():
            for polygon in outline:
                state.update(polygon.tobytes())
    return state.hexdigest()[:16]


def unlabelled_digest(images: UnlabelledSet) -> str:
    """Of a set's files."""
    return digest([(str(path), size_of(path)) for path in images.paths])


def describe(images: LabelledSet) -> SetNotes:
    """A labelled set, for the manifest."""
    return SetNotes(
        name=images.name,
        format=images.format,
        images=len(images),
        boxes=sum(int((~image.annotations.ignore).sum()) for image in images.images),
        classes=images.classes,
        problems=tuple(str(problem) for problem in images.problems[:20]),
        problem_count=len(images.problems),
    )


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
