"""A job file from what the data say, with the reasons as comments."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from acclimate.data.compare import SMALL_PX, Comparison, Domain

_SIDES = (160, 192, 224, 256, 320, 384, 448, 512, 640)
"""Longer sides of the input that are considered; beyond, small devices have no time."""
_EPOCHS = 30
_STEPS = (1000, 20000)


def propose(comparison: Comparison, sets: Mapping[str, Mapping[str, Any]]) -> str:
    """A job file in TOML.

    Args:
        comparison: of source, target and at most one test.
        sets: the options of the data sets by section: `source`, `target` (its path alone), `target_test`.
    """
    source, target = comparison.domains[:2]
    lines = ["# Proposed by `acclimate init` from the data; change what you like. `acclimate run` takes this file."]
    lines += [f"# {finding}" for finding in comparison.findings]
    lines += ["", f"target = {json.dumps(str(sets['target']['path']))}  # {len(target.looks)} images; no label is read"]
    for section in ("source", "target_test"):
        if section in sets:
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in sets[section].items())]
    if "target_test" not in sets:
        lines += ["", "# [target_test]  labelled images of the target: without them no accuracy is measured."]
        lines += ['# path = "..."']
    lines += ["", "[model]", *_model(source, target, comparison.image_size)]
    lines += ["", *_schedules(source)]
    lines += [
        "", "# [budget]  what the device allows; fill in and remove the #.",
        "# latency_ms = 30", "# size_mb = 5", "# memory_mb = 200", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _model(source: Domain, target: Domain, measured: tuple[int, int]) -> list[str]:
    # What the source's boxes measured on one input is scaled to any other.
    small = float(np.quantile(source.sides, 0.1)) if len(source.sides) else float(measured[0])
    sizes = np.median([look.size for look in target.looks.values()], axis=0)
    heights, widths = float(sizes[0]), float(sizes[1])
    longest = max(measured)
    fitting = [side for side in _SIDES if small * side / longest >= SMALL_PX]
    native = [side for side in _SIDES if side < max(heights, widths) + 32] or [_SIDES[0]]
    side = min(fitting[0] if fitting else native[-1], native[-1])
    scale = side / max(heights, widths)
    height, width = (max(32, 32 * math.ceil(length * scale / 32 - 0.01)) for length in (heights, widths))
    there = small * side / longest
    median = (float(np.median(source.sides)) if len(source.sides) else longest) * side / longest
    lines = [
        f"# The target's images are {widths:.0f}x{heights:.0f}; on this input nine of ten of the source's boxes have a",
        f"# side above {there:.0f} px.",
    ]
    if there < SMALL_PX:
        lines.append(
            f"# That is below {SMALL_PX} px: the smallest will be missed. Tiles, or a larger input, would help."
        )
    lines.append(f"image_size = [{height}, {width}]")
    if median < 16:
        lines += [f"# The median box has a side of {median:.0f} px: a finer level finds it.", "strides = [4, 8, 16]"]
    else:
        lines += [f"# The median box has a side of {median:.0f} px: the usual levels.", "strides = [8, 16, 32]"]
    boxes, classes = len(source.sides), len(source.classes or ())
    size = "nano" if boxes < 2000 else "small" if boxes > 50000 and classes > 10 else "tiny"
    lines += [f"# {boxes:,} boxes of {classes} classes are what there is to learn from.", f'size = "{size}"']
    return lines


def _schedules(source: Domain) -> list[str]:
    images = len(source.looks)
    batch = 16 if images >= 64 else 8
    steps = int(np.clip(round(_EPOCHS * images / batch, -2), *_STEPS))
    return [
        "[train]",
        f"# {images:,} images, about {steps * batch / images:.0f} passes over them.",
        f"steps = {steps}",
        f"batch_size = {batch}",
        "",
        "[schedule]",
        "# The adaptation starts from a trained detector: half as long.",
        f"steps = {steps // 2}",
    ]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value), ensure_ascii=False)
