"""The verbs from a run to its device: export, package, verify, agent; predict runs there."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError
from rich.console import Console

from acclimate import diagnosis, stages
from acclimate.config import Budget, DataConfig
from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.progress import counting
from acclimate.run import Evaluation, Role, Run, digest, file_digest, locked

if TYPE_CHECKING:
    from acclimate.edge.artifact import Artifact, ArtifactManifest, MixedPrecision, Running
    from acclimate.edge.package import Expected, Package
    from acclimate.edge.predict import Predictor
    from acclimate.remote.client import Remote
    from acclimate.remote.identity import Address
    from acclimate.select.mixed import Agreement
    from acclimate.verification.measure import Anew, Material
    from acclimate.verification.record import Verification
    from acclimate.verification.show import Compared

log = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "int8"]
Draw = Literal["diverse", "even", "random"]
MANY = 0.25
"""Of the layers of INT8: with more of them in fp32, fine-tuning is worth its time."""


def export(
    path: str | Path,
    *,
    runtime: str = "onnx",
    precision: Precision = "int8",
    calibration: str | Path | None = None,
    images: int = 128,
    choice: Draw = "even",
    tolerance: float | None = None,
    running: Running | None = None,
    console: Console | None = None,
) -> Path:
    """Export a finished run's detector as an artifact in its artifacts/ folder; returns the artifact's folder.

    An artifact that is already there from the same weights and options is kept.

    Args:
        path: a finished run.
        runtime: what the artifact runs on.
        precision: its arithmetic.
        calibration: a folder or list of unlabelled images for INT8; by default the target images that the run was
            adapted to.
        images: how many of those.
        choice: how they are drawn; see `data.dataset.draw`.
        tolerance: agreement of INT8's detections with fp32's until which its most sensitive layers stay in fp32; see
            `select.mixed`.
        running: how the artifact is to be run; recorded in it.
        console: where progress goes.

    Raises:
        AcclimateError: the run is not finished, the runtime or precision is not to be had, INT8 lacks images, or the
            tolerance does not hold with any layer in INT8.
    """
    path = Path(path)
    run = stages.finished(path)
    with locked(path, "export"):
        from acclimate import export as exporting

        exporting.check(runtime, [precision], "--precision")
        if precision == "int8":
            chosen, domain, agreement = _for_int8(run, calibration, images, choice, tolerance)
            made = artifact_of(run, runtime, precision, chosen, console, domain=domain, agreement=agreement)
        elif tolerance is None:
            made = artifact_of(run, runtime, precision, (), console)
        else:
            raise AcclimateError(f"--tolerance says which layers of int8 stay in floating point; {precision} has none")
        return _run_so(run, made, running)


def _for_int8(
    run: Run, calibration: str | Path | None, images: int, choice: Draw, tolerance: float | None
) -> tuple[Sequence[Path], Sequence[Path], Agreement | None]:
    """What to calibrate on, images of the domain, and what INT8 has to agree with; see `export`."""
    from acclimate.data import formats
    from acclimate.data.dataset import choose, draw
    from acclimate.models.detector import specification
    from acclimate.select.mixed import Agreement, held_out

    config = stages.configuration(run)
    calibration = calibration or config.target
    if calibration is None:
        raise AcclimateError(f"{run.path}: INT8 needs images to calibrate on; give --calibration FOLDER_OF_IMAGES")
    paths = formats.unlabelled(Path(calibration)).paths
    chosen = draw(paths, images, config.seed, choice, specification(run.path).reading)
    agreement = None if tolerance is None else Agreement(tolerance, held_out(paths, chosen, config.seed))
    return chosen, choose(paths, images, config.seed), agreement


def artifact_of(
    run: Run,
    runtime: str,
    precision: Precision,
    calibration: Sequence[Path],
    console: Console | None,
    *,
    domain: Sequence[Path] = (),
    agreement: Agreement | None = None,
) -> Path:
    """The artifact of a run's weights; kept where it is there already.

    Args:
        run: a finished run.
        runtime: what it runs on.
        precision: of weights and activations.
        calibration: images for INT8.
        console: where progress goes.
        domain: images as the artifact will see them, for its reference; the run's where there are none.
        agreement: with fp32, that INT8 must have; None asks for none.
    """
    from acclimate.edge import monitor
    from acclimate.edge.artifact import Artifact
    from acclimate.edge.predict import Predictor
    from acclimate.export import base, exporter
    from acclimate.models import detector as models
    from acclimate.select.calibration import judge

    folder = run.path / "artifacts" / f"{runtime}-{precision}"
    asked = [] if agreement is None else [agreement.tolerance, _contents(agreement.images)]
    suggested = diagnosis.suggested(run)
    asked += [suggested] if suggested else []
    identity = digest(
        file_digest(run.path / "model.safetensors"), runtime, precision, _contents(calibration), _contents(domain),
        exporter(runtime).made_with(), *asked,
    )  # fmt: skip
    if (folder / "artifact.json").is_file():
        try:
            kept = Artifact.open(folder)
        except AcclimateError as error:
            if console is not None:
                console.print(f"exporting anew: {error}", markup=False, highlight=False)
        else:
            if kept.manifest.notes.identity == identity:
                _doubt(kept)
                return folder
    if console is not None:
        images_said = f", calibrated on {len(calibration)} images" if calibration else ""
        console.print(f"exporting {runtime} {precision}{images_said}", highlight=False)
    detector, mixed = models.load(run.path), None
    if agreement is None:
        artifact = exporter(runtime).export(detector, folder, precision, calibration)
    else:
        artifact, mixed = _mixed(run, runtime, folder, calibration, agreement, console)
    own = _of_the_domain(run)
    artifact = base.annotate(
        artifact,
        source_run=str(run.path),
        reference=monitor.reference(Predictor(artifact), domain or own),
        mixed=mixed,
        calibration=judge(artifact, base.frozen_copy(detector), calibration, own, run.manifest.seed),
        suggested=suggested,
        identity=identity,
    )
    if console is not None and (half := artifact.manifest.half) is not None:
        console.print(
            f"{len(half.in_fp32)} of {half.layers} layers stay in fp32, as their weights are lost in fp16: "
            f"{', '.join(half.in_fp32)}",
            highlight=False,
        )
    _doubt(artifact)
    return folder


def _run_so(run: Run, artifact: Path, running: Running | None) -> Path:
    """The artifact with `running` as part of it; None is the whole picture, in full, on the CPU. Another provider is
    another artifact, beside the first: each is verified by itself."""
    from acclimate.edge import monitor
    from acclimate.edge.artifact import Artifact, Running, write_manifest
    from acclimate.edge.engines import engine
    from acclimate.edge.predict import Predictor

    plain = Artifact.open(artifact)
    running = running or Running()
    so = {"tiles": running.tiles, "reduced": bool(running.reduced), "provider": running.provider or "cpu"}
    manifest = plain.manifest.model_copy(update=so)
    if manifest == plain.manifest:
        return artifact
    if manifest.provider != plain.manifest.provider:
        artifact = artifact.with_name(f"{manifest.runtime}-{manifest.provider}-{manifest.precision}")
        manifest = manifest.model_copy(update={"name": artifact.name})
    engine(manifest.runtime).check(manifest)
    predictor = Predictor(Artifact(plain.folder, manifest))
    if manifest.tiles != plain.manifest.tiles and manifest.reference is not None:
        # More is found in tiles than in the whole, so that other counts are usual.
        reference = monitor.reference(predictor, _of_the_domain(run))
        manifest = manifest.model_copy(update={"reference": reference})
    if artifact != plain.folder:
        shutil.rmtree(artifact, ignore_errors=True)
        shutil.copytree(plain.folder, artifact, ignore=shutil.ignore_patterns("verification*.json"))
    write_manifest(artifact, manifest)
    return artifact


def _contents(paths: Sequence[Path]) -> list[str]:
    """A digest of each file, or its name where it cannot be read: another picture under the same name is another."""
    found = []
    for path in paths:
        try:
            found.append(file_digest(path))
        except OSError:
            found.append(str(path))
    return found


def _doubt(artifact: Artifact) -> None:
    """Say what speaks against how an artifact was calibrated."""
    calibration = artifact.manifest.calibration
    for doubt in calibration.doubts() if calibration is not None else ():
        log.warning("%s: %s", artifact.manifest.name, doubt)


def _mixed(
    run: Run,
    runtime: str,
    folder: Path,
    calibration: Sequence[Path],
    agreement: Agreement,
    console: Console | None,
) -> tuple[Artifact, MixedPrecision]:
    """Export INT8 with the layers in fp32 that the agreement asks for; see `artifact_of`."""
    from acclimate.export import base, exporter
    from acclimate.models import detector as models
    from acclimate.select.mixed import measure, mix

    detector = base.frozen_copy(models.load(run.path))
    found: list[MixedPrecision] = []

    def choose(quantiser: base.Quantiser) -> Sequence[str]:
        with counting(console, "layers quantised alone") as tick:
            agrees = measure(quantiser, detector, agreement.images)
            found.append(mix(quantiser.layers, agrees, agreement.tolerance, len(agreement.images), tick))
        return found[-1].in_float

    artifact = exporter(runtime).export(detector, folder, "int8", calibration, choose)
    if console is not None:
        one = found[-1]
        said = f"{one.before:.3f} -> {one.after:.3f}, {len(one.in_float)} of {one.layers} layers in fp32"
        console.print(f"agreement with fp32 {said}", highlight=False)
        if len(one.in_float) > MANY * one.layers:
            console.print(
                "to have more of them in INT8, try fine-tuning the run for it: "
                f"acclimate adapt {run.path} --target FOLDER --out RUN adapt.quantisation={{}}",
                markup=False, highlight=False,
            )  # fmt: skip
    return artifact, found[-1]


def _of_the_domain(run: Run) -> Sequence[Path]:
    """Images of the domain that a run's detector is for: its target, or what it was trained on."""
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.edge.monitor import IMAGES

    config = stages.configuration(run)
    try:
        if config.target is not None:
            return choose(formats.unlabelled(config.target).paths, IMAGES, config.seed)
        if config.source is not None:
            return choose([image.path for image in formats.read(config.source).images], IMAGES, config.seed)
    except AcclimateError as error:
        log.warning("the artifact gets no reference statistics: %s", error)
    return ()


def package(
    artifact: str | Path,
    out: str | Path,
    *,
    key: Path | None = None,
    expected: Expected = "",
    console: Console | None = None,
) -> Package:
    """Pack an artifact into the one file that goes to a device; see `edge.package`. Needs no torch.

    Args:
        artifact: an artifact's folder, or a package, which is packed anew.
        out: the file to write.
        key: a private Ed25519 key to sign it with.
        expected: what a package that is packed anew must be; see `edge.package.unpack`.
        console: where the summary goes.

    Raises:
        AcclimateError: the artifact is damaged, `key` is none, what it runs on is not installed, or `out` cannot be
            written.
    """
    from acclimate.edge.artifact import Artifact
    from acclimate.edge.engines import engine
    from acclimate.edge.package import locked, opened, pack

    with opened(Path(artifact), expected) as folder:
        lock = locked(["acclimate", *engine(Artifact.open(folder).manifest.runtime).distributions()])
        packed = pack(folder, Path(out), lock, key)
    if console is not None:
        size, count = Path(out).stat().st_size / 1e6, len(lock)
        console.print(f"packed {packed.manifest.artifact}: {size:.2f} MB, {count} packages locked", highlight=False)
        console.print(f"digest: {packed.digest}", highlight=False)
    return packed


def unpack(package: str | Path, out: str | Path, *, expected: Expected = "", console: Console | None = None) -> Package:
    """Look a package through and put its files into a new folder; nothing of it is run. Needs no torch.

    Args:
        package: the file.
        out: a folder that is not there yet.
        expected: what the package must be; see `edge.package.unpack`.
        console: where words go.

    Raises:
        AcclimateError: see `edge.package.unpack`; or `out` exists.
    """
    from acclimate.edge.package import unpack

    with locked(Path(out), "package"):
        looked_through = unpack(Path(package), Path(out), expected)
    if console is not None:
        console.print(f"digest: {looked_through.digest}", highlight=False)
    return looked_through


def verify(
    artifact: str | Path,
    data: Sequence[tuple[DataConfig, str, Role]] = (),
    budget: Budget | None = None,
    *,
    anew: Anew = "latency",
    expected: Expected = "",
    device: Address | None = None,
    all_threads: bool = False,
    eager: dict[tuple[Path, str], Evaluation] | None = None,
    console: Console | None = None,
) -> Verification:
    """Measure an artifact on its own runtime: accuracy against the eager model, parity, latency, size, memory.

    Args:
        artifact: an artifact's folder, or a package.
        data: labelled sets, each with a name and its domain; none means those that its run was evaluated on.
        budget: what must hold; None holds the accuracy tolerance alone.
        anew: what is measured although it is known: `latency`, `all` (accuracy and parity too), or `nothing` that
            holds: a latency that breaks the budget is measured again all the same.
        expected: the digest that the package must have, or by whom it must be signed.
        device: where to measure; `remote.identity.address` makes it of a device file. None means here.
        all_threads: measure latency on one and on all threads too.
        eager: see `verification.measure.verify`.
        console: where progress goes.

    Raises:
        AcclimateError: the artifact is damaged, a set cannot be used, or the device fails.
    """
    from acclimate.edge.artifact import Artifact
    from acclimate.edge.package import opened
    from acclimate.verification import measure
    from acclimate.verification.record import kept, saved, verifications

    with contextlib.ExitStack() as stack:
        artifact = stack.enter_context(stages.measured_in(Path(artifact), "verify", console))
        folder = stack.enter_context(opened(artifact, expected))
        packed = artifact if artifact.is_file() else None
        if packed is not None:
            for file in verifications(packed):
                shutil.copyfile(file, folder / file.name.removeprefix(f"{packed.stem}."))
        remote = None
        if device is not None:
            remote = stack.enter_context(_on_device(device, folder, packed, (budget or Budget()).threads, console))
        loaded = Artifact.open(folder)
        material = _material(loaded.manifest, measure.source_run(loaded), data)
        scope = measure.Scope(anew, all_threads)
        result = measure.verify(loaded, material, budget, scope=scope, device=remote, eager=eager, console=console)
        if packed is not None:
            result = kept(saved(packed, result.machine), result)
    return result


def verify_all(
    paths: Sequence[str | Path],
    data: Sequence[tuple[DataConfig, str, Role]] = (),
    budget: Budget | None = None,
    *,
    anew: Anew = "latency",
    device: Address | None = None,
    console: Console | None = None,
) -> list[Compared]:
    """Verify several artifacts, each as `verify` does, and with its latency on one and on all threads.

    What cannot be measured, because its runtime is not installed or a file is damaged, is told in its row, and the
    others are measured all the same.

    Args:
        paths: artifacts' folders, packages, and run folders, which stand for all artifacts in them.
        data: as in `verify`.
        budget: as in `verify`.
        anew: as in `verify`.
        device: as in `verify`.
        console: where progress goes.

    Raises:
        AcclimateError: a run has no artifact, no artifact could be measured, a set cannot be used, or the device
            fails.
    """
    from acclimate.remote.client import DeviceError
    from acclimate.verification.show import Compared

    artifacts = list(dict.fromkeys(found for path in paths for found in _artifacts(Path(path))))
    for one, _, _ in data:
        if not one.path.exists():
            raise AcclimateError(f"{one.path}: no such file or folder")
    eager: dict[tuple[Path, str], Evaluation] = {}
    compared = []
    for path in artifacts:
        try:
            result = verify(
                path, data, budget, anew=anew, device=device, all_threads=True, eager=eager, console=console
            )
        except DeviceError:
            raise
        except AcclimateError as error:
            compared.append(Compared(path, None, str(error)))
        else:
            compared.append(Compared(path, result))
    if not any(one.verification for one in compared):
        raise AcclimateError(compared[0].problem)
    return compared


def _artifacts(path: Path) -> list[Path]:
    """The artifacts of a run folder; anything else is an artifact itself."""
    if not path.exists():
        raise AcclimateError(f"{path}: no such artifact, package or run")
    if not (path / "run.json").is_file():
        return [path]
    found = Run.open(path).artifacts()
    if not found:
        raise AcclimateError(f"{path}: has no artifact; make one with acclimate export {path}")
    return found


def _material(manifest: ArtifactManifest, run: Run | None, data: Sequence[tuple[DataConfig, str, Role]]) -> Material:
    """The labelled sets that are named, or else those that the artifact's run was evaluated on as far as they are
    here; and what is said of those that are not.

    Raises:
        AcclimateError: a set that is named cannot be used.
    """
    from acclimate.verification.measure import EvaluationSet, Material

    classes, reading = manifest.classes, manifest.reading
    if data:
        from acclimate.data import formats
        from acclimate.data.labelled import refuse_tested

        named = [EvaluationSet(formats.read(one, classes, reading=reading), name, role) for one, name, role in data]
        for test in named if run is not None else ():
            assert run is not None
            refuse_tested(stages.labelled_frames(run), test.truth.paths, test.name)
        return Material(named)
    sets = []
    notes = []
    for name, (one, role) in (_evaluated_on(run) if run is not None else {}).items():
        try:
            from acclimate.data import formats

            sets.append(EvaluationSet(formats.read(one, classes, reading=reading), name, role))
        except (AcclimateError, ModuleNotFoundError) as error:
            notes.append(f"{name}, which the run was evaluated on, was not measured: {error}")
    return Material(sets, notes=notes)


def _evaluated_on(run: Run) -> dict[str, tuple[DataConfig, Role]]:
    """The sets that a run was evaluated on, as it notes them; of an earlier version's run, those of its job."""
    noted = run.manifest.notes.evaluated_on
    if not noted:
        known = run.manifest.notes.evaluated
        config = run.read("config.json") if known and run.has("config.json") else {}
        noted = {
            f"{role}_test": {**config[f"{role}_test"], "role": role}
            for role in ("source", "target")
            if isinstance(config, dict) and isinstance(config.get(f"{role}_test"), dict) and f"{role}_test" in known
        }
    found: dict[str, tuple[DataConfig, Role]] = {}
    for name, values in noted.items():
        with contextlib.suppress(ValidationError):
            role: Role = "source" if values.get("role") == "source" else "target"
            found[name] = DataConfig.model_validate({k: v for k, v in values.items() if k != "role"}), role
    return found


@contextlib.contextmanager
def _on_device(
    device: Address, folder: Path, packed: Path | None, threads: int, console: Console | None
) -> Iterator[Remote]:
    """A device that has the artifact of `folder` installed; it is packed where `packed` does not hold it already."""
    from acclimate.edge.artifact import Artifact
    from acclimate.edge.engines import engine
    from acclimate.edge.package import locked, pack
    from acclimate.remote.client import Remote

    manifest = Artifact.open(folder).manifest
    remote = Remote(device)
    with contextlib.closing(remote), tempfile.TemporaryDirectory(prefix="acclimate-") as temporary:
        if packed is None:
            # The device has the runtime; the desk need not.
            runs = engine(manifest.runtime)
            carried = [] if runs.missing() else runs.distributions()
            packed = Path(temporary) / "package.zip"
            pack(folder, packed, locked(["acclimate", *carried]))
        with counting(console, f"bytes of {manifest.name} on {device.name}") as progress:
            unlike = remote.install(packed, len(manifest.output_names), threads, progress)
        if unlike and console is not None:
            console.print(f"{device.name} has other versions than here: {', '.join(unlike)}", highlight=False)
        yield remote


def agent(
    home: str | Path,
    bind: str = "127.0.0.1",
    *,
    disk_mb: float = 1024,
    require_signature: Path | None = None,
    console: Console | None = None,
) -> None:
    """Measure artifacts on this machine for a desk that has its device file, until Ctrl-C or SIGTERM. Needs no torch.

    Args:
        home: a folder of the agent's own: its identity, `device.toml` for the desk, and what it is sent.
        bind: HOST[:PORT] to listen on; the default can be reached from this machine alone.
        disk_mb: how much the agent keeps there, 10^6 bytes.
        require_signature: a public key; packages that its owner has not signed are refused.
        console: where the address is told; what the agent does goes to the log.

    Raises:
        AcclimateError: the `agent` extra is not installed, `home` cannot be written, or `bind` cannot be listened on.
    """
    try:
        from acclimate.remote.agent import Agent, Limits, run
    except ModuleNotFoundError as error:
        raise AcclimateError(f"the agent needs {error.name}: {hint('agent')}") from None
    from acclimate.remote.identity import split

    host, port = split(bind)
    home = Path(home)

    def ready(_: str, port: int) -> None:
        named = socket.gethostname() if host in {"0.0.0.0", "::"} else host
        file = serving.identity.write_device_file(home / "device.toml", named, port)
        if console is not None:
            console.print(f"listening on {host}:{port}, known as {named}", highlight=False)
            console.print(f"fingerprint: {serving.identity.fingerprint}", highlight=False)
            console.print(f"device file: {file} (whoever has it may use this agent)", highlight=False)

    with locked(home, "agent"):
        serving = Agent(home, Limits(disk_bytes=int(disk_mb * 1e6)), require_signature)
        run(serving, host, port, ready)
    if console is not None:
        console.print("stopped", highlight=False)


def predict(
    artifact: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    threshold: float | None = None,
    suggested: bool = False,
    pictures: bool = True,
    masks: bool = False,
    running: Running | None = None,
    threads: int = 1,
    expected: Expected = "",
    console: Console | None = None,
) -> Path:
    """Detect with an artifact or a package in an image, a folder, a list or a video; returns the JSON file. Needs no
    torch but for masks.

    See `edge.predict.predict_folder` for what is in it; `edge.predict.Predictor` detects in one image at a time.

    Args:
        artifact: an artifact's folder, or a package; with `masks`, a finished run.
        images: an image, a folder, a list or a video.
        out: the folder to write.
        threshold: lowest score that is reported; by default the artifact's.
        suggested: whether the artifact's suggested thresholds, class by class, take its place.
        pictures: write annotated pictures too.
        masks: detect with the run's detector in PyTorch, and give the mask of each object too.
        running: what is to be otherwise than the artifact says.
        threads: of the runtime.
        expected: what a package must be; see `edge.package.unpack`.
        console: where progress goes.

    Raises:
        AcclimateError: the artifact or run cannot be used, there is no image, or `out` cannot be written.
    """
    from acclimate.edge.package import opened
    from acclimate.edge.predict import AS_IT_SAYS, Predictor, predict_folder

    with opened(Path(artifact), expected) as folder:
        if masks:
            predictor: Predictor = _with_masks(folder, threads, running or AS_IT_SAYS)
        else:
            predictor = Predictor.load(folder, threads, running=running or AS_IT_SAYS)
            if console is not None and "masks" in predictor.manifest.notes.eager_only:
                console.print(
                    f"{artifact}: boxes alone, as artifacts carry no masks; predict RUN --masks draws those of its run",
                    markup=False, highlight=False,
                )  # fmt: skip
        return predict_folder(
            predictor, Path(images), Path(out), threshold=threshold, suggested=suggested, pictures=pictures,
            console=console,
        )  # fmt: skip


def _with_masks(run: Path, threads: int, running: Running) -> Predictor:
    if (run / "artifact.json").is_file():
        raise AcclimateError(f"{run}: an artifact gives no masks; name the run that it was exported from")
    stages.finished(run)
    from acclimate.models.predict import RunPredictor

    return RunPredictor(run, threads, running)
