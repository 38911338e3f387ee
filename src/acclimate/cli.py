"""The command line: one verb, one function of `workflow`. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from acclimate import __version__
from acclimate.edge.credentials import masked
from acclimate.errors import AcclimateError, WaitingError
from acclimate.installation import hint
from acclimate.terminal import Terminal, printable

if TYPE_CHECKING:
    from acclimate.config import Budget, DataConfig
    from acclimate.edge.artifact import Running
    from acclimate.edge.package import Expected
    from acclimate.remote.identity import Address
    from acclimate.verification.record import Verification

MOST = 10**9
"""No number of an option is larger."""
_INTERRUPTED = "interrupted; run the same command again to go on"


class _Stopped(Exception):  # noqa: N818 - it is no error
    """A verb was interrupted. Typer's versions differ in what they make of Ctrl-C, so it does not get to see it."""


class _Verbs(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _Stopped(str(stop) or _INTERRUPTED) from None


app = typer.Typer(
    name="acclimate",
    cls=_Verbs,
    help="Domain-adaptive object detection for edge devices: unlabelled folder in, verified artifact out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
_out = Terminal(soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
"""Of several processes of torchrun, the first one speaks."""
_err = Terminal(stderr=True, soft_wrap=True)

Unlabelled = Annotated[Path, typer.Option(help="a folder of unlabelled target images")]
RunFolder = Annotated[Path, typer.Option(help="the run folder to write")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="override any option, as in train.steps=500")
]
OwnOptions = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="options of both data sets; data.split=test or source.split=val is of one of them",
    ),
]
Target = Annotated[Path | None, typer.Option("--data", help="labelled images of the target, to measure accuracy on")]
Source = Annotated[Path | None, typer.Option("--source", help="labelled images of the source, likewise")]
Digest = Annotated[str, typer.Option("--digest", help="of a package: refuse another one than `package` printed")]
Signer = Annotated[
    Path | None,
    typer.Option("--require-signature", metavar="KEY.pub", help="of a package: refuse it unless this key signed it"),
]
Limits = Annotated[
    str,
    typer.Option(
        "--budget",
        help="latency_ms=10,size_mb=4,memory_mb=200,macs_m=500,threads=1,max_ap50_drop=0.01,min_ap50=0.3,"
        "min_gain_ap50=0.02,max_class_drop_ap50=0.05",
    ),
]


Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="send what is logged to tensorboard, mlflow, wandb or trackio too; may be repeated"),
]
_TILES: dict[str, Any] = {
    "metavar": "HxW",
    "help": "cut pictures into tiles of so many pixels, for small objects: 480x640, or 480x640+0.3 for an overlap of "
    "0.3 in place of 0.2",
}
Tiling = Annotated[str, typer.Option("--tiles", show_default="the artifact's", **_TILES)]
Reduced = Annotated[
    bool,
    typer.Option(
        "--reduced",
        help="decode JPEG files much larger than the network's input at a reduced scale; else as the artifact says",
    ),
]
Provided = Annotated[
    str,
    typer.Option(
        "--provider",
        help="of onnx, what computes: cpu, cuda, tensorrt, openvino, qnn or coreml",
        show_default="the artifact's",
    ),
]
AsJson = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="the result as JSON; - is the standard output")
]


def _from_file(context: typer.Context, file: Path | None) -> Path | None:
    """Let options that the command line does not name be those of a TOML file."""
    if file is None or context.resilient_parsing:
        return file
    from acclimate.config import read

    known = {parameter.name: parameter for parameter in context.command.params if parameter.name != "config"}
    found: dict[str, Any] = {}
    for key, value in read(file).items():
        parameter = known.get(key.replace("-", "_"))
        if parameter is None:
            names = ", ".join(sorted(str(name).replace("_", "-") for name in known))
            raise AcclimateError(f"{file}: {key}: no such option of acclimate {context.command.name} ({names})")
        several = getattr(parameter, "multiple", False) or parameter.nargs != 1
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            raise AcclimateError(f"{file}: {key}: one value, not {value!r}")
        found[str(parameter.name)] = [value] if several and not isinstance(value, list) else value
    context.default_map = found
    return file


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="the job: a TOML file")],
    overrides: Overrides = None,
    track: Track = None,
) -> None:
    """Run the whole chain from one file: train, adapt, export, verify, report. Unchanged stages are not repeated."""
    from acclimate import trackers, workflow
    from acclimate.config import load

    with trackers.asked(track or ()):
        done = workflow.run(load(config, overrides or ()), console=_out)
    if not done.passed:
        _say_missed(done.verifications)
    _say("report", done.report)
    if not done.passed:
        raise typer.Exit(_status(done.verifications))


@app.command()
def data(
    path: Annotated[Path, typer.Argument(help="a data set, or a folder of images")],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET [TEST]...] [KEY=VALUE]...",
            help="sets to compare it with, or the folder that --to writes; options of the data sets",
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="where the contact sheet goes", show_default="NAME-sheet.jpg, outside of the set"),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="write what was read as coco, yolo, voc, cvat or labelstudio, into a folder")
    ] = None,
    decode: Annotated[bool, typer.Option(help="look whether every image can be decoded, or believe headers")] = True,
    image_size: Annotated[
        str | None, typer.Option("--input", help="HEIGHTxWIDTH of the network's input, for comparing")
    ] = None,
    as_json: AsJson = None,
) -> None:
    """Say what is in a data set: format, classes, counts, sizes, problems found; and draw a contact sheet. With further
    sets, compare domains before anything is trained."""
    from acclimate import workflow
    from acclimate.data import inspect
    from acclimate.data.compare import as_json as comparison_json

    others = [Path(text) for text in more or () if "=" not in text or Path(text).exists()]
    options = [text for text in more or () if Path(text) not in others]
    if to is not None:
        if len(others) != 1:
            raise AcclimateError(f"--to {to}: name one folder to write, as in acclimate data {path} --to {to} out")
        if as_json is not None:
            raise AcclimateError(f"--json {as_json}: with --to the result is the set itself; leave it out")
        workflow.convert(_set(path, options), to, others[0], console=_out)
        _say("data set", others[0])
        return
    if others:
        size = _image_size(image_size) if image_size is not None else None
        source, *tests = (_set(one, own) for one, own in _own([path, *others[1:]], options))
        comparison = workflow.compare(source, others[0], tests, image_size=size, console=_console(as_json))
        _write_json(as_json, comparison_json(comparison))
        return
    where = inspect.sheet_place(path, sheet)
    summary = workflow.data(_set(path, options) if options else path, where, decode=decode, console=_console(as_json))
    _write_json(as_json, {**_plain(summary), "sheet": str(where)})
    _say("contact sheet", where, _console(as_json))


@app.command()
def init(
    source: Annotated[Path, typer.Argument(help="a labelled data set")],
    target: Annotated[Path, typer.Argument(help="a folder of unlabelled target images")],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEST] [KEY=VALUE]...", help="labelled images of the target, to measure on; options of both sets"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="the TOML file to write")] = Path("job.toml"),
) -> None:
    """Propose a job file from the data, with the reasons as comments."""
    from acclimate import workflow

    tests = [Path(text) for text in more or () if "=" not in text or Path(text).exists()]
    options = [text for text in more or () if Path(text) not in tests]
    if len(tests) > 1:
        raise AcclimateError(f"{tests[1]}: a job has one labelled test set of the target; name one")
    sets = [_set(one, own) for one, own in _own([source, *tests], options)]
    _say("job", workflow.init(sets[0], target, sets[1] if tests else None, out, console=_out))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="a TOML file with a [source] section, or a run's config.json")],
    out: RunFolder,
    overrides: Overrides = None,
    role: Annotated[str, typer.Option(help="`oracle` trains on the [oracle] set, for comparison alone")] = "source",
    track: Track = None,
) -> None:
    """Train a detector on labelled source images. An interrupted run goes on."""
    from acclimate import trackers, workflow
    from acclimate.config import load

    _one_of("--role", role, "source", "oracle")
    with trackers.asked(track or ()):
        done = workflow.train(
            load(config, overrides or ()), out, role=cast(Literal["source", "oracle"], role), console=_out
        )
    _say("run", done.path)


@app.command()
def weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[BACKBONE]...", help="timm's names of backbones; without one, a list is printed"),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="a folder to copy them into, for a machine without network")] = None,
) -> None:
    """List the pretrained weights of backbones on this machine, or fetch some by name."""
    from acclimate import workflow

    workflow.weights(names or (), to, console=_out)


@app.command()
def take(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="a state_dict of a torchvision detector, a folder or hub name of transformers, or a run folder"
        ),
    ],
    out: RunFolder,
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="labelled source images, which adaptations keep in the mix (source.path)")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(help="which of its classes are kept, in this order: a,b or theirs=ours", show_default="all"),
    ] = None,
    model: Annotated[
        str, typer.Option(help="torchvision's name of the architecture, where the tensors do not tell it")
    ] = "",
) -> None:
    """Make a source run of a detector that exists, without training, and measure it."""
    from acclimate import workflow

    done = workflow.take(
        checkpoint, out, overrides or (), data=data, classes=_separated(classes), model=model, console=_out
    )
    _say("run", done.path)


@app.command()
def label(
    folder: Annotated[Path, typer.Argument(help="a folder of unlabelled images")],
    labeller: Annotated[
        str, typer.Option("--with", help="a run folder, a zero-shot detector of transformers, or a file of labels")
    ],
    out: Annotated[Path, typer.Option(help="the COCO file to write")],
    options: Annotated[list[str] | None, typer.Argument(help="key=value: of --source, for example split=val")] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="which of its classes are kept: a,b or theirs=ours; of a zero-shot detector theirs is the prompt",
            show_default="all",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="labelled images on which it is measured from which score it is sure of each class",
            show_default="those that a run was trained on",
        ),
    ] = None,
    scales: Annotated[str, typer.Option(help="of a run: factors on its input's sides, a look each, as 1,1.5")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="of a run: look at each image mirrored too")] = False,
    fuse: Annotated[list[str] | None, typer.Option(help="another labeller, whose boxes are fused with these")] = None,
) -> None:
    """Label images with a large detector, for `adapt.labels` to teach a small one."""
    from acclimate import workflow

    workflow.label(
        folder, labeller, out,
        classes=_separated(classes),
        source=_set(source, options or []) if source is not None else None,
        scales=_factors("--scales", _separated([scales])),
        flip=flip,
        fuse_with=fuse or (),
        console=_out,
    )  # fmt: skip
    _say("labels", out)


@app.command()
def adapt(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder of a trained source detector")],
    target: Unlabelled,
    out: RunFolder,
    overrides: Overrides = None,
    labelled: Annotated[
        Path | None, typer.Option(help="a few target images that a person has labelled, in any format that is read")
    ] = None,
    validate: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="so many of these are held back, to choose the checkpoint alone")
    ] = None,
    asked: Annotated[
        Path | None,
        typer.Option(
            help="the folder of ask that they come from, where they do not lie in it: the run then says how many of "
            "its boxes were kept, moved, added and removed"
        ),
    ] = None,
    track: Track = None,
) -> None:
    """Adapt a detector to unlabelled target images. An interrupted run goes on."""
    from acclimate import trackers, workflow

    own = [text for text in overrides or () if text.startswith("labelled.") and labelled is not None]
    others = [text for text in overrides or () if text not in own]
    others += [f"adapt.labelled.validation={validate}"] if validate is not None else []
    frames = _set(labelled, [text.removeprefix("labelled.") for text in own]) if labelled is not None else None
    with trackers.asked(track or ()):
        done = workflow.adapt(source, target, out, others, labelled=frames, asked=asked, console=_out)
    _say("run", done.path)


@app.command()
def ask(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder of a detector, adapted or not")],
    target: Annotated[Path, typer.Option(help="a folder of unlabelled target images, such as what `watch` collected")],
    out: Annotated[Path, typer.Option(help="the folder to write, for annotation tools")],
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help="how many, at most; near-duplicates are never asked twice, so there may be fewer",
            show_default="16, with --review all",
        ),
    ] = None,
    way: Annotated[
        str | None,
        typer.Option(help="combined, uncertainty, disagreement, diversity, mining or random", show_default="combined"),
    ] = None,
    asked: Annotated[
        list[Path] | None,
        typer.Option(
            help="a folder of frames that were asked before: neither they nor what looks like them is asked again; "
            "may be repeated"
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.05, max=1, help="score from which a box is drawn already")] = 0.25,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="of everything random", show_default="the run's")
    ] = None,
    review: Annotated[
        bool, typer.Option("--review", help="choose nothing: every frame, the one with the most doubtful boxes first")
    ] = False,
) -> None:
    """Choose the frames that a person should label, and write them with the detector's boxes for annotation tools."""
    from acclimate import workflow

    done = workflow.ask(
        path, target, out, frames=frames, way=way, asked=asked or (), threshold=threshold, seed=seed, review=review,
        console=_out,
    )  # fmt: skip
    _say("frames to label", done.path)


@app.command()
def distil(
    teacher: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder of the large detector that teaches")],
    student: Annotated[
        str, typer.Option(help="a TOML file with a [model] section, one key=value, or a run folder to start from")
    ],
    out: RunFolder,
    target: Annotated[
        Path | None, typer.Option(help="a folder of unlabelled target images", show_default="the source alone")
    ] = None,
    overrides: Overrides = None,
    track: Track = None,
) -> None:
    """Train a small detector that learns from a large one, on unlabelled target images too. An interrupted run goes
    on."""
    from acclimate import trackers, workflow

    with trackers.asked(track or ()):
        done = workflow.distil(teacher, student, out, overrides or (), target=target, console=_out)
    _say("run", done.path)


@app.command()
def slim(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder of a trained slimmable detector")],
    target: Unlabelled,
    out: RunFolder,
    overrides: Overrides = None,
    track: Track = None,
) -> None:
    """Adapt all widths of a slimmable detector at once: a bank to search in. An interrupted run goes on."""
    from acclimate import trackers, workflow

    with trackers.asked(track or ()):
        done = workflow.slim(source, target, out, overrides or (), console=_out)
    _say("bank", done.path)


@app.command()
def search(
    bank: Annotated[Path, typer.Argument(help="the run folder of a slimmable detector, adapted or not")],
    target: Unlabelled,
    budget: Annotated[Path, typer.Option(help="a TOML file: limits, or a table of limits for each of several")],
    out: Annotated[Path, typer.Option(help="the run folder to write, or the folder of several")],
    runtime: Annotated[str, typer.Option(help="what the artifacts run on")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8")] = "int8",
    evaluations: Annotated[
        int | None,
        typer.Option(min=0, max=MOST, help="widths that evolution judges for each budget", show_default="32"),
    ] = None,
) -> None:
    """Find the best width of a bank under each budget, without labels. Exit status 1 when a budget is not met, 3 when
    that could not be measured now."""
    from acclimate import workflow
    from acclimate.config import load_budgets

    _one_of("--precision", precision, "fp32", "fp16", "int8")
    done = workflow.search(
        bank,
        target,
        load_budgets(budget),
        out,
        runtime=runtime,
        precision=cast(workflow.Precision, precision),
        evaluations=evaluations,
        console=_out,
    )
    for run in done.found.values():
        _say("run", run.path)
    for line in (*done.missed.values(), *done.unknown.values()):
        _err.print(line, style="red", markup=False, highlight=False)
    if done.missed or done.unknown:
        raise typer.Exit(1 if done.missed else 3)


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="the job: a TOML file with ranges in [tune.ranges]")],
    overrides: Overrides = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="score by target labels instead: a bound, for comparison alone")
    ] = False,
    as_json: AsJson = None,
) -> None:
    """Search options of the adaptation over a job's ranges, scored without labels. A stopped search goes on."""
    from acclimate import workflow
    from acclimate.config import load
    from acclimate.run import read_json

    done = workflow.tune(load(config, overrides or ()), oracle=oracle, console=_console(as_json))
    if as_json is not None:
        _write_json(as_json, read_json(done.file))
    _say("trials", done.file, _console(as_json))


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="a finished run folder")],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]... [KEY=VALUE]...",
            help="further runs, to measure all of them as one detector; and options of both data sets; data.split=test "
            "or source.split=val is of one of them",
        ),
    ] = None,
    data: Target = None,
    source: Source = None,
    fuse: Annotated[
        str, typer.Option(help="how the boxes of several runs or views become one set: wbf, nms or soft-nms")
    ] = "wbf",
    view: Annotated[
        list[str] | None,
        typer.Option(
            "--view",
            help="test-time augmentation: look at the images in this way too: flip, a scale of the canvas such as "
            "1.25, or both as flip,1.25; may be repeated",
        ),
    ] = None,
    suppression: Annotated[
        str | None,
        typer.Option(
            help="nms, soft-linear or soft-gaussian, in place of the run's own model.suppression", show_default=False
        ),
    ] = None,
    tiles: Annotated[str, typer.Option("--tiles", show_default=False, **_TILES)] = "",
    hindsight: Annotated[
        bool,
        typer.Option(
            "--hindsight",
            help="evaluate every checkpoint too (of a bank that was searched, widths), and write into selection.json "
            "how well each label-free score ranked them",
        ),
    ] = False,
    masks: Annotated[bool, typer.Option("--masks", help="measure the AP of the detector's masks too")] = False,
    track: Track = None,
    as_json: AsJson = None,
) -> None:
    """Measure a run's detector on labelled images, for the report. Nothing is chosen by it."""
    from acclimate import trackers, workflow
    from acclimate.evaluate import told

    paths = [path, *(Path(one) for one in options or () if "=" not in one)]
    sets = _sets(source, data, [one for one in options or () if "=" in one])
    if not sets:
        raise AcclimateError("evaluate: name a labelled set: --data for the target's, --source for the source's")
    out = _console(as_json)
    if len(paths) > 1 or view or suppression or tiles:
        if hindsight or masks:
            raise AcclimateError(
                "--hindsight and --masks are of one run as it is; leave out further runs, --view, --suppression and "
                "--tiles"
            )
        looks = workflow.Looks.of(fuse=fuse, views=view or (), suppression=suppression, tiles=tiles)
        together = [workflow.evaluate_together(paths, one, name, role, looks, console=out) for one, name, role in sets]
        if as_json is not None:
            _write_json(as_json, {"evaluations": [told(result) for result in together]})
        _say("evaluations", path / "ensembles", out)
        return
    with trackers.asked(track or ()):
        results = [
            workflow.evaluate(path, one, name, role, hindsight=hindsight and role == "target", masks=masks, console=out)
            for one, name, role in sets
        ]
    if as_json is not None:
        _write_json(as_json, {"evaluations": [told(result) for result in results]})
    _say("evaluations", path / "evaluations", out)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="a finished run folder")],
    runtime: Annotated[str, typer.Option(help="what the artifact runs on")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8")] = "int8",
    calibration: Annotated[
        Path | None,
        typer.Option(help="a folder or list of unlabelled images for INT8", show_default="the run's target"),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=MOST, help="how many of them")] = 128,
    choice: Annotated[
        str,
        typer.Option(
            help="which of them: even, spread over their sorted names; random; or diverse, those that look least alike"
        ),
    ] = "even",
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="agreement with fp32, such as 0.98, until which layers of INT8 stay in fp32"),
    ] = None,
    tiles: Tiling = "",
    reduced: Reduced = False,
    provider: Provided = "",
) -> None:
    """Export a run's detector as an artifact."""
    from acclimate import workflow

    _one_of("--precision", precision, "fp32", "fp16", "int8")
    _one_of("--choice", choice, "diverse", "even", "random")
    if tolerance is not None and not 0 < tolerance < 1:
        raise AcclimateError(f"--tolerance: {tolerance:g} is not between 0 and 1; 0.98 keeps INT8 close to fp32")
    folder = workflow.export(
        path,
        runtime=runtime,
        precision=cast(workflow.Precision, precision),
        calibration=calibration,
        images=images,
        choice=cast(workflow.Draw, choice),
        tolerance=tolerance,
        running=_running(tiles, provider, reduced),
        console=_out,
    )
    _say("artifact", folder)


@app.command()
def package(
    artifact: Annotated[Path, typer.Argument(help="an artifact's folder; or a package, to look through and unpack")],
    out: Annotated[Path, typer.Option(help="the file to write, such as site.zip; of a package, the folder")],
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", help="a private Ed25519 key: sign the package with it")
    ] = None,
    digest: Digest = "",
    require_signature: Signer = None,
) -> None:
    """Pack an artifact into one file for a device: with checksums, exact versions, and a way to run it. A package is
    looked through and unpacked instead, unless it is signed anew."""
    from acclimate import workflow

    if artifact.is_file() and sign is None and out.suffix != ".zip":
        workflow.unpack(artifact, out, expected=_expected(digest, require_signature), console=_out)
        _say("unpacked", out)
        return
    workflow.package(artifact, out, key=sign, expected=_expected(digest, require_signature), console=_out)
    _say("package", out)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="an artifact's folder, a package, or a run folder: all in it")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARTIFACT]... [KEY=VALUE]...", help="more of them; options of the data sets"),
    ] = None,
    data: Target = None,
    source: Source = None,
    budget: Limits = "",
    digest: Digest = "",
    require_signature: Signer = None,
    device: Annotated[
        str, typer.Option(help="measure there: the device file of an agent, or HOST[:PORT] with --fingerprint")
    ] = "",
    fingerprint: Annotated[str, typer.Option(help="the agent's; its token is in $ACCLIMATE_TOKEN then")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="measure accuracy and parity too where they are known of these images")
    ] = False,
    score: Annotated[
        bool, typer.Option("--score", help="also the low-power challenge's score: AP50 for the time and the energy")
    ] = False,
    as_json: AsJson = None,
) -> None:
    """Measure artifacts on their runtimes. Exit status 1 when a limit is broken, 3 when none is but one could not be
    measured; of several artifacts, 0 when one of them passes."""
    from acclimate import workflow
    from acclimate.verification.record import saved, stored
    from acclimate.verification.show import print_compared, print_verification

    out = _console(as_json)
    limits = _budget(budget)
    others = [Path(text) for text in more or () if "=" not in text or Path(text).exists()]
    sets = _sets(source, data, [text for text in more or () if Path(text) not in others])
    there = _device(device, fingerprint)
    anew: Literal["all", "latency"] = "all" if again else "latency"
    expected = _expected(digest, require_signature)
    if not others and not (artifact / "run.json").is_file():
        results = [workflow.verify(artifact, sets, limits, anew=anew, expected=expected, device=there, console=out)]
        print_verification(results[0], out, score=score)
        file = saved(artifact, results[0].machine)
        if stored(file) == results[0]:
            _say("verification", file, out)
    else:
        if digest or require_signature:
            given = f"--digest {digest}" if digest else "--require-signature"
            raise AcclimateError(f"{given}: is of one package; name that alone")
        compared = workflow.verify_all([artifact, *others], sets, limits, anew=anew, device=there, console=out)
        print_compared(compared, out, score=score)
        results = [one.verification for one in compared if one.verification is not None]
    _write_json(as_json, {"verifications": [result.model_dump(mode="json") for result in results]})
    if not any(result.passed for result in results):
        _say_missed(results)
        raise typer.Exit(_status(results))


@app.command()
def agent(
    home: Annotated[Path, typer.Option(help="a folder of the agent's own")] = Path("agent"),
    bind: Annotated[
        str, typer.Option(help="HOST[:PORT] to listen on; 0.0.0.0 is every network, the port is 7443")
    ] = "127.0.0.1",
    disk_mb: Annotated[
        float,
        typer.Option(
            min=1, max=MOST, help="how much it keeps of what it is sent, MB; what was not used for longest goes first"
        ),
    ] = 1024,
    require_signature: Signer = None,
) -> None:
    """On a device: measure artifacts for a desk that has its device file, and nothing else. Needs no torch."""
    from acclimate import workflow

    if "ACCLIMATE_LOG" not in os.environ:
        logging.getLogger("acclimate").setLevel("INFO")
    workflow.agent(home, bind, disk_mb=disk_mb, require_signature=require_signature, console=_out)


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="an artifact's folder, or a package; with --masks, a run")],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES_OR_VIDEO", help="an image, a folder, a list, a pattern or a video")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="where JSON and pictures go", show_default="the next free runs/predict/N"),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="lowest score that is reported", show_default="the artifact's")
    ] = None,
    suggested: Annotated[
        bool, typer.Option("--suggested", help="the score of each class that the artifact suggests")
    ] = False,
    pictures: Annotated[bool, typer.Option(help="write pictures, or the video, with boxes drawn in")] = True,
    masks: Annotated[
        bool, typer.Option("--masks", help="detect with a run's detector in PyTorch, and give and draw its masks too")
    ] = False,
    tiles: Tiling = "",
    provider: Provided = "",
    reduced: Reduced = False,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="of the runtime")] = 1,
    digest: Digest = "",
    require_signature: Signer = None,
    as_json: AsJson = None,
) -> None:
    """Detect in images or a video: JSON and annotated pictures. Needs no torch but for masks."""
    from acclimate import workflow
    from acclimate.run import next_free, read_json

    file = workflow.predict(
        artifact, images, out if out is not None else next_free(Path("runs/predict")), threshold=threshold,
        suggested=suggested, pictures=pictures, masks=masks, running=_running(tiles, provider, reduced),
        threads=threads, expected=_expected(digest, require_signature), console=_console(as_json),
    )  # fmt: skip
    if as_json is not None:
        _write_json(as_json, read_json(file))


@app.command()
def watch(
    context: typer.Context,
    artifact: Annotated[Path, typer.Argument(help="an artifact's folder, or a package")],
    source: Annotated[
        list[str],
        typer.Option(
            help="a camera (0, /dev/video0), rtsp://..., a video, a picture, a list, 'a pattern*.jpg', or a folder "
            "that is being filled; may be repeated, as NAME=SOURCE"
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="the folder for lines, alarms and collected frames, of one process at a time")
    ] = Path("watched"),
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="lowest score that is written", show_default="the artifact's")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="of the runtime")] = 1,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            help="frames a second at most, evenly spaced; a moment that is missed is not made up for",
            show_default="as many as can be",
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="end with the video or the folder's last image, and drop no frame")
    ] = False,
    page: Annotated[bool, typer.Option(help="serve the live page")] = True,
    bind: Annotated[str, typer.Option(help="address of the page; other than a local one it needs a token")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the page; 0 is any that is free")] = 8350,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ACCLIMATE_PAGE_TOKEN",
            help="of the page, at least 12 letters, digits, - or _; in $ACCLIMATE_PAGE_TOKEN other users of the device "
            "do not see it",
            show_default="made where it is needed",
        ),
    ] = None,
    keep: Annotated[int, typer.Option(min=0, max=2000, help="frames worth sending home, at most")] = 100,
    learn: Annotated[
        int, typer.Option(min=8, max=20000, help="first frames that count as the domain where the artifact has none")
    ] = 200,
    adjust: Annotated[
        bool, typer.Option("--adjust", help="let thresholds and reference follow the site, inside bounds")
    ] = False,
    reset: Annotated[
        bool,
        typer.Option("--reset", help="first forget what was adjusted, learnt and counted"),
    ] = False,
    collapse: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="share of the usual boxes a frame below which a lull becomes an alarm; 0: never"
        ),
    ] = 0.2,
    track: Annotated[
        bool, typer.Option("--track", help="give each box the number of its track, and count the tracks")
    ] = False,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            help="a region that does not count, for boxes and for drift: '0,0 0.3,0 0.3,0.1', corners in shares of the "
            "frame; may be repeated, as NAME=... for one of several sources"
        ),
    ] = None,
    tiles: Tiling = "",
    provider: Provided = "",
    webhook: Annotated[
        str, typer.Option(help="send events to http(s)://...; $ACCLIMATE_WEBHOOK_TOKEN goes along as a bearer token")
    ] = "",
    mqtt: Annotated[
        str,
        typer.Option(
            help="send events to mqtt(s)://[user@]host[:port]/prefix; the password is in $ACCLIMATE_MQTT_PASSWORD"
        ),
    ] = "",
    send_detections: Annotated[
        bool, typer.Option("--send-detections", help="send every line of detections too")
    ] = False,
    file_mb: Annotated[float, typer.Option(min=0.01, max=MOST, help="largest size of a file of lines, MB")] = 16.0,
    files: Annotated[int, typer.Option(min=2, max=MOST, help="files of lines, at most; the oldest goes")] = 16,
    digest: Digest = "",
    require_signature: Signer = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            is_eager=True,
            callback=_from_file,
            help="take options from a file, by their names without dashes in front; the command line comes first",
        ),
    ] = None,
) -> None:
    """Detect in a camera, a stream, a video or a folder until stopped, with a live page and drift alarms. Needs no
    torch."""
    from acclimate.edge.watch import watch

    # The options are the function's own, but for those that say what a package must be or where options are.
    aside = {"digest", "require_signature", "config", "tiles", "provider"}
    options = {name: value for name, value in context.params.items() if name not in aside}
    options["leave_out"] = leave_out or ()
    watch(**options, running=_running(tiles, provider), expected=_expected(digest, require_signature), console=_out)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders: source, adapted, oracle")],
    out: Annotated[Path, typer.Option(help="the HTML file to write")] = Path("report.html"),
    budget: Annotated[str, typer.Option(help="latency_ms=10,size_mb=4 instead of the verified one")] = "",
    compare: Annotated[
        bool, typer.Option("--compare", help="the folders are a series of runs or jobs: compare them in one table")
    ] = False,
    as_json: AsJson = None,
) -> None:
    """Write one self-contained HTML page about runs and their artifacts."""
    from acclimate import workflow

    file = workflow.report(runs, out, budget=_budget(budget), compare=compare)
    if as_json is not None:
        _write_json(as_json, workflow.summary(runs, budget=_budget(budget), compare=compare))
    _say("report", file, _console(as_json))


@app.command()
def leaderboard(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_ARTIFACT...", help="runs, artifacts, packages, or folders of runs")
    ],
    sort: Annotated[
        str,
        typer.Option(
            help="score (AP50 a minute), score-energy (AP50 a watt-hour), ap50, ap, latency, latency-all (all "
            "threads), energy, memory or size"
        ),
    ] = "score",
    as_json: Annotated[Path | None, typer.Option("--json", help="a file for the rows and what was left out")] = None,
    as_csv: Annotated[Path | None, typer.Option("--csv", help="a file for the rows")] = None,
) -> None:
    """Rank what `verify` measured, over runs and runtimes, in one table. Measures nothing, needs no torch."""
    from acclimate import workflow

    workflow.leaderboard(paths, sort=sort, as_json=as_json, as_csv=as_csv, console=_out)


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="the data set folder to write")],
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="how many")] = 300,
    height: Annotated[int, typer.Option(min=64, max=8192, help="of an image, pixels")] = 240,
    width: Annotated[int, typer.Option(min=64, max=8192, help="of an image, pixels")] = 320,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="sets of different seeds share no scene")] = 0,
    condition: Annotated[str | None, typer.Option(help="fog, rain, night or camera", show_default="clear")] = None,
    strength: Annotated[float, typer.Option(min=0.05, max=100, help="of the condition; 1 is strong")] = 1.0,
    field_of_view: Annotated[float, typer.Option(min=10, max=110, help="of the camera, horizontal, degrees")] = 52.0,
) -> None:
    """Generate street scenes with exact boxes, as a COCO data set."""
    from acclimate import workflow

    made = workflow.scenes(out, images, (height, width), seed, condition, strength, field_of_view, console=_out)
    _say("data set", made.path)


@app.command()
def benchmark(
    suite: Annotated[
        str | None, typer.Argument(help="a TOML file, or the name of a suite that comes with the package")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the runs", show_default="runs/SUITE")] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=128, help="processes, with one torch thread each; 1 runs in this one")
    ] = 1,
    methods: Annotated[list[str] | None, typer.Option(help="only these, as in a,b", show_default="all")] = None,
    pairs: Annotated[list[str] | None, typer.Option(help="only these, as in 'a->b,a->c'", show_default="all")] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="these, as in 0,1,2", show_default="the suite's")] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="folder that the suite's data paths are relative to",
            show_default="$ACCLIMATE_DATA, or the suite's root",
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="run on the Ray cluster that $RAY_ADDRESS names, or under Ray here; needs the extra fleet and a "
            "shared file system",
        ),
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="print the table of what is done, and end")] = False,
    listed: Annotated[
        bool,
        typer.Option(
            "--list",
            help="say what the suite compares, how far it is and what data is missing, and end; without a suite, which "
            "ones come with the package",
        ),
    ] = False,
) -> None:
    """Run methods by seeds by pairs of domains under one protocol: a CSV, and a table of what was won."""
    from acclimate.benchmark import runner
    from acclimate.benchmark import suite as suites

    if suite is None:
        if not listed:
            raise AcclimateError(f"benchmark: name a suite, a TOML file or one of {', '.join(suites.shipped())}")
        for name in suites.shipped():
            _out.print(f"{name}: {suites.load(name).title}", markup=False, highlight=False)
        return
    if listed or summary:
        lines = runner.listing(suite, out, root=root) if listed else [runner.summary(suite, out)]
        for line in lines:
            _out.print(line, markup=False, highlight=False)
        return
    done = runner.run(
        suite, out, jobs=jobs, ray=ray, pairs=_separated(pairs), methods=_separated(methods),
        seeds=_whole("--seeds", _separated(seeds)), root=root, console=_out,
    )  # fmt: skip
    _say("rows", done.csv)
    _say("table", done.table)
    if done.failed:
        label, reason = next(iter(done.failed.items()))
        more = f", and {len(done.failed) - 1} more" if len(done.failed) > 1 else ""
        raise AcclimateError(f"{label} failed{more}; the same command tries again. It said: {reason}")


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option(help="import torch and look for accelerators")] = False, as_json: AsJson = None
) -> None:
    """Say what is installed and what this machine can do."""
    from acclimate import doctor as checks

    found = checks.diagnose(deep=deep)
    checks.show(found, _console(as_json))
    _write_json(as_json, {"checks": _plain(found)})
    if checks.required_missing(found):
        raise typer.Exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        _out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    level = os.environ.get("ACCLIMATE_LOG", "WARNING").upper()
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=_err, show_time=False, show_path=False)],
    )
    logging.getLogger("acclimate").setLevel(level if level in logging.getLevelNamesMapping() else "WARNING")


def _set(path: Path, options: list[str] | None) -> DataConfig:
    from acclimate.config import DataConfig, merge, parse

    return parse(DataConfig, merge({"path": path}, options or ()), where=str(path))


def _own(paths: Sequence[Path], options: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """The options of a source and of its tests; one with `source.` or `test.` before it is for these alone."""
    own = []
    for place, path in enumerate(paths):
        prefix = "test." if place else "source."
        mine = [option.removeprefix(prefix) for option in options if option.startswith(prefix)]
        own.append((path, [*(one for one in options if not one.startswith(("source.", "test."))), *mine]))
    return own


def _image_size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise AcclimateError(f"--input {text}: write it as HEIGHTxWIDTH in pixels, such as 320x320")
    return int(sides[0]), int(sides[1])


def _sets(
    source: Path | None, target: Path | None, options: list[str] | None
) -> list[tuple[DataConfig, str, Literal["source", "target"]]]:
    """The sets that are named; an option with `data.` or `source.` before it is for that one alone, and comes last."""
    given = {"data": target, "source": source}
    shared: list[str] = []
    own: dict[str, list[str]] = {"data": [], "source": []}
    for option in options or ():
        name, dot, rest = option.partition(".")
        if not dot or name not in own:
            shared.append(option)
        elif given[name] is None:
            raise AcclimateError(f"{option!r}: an option of the set that --{name} names, which is not given")
        else:
            own[name].append(rest)
    sets: list[tuple[DataConfig, str, Literal["source", "target"]]] = []
    if source is not None:
        sets.append((_set(source, shared + own["source"]), "source_test", "source"))
    if target is not None:
        sets.append((_set(target, shared + own["data"]), "target_test", "target"))
    if options and not sets:
        raise AcclimateError(f"{options[0]!r}: options of a data set, but none is named; add --data or --source")
    return sets


def _running(tiles: str, provider: str, reduced: bool = False) -> Running:
    """What of the way in which an artifact is run was given."""
    from acclimate.edge.artifact import Provider, Running
    from acclimate.edge.tiles import tiles_of

    if provider:
        _one_of("--provider", provider, *get_args(Provider))
    return Running(tiles_of(tiles) if tiles else None, reduced or None, cast("Provider | None", provider or None))


def _budget(text: str) -> Budget | None:
    from acclimate.config import parse_budget

    return parse_budget(text) if text else None


def _device(device: str, fingerprint: str) -> Address | None:
    from acclimate.remote.identity import address

    if fingerprint and not device:
        raise AcclimateError("--fingerprint: is of a device; name it with --device")
    return address(device, fingerprint) if device else None


def _expected(digest: str, key: Path | None) -> Expected:
    from acclimate.edge.signing import Signed, check_key

    if key is None:
        return digest
    check_key(key)
    return Signed(key, digest)


def _one_of(option: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise AcclimateError(f"{option} {value}: choose {', '.join(choices[:-1])} or {choices[-1]}")


def _separated(texts: list[str] | None) -> list[str]:
    return [part.strip() for text in texts or () for part in text.split(",") if part.strip()]


def _factors(option: str, texts: list[str]) -> list[float]:
    try:
        factors = [float(text) for text in texts]
    except ValueError:
        factors = []
    if not factors or not all(0.1 <= factor <= 10 for factor in factors):
        raise AcclimateError(f"{option} {','.join(texts)}: factors from 0.1 to 10, as in 1,1.5")
    return factors


def _whole(option: str, texts: list[str]) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise AcclimateError(f"{option} {','.join(texts)}: whole numbers, as in 0,1,2") from None


def _say(what: str, where: Path, console: Console = _out) -> None:
    console.print(f"{what}: {where}", markup=False, highlight=False)


_STANDARD_OUTPUT = Path("-")


def _console(as_json: Path | None) -> Console:
    """Where a verb speaks: on stderr where its standard output is JSON."""
    return _err if as_json == _STANDARD_OUTPUT else _out


def _plain(value: object) -> Any:
    """`value` as JSON has it."""
    return TypeAdapter(Any).dump_python(value, mode="json")


def _write_json(where: Path | None, value: Any) -> None:
    if where is None:
        return
    from acclimate.run import write_text

    text = json.dumps(value, indent=1)
    if where == _STANDARD_OUTPUT:
        print(text)
    else:
        write_text(where, text + "\n")


def _status(verifications: Sequence[Verification]) -> int:
    """The exit status where none passes: 3 where one could yet, once all of it is measured, else 1."""
    return 3 if any(one.verdict == "incomplete" for one in verifications) else 1


def _say_missed(verifications: Sequence[Verification]) -> None:
    """One line: which artifact comes nearest, and by which limits it fails or what was not measured of it."""

    def distance(one: Verification) -> tuple[bool, float]:
        broken = [check for check in one.checks if check.passed is False and check.value is not None]
        factors = [_share(check.value, check.limit) for check in broken if check.value is not None]
        return bool(broken), max(factors, default=0.0)

    nearest = min(verifications, key=distance)
    told = [
        f"{check.name} is {check.value:.4g}, allowed {check.limit:.4g}"
        for check in nearest.checks
        if check.passed is False and check.value is not None
    ]
    said = "budget missed" if told else "incomplete"
    told = told or [f"{check.name}: {check.reason}" for check in nearest.checks if check.passed is None]
    which = "nearest is " if len(verifications) > 1 else ""
    _err.print(f"{said}; {which}{nearest.artifact}: {', '.join(told)}", style="red", markup=False, highlight=False)


def _share(value: float, limit: float) -> float:
    """How far a limit is broken, whichever side is good."""
    return max(abs(value), abs(limit)) / max(min(abs(value), abs(limit)), 1e-9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status.

    0 is success, 1 a broken budget or tolerance, 2 a problem of the user's, told in one line on stderr, 3 a limit that
    could not be measured where none is broken, 4 a question that a person has to answer first, and 130 an interrupted
    verb whose work is kept.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not UTF-8, or a terminal that is not, must not end a verb that has its answer.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(args=arguments, prog_name="acclimate", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except WaitingError as waiting:
        _err.print(str(waiting), markup=False, highlight=False)
        return 4
    except AcclimateError as error:
        return _fail(str(error))
    except (_Stopped, KeyboardInterrupt) as stop:
        _err.print(str(stop) or _INTERRUPTED, markup=False, highlight=False)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        reason = _unusable(error)
        if not reason:
            raise
        return _fail(reason)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _TRAIN_ONLY:
            raise
        return _fail(f"this verb needs the train extra ({missing} is missing): {hint('train')}")
    except Exception as error:
        # Typer brings Click's exceptions from different places in different versions; this is what they share.
        if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            return 0
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "acclimate"
        return _fail(f"{error.format_message()} ({command} --help shows how)")


def _unusable(error: OSError) -> str:
    """What is wrong with a place, where that is what the error says; else empty.

    A path that may not be looked at is met wherever a verb first asks what is there; and a disk may be full, that of
    the temporary files too, wherever something is written.
    """
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        way = "make room, or let TMPDIR name a folder that has some, and repeat the command; what was finished is kept"
        return f"{where}the disk is full ({error.strerror}); {way}"
    if error.filename is None:
        # Of tempfile, when it has tried to write in each folder that it knows.
        none = error.errno == errno.ENOENT and "temporary directory" in (error.strerror or "")
        return f"{error.strerror}; let TMPDIR name a folder with room that may be written to" if none else ""
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO}:
        return f"{where}cannot be used ({error.strerror}); choose another path"
    return ""


def _fail(message: str) -> int:
    # An address may be given to any verb, if only by mistake; and a name may hold what a terminal obeys.
    line = printable(masked(" ".join(message.splitlines())))
    _err.print(f"error: {line}", style="red", markup=False, highlight=False)
    return 2


_TRAIN_ONLY = frozenset(
    {
        "accelerate", "hotcoco", "jinja2", "markupsafe", "onnx", "onnxscript", "safetensors", "scipy", "timm", "torch",
        "torchvision", "yaml",
    }
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
