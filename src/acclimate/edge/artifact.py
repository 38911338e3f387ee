"""The artifact: a folder with a model file and `artifact.json`, which holds everything needed to run it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Decode(BaseModel):
    """How the graph's raw outputs become boxes.

    Only one kind exists so far. `dense`: outputs `logits` (1, A, C) and `distances` (1, A, 4), A locations in the
    order of `strides`, each level row by row; score = sigmoid(logit), side distance = stride * softplus(raw) in
    the order left, top, right, bottom from the location's centre ((x + 0.5) * stride, (y + 0.5) * stride).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dense"] = "dense"
    strides: tuple[int, ...]
    score_threshold: float = 0.01
    nms_iou: float = 0.6
    candidates: int = 400
    """Before NMS, the best (location, class) pairs that are looked at."""
    max_detections: int = 100


class Calibration(BaseModel):
    """What a quantised artifact was calibrated on."""

    images: int
    digest: str
    source: str


class ArtifactManifest(BaseModel):
    """Written as `artifact.json`.

    The graph's input is `input_name`: (1, 3, H, W) float32, RGB, 0..255; normalisation is part of the graph. An
    image is scaled to fit the canvas with its aspect kept (bilinear when enlarging, area when shrinking), put at
    the top left, and the rest is filled with `fill`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int = 1
    name: str
    runtime: str
    precision: Literal["fp32", "fp16", "int8"]
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """(height, width) of the canvas."""
    fill: int = 114
    input_name: str = "images"
    output_names: tuple[str, ...] = ("logits", "distances")
    decode: Decode
    show_threshold: float = 0.35
    """Score from which `predict` reports a detection unless told otherwise."""
    files: dict[str, str] = Field(default_factory=dict)
    """File name -> SHA-256; checked before loading."""
    calibration: Calibration | None = None
    source_run: str = ""
    version: str = ""
    notes: dict[str, Any] = Field(default_factory=dict)
