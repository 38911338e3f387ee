"""The table of what breaks: every verb that writes is in it, and what was lost is seen."""

from __future__ import annotations

from pathlib import Path

import faults
from acclimate import cli


def test_every_verb_but_those_that_only_look_is_broken() -> None:
    names = {command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert names - {verb.arguments[0] for verb in faults.VERBS.values()} == {"doctor"}
    assert {kind for kind, _ in faults.TRIALS} == set(faults.TRIES)


def test_a_file_that_is_lost_left_or_other_is_seen(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"weights")
    before = faults._files(tmp_path)
    assert not faults._differs(before, faults._files(tmp_path))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"others")
    assert "other content: run/model.safetensors" in faults._differs(before, faults._files(tmp_path))
    (tmp_path / "run" / ".model.safetensors.tmp").write_bytes(b"")
    assert "left run/.model" in faults._differs(before, faults._files(tmp_path))
    (tmp_path / "run" / "model.safetensors").unlink()
    assert "lost run/model" in faults._differs(before, faults._files(tmp_path))
