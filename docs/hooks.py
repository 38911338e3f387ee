"""What the site has beside the pages: the README as its first page, and one page of reference for every module."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src"
LEFT_OUT = {"__main__"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills the navigation: what the tables of verbs and benchmarks link to, and last the reference."""
    assert config.nav is not None
    for entry in config.nav:
        for title, page in entry.items() if isinstance(entry, dict) else ():
            if isinstance(page, str) and Path(page).stem in {"README", "index"}:
                entry[title] = [page, *linked(page, (Path(config.docs_dir) / page).read_text())]
    config.nav.append({"Reference": _navigation(SOURCE / "acclimate")})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the first page and the pages of reference, which are nowhere on disk."""
    files.append(File.generated(config, "index.md", content=home((REPOSITORY / "README.md").read_text())))
    for module in modules(SOURCE / "acclimate"):
        name = ".".join(module.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        content = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, _page(module), content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Takes away what the tests read behind a code block's language; a name of a file becomes the block's title."""

    def shown(fence: re.Match[str]) -> str:
        file = re.search(r"\bfile=(\S+)", fence[3])
        return f'{fence[1]}{fence[2]} title="{file[1]}"' if file else f"{fence[1]}{fence[2]}"

    return re.sub(r"^( *```)(\w+) +(.+)$", shown, markdown, flags=re.MULTILINE)


def linked(page: str, text: str) -> list[str]:
    """The pages beside one that its tables link to, in their order."""
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    return [str(Path(page).parent / name) for name in dict.fromkeys(re.findall(r"\]\(([\w-]+\.md)\)", rows))]


def home(readme: str) -> str:
    """The README as a page of the site: links into docs/ lead to pages, those to other files are words."""
    inside = re.sub(r"\]\(docs/", "](", readme)
    return re.sub(
        r"\[([^\]]+)\]\((?!https?:)([^)\s]+)\)", lambda link: link[0] if ".md" in link[2] else link[1], inside
    )


def modules(package: Path) -> list[Path]:
    """Every public module, the package itself first."""
    files = [package / "__init__.py", *sorted(package.glob("*.py"))]
    public = [file for file in dict.fromkeys(files) if file.stem not in LEFT_OUT and _shows(file)]
    inner = [folder for folder in sorted(package.iterdir()) if (folder / "__init__.py").is_file()]
    return public + [module for folder in inner for module in modules(folder)]


def _shows(file: Path) -> bool:
    """Whether there is anything to read: a public name, or an `__init__` that says more than its line."""
    if file.stem.startswith("_") and file.stem != "__init__":
        return False
    body = ast.parse(file.read_text()).body
    named = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return file.stem == "__init__" or any(not node.name.startswith("_") for node in named)


def _page(module: Path) -> str:
    path = module.relative_to(SOURCE / "acclimate")
    return f"reference/{path.with_name('index.md') if path.stem == '__init__' else path.with_suffix('.md')}"


def _navigation(package: Path) -> list[Any]:
    own = [module for module in modules(package) if module.parent == package]
    pages: list[Any] = [_page(module) if module.stem == "__init__" else {module.stem: _page(module)} for module in own]
    inner = [folder for folder in sorted(package.iterdir()) if (folder / "__init__.py").is_file()]
    return pages + [{folder.name: _navigation(folder)} for folder in inner]
