"""What docs/hooks.py makes of the repository for the site; whether links lead somewhere, `make site` tells."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    return importlib.import_module("hooks")


def test_the_readme_is_a_page_whose_links_lead_to_pages(hooks: Any) -> None:
    readme = "[Start](docs/getting-started.md), [a verb](docs/verbs/run.md#x), [licence](LICENSE), [web](https://a.b/c)"
    assert hooks.home(readme) == "[Start](getting-started.md), [a verb](verbs/run.md#x), licence, [web](https://a.b/c)"
    assert "](docs/" not in hooks.home((REPOSITORY / "README.md").read_text())


def test_the_navigation_follows_the_tables(hooks: Any) -> None:
    page = "See [b](b.md).\n\n| [a](a.md) | [c](c-d.md#x) |\n|---|---|\n| [b](b.md) | [a](a.md), [up](../e.md) |\n"
    assert hooks.linked("folder/index.md", page) == ["folder/a.md", "folder/b.md"]


def test_what_the_tests_read_of_a_code_block_is_not_shown(hooks: Any) -> None:
    page = "```bash no-run: needs a camera\nls\n```\n\n    ```toml file=a/b.toml\n    x = 1\n    ```\n```text\n1\n```\n"
    assert hooks.on_page_markdown(page) == (
        '```bash\nls\n```\n\n    ```toml title="a/b.toml"\n    x = 1\n    ```\n```text\n1\n```\n'
    )


def test_every_public_module_has_a_page_of_reference(hooks: Any, tmp_path: Path) -> None:
    for name, text in {
        "__init__.py": '"""The package."""',
        "shown.py": "def name(): ...",
        "_hidden.py": "def name(): ...",
        "inner/__init__.py": "",
        "inner/also.py": "class Name: ...",
        "inner/private.py": "def _name(): ...",
        "data/no_package.py": "def name(): ...",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [str(module.relative_to(tmp_path)) for module in hooks.modules(tmp_path)]
    assert found == ["__init__.py", "shown.py", "inner/__init__.py", "inner/also.py"]
    assert len(hooks.modules(REPOSITORY / "src" / "acclimate")) > 100
