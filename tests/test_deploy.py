"""What `deploy/` holds: linted by the tools that read it, and true to the package and its options."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from acclimate import cli

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
FILES = sorted(DEPLOY.glob("Dockerfile.*"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "acclimate-watch.service").read_text()
    program = re.search(r"^ExecStart=(\S+)", unit, re.MULTILINE)
    assert program is not None
    # The program need not be there to see whether the rest of the unit is right.
    (tmp_path / "acclimate-watch.service").write_text(unit.replace(program[1], "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "acclimate-watch.service")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    done = subprocess.run(["hadolint", "--no-color", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_image_copies_what_is_there_and_installs_extras_that_are(file: Path) -> None:
    text = file.read_text()
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    for sources in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        for name in sources.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in sent, f"{name} is not sent to the builder"
    (extras,) = re.findall(r"'\.\[(.+?)\]'", text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


def test_the_settings_are_options_of_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the artifact, which is not here, is taken."""
    settings = tmp_path / "watch.toml"
    settings.write_text((DEPLOY / "watch.toml").read_text().replace("/etc/acclimate", str(tmp_path)))
    assert cli.main(["watch", "--config", str(settings), "--out", str(tmp_path / "out")]) == 2
    assert "site.zip" in capsys.readouterr().err
