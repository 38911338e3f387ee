"""ExecuTorch on the CPU, by XNNPACK: fp32, and static INT8. The artifact is one `model.pte`.

`executorch-numpy-runtime` loads it without torch, from Python 3.12 on. Where that is not installed, the runtime of the
package that exports does; it comes with torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact
from acclimate.edge.engines.base import Engine, Network, check_named, not_installed, reason
from acclimate.errors import AcclimateError

METHOD = "forward"
"""What computes the network in a file."""
Method = Callable[[Sequence[NDArray[Any]]], list[Any]]


def told(kind: str, name: str) -> str:
    """What the method of a file is called that says that it has an input or output (`kind`) of this name, and where.

    A program has no names for them. A method that gives the place does, as every runtime lists methods.
    """
    return f"{kind}_{name}"


class ExecuTorch(Engine):
    """See the module."""

    name: ClassVar[str] = "executorch"
    packages: ClassVar[tuple[str, ...]] = (
        ("executorch_numpy_runtime",)
        if importlib.util.find_spec("executorch_numpy_runtime")
        or (sys.version_info >= (3, 12) and not importlib.util.find_spec("executorch"))
        else ("executorch",)
    )
    extra: ClassVar[str] = "executorch"

    def missing(self) -> str:
        """See `Engine.missing`; the runtime of the package that exports needs torch, and does not say so."""
        needed = (*self.packages, "torch") if self._whole() else self.packages
        return not_installed(self.name, needed, self.extra)

    def distributions(self) -> list[str]:
        """See `Engine.distributions`."""
        return super().distributions() + (["torch"] if self._whole() else [])

    def _whole(self) -> bool:
        return self.packages == ("executorch",)

    def open(self, artifact: Artifact, threads: int) -> Network:
        """See `Engine.open`."""
        runtime = _Whole() if self._whole() else _Light()
        file, manifest = artifact.file(".pte"), artifact.manifest
        # Kept, as it is loaded again where another network has changed the number of threads.
        program = file.read_bytes()
        with _POOL.of(runtime, threads), _said() as said:
            try:
                methods = runtime.methods(program)
            except runtime.errors as error:
                raise AcclimateError(f"{file}: ExecuTorch does not accept it ({said() or reason(error)})") from None
            for kind, wanted in (("input", (manifest.input_name,)), ("output", manifest.output_names)):
                prefix = told(kind, "")
                check_named(
                    file, kind, wanted, [name.removeprefix(prefix) for name in methods if name.startswith(prefix)]
                )
            places = [int(runtime.load(program, told("output", name))([])[0]) for name in manifest.output_names]

        def load(inputs: Sequence[NDArray[Any]]) -> Method:
            """The network, after it has run: what there is no kernel for is told before that by one of them alone."""
            with _said() as said:
                try:
                    made = runtime.load(program, METHOD)
                    made(inputs)
                except runtime.errors as error:
                    why = said() or reason(error)
                    raise AcclimateError(
                        f"{file}: ExecuTorch cannot run it ({why}); use another runtime or precision"
                    ) from None
            return made

        method: Method | None = None
        loaded = 0

        def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
            nonlocal method, loaded
            inputs = [np.ascontiguousarray(images)]
            with _POOL.of(runtime, threads) as pool:
                if method is None or loaded != pool:
                    method, loaded = load(inputs), pool
                found = method(inputs)
            return [found[place] for place in places]

        return run


class _Runtime(ABC):
    """What the two have in common."""

    errors: tuple[type[Exception], ...]
    """What they raise about a file."""

    @abstractmethod
    def methods(self, program: bytes) -> list[str]:
        """The names of the methods of a file."""

    @abstractmethod
    def load(self, program: bytes, name: str) -> Method:
        """A method, which gives copies."""

    @abstractmethod
    def set_threads(self, threads: int) -> None:
        """Make the pool of this process anew. A method that was loaded before must not be called again."""


class _Light(_Runtime):
    """Without torch."""

    def __init__(self) -> None:
        self._module = importlib.import_module("executorch_numpy_runtime")
        self.errors = (cast(type[Exception], self._module.ExecuTorchError),)

    def methods(self, program: bytes) -> list[str]:
        return list(self._module.Runtime.get().load_program(program).method_names)

    def load(self, program: bytes, name: str) -> Method:
        method: Method = self._module.Runtime.get().load_program(program).load_method(name)
        return method

    def set_threads(self, threads: int) -> None:
        # It has no function for it; ExecuTorch's own are there, as C++ names them.
        library = ctypes.CDLL(importlib.import_module("executorch_numpy_runtime._core").__file__)
        pool = "_ZN10executorch9extension10threadpool"
        try:
            get = getattr(library, f"{pool}14get_threadpoolEv")
            reset = getattr(library, f"{pool}10ThreadPool24_unsafe_reset_threadpoolEj")
        except AttributeError:
            raise AcclimateError(
                "executorch: this executorch-numpy-runtime cannot be told its number of threads; install 1.4.0"
            ) from None
        get.restype, reset.argtypes, reset.restype = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_uint32], ctypes.c_bool
        reset(get(), threads)


class _Whole(_Runtime):
    """With torch, which takes the arrays and gives them."""

    errors: tuple[type[Exception], ...] = (RuntimeError,)

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It calls itself experimental.
            self._library = importlib.import_module("executorch.extension.pybindings.portable_lib")
            self._runtime = importlib.import_module("executorch.runtime").Runtime.get()
        self._torch = sys.modules["torch"]

    def methods(self, program: bytes) -> list[str]:
        return list(self._runtime.load_program(program).method_names)

    def load(self, program: bytes, name: str) -> Method:
        whole = self._runtime.load_program(program)
        method = whole.load_method(name)

        def run(arrays: Sequence[NDArray[Any]]) -> list[Any]:
            found = method.execute([self._torch.from_numpy(array) for array in arrays])
            return [one.numpy() if isinstance(one, self._torch.Tensor) else one for one in found]

        return run

    def set_threads(self, threads: int) -> None:
        self._library._unsafe_reset_threadpool(threads)


class _Pool:
    """The threads that ExecuTorch computes on: one pool a process, whose number is that of the network that runs."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._threads = 0
        self._made = 0

    @contextlib.contextmanager
    def of(self, runtime: _Runtime, threads: int) -> Iterator[int]:
        """The pool with so many threads, to be had for as long as this lasts, and which of the process's pools it is.

        A method holds the pool that there was when it was loaded, so another pool is another number.
        """
        with self._lock:
            if self._threads != threads:
                with _said():
                    runtime.set_threads(threads)
                self._threads, self._made = threads, self._made + 1
            yield self._made


_POOL = _Pool()


@contextlib.contextmanager
def _said() -> Iterator[Callable[[], str]]:
    """Keep what ExecuTorch says off the standard error of the process; the function gives its first error in one line.

    It reports what it finds of the processor, and reasons, which its exceptions have as numbers.
    """
    with tempfile.TemporaryFile() as log, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # There may be no standard error.
            before = os.dup(2)
            stack.callback(os.close, before)
            os.dup2(log.fileno(), 2)
            stack.callback(os.dup2, before, 2)

        def first() -> str:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            said = [line.split("] ", 1)[-1] for line in lines if "cpuinfo" not in line and "threadpool" not in line]
            return said[0] if said else ""

        yield first
