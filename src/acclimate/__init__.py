"""Domain-adaptive object detection for edge devices: labelled source, unlabelled target folder, verified artifact.

Every verb of the command line is a function of `workflow`, and importing the package loads nothing heavy:

    import acclimate

    config = acclimate.load_config("job.toml", ["train.steps=500"])
    job = acclimate.workflow.run(config)
    print(job.report, job.passed)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from acclimate import doctor, workflow
    from acclimate.config import Budget, Config, DataConfig
    from acclimate.config import load as load_config
    from acclimate.edge.images import read_image
    from acclimate.edge.predict import Predictor
    from acclimate.errors import AcclimateError, Interrupted
    from acclimate.run import Run
    from acclimate.structures import Detections

__all__ = [
    "AcclimateError",
    "Budget",
    "Config",
    "DataConfig",
    "Detections",
    "Interrupted",
    "Predictor",
    "Run",
    "__version__",
    "doctor",
    "load_config",
    "read_image",
    "workflow",
]

_HOME = {
    "AcclimateError": "errors",
    "Budget": "config",
    "Config": "config",
    "DataConfig": "config",
    "Detections": "structures",
    "Interrupted": "errors",
    "Predictor": "edge.predict",
    "Run": "run",
    "read_image": "edge.images",
}
"""Public name -> the module that defines it, loaded when the name is first used."""


def __getattr__(name: str) -> Any:
    if name in {"doctor", "workflow"}:
        return importlib.import_module(f"acclimate.{name}")
    if name == "load_config":
        value = importlib.import_module("acclimate.config").load
    elif name in _HOME:
        value = getattr(importlib.import_module(f"acclimate.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'acclimate' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
