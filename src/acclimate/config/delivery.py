"""Options of what leaves for the device: artifacts, and what they may cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from acclimate.config.options import LONGEST_NAME, MOST_THREADS, Added, Options
from acclimate.config.reading import merge, parse, read
from acclimate.errors import AcclimateError
from acclimate.structures import LARGEST_SIDE

Tile = Annotated[int, Field(ge=32, le=LARGEST_SIDE)]


class ExportConfig(Options):
    """Which artifacts are made, from which calibration images, and how near INT8 has to be to fp32."""

    runtime: str = "onnx"
    """What the artifacts run on: `onnx`, `openvino`, `ncnn`, `litert` or `executorch`."""
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(default=("fp32", "int8"), min_length=1)
    """Which artifacts `run` makes, as far as the runtime carries them."""
    calibration_images: int = Field(default=128, ge=1, le=1_000_000)
    """How many unlabelled target images INT8 is calibrated on."""
    calibration_choice: Literal["diverse", "even", "random"] = "even"
    """Which of them: `even`, spread over their sorted names; `random`; or `diverse`, those that look least alike."""
    tolerance: float | None = Field(default=None, gt=0, lt=1)
    """Agreement of INT8's detections with fp32's on target images until which the most sensitive layers stay in
    fp32."""
    tiles: tuple[Tile, Tile] | None = None
    """[height, width] in pixels of the tiles that the device cuts pictures into, for small objects."""
    reduced: bool = False
    """Whether the device decodes JPEG files that are much larger than the network's input at a reduced scale."""
    provider: Literal["cpu", "cuda", "tensorrt", "openvino", "qnn", "coreml"] = "cpu"
    """Of `onnx`, what computes."""


class Budget(Options):
    """What the device allows; None means no limit. Latency is one image's median, pre- and post-processing included."""

    latency_ms: float | None = Field(default=None, gt=0)
    """Median time of one image, pre- and post-processing included, ms."""
    size_mb: float | None = Field(default=None, gt=0)
    """The model file, 10^6 bytes."""
    memory_mb: float | None = Field(default=None, gt=0)
    """Peak resident memory of the process that predicts, 10^6 bytes."""
    macs_m: float | None = Field(default=None, gt=0)
    """Multiply-accumulates of one image, millions."""
    threads: int = Field(default=1, ge=1, le=MOST_THREADS)
    """Threads of the runtime while latency is measured."""
    max_ap50_drop: float | None = Field(default=0.01, ge=0, le=1)
    """Accuracy tolerance: how much AP50 the artifact may lose against the eager model, on any labelled set; `none`
    takes the limit away."""
    min_ap50: Annotated[float | None, Added(None)] = Field(default=None, ge=0, le=1)
    """AP50 that the artifact must reach on the target's labelled set."""
    min_gain_ap50: Annotated[float | None, Added(None)] = Field(default=None, ge=-1, le=1)
    """How much more that must be than the AP50 of the source-only detector."""
    max_class_drop_ap50: Annotated[float | None, Added(None)] = Field(default=None, ge=0, le=1)
    """How much AP50 any class may lose there against the source-only detector."""

    def limits(self) -> dict[str, float]:
        """The limits on cost that are set."""
        values = {name: getattr(self, name) for name in ("latency_ms", "size_mb", "memory_mb", "macs_m")}
        return {name: value for name, value in values.items() if value is not None}


def parse_budget(text: str) -> Budget:
    """Read `latency_ms=10,size_mb=4`.

    Examples:
        >>> from acclimate.config import parse_budget
        >>> parse_budget("latency_ms=10,size_mb=4").limits()
        {'latency_ms': 10.0, 'size_mb': 4.0}

    Raises:
        AcclimateError: an unknown limit or a value that is not a positive number.
    """
    limits = [item.strip() for item in text.split(",") if item.strip()]
    for limit in limits:
        if "=" not in limit:
            raise AcclimateError(f"--budget: {limit!r}: a limit is written key=value, for example latency_ms=10")
    keys = [limit.partition("=")[0].strip() for limit in limits]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise AcclimateError(f"--budget: {twice[0]}: is given twice; leave one out")
    return parse(Budget, merge({}, limits), where="--budget")


def load_budgets(path: str | Path) -> dict[str, Budget]:
    """The budgets of a TOML file: one, named "", where its keys are limits; else one for each table, by its name.

    Raises:
        AcclimateError: the file is missing, is not TOML, sets no limit, or a limit is unknown or not positive.
    """
    values = read(path)
    named = {key: value for key, value in values.items() if isinstance(value, dict)}
    if named and len(named) < len(values):
        loose = next(key for key in values if key not in named)
        raise AcclimateError(f"{path}: {loose}: limits stand in tables or without any, not both")
    budgets = {}
    for name, limits in (named or {"": values}).items():
        where = f"{path}: [{name}]" if name else str(path)
        budgets[name] = parse(Budget, limits, where=where)
        if not budgets[name].limits():
            raise AcclimateError(f"{where}: no limit; set latency_ms, size_mb, memory_mb or macs_m")
        if len(os.fsencode(name)) > LONGEST_NAME - 30:
            raise AcclimateError(f"{path}: a budget's name becomes a folder's; {name[:30]}... is too long for that")
        if Path(name).name != name:
            raise AcclimateError(f"{path}: {name!r}: a budget's name becomes a folder's, so it has no slash")
    return budgets
