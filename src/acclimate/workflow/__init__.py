"""One function a verb. Each reads run folders and writes one; nothing else passes between them.

    from acclimate import load_config, workflow

    source = workflow.train(load_config("job.toml"), "runs/source")
    adapted = workflow.adapt(source.path, "site/images", "runs/adapted")
    artifact = workflow.export(adapted.path)

Functions that train need the `train` extra; heavy imports wait until a verb runs.
"""

from acclimate.run import Role
from acclimate.select.ask.question import Question
from acclimate.training.adapt import adapt
from acclimate.training.distil import distil
from acclimate.training.slim import slim
from acclimate.training.train import train
from acclimate.workflow.asking import ask
from acclimate.workflow.delivery import (
    Draw,
    Precision,
    agent,
    export,
    package,
    predict,
    unpack,
    verify,
    verify_all,
)
from acclimate.workflow.ensembles import Looks, evaluate_together
from acclimate.workflow.evaluating import evaluate
from acclimate.workflow.job import Job, run
from acclimate.workflow.labelling import label
from acclimate.workflow.searching import Search, search
from acclimate.workflow.showing import compare, convert, data, init, leaderboard, report, scenes, summary
from acclimate.workflow.taking import take, weights
from acclimate.workflow.tuning import Trial, Tuned, tune

__all__ = [
    "Draw",
    "Job",
    "Looks",
    "Precision",
    "Question",
    "Role",
    "Search",
    "Trial",
    "Tuned",
    "adapt",
    "agent",
    "ask",
    "compare",
    "convert",
    "data",
    "distil",
    "evaluate",
    "evaluate_together",
    "export",
    "init",
    "label",
    "leaderboard",
    "package",
    "predict",
    "report",
    "run",
    "scenes",
    "search",
    "slim",
    "summary",
    "take",
    "train",
    "tune",
    "unpack",
    "verify",
    "verify_all",
    "weights",
]
