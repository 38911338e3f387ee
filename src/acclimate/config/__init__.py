"""Every option of every verb: pydantic models, read from TOML and `key=value`.

An unknown key or a wrong value is an error that names the key, the file and what would be right.
"""

from acclimate.config.adapt import AdaptConfig, finishing, nothing
from acclimate.config.data import FIELD_OF_VIEW, FORMATS, AugmentConfig, DataConfig, ScenesConfig
from acclimate.config.delivery import Budget, ExportConfig, load_budgets, parse_budget
from acclimate.config.job import AskConfig, Config, LabellerConfig, RangeConfig, TuneConfig, load
from acclimate.config.kinds.slimmable import SlimmableConfig
from acclimate.config.kinds.ssd import SsdConfig
from acclimate.config.kinds.transformers import TransformersConfig
from acclimate.config.kinds.two_stage import TwoStageConfig
from acclimate.config.methods.adversarial import AdversarialConfig
from acclimate.config.methods.alignment import AlignmentConfig
from acclimate.config.methods.distillation import ChannelConfig, DistillationConfig, GanConfig, ImitationConfig
from acclimate.config.methods.labelled import LabelledConfig
from acclimate.config.methods.labels import LabelsConfig
from acclimate.config.methods.quantisation import QuantisationConfig
from acclimate.config.methods.slim import SlimConfig
from acclimate.config.methods.suppression import SuppressionConfig
from acclimate.config.methods.teacher import TeacherConfig
from acclimate.config.methods.triplet import TripletConfig
from acclimate.config.model import KINDS, ModelConfig
from acclimate.config.options import Added, Options, Prose
from acclimate.config.reading import merge, overlay, parse, read
from acclimate.config.schedule import ScheduleConfig

__all__ = [
    "FIELD_OF_VIEW",
    "FORMATS",
    "KINDS",
    "AdaptConfig",
    "Added",
    "AdversarialConfig",
    "AlignmentConfig",
    "AskConfig",
    "AugmentConfig",
    "Budget",
    "ChannelConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "ExportConfig",
    "GanConfig",
    "ImitationConfig",
    "LabelledConfig",
    "LabellerConfig",
    "LabelsConfig",
    "ModelConfig",
    "Options",
    "Prose",
    "QuantisationConfig",
    "RangeConfig",
    "ScenesConfig",
    "ScheduleConfig",
    "SlimConfig",
    "SlimmableConfig",
    "SsdConfig",
    "SuppressionConfig",
    "TeacherConfig",
    "TransformersConfig",
    "TripletConfig",
    "TuneConfig",
    "TwoStageConfig",
    "finishing",
    "load",
    "load_budgets",
    "merge",
    "nothing",
    "overlay",
    "parse",
    "parse_budget",
    "read",
]
