"""The run folder: what a verb leaves behind, and all that travels between verbs.

    run.json              manifest: verb, status, parents, seed, versions, machine, digest of the inputs
    config.json           the resolved configuration
    inputs.json           the settings, weights and files that determine the result
    spec.json             the detector's specification
    model.safetensors     the chosen weights
    metrics.jsonl         one line a logged step
    checkpoints/          candidate weights, step_000200.safetensors
    state/                what an exact resume needs; removed when the run is done
    selection.json        label-free scores of the candidates, and which was chosen
    evaluations/*.json    AP on a labelled set (written by `evaluate` and `verify`, never read by training)
    diagnoses/*.json      where it is right and wrong there, box by box (likewise)
    artifacts/NAME/       exported artifacts, each with its own artifact.json and verification.json

Every file is written to a temporary name and renamed, so a reader or a killed process never sees half of one. Names
that begin with a dot are work in hand: nothing that lists a run shows them, and the next verb that writes into the
folder sweeps out what a killed one left.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from acclimate import __version__, locks, machine
from acclimate.errors import AcclimateError, WritingError

_Model = TypeVar("_Model", bound=BaseModel)
Role = Literal["source", "target"]
"""Which domain a labelled set is of."""

AGAIN_S = 1.0
"""Signals closer together than this are one: torchrun passes on the Ctrl-C that a terminal has sent to all already."""

_REFUSED = {
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO,
    errno.ELOOP,
}  # fmt: skip
"""Errors of a write that another folder would mend."""


class _Noted(BaseModel):
    """Only what was noted is stored. What another version noted stays, under its own name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_serializer(mode="wrap")
    def _noted(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialise(self)
        return {name: value for name, value in values.items() if name in self.model_fields_set}


class SetNotes(_Noted):
    """A set of images that a run was made from."""

    name: str = ""
    format: str = ""
    images: int | None = None
    boxes: int | None = None
    """None of a set without labels."""
    classes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """The first of what could not be used."""
    problem_count: int = 0
    matched: int | None = None
    """Of labelled target frames: how many were among the target's images, and are taken out of these."""
    sha256: tuple[str, ...] = ()
    """Of labelled target frames: their contents, so that no test set ever holds them."""
    validation: SetNotes | None = None
    """Of labelled target frames: those that are held back to choose the checkpoint."""
    corrections: dict[str, Any] | None = None
    """Of labelled target frames: what a person made of the boxes that were drawn for them."""


class Session(_Noted):
    """What a process that worked on a run computed with: it changes the order of sums, and so the last digits."""

    from_step: int
    processes: int = 1
    threads: int = 1
    device: str = ""
    torch: str = ""
    version: str = ""
    host: str = ""


class Notes(_Noted):
    """What a run's manifest says beyond how it stands: what reports show, and what other verbs go by."""

    role: str = ""
    """What the run is for: source, oracle, baseline or adapted."""
    method: tuple[str, ...] = ()
    """The terms that trained it."""
    start: str = ""
    """What its detector started from."""
    repeat: str = ""
    """The command line that made it, for whoever wants it again."""
    parameters: int | None = None
    source: SetNotes | None = None
    source_free: bool = False
    """Whether no source image was there, and what its run had kept of them took their place."""
    target: SetNotes | None = None
    labelled: SetNotes | None = None
    """Target frames that it has learnt from with their labels."""
    left_out: dict[str, SetNotes] = Field(default_factory=dict)
    """Role -> the problems of the images that a training met on its way and could not read."""
    class_boxes: dict[str, int] = Field(default_factory=dict)
    """How many boxes of each class the source has."""
    classes: dict[str, str] = Field(default_factory=dict)
    """Of a detector that was taken: our name of each class -> the checkpoint's."""
    teacher: str = ""
    """Of a student: the run that taught it."""
    schedule: str = ""
    """Of a student: the section of the configuration that it trained for."""
    budget: str = ""
    """Of a searched width: the name of the budget; `width` and `upem` are the width and its score."""
    width: tuple[float, ...] = ()
    upem: float | None = None
    sessions: tuple[Session, ...] = ()
    processes: int | None = None
    """Of the last session, as `device`."""
    device: str = ""
    evaluated: dict[str, str] = Field(default_factory=dict)
    """Test set -> digest of what it was when the run was evaluated on it."""
    evaluated_on: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Test set -> its options and its role."""

    def __or__(self, more: Notes) -> Notes:
        """These notes with those that `more` has set in their place."""
        return self.model_copy(update={name: getattr(more, name) for name in more.model_fields_set})


class Manifest(BaseModel):
    """Who made a run, from what, on which machine, and how far it came."""

    model_config = ConfigDict(extra="ignore")

    verb: str
    status: Literal["running", "interrupted", "failed", "done"] = "running"
    command: str = ""
    digest: str = ""
    """Of the inputs and the configuration: the same digest means there is nothing to do again."""
    parents: tuple[str, ...] = ()
    seed: int = 0
    version: str = __version__
    created: str = ""
    finished: str = ""
    seconds: float = 0.0
    machine: dict[str, str] = Field(default_factory=dict)
    notes: Notes = Notes()


class ClassAP(BaseModel):
    """AP of one class; None where the set has no box of it."""

    ap: float | None
    ap50: float | None
    boxes: int


class Resamples(BaseModel):
    """The APs of an evaluation on sets of as many images, drawn from its images with replacement: the bootstrap.

    The draws are the same for every model that is evaluated on the same images, so that the difference of two models'
    lists is the bootstrap of their difference (`evaluate.compare`). A list is whole numbers of 1e-5 with a space
    between; `-` is a draw without a box of that class.
    """

    ap: str
    ap50: str
    classes: dict[str, str]
    """AP50 of each class that the set has a box of."""


class Evaluation(BaseModel):
    """AP of one model on one labelled set. AP values are in 0..1 (COCO: 101 points, mean over classes present).

    `model` says what ran: "eager", or the artifact's name; `role` which domain it was.
    """

    data: str
    role: Role
    model: str = "eager"
    images: int
    """Those that count."""
    unreadable: int = 0
    """Images that could not be read; their boxes count nowhere."""
    ap: float
    ap50: float
    ap75: float
    classes: dict[str, ClassAP]
    digest: str = ""
    """Of the set's image names and labels; empty where an earlier version measured."""
    resamples: Resamples | None = None
    """None for fewer images than an interval can be told from, and where an earlier version measured."""
    mask_ap: float | None = None
    """COCO AP of the masks, where they were measured, and at IoU 0.5."""
    mask_ap50: float | None = None


def counted(images: int, unreadable: int) -> str:
    """How many images a number is of, and how many more could not be read, as a person reads it."""
    left_out = f" ({unreadable} more could not be read)" if unreadable else ""
    return f"{images} image{'s' * (images != 1)}{left_out}"


class Candidate(BaseModel):
    """One checkpoint and its label-free scores; higher is better. `hindsight_ap50` is filled in by `evaluate` later."""

    step: int
    scores: dict[str, float]
    hindsight_ap50: float | None = None


class Selection(BaseModel):
    """How the run's weights were chosen among its checkpoints, without labels unless frames were held back."""

    rule: str
    """Which score decided."""
    chosen_step: int
    candidates: tuple[Candidate, ...]
    rank_correlation: dict[str, float] = Field(default_factory=dict)
    """Kendall's tau of each score with AP50 in hindsight, where labels were available to `evaluate`."""
    validated_on: int = 0
    """Labelled frames, held back, that decided; 0 is a choice without labels."""


class Run:
    """A run folder on disk. Use `Run.create` or `Run.open`.

    Examples:
        >>> from pathlib import Path
        >>> from acclimate import Run
        >>> run = Run.open(Path("runs/adapted"))
        >>> run.manifest.verb, run.manifest.status
        ('adapt', 'done')
        >>> max(line["step"] for line in run.metrics())
        6
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Run:
        """Start a run folder at `path`, or take up the unfinished or identical one that is there.

        Raises:
            AcclimateError: the folder cannot be written, or holds something that is not this run.
        """
        existing = path / "run.json"
        if existing.is_file():
            found = cls.open(path)
            if found.manifest.digest == manifest.digest and found.manifest.verb == manifest.verb:
                return found
            raise AcclimateError(
                f"{path}: holds another run ({found.manifest.verb}, {found.manifest.status}) with other settings; "
                "choose another --out, or delete the folder"
            )
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            # Ours are what a process left that was killed before it had written its manifest, and the lock.
            if any(not found.name.startswith(".") for found in path.iterdir()):
                raise AcclimateError(f"{path}: is not empty and is not a run; choose another --out")
        stamped = manifest.model_copy(update={"created": _now(), "machine": manifest.machine or machine.facts()})
        run = cls(path, stamped)
        run.save()
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open a run folder. One that a killed process left as `running` is `interrupted`: nobody holds its lock.

        Raises:
            AcclimateError: `path` is not a run folder or its manifest is damaged.
        """
        file = Path(path) / "run.json"
        if not file.is_file():
            inside = [found.parent for found in listed(Path(path), "*/run.json")]
            if inside:
                lies = "a run lies inside: name it" if len(inside) == 1 else "runs lie inside: name one"
                raise AcclimateError(f"{path}: not a run folder; {lies}, {', '.join(map(str, inside[:6]))}")
            raise AcclimateError(f"{path}: not a run folder (it has no run.json)")
        try:
            manifest = Manifest.model_validate_json(file.read_bytes())
        except OSError as error:
            raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise AcclimateError(
                f"{file}: damaged ({str(error).splitlines()[0]}); delete the folder and run again"
            ) from None
        if manifest.status == "running" and locks.holder(Path(path)) is None:
            manifest = manifest.model_copy(update={"status": "interrupted"})
        return cls(Path(path), manifest)

    def save(self) -> None:
        self.write("run.json", self.manifest)

    def finish(self, status: Literal["interrupted", "failed", "done"], seconds: float = 0.0) -> None:
        self.manifest = self.manifest.model_copy(
            update={"status": status, "finished": _now(), "seconds": self.manifest.seconds + seconds}
        )
        self.save()

    def note(self, notes: Notes) -> None:
        """Add to the manifest's notes what `notes` has set."""
        self.manifest = self.manifest.model_copy(update={"notes": self.manifest.notes | notes})
        self.save()

    @property
    def done(self) -> bool:
        return self.manifest.status == "done"

    def write(self, name: str, value: BaseModel | Mapping[str, Any]) -> Path:
        """Write a JSON file into the folder, atomically."""
        text = value.model_dump_json(indent=1) if isinstance(value, BaseModel) else json.dumps(value, indent=1)
        return write_text(self.path / name, text + "\n")

    def read(self, name: str) -> Any:
        """The JSON file `name` of this run.

        Raises:
            AcclimateError: it is missing or damaged.
        """
        return read_json(self.path / name)

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        with writing(self.path), open(self.path / "metrics.jsonl", "ab+") as file:
            if file.tell():
                # A kill may have cut the last line short; what follows must not become part of it.
                file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) in {b"", b"\n"} else b"\n"
            file.write(start + json.dumps(values).encode() + b"\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All logged lines in order; a last line that a kill cut short is left out."""
        return list(json_lines(self.path / "metrics.jsonl"))

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, so that a resumed run logs every step once."""
        kept = [line for line in self.metrics() if line.get("step", 0) <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def evaluations(self) -> list[Evaluation]:
        """What was measured on labelled sets, in the order of the files' names.

        Raises:
            AcclimateError: a file is damaged.
        """
        return [read_as(Evaluation, file) for file in listed(self.path / "evaluations", "*.json")]

    def selection(self) -> Selection | None:
        """How the weights were chosen; None while they are not.

        Raises:
            AcclimateError: the file is damaged.
        """
        return read_as(Selection, self.path / "selection.json") if self.has("selection.json") else None

    def artifacts(self) -> list[Path]:
        """The folders of the artifacts exported from this run."""
        return [folder for folder in listed(self.path / "artifacts", "*") if (folder / "artifact.json").is_file()]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write below `path` into one clear line.

    Raises:
        WritingError: the disk is full, read-only, broken or not ours to write, or `path` cannot be made or has gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise WritingError(f"{path}: the disk is full; free some space and run the same command again") from None
        if error.errno in _REFUSED or (error.errno == errno.ENOENT and _concerns(path, error.filename)):
            raise WritingError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
        raise


def _concerns(path: Path, missing: Any) -> bool:
    """Whether what is missing is the folder to write, which cannot be made or has gone, and no program or input."""
    return isinstance(missing, str) and (path.is_relative_to(missing) or Path(missing).is_relative_to(path))


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a later second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not event.is_set():
            first = time.monotonic()
            event.set()
        elif time.monotonic() - first > AGAIN_S:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def next_free(folder: Path) -> Path:
    """The first of `folder`/1, `folder`/2, ... that is above all that are there."""
    numbers = [int(path.name) for path in listed(folder, "*") if path.name.isdecimal()] if folder.is_dir() else []
    return folder / str(max(numbers, default=0) + 1)


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically, creating its folder."""
    # A file name that is not UTF-8 has parts that no encoding has.
    return write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file atomically (temporary name, fsync, rename), creating its folder.

    What a killed process left under the temporary name is taken over; two processes that write the same file write it
    one after the other. A device or a pipe is written to, and stays what it is.

    Raises:
        AcclimateError: see `writing`, or `path` is a folder; an existing file is left as it was.
    """
    if path.is_dir():
        raise AcclimateError(f"{path}: is a folder; name the file to write")
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path.parent):
        if _no_file(path):
            with open(path, "wb") as device:
                device.write(data)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _exclusive(temporary)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.truncate()
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    return path


def _no_file(path: Path) -> bool:
    """Whether a device, a pipe or a socket is at `path`, or the name of an open one: `/dev/null`, `/dev/stdout`.

    A rename would put a file in its place, for the whole machine where it is root's.
    """
    named = path.parent.absolute() in {Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")}
    return path.exists() and not path.is_dir() and (named or not path.is_file())


def _exclusive(temporary: Path) -> int:
    """Open the file at `temporary`, which this process has for itself until it closes or renames it."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        locks.lock(descriptor, wait=True)
        if locks.same_file(descriptor, temporary):
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` once it is filled: a reader sees the old one or the new one.

    Where the body fails, `folder` stays as it was. Elsewhere than on Linux and macOS there is a moment between the two
    in which there is none; a process that is killed then leaves the old one for `sweep` to put back.

    Raises:
        AcclimateError: see `writing`.
    """
    with writing(folder.parent):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with writing(folder):
            yield temporary
            temporary.chmod(0o755)
            if not folder.exists():
                temporary.replace(folder)
            elif not exchange(temporary, folder):
                old = folder.with_name(f".{folder.name}.old.tmp")
                folder.replace(old)
                temporary.replace(folder)
                shutil.rmtree(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    call, arguments = _swap()
    if call is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(call(*arguments(*names)) == 0)


def _swap() -> tuple[Any, Any]:
    """The C function that swaps two names, and what it is called with."""
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE; RENAME_SWAP has the same value
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return library.renameat2, lambda one, other: (here, one, here, other, swap)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return library.renamex_np, lambda one, other: (one, other, swap)
    return None, None


def listed(folder: Path, pattern: str) -> list[Path]:
    """What `pattern` finds in `folder`, sorted, without names that begin with a dot, or lie below one that does: those
    are work in hand."""
    found = folder.glob(pattern)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def discard_state(run: Run) -> None:
    """Remove what only a resume needs, or what is left of it: a finished run has no use for it."""
    for name in ("state", "state.old", "state.new"):
        shutil.rmtree(run.path / name, ignore_errors=True)


_LEFT = re.compile(r"\..+\.tmp")
_LEFT_BY_EARLIER_VERSIONS = re.compile(r"\.[A-Za-z0-9]+-(fp32|fp16|int8)(\.old)?\.[a-z0-9_]{8}")


def sweep(folder: Path) -> None:
    """Remove what killed processes left of a folder that this process has locked; runs below it are left alone."""
    # What `writing_folder` makes beside it, and no other name: somebody may be at work on that.
    beside = re.compile(rf"\.{re.escape(folder.name)}\.(old|[a-z0-9_]{{8}})\.tmp")
    with contextlib.suppress(OSError):
        for path in folder.absolute().parent.iterdir():
            if beside.fullmatch(path.name) and path.is_dir():
                _remove_left(path)
    for where, inner, files in os.walk(folder):
        place = Path(where)
        inner[:] = [name for name in inner if not (place / name / "run.json").exists() and name != "previous"]
        for name in [*files, *inner]:
            if _LEFT.fullmatch(name) or _LEFT_BY_EARLIER_VERSIONS.fullmatch(name):
                _remove_left(place / name)
        inner[:] = [name for name in inner if (place / name).is_dir()]


def _remove_left(path: Path) -> None:
    """Remove work in hand of a killed process; a folder that it had moved aside for a new one goes back."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            whole = path.with_name(path.name[1:].partition(".old.")[0])
            if ".old." in path.name and not whole.exists():
                path.rename(whole)
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextlib.contextmanager
def locked(folder: Path, verb: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder that `verb` writes into (see `locks.held`), swept of what a killed process left.

    A process that is asked to end in the meantime ends as after Ctrl-C: its run says `interrupted`, and the lock goes.

    Raises:
        HeldError: another process writes there.
        AcclimateError: it cannot be written.
        KeyboardInterrupt: on SIGTERM, or on SIGHUP where that is not ignored (nohup).
    """
    with _ended_as_by_ctrl_c(), locks.held(folder, verb, wait=wait) as taken:
        if taken:
            sweep(folder)
        yield


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    changed = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                changed[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parsed(text: str | bytes) -> Any:
    """What JSON means.

    Raises:
        ValueError: it is none, holds a number of too many digits, or brackets in brackets.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file that has one a line; what is none, such as a line that a kill cut short, is left out."""
    if not file.is_file():
        return
    for line in file.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            values = parsed(line)
            if isinstance(values, dict):
                yield values


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        AcclimateError: it is missing, cannot be read or is not JSON.
    """
    try:
        return parsed(path.read_text())
    except FileNotFoundError:
        raise AcclimateError(f"{path}: no such file") from None
    except OSError as error:
        raise AcclimateError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise AcclimateError(f"{path}: damaged ({error}); delete it and repeat the verb") from None
    except ValueError as error:
        raise AcclimateError(f"{path}: damaged JSON ({error})") from None


def read_as(model: type[_Model], file: Path, way_out: str = "delete it and repeat the verb") -> _Model:
    """What a JSON file holds.

    Args:
        model: what that should be.
        file: the file.
        way_out: what the message for one that is damaged advises.

    Raises:
        AcclimateError: it is missing, cannot be read, is not JSON, or holds something else.
    """
    try:
        return model.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        told = f"{key}: {first['msg']}" if key else first["msg"]
        raise AcclimateError(f"{file}: damaged ({told}); {way_out}") from None


def digest(*parts: Any) -> str:
    """A short digest of JSON-like values, for "did the inputs change?"."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
