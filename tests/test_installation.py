"""A hint is true for how the copy at hand was installed; `pip` itself reads what it says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from acclimate import installation

NEEDED = metadata.requires("acclimate")


class Copy:
    def __init__(self, told: object) -> None:
        self.told = told
        self.requires = NEEDED

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.told is None else json.dumps(self.told)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    installation._origin.cache_clear()
    yield
    installation._origin.cache_clear()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package lies where no pyproject.toml is near."""
    monkeypatch.setattr(installation, "__file__", str(tmp_path / "lib" / "acclimate" / "installation.py"))
    return tmp_path


def test_a_checkout_is_named_by_its_folder(repository: Path) -> None:
    assert shlex.split(installation.hint("train")) == ["pip", "install", "-e", f"{repository}[train]"]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"url": "https://host/a.whl", "archive_info": {}}, "acclimate[agent] @ https://host/a.whl"),
        (
            {"url": "https://host/a", "vcs_info": {"vcs": "git", "commit_id": "1f"}},
            "acclimate[agent] @ git+https://host/a@1f",
        ),
    ],
)
def test_an_address_is_named(told: object, said: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Copy(told))
    words = shlex.split(installation.hint("agent"))
    assert words == ["pip", "install", said]
    assert Requirement(words[-1]).extras == {"agent"}


def test_a_folder_is_named_while_it_is_there(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = elsewhere / "my copy"
    folder.mkdir()
    monkeypatch.setattr(metadata, "distribution", lambda name: Copy({"url": folder.as_uri(), "dir_info": {}}))
    assert shlex.split(installation.hint("agent")) == ["pip", "install", f"{folder}[agent]"]
    installation._origin.cache_clear()
    folder.rmdir()
    assert "my copy" not in installation.hint("agent")


def test_of_a_copy_from_nowhere_the_packages_are_named(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody promised to keep the name acclimate on any registry."""
    monkeypatch.setattr(metadata, "distribution", lambda name: Copy(None))
    for extra, package in (("agent", "cryptography"), ("train,openvino", "nncf"), ("", "numpy")):
        words = shlex.split(installation.hint(extra))
        named = [Requirement(word).name for word in words[2:]]
        assert package in named
        assert "acclimate" not in named


def test_no_message_names_the_bare_extra(repository: Path) -> None:
    for file in (repository / "src").rglob("*.py"):
        assert "pip install 'acclimate" not in file.read_text(), file
        assert "pip install acclimate" not in file.read_text(), file
