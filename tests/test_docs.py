"""Every code block of the README and the documentation is run.

The blocks of one page run in order, in a fresh copy of a small prepared project, as a reader would run them:

- `python`: in one namespace a page.
- `bash`, `sh`: each `acclimate` line through the command line's own entry; anything else through bash, which stops at
  the first failure.
- `toml`: must be a valid configuration.
- `text`, `json`, `yaml`, `mermaid`, `bibtex` are shown, not run. Every block names its language.

Words after the language say more:

- `no-run: REASON` for what cannot be run here; the reason is required.
- `file=NAME` saves the block in the project under that name, for a later block to use, instead of running it. A saved
  configuration is checked all the same, and made smaller (`smaller`), as are those in the project's examples/: pages
  show real settings.
- `exit=N`: the block's last command ends with that status.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from acclimate import config
from acclimate.errors import AcclimateError

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "acclimate"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SHOWN = {"text", "json", "yaml", "mermaid", "bibtex"}
RUN = {"python", "bash", "sh", "toml"}
SHELL = re.compile(r"[|&;<>$`*?(){}]")
"""What only a shell understands."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it holds, what its info string says."""

    page: str
    line: int
    """Of the opening fence, counted from 1."""
    language: str
    code: str
    no_run: str | None = None
    file: str | None = None
    exit: int = 0

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(text: str, page: str) -> list[Block]:
    """The code blocks of a page. A block that would silently not be run is an error."""
    found = []
    for token in MarkdownIt().parse(text):
        line = (token.map or [0])[0] + 1
        if token.type == "code_block":
            pytest.fail(f"{page}:{line}: an indented code block names no language; fence it")
        if token.type == "fence":
            found.append(_block(page, line, token.info.strip(), token.content))
    return found


def _block(page: str, line: int, info: str, code: str) -> Block:
    language, _, rest = info.partition(" ")
    if language not in RUN | SHOWN:
        pytest.fail(f"{page}:{line}: {language or 'no'} language; one of {', '.join(sorted(RUN | SHOWN))}")
    marks, found, reason = rest.partition("no-run:")
    if found and not reason.strip():
        pytest.fail(f"{page}:{line}: no-run wants a reason: no-run: needs a camera")
    values: dict[str, Any] = {"no_run": reason.strip()} if found else {}
    for mark in marks.split():
        key, _, value = mark.partition("=")
        if language == "text" and not value:
            continue
        if key not in {"file", "exit"} or not value:
            pytest.fail(f"{page}:{line}: {mark!r} is not known; file=NAME, exit=N, no-run: REASON")
        values[key] = int(value) if key == "exit" else value
    return Block(page, line, language, code, **values)


def run(page: list[Block], folder: Path) -> None:
    """Run a page's blocks in order in `folder`, which must be the working directory; fail at the first that fails."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in page:
        if block.no_run is not None or block.language in SHOWN:
            continue
        if block.language == "toml":
            _run_toml(block, folder)
        elif block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.code)
        elif block.language == "python":
            _run_python(block, namespace)
        else:
            _run_bash(block, folder)


def _run_toml(block: Block, folder: Path) -> None:
    try:
        values = tomllib.loads(block.code)
        config.parse(config.Config, values, where=block.where)
    except (tomllib.TOMLDecodeError, AcclimateError) as error:
        pytest.fail(f"{block.where}: {error}")
    if block.file:
        (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.file).write_text(tomli_w.dumps(smaller(values)))


def _run_python(block: Block, namespace: dict[str, Any]) -> None:
    # The empty lines in front make a traceback name the page's own lines.
    code = compile("\n" * block.line + block.code, block.page, "exec")
    try:
        exec(code, namespace)
    except Exception as error:
        raise AssertionError(f"{block.where}: {type(error).__name__}: {error}") from error


def _run_bash(block: Block, folder: Path) -> None:
    commands = command_lines(block.code)
    if all(line.startswith("acclimate ") and not SHELL.search(line) for line in commands):
        for number, line in enumerate(commands, 1):
            _acclimate(block, line, block.exit if number == len(commands) else 0)
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    said = (done.stdout + done.stderr)[-2000:]
    assert done.returncode == block.exit, f"{block.where}: ended with {done.returncode}:\n{block.code}\n{said}"


def _acclimate(block: Block, line: str, expected: int) -> None:
    # In this process: another would parse torch again for each line of the documentation.
    from acclimate import cli

    done = CliRunner().invoke(cli.app, shlex.split(line, comments=True)[1:], prog_name="acclimate")
    if done.exception and not isinstance(done.exception, SystemExit | AcclimateError):
        raise AssertionError(f"{block.where}: {line}: {done.exception!r}") from done.exception
    status = 2 if isinstance(done.exception, AcclimateError) else done.exit_code
    said = f"{done.output[-2000:]}{done.exception or ''}"
    assert status == expected, f"{block.where}: {line}\nended with {status}:\n{said}"


def command_lines(code: str) -> list[str]:
    """The commands of a shell block: continued lines joined, empty and comment lines gone."""
    joined = re.sub(r"\\\n\s*", " ", code)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


SMALL: dict[str, dict[str, Any]] = {
    "scenes": {"images": 12, "test_images": 6, "size": [96, 128]},
    "model": {"backbone": "lcnet_050", "channels": 32, "depth": 1, "image_size": [96, 128], "weights": "none"},
    "train": {"steps": 6, "batch_size": 4, "warmup": 2, "checkpoint_every": 3, "log_every": 1, "workers": 0},
    "schedule": {"steps": 6, "batch_size": 4, "warmup": 2, "checkpoint_every": 3, "log_every": 1, "workers": 0},
    "export": {"calibration_images": 12},
}
"""The settings of a job that takes seconds. What a job has learnt after them is nothing; that it runs is the test.
INT8 is calibrated on every image, as with the default number, so that a page's `export` finds it done."""


def smaller(values: dict[str, Any]) -> dict[str, Any]:
    """A job's settings with `SMALL` put over them, and a budget that any detector keeps."""
    small = dict(values)
    for table, settings in SMALL.items():
        if table != "scenes" or table in values:
            small[table] = {**values.get(table, {}), **settings}
    if "budget" in values:
        generous = {"latency_ms": 1e5, "size_mb": 1e5, "memory_mb": 1e5, "macs_m": 1e6}
        kept = {key: generous.get(key, value) for key, value in values["budget"].items()}
        small["budget"] = {**kept, "max_ap50_drop": 1.0}
    return small


JOB: dict[str, Any] = {
    "out": "runs",
    "source": {"path": "scenes/clear-train"},
    "target": "scenes/fog-train/images",
    "source_test": {"path": "scenes/clear-test"},
    "target_test": {"path": "scenes/fog-test"},
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project that the pages are read in; each page gets a copy. It holds

    - scenes/{clear,fog}-{train,test}: small data sets, in COCO's format.
    - job.toml: a small job on them.
    - runs/source and runs/adapted, with the artifacts onnx-fp32 and onnx-int8 in runs/adapted/artifacts: what the
      job's verbs left, so that a page finds done what most commands ask for.
    - examples/: those of the repository, their configurations made smaller.
    """
    folder = tmp_path_factory.mktemp("prepared")
    for file in sorted((REPOSITORY / "examples").glob("*")):
        copy = folder / "examples" / file.name
        copy.parent.mkdir(exist_ok=True)
        if file.suffix == ".toml":
            copy.write_text(tomli_w.dumps(smaller(tomllib.loads(file.read_text()))))
        elif file.is_file():
            shutil.copy(file, copy)
    (folder / "job.toml").write_text(tomli_w.dumps(smaller(JOB)))
    with contextlib.chdir(folder):
        _do_the_job()
    return folder


def _do_the_job() -> None:
    from acclimate import workflow
    from acclimate.scenes import sets

    small = SMALL["scenes"]
    parts = [(None, "train"), (None, "test"), ("fog", "train"), ("fog", "test")]
    for seed, (condition, split) in enumerate(parts):
        count = small["images" if split == "train" else "test_images"]
        out = Path("scenes", f"{condition or 'clear'}-{split}")
        sets.generate(out, count, tuple(small["size"]), seed, condition)
    source = workflow.train(config.load(Path("job.toml")), Path("runs/source"))
    adapted = workflow.adapt(source.path, Path(JOB["target"]), Path("runs/adapted"))
    for precision in ("fp32", "int8"):
        workflow.export(adapted.path, precision=precision, images=SMALL["export"]["calibration_images"])


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the prepared project, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_page(page: Path, project: Path) -> None:
    run(blocks(page.read_text(), str(page.relative_to(REPOSITORY))), project)


MOST_USED = (
    "acclimate.config.load",
    "acclimate.config.parse_budget",
    "acclimate.data.formats.read",
    "acclimate.edge.images.read_image",
    "acclimate.edge.predict.Predictor",
    "acclimate.evaluate.average_precision",
    "acclimate.models.detector.load",
    "acclimate.run.Run",
    "acclimate.structures.Detections",
    "acclimate.verification.judge.judge",
)


@pytest.mark.parametrize("name", MOST_USED)
def test_the_most_used_have_an_example(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert doctest.DocTestParser().get_examples(getattr(importlib.import_module(module), attribute).__doc__)


WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_examples_of_a_module_run(path: Path, project: Path) -> None:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    results = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert results.attempted
    assert not results.failed


def test_links_between_pages_lead_somewhere() -> None:
    dead = []
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(REPOSITORY)}: {target}")
    assert dead == []


EXAMPLE = """\
# A page

```python
from pathlib import Path
answer = 6 * 7
```

Prose, and a list:

- an item

  ```bash
  # a comment
  test -d . && \\
    echo done > made.txt
  ```

```python
Path("seen.txt").write_text(f"{answer} {Path('made.txt').read_text().strip()}")
```

```toml file=jobs/night.toml
seed = 3
[train]
steps = 5000
[budget]
latency_ms = 10
```

```sh exit=3
grep -q 'seed = 3' jobs/night.toml
exit 3
```

```bash no-run: needs a camera
acclimate predict artifact /dev/video0
```

```text
shown
```
"""


def test_blocks_carry_their_place_and_marks() -> None:
    found = blocks(EXAMPLE, "page.md")
    assert [(block.language, block.line) for block in found] == [
        ("python", 3),
        ("bash", 12),
        ("python", 18),
        ("toml", 22),
        ("sh", 30),
        ("bash", 35),
        ("text", 39),
    ]
    assert found[3].file == "jobs/night.toml"
    assert found[4].exit == 3
    assert found[5].no_run == "needs a camera"


def test_blocks_of_a_page_run_in_order_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(blocks(EXAMPLE, "page.md"), tmp_path)
    assert (tmp_path / "seen.txt").read_text() == "42 done"
    saved = config.load(tmp_path / "jobs" / "night.toml")
    assert saved.seed == 3
    assert saved.train.steps == SMALL["train"]["steps"]
    assert saved.budget is not None
    assert saved.budget.latency_ms == 1e5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash no-run:\nmake\n```", "page.md:1: no-run wants a reason"),
        ("```pyhton\n1\n```", "page.md:1: pyhton language"),
        ("```\n1\n```", "page.md:1: no language"),
        ("a\n\n    1 + 1\n", "page.md:3: an indented code block"),
        ("```bash norun\n1\n```", "'norun' is not known"),
        ("```toml file=\n1\n```", "'file=' is not known"),
    ],
)
def test_a_block_that_would_silently_not_run_is_an_error(text: str, said: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=re.escape(said)):
        blocks(text, "page.md")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text\n\n```python\nx = 1\nassert x == 2, 'two'\n```", "page.md:3: AssertionError: two"),
        ("```bash\nfalse\ntrue\n```", "page.md:1: ended with 1"),
        ("```bash exit=1\ntrue\n```", "page.md:1: ended with 0"),
        ("```toml\n[train]\nstep = 3\n```", "did you mean 'steps'?"),
        ("```toml\n[train\n```", "page.md:1:"),
        ("```python\nx = 1\n```\n```bash\ntrue\n```\n```python\nx + y\n```", "page.md:7: NameError"),
    ],
)
def test_a_block_that_fails_says_where(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=re.escape(said)):
        run(blocks(text, "page.md"), tmp_path)


def test_a_traceback_names_the_lines_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError) as caught:
        run(blocks("a\n\n```python\nx = 1\n\nx / 0\n```", "page.md"), tmp_path)
    cause = caught.value.__cause__
    assert cause is not None
    assert cause.__traceback__ is not None
    innermost = cause.__traceback__.tb_next
    assert innermost is not None
    assert innermost.tb_lineno == 6


def test_continued_lines_are_one_command() -> None:
    assert command_lines("# first\nacclimate train a.toml \\\n  --out runs/a\n\nacclimate doctor\n") == [
        "acclimate train a.toml  --out runs/a",
        "acclimate doctor",
    ]


def test_a_smaller_job_is_still_a_valid_one() -> None:
    whole = {"scenes": {"out": "scenes"}, "train": {"lr": 0.1}, "budget": {"size_mb": 1}}
    small = config.parse(config.Config, smaller(whole), where="smaller")
    assert small.train.lr == 0.1
    assert small.scenes is not None
    assert small.scenes.images == 12
    assert json.loads(json.dumps(smaller({})))["train"]["steps"] == 6
