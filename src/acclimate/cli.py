"""The command line: one verb, one function of `workflow`. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler

from acclimate import __version__
from acclimate.errors import AcclimateError

app = typer.Typer(
    name="acclimate",
    help="Domain-adaptive object detection for edge devices: unlabelled folder in, verified artifact out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value: overrides any option, for example train.steps=500")
]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="a TOML file; see docs/configuration.md")], overrides: Overrides = None
) -> None:
    """Run the whole chain from one file: train, adapt, export, verify, report. Unchanged stages are not repeated."""
    from acclimate import workflow
    from acclimate.config import load

    file, passed = workflow.job(load(config, overrides or ()), console=_out)
    _out.print(f"report: {file}")
    if not passed:
        _err.print("an artifact misses the budget or the accuracy tolerance; the report says which")
        raise typer.Exit(1)


@app.command()
def data(
    path: Annotated[Path, typer.Argument(help="a data set, or a folder of images")],
    overrides: Overrides = None,
    sheet: Annotated[Path | None, typer.Option(help="where the contact sheet goes")] = None,
) -> None:
    """Say what is in a data set: format, classes, counts, sizes, problems found; and draw a contact sheet.

    Overrides are the keys of a data section: format=voc split=test 'ignore=["DontCare"]'.
    """
    from acclimate.data import inspect

    images = inspect.load(_data(path, overrides) if overrides else path)
    inspect.print_summary(inspect.summary(images), _out)
    where = sheet or Path(f"{path.resolve().name}-sheet.jpg")
    inspect.contact_sheet(images, where)
    _out.print(f"contact sheet: {where}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="a TOML file with a [source] section")],
    out: Annotated[Path, typer.Option(help="the run folder to write")],
    overrides: Overrides = None,
    role: Annotated[str, typer.Option(help="`oracle` trains on the [oracle] set, for comparison alone")] = "source",
) -> None:
    """Train a detector on labelled source images."""
    from acclimate import workflow
    from acclimate.config import load

    if role not in {"source", "oracle"}:
        raise AcclimateError(f"--role {role}: choose source or oracle")
    chosen: Literal["source", "oracle"] = "oracle" if role == "oracle" else "source"
    done = workflow.train(load(config, overrides or ()), out, role=chosen, console=_out)
    _out.print(f"run: {done.path}")


@app.command()
def adapt(
    source: Annotated[Path, typer.Argument(help="the run folder of a trained source detector")],
    target: Annotated[Path, typer.Option(help="a folder of unlabelled target images")],
    out: Annotated[Path, typer.Option(help="the run folder to write")],
    overrides: Overrides = None,
) -> None:
    """Adapt a detector to unlabelled target images."""
    from acclimate import workflow

    done = workflow.adapt(source, target, out, overrides or (), console=_out)
    _out.print(f"run: {done.path}")


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="a finished run folder")],
    runtime: Annotated[str, typer.Option(help="what the artifact runs on")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8")] = "int8",
    calibration: Annotated[
        Path | None, typer.Option(help="unlabelled images for INT8; default: the run's target")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="how many of them")] = 128,
) -> None:
    """Export a run's detector as an artifact."""
    from acclimate import workflow

    if precision not in {"fp32", "fp16", "int8"}:
        raise AcclimateError(f"--precision {precision}: choose fp32, fp16 or int8")
    folder = workflow.export(
        path,
        runtime=runtime,
        precision=precision,  # type: ignore[arg-type]
        calibration=calibration,
        images=images,
        console=_out,
    )
    _out.print(f"artifact: {folder}")


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="an artifact's folder")],
    overrides: Overrides = None,
    data: Annotated[Path | None, typer.Option(help="labelled images of the target, to measure accuracy on")] = None,
    source: Annotated[Path | None, typer.Option(help="labelled images of the source, likewise")] = None,
    budget: Annotated[str, typer.Option(help="latency_ms=10,size_mb=4,memory_mb=200,macs_m=500,threads=1")] = "",
) -> None:
    """Measure an artifact on its runtime. Exit status 1 when the budget or the accuracy tolerance is broken.

    Overrides are keys of a data section and hold for both sets: split=test 'ignore=["DontCare"]'.
    """
    from acclimate import workflow
    from acclimate.config import parse_budget
    from acclimate.verify import print_verification

    sets: list[tuple[Any, str, Any]] = []
    if source is not None:
        sets.append((_data(source, overrides), "source_test", "source"))
    if data is not None:
        sets.append((_data(data, overrides), "target_test", "target"))
    result = workflow.verify(artifact, sets, parse_budget(budget) if budget else None, console=_out)
    print_verification(result, _out)
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="an artifact's folder")],
    source: Annotated[Path, typer.Argument(metavar="IMAGES_OR_VIDEO", help="an image, a folder, a list or a video")],
    out: Annotated[Path, typer.Option(help="where JSON and pictures go")],
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="lowest score that is reported")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Detect in images or a video: JSON and annotated pictures. Needs no torch."""
    from acclimate.edge.predict import predict_folder

    predict_folder(artifact, source, out, threshold=threshold, threads=threads, console=_out)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders: source, adapted, oracle")],
    out: Annotated[Path, typer.Option(help="the HTML file to write")] = Path("report.html"),
    budget: Annotated[str, typer.Option(help="latency_ms=10,size_mb=4 instead of the verified one")] = "",
) -> None:
    """Write one self-contained HTML page about runs and their artifacts."""
    from acclimate import workflow
    from acclimate.config import parse_budget

    file = workflow.report(runs, out, budget=parse_budget(budget) if budget else None)
    _out.print(f"report: {file}")


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="the data set folder to write")],
    images: Annotated[int, typer.Option(min=1)] = 300,
    height: Annotated[int, typer.Option(min=64)] = 240,
    width: Annotated[int, typer.Option(min=64)] = 320,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    condition: Annotated[str | None, typer.Option(help="fog, rain, night or camera; none is clear")] = None,
    strength: Annotated[float, typer.Option(min=0.05)] = 1.0,
) -> None:
    """Generate street scenes with exact boxes, as a COCO data set."""
    from acclimate.data.scenes import generate

    where = generate(out, images, (height, width), seed, condition, strength)
    _out.print(f"data set: {where}")


@app.command()
def doctor(deep: Annotated[bool, typer.Option(help="import torch and look for accelerators")] = False) -> None:
    """Say what is installed and what this machine can do."""
    from acclimate import doctor as checks

    found = checks.diagnose(deep=deep)
    checks.show(found, _out)
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


def _data(path: Path, overrides: list[str] | None) -> Any:
    from acclimate.config import DataConfig, merge, parse

    return parse(DataConfig, merge({"path": path}, overrides or ()), where=str(path))


def main() -> None:
    """Run the command line; a problem of the user's is one line on stderr and exit status 2.

    Status 1 is a broken budget, 130 an interrupted verb whose work is kept.
    """
    try:
        app()
    except AcclimateError as error:
        _err.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        _err.print("interrupted; run the same command again to continue", markup=False)
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _TRAIN_ONLY:
            _err.print(
                f"error: this verb needs the train extra ({missing} is missing): pip install 'acclimate\\[train]'"
            )
            sys.exit(2)
        raise
    except Exception as error:
        if type(error).__name__ != "Interrupted":
            raise
        _err.print(str(error), markup=False)
        sys.exit(130)


_TRAIN_ONLY = frozenset(
    {"torch", "torchvision", "timm", "accelerate", "safetensors", "onnx", "onnxscript", "hotcoco", "jinja2", "scipy"}
)


if __name__ == "__main__":
    main()
