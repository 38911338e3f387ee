"""Where everything is there, a feature that was never tried is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import features


def test_every_feature_names_tests_that_are_there(repository: Path) -> None:
    for nodes in features.FEATURES.values():
        for node in nodes:
            file, _, name = node.partition("::")
            assert (repository / file).is_file(), node
            assert f"def {name}" in (repository / file).read_text(), node


def test_one_test_that_passed_is_enough() -> None:
    whole = {nodes[0] + "::test_it" for nodes in features.FEATURES.values()}
    assert features.untested(whole) == []
    assert features.untested(set()) == list(features.FEATURES)
    assert features.untested(whole - {"tests/export/test_ncnn.py::test_it"}) == ["ncnn"]


@pytest.mark.parametrize(("complete", "status"), [("", 0), ("1", 1)])
def test_a_session_without_them_fails_where_all_is_there(complete: str, status: int, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "tests/test_features.py::test_one_test_that_passed_is_enough"],
        cwd=repository, capture_output=True, text=True, check=False, env={**os.environ, features.VARIABLE: complete},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert ("no test passed of: benchmarks on Ray" in done.stdout) == bool(complete)
