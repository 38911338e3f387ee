"""What an engine is: it takes an artifact from disk to a function from images to raw outputs. Torch is never loaded."""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact, ArtifactManifest
from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.named import class_of

Network = Callable[[NDArray[np.float32]], list[NDArray[Any]]]
"""The loaded graph: images (1, 3, H, W) float32 RGB 0..255 -> the outputs in the order of the manifest's names."""


class Engine(abc.ABC):
    """Loads the artifacts of one inference engine. A subclass imports the engine's package inside `open`."""

    name: ClassVar[str]
    """By which the manifest and `--runtime` call it."""
    packages: ClassVar[tuple[str, ...]]
    """Modules that loading imports."""
    extra: ClassVar[str]
    """The extra of acclimate that installs them; empty where the base package does."""

    def load(self, artifact: Artifact, threads: int) -> Network:
        """The graph of `artifact`, ready to run on `threads` threads.

        Raises:
            AcclimateError: the engine is not installed, or does not accept the model file.
        """
        self.check(artifact.manifest)
        return self.open(artifact, threads)

    def check(self, manifest: ArtifactManifest) -> None:
        """Refuse what cannot be run here.

        Raises:
            AcclimateError: the engine, or what of it the manifest asks for, is not installed.
        """
        if missing := self.missing():
            raise AcclimateError(missing)
        if manifest.provider != "cpu":
            raise AcclimateError(f"{self.name}: has no provider {manifest.provider}; that is of onnx alone")

    @abc.abstractmethod
    def open(self, artifact: Artifact, threads: int) -> Network:
        """`load`, where everything is installed. It finds inputs and outputs by name: engines reorder them."""

    def missing(self) -> str:
        """What is not installed of what loading needs, in one line; empty where nothing is."""
        return not_installed(self.name, self.packages, self.extra)

    def distributions(self) -> list[str]:
        """The packages, as `pip` names them, that bring what it loads artifacts with.

        Raises:
            AcclimateError: they are not installed.
        """
        if missing := self.missing():
            raise AcclimateError(missing)
        carriers = metadata.packages_distributions()
        return sorted({carriers[module][0] for module in self.packages})

    def version(self) -> str:
        """The packages that run its artifacts here, with their versions.

        Raises:
            AcclimateError: they are not installed.
        """
        return ", ".join(f"{package} {metadata.version(package)}" for package in self.distributions())


def named(modules: Mapping[str, str], name: str) -> Any:
    """A new object of the class of this name in its module, by the modules of all runtimes.

    Raises:
        AcclimateError: there is none of that name.
    """
    if name not in modules:
        raise AcclimateError(f"unknown runtime {name!r} (known: {', '.join(modules)})")
    return class_of(modules[name], name)()


def not_installed(name: str, modules: Sequence[str], extra: str) -> str:
    """Which of `modules` are not there, and the `extra` that brings them, in one line; empty where all are."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{name} needs {', '.join(absent)}: {hint(extra)}" if absent else ""


def check_named(file: Path, what: str, wanted: Sequence[str], found: Collection[str]) -> None:
    """Refuse a model file that lacks an input or output which the manifest names.

    Args:
        file: the model file.
        what: `input` or `output`, for the message.
        wanted: the manifest's names.
        found: the file's.

    Raises:
        AcclimateError: a name is missing.
    """
    absent = [name for name in wanted if name not in found]
    if absent:
        raise AcclimateError(f"{file}: has no {what} {', '.join(absent)}; export the artifact again")


def reason(error: Exception, line: int = 0) -> str:
    """One line of what an engine said, the first unless told otherwise."""
    said = str(error).strip().splitlines() or ["no reason given"]
    return said[line]
