"""What all tests share: thread limits, no network, where the shared data are, and a watch on the repository's root."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import features
import tiny_job

REPOSITORY = Path(__file__).resolve().parents[1]

# One thread a process: several test processes share the cores, and sums in a fixed order make results repeatable.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# A test that would fetch weights fails at once, everywhere, instead of waiting for a network or depending on one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile(
    "acclimate",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("acclimate")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets of `tiny_job`, for one file of tests."""
    folder = tmp_path_factory.mktemp("data")
    tiny_job.make_data(folder)
    return folder


_passed: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _passed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # Of several processes the one that collects the others' reports decides.
    if os.environ.get(features.VARIABLE) and not hasattr(session.config, "workerinput") and not exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if features.untested(_passed) else exitstatus


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get(features.VARIABLE) and (missing := features.untested(_passed)):
        terminalreporter.write_line(f"no test passed of: {', '.join(missing)} (tests/features.py)", red=True)


@pytest.fixture(scope="session", autouse=True)
def _single_threaded_opencv() -> None:
    import cv2

    cv2.setNumThreads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_a_quiet_machine() -> None:
    """Tests share the cores: a latency over its budget would be measured again and again, with pauses."""
    from acclimate.verification import measure

    measure.PAUSES_S = ()


@pytest.fixture(scope="session", autouse=True)
def _operators_are_listed_once() -> None:
    """PyTorch's exporter lists the operators that it knows anew for each export, which is a quarter of a small one."""
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        listed = functools.cache(ONNXRegistry.from_torchlib.__func__)
        ONNXRegistry.from_torchlib = classmethod(listed)  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _repository_root_stays_clean() -> Iterator[None]:
    """A test writes into its temporary folder; caches of the tools have names that start with a dot."""
    before = set(REPOSITORY.iterdir())
    yield
    left = sorted(path.name for path in set(REPOSITORY.iterdir()) - before if not path.name.startswith("."))
    assert not left, f"left in the repository's root: {', '.join(left)}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """The folder of the shared small inputs that once failed, each with an EXPECT.md."""
    folder = REPOSITORY.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"the shared cases are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared real data sets; tests that use it are marked `data`."""
    folder = Path(os.environ.get("ACCLIMATE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the shared data sets are not at {folder} (set ACCLIMATE_DATA)")
    return folder


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The headless browser; tests that use it are marked `browser`."""
    from acclimate.doctor import find_chromium

    found = find_chromium()
    if found is None:
        pytest.skip("no chromium on this machine (as root on Debian: make browser)")
    return found


@pytest.fixture
def squares_are_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs may hold the detector of `coloured_squares`."""
    from acclimate.models import detector

    monkeypatch.setitem(detector.MODULES, "squares", "coloured_squares")
