"""docs/configuration.md has a row for every key of every section, with the default that the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from acclimate import config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
SECTIONS: dict[str, type[BaseModel]] = {
    "The job": config.Config,
    "[source], [source_test], [target_test], [oracle], [labelled]": config.DataConfig,
    "[model]": config.ModelConfig,
    "[model.two_stage]": config.TwoStageConfig,
    "[model.ssd]": config.SsdConfig,
    "[model.slimmable]": config.SlimmableConfig,
    "[model.transformers]": config.TransformersConfig,
    "[augment]": config.AugmentConfig,
    "[train] and [schedule]": config.ScheduleConfig,
    "[adapt]": config.AdaptConfig,
    "[adapt.labelled]": config.LabelledConfig,
    "[adapt.labels]": config.LabelsConfig,
    "[adapt.alignment]": config.AlignmentConfig,
    "[adapt.teacher]": config.TeacherConfig,
    "[adapt.adversarial]": config.AdversarialConfig,
    "[adapt.suppression]": config.SuppressionConfig,
    "[adapt.distillation]": config.DistillationConfig,
    "[adapt.distillation.gan]": config.GanConfig,
    "[adapt.distillation.imitation]": config.ImitationConfig,
    "[adapt.distillation.channel]": config.ChannelConfig,
    "[adapt.quantisation]": config.QuantisationConfig,
    "[adapt.slim]": config.SlimConfig,
    "[ask]": config.AskConfig,
    "[export]": config.ExportConfig,
    "[budget]": config.Budget,
    "[scenes]": config.ScenesConfig,
}


def rows(section: str) -> dict[str, str]:
    """Key -> what the page gives as its default."""
    text = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, flags=re.MULTILINE))


def written(value: Any) -> str:
    """A default as the page writes it: TOML in backticks."""
    if value is None:
        return "-"
    if isinstance(value, BaseModel):
        return "below"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


@pytest.mark.parametrize(
    ("section", "model"), SECTIONS.items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_key_has_a_row_with_its_default(section: str, model: type[BaseModel]) -> None:
    found = rows(section)
    assert sorted(found) == sorted(model.model_fields)
    for key, field in model.model_fields.items():
        default = "required" if field.is_required() else written(field.get_default(call_default_factory=True))
        own = getattr(config.Config().schedule, key) if model is config.ScheduleConfig else None
        expected = f"{default}; {written(own)}" if own is not None and written(own) != default else default
        assert found[key] == expected, f"{section}: {key}"


def test_every_section_of_a_job_is_on_the_page() -> None:
    models: set[Any] = {config.Config}
    waiting: list[type[BaseModel]] = [config.Config]
    while waiting:
        for field in waiting.pop().model_fields.values():
            for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(option, type) and issubclass(option, BaseModel) and option not in models:
                    models.add(option)
                    waiting.append(option)
    assert models == set(SECTIONS.values())
