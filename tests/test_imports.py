"""The map in docs/architecture.md is true: imports run downwards, never in a circle, and the device needs no torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCE = Path(__file__).resolve().parents[1] / "src" / "acclimate"
ARCHITECTURE = SOURCE.parents[1] / "docs" / "architecture.md"

HEAVY = {"torch", "torchvision", "timm", "accelerate", "onnx", "onnxscript", "hotcoco", "openvino", "scipy"}
DEVICE = {"numpy", "cv2", "simplejpeg", "pydantic", "packaging", "onnxruntime", "rich", "typer", "acclimate"}
OPTIONAL = {"cryptography", "paho", "river"}
"""Of the extras `agent`, `mqtt` and `watch`: loaded where a signature, a broker or a change is looked for; the device
runs without."""
DEVICE_PARTS = {"edge", "boxes", "structures", "errors", "installation", "named"}
DESK = {"acclimate.boxes.match", "acclimate.boxes.tensors"}
"""What stands among those parts and is for training: nothing of the device imports it."""
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "core", "base_utils"}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package; a package goes by its own name."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = [*file.relative_to(SOURCE.parent).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, tree: ast.AST, known: set[str]) -> set[tuple[str, int]]:
    """(module, line) of every import in `tree`; for our own package down to the module that is meant.

    A call of `importlib.import_module` counts as the import that it is.
    """
    found: set[tuple[str, int]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            (argument, *_) = node.args
            if isinstance(argument, ast.Constant):
                found.add((str(argument.value), node.lineno))
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            module = node.module or ""
            below = {f"{module}.{alias.name}" for alias in node.names} & known
            # Names that the package itself defines come from the package; submodules stand for themselves.
            if len(below) < len(node.names):
                found.add((module, node.lineno))
            found |= {(full, node.lineno) for full in below}
    return found


def named(tree: ast.AST, known: set[str]) -> set[tuple[str, int]]:
    """(module, line) of every string in `tree` that is the name of a module of ours, as tables of classes hold them.

    What is imported by a name is named by a whole string somewhere: `test_no_module_name_is_put_together` sees to it.
    """
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {(node.value.split(":")[0], node.lineno) for node in strings if node.value.split(":")[0] in known}


def layers(text: str) -> dict[str, int]:
    """Part of the package -> depth, from the list fenced as `text layers`; parts on one line do not know each other."""
    block = text.split("```text layers\n", 1)[1].split("```", 1)[0]
    return {part: depth for depth, line in enumerate(block.split("\n")) for part in line.replace(",", " ").split()}


def part(module: str) -> str:
    """The layer that a module belongs to: the first name below the package."""
    return module.split(".")[1]


def upward(edges: dict[str, set[tuple[str, int]]], depth: dict[str, int]) -> list[str]:
    """Imports that do not run downwards. The package's own file is free: it is the public face, and loads lazily."""
    wrong = []
    for module, targets in edges.items():
        for target, line in sorted(targets):
            if module == "acclimate" or not target.startswith("acclimate."):
                continue
            own, other = part(module), part(target)
            if own != other and depth[own] >= depth[other]:
                wrong.append(f"{module}:{line} imports {target}")
    return wrong


def edges() -> dict[str, set[tuple[str, int]]]:
    files = modules()
    return {name: imported(name, ast.parse(file.read_text()), set(files)) for name, file in files.items()}


def tables() -> dict[str, set[tuple[str, int]]]:
    files = modules()
    return {name: named(ast.parse(file.read_text()), set(files) - {"acclimate"}) for name, file in files.items()}


def test_every_part_has_a_layer() -> None:
    depth = layers(ARCHITECTURE.read_text())
    parts = {part(name) for name in modules() if name != "acclimate"}
    assert parts - set(depth) == set(), "put these into the list of layers in docs/architecture.md"


def test_imports_run_downwards() -> None:
    depth = layers(ARCHITECTURE.read_text())
    assert upward(edges(), depth) == []
    assert upward(tables(), depth) == []


def test_an_upward_import_is_noticed() -> None:
    graph = {"acclimate.data.views": {("acclimate.adapt.engine", 3)}, "acclimate.adapt.engine": {("acclimate.run", 1)}}
    depth = {"adapt": 0, "data": 1, "run": 2}
    assert upward(graph, depth) == ["acclimate.data.views:3 imports acclimate.adapt.engine"]


@pytest.mark.parametrize(
    "line",
    [
        'importlib.import_module("acclimate.adapt.engine")',
        'import_module("acclimate.adapt.engine").fit()',
        '__import__("acclimate.adapt.engine")',
        'TABLE = {"engine": "acclimate.adapt.engine:fit"}',
    ],
)
def test_an_import_by_name_is_noticed(line: str) -> None:
    tree, known = ast.parse(line), {"acclimate.adapt.engine"}
    assert imported("acclimate.data.views", tree, known) | named(tree, known) == {("acclimate.adapt.engine", 1)}


def test_no_module_name_is_put_together() -> None:
    """A name that is no whole string is one that `named` does not see; the public face alone may do it."""
    wrong = [
        f"{module}:{node.lineno}"
        for module, file in modules().items()
        if module != "acclimate"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.JoinedStr | ast.BinOp)
        and any(
            isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.startswith("acclimate.")
            for part in ast.walk(node)
        )
    ]
    assert wrong == []


def test_imports_never_go_in_a_circle() -> None:
    graph = {
        name: {target for target, _ in targets if target.startswith("acclimate") and target != name}
        for name, targets in edges().items()
        if name != "acclimate"
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


BRIDGES = {"supervision", "trackio", "wandb"}
"""Packages of users that results are handed to; whoever asks for that has them, and nothing needs them."""


def own_packages(tree: ast.AST) -> set[str]:
    """What an engine says that it loads with, in its class's `packages`; nothing of training may be among it."""
    stated = {
        str(part.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "packages" and node.value is not None
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant)
    }
    assert not stated & (HEAVY - {"openvino"})
    return stated


def test_the_device_code_imports_only_what_the_base_package_installs() -> None:
    wrong = []
    for module, targets in edges().items():
        if module in DESK | {"acclimate"} or part(module) not in DEVICE_PARTS:
            continue
        wrong += [f"{module}:{line} imports {target}" for target, line in targets if target in DESK]
        tree = ast.parse(modules()[module].read_text())
        typing_only = {
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        allowed = DEVICE | OPTIONAL | BRIDGES | set(sys.stdlib_module_names) | own_packages(tree)
        wrong += [
            f"{module}:{line} imports {target}"
            for target, line in targets
            if target.split(".")[0] not in allowed and line not in typing_only
        ]
    assert wrong == []


def test_light_modules_load_without_torch() -> None:
    names = [
        name
        for name in modules()
        if name == "acclimate"
        or part(name) in {"cli", "doctor", "edge", "export", "structures", "config", "run", "errors"}
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = sorted({HEAVY!r} & set(sys.modules))\n"
        "    assert not loaded, f'{name} loads {loaded}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name for name in modules() if name.split(".")[-1] in VAGUE] == []


def test_every_imported_package_is_a_declared_dependency() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = {extra: wanted for extra, wanted in project["optional-dependencies"].items() if extra != "dev"}
    declared = {
        canonicalize_name(Requirement(text).name)
        for texts in (project["dependencies"], *extras.values())
        for text in texts
    }
    distributions = metadata.packages_distributions()
    wrong = []
    for module, targets in edges().items():
        if module == "acclimate.export.litert_convert":
            continue  # It runs in the converter's environment (`make litert`), whose pins fit in no extra.
        for target, line in sorted(targets):
            package = target.split(".")[0]
            if package in sys.stdlib_module_names | BRIDGES or package == "acclimate":
                continue
            brought = {canonicalize_name(name) for name in distributions.get(package, [package])}
            if not brought & declared:
                wrong.append(f"{module}:{line} imports {target}")
    assert wrong == []


def test_every_declared_dependency_is_pinned() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    lines = (SOURCE.parents[1] / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]): Requirement(line) for line in lines if line and line[0] != "#"}
    for text in (
        *project["dependencies"],
        *project["optional-dependencies"]["train"],
        *project["optional-dependencies"]["dev"],
    ):
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        assert name in pins, f"{name}: pin it in constraints.txt"
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), f"{name}: {pin.version} is not {wanted.specifier}"


def test_the_device_is_chosen_in_one_place() -> None:
    """Elsewhere a network would be trained on one device and measured on another."""
    asks = ("torch.accelerator.", "torch.cuda.is_available", "torch.backends.mps", "torch.xpu.is_available")
    wrong = [name for name, file in modules().items() if any(ask in file.read_text() for ask in asks)]
    assert wrong == ["acclimate.models.detector"]


def test_generated_scenes_are_a_room_of_their_own() -> None:
    """Their verb, a job and a suite enter it."""
    entered = {
        module
        for module, targets in edges().items()
        if not module.startswith("acclimate.scenes")
        for target, _ in targets
        if target.startswith("acclimate.scenes")
    }
    assert {part(module) for module in entered} == {"workflow", "benchmark"}
