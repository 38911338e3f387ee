"""Features that need something beside the base environment, and whether any of their tests ran.

A skipped test says nothing of what it would have tried. On a developer's machine that is fair; where everything is
there (`ACCLIMATE_COMPLETE`, set by `.ci/run`) a feature of which no test passed fails the whole session.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

VARIABLE = "ACCLIMATE_COMPLETE"
FEATURES: Mapping[str, tuple[str, ...]] = {
    "benchmarks on Ray": ("tests/test_benchmark.py::test_a_suite_runs_on_ray",),
    "conversion to LiteRT": (
        "tests/export/test_litert.py::test_it_is_the_detector_on_images",
        "tests/export/test_litert.py::test_int8_finds_what_fp32_finds_and_layers_can_stay_in_float",
    ),
    "ExecuTorch": (
        "tests/export/test_executorch.py::test_it_is_the_detector_on_images",
        "tests/export/test_executorch.py::test_int8_differs_from_fp32_where_layers_are_quantised",
    ),
    "OpenVINO": ("tests/export/test_openvino.py",),
    "ncnn": ("tests/export/test_ncnn.py",),
    "detectors of transformers": ("tests/models/test_transformers.py",),
    "zero-shot labellers": ("tests/labelling/test_zero_shot.py",),
    "the agent": ("tests/remote/test_agent.py",),
    "pretrained weights from packages": ("tests/models/test_backbones.py",),
    "messages to an MQTT broker": (
        "tests/edge/test_outbox.py::test_a_broker_gets_events_and_detections_even_if_it_was_away",
    ),
    "an installation from nothing": ("tests/test_install.py",),
}
"""Feature -> the tests, as nodes or files, of which one at least must have passed."""


def untested(passed: Collection[str]) -> list[str]:
    """Features of which no test is among the nodes that passed."""
    return [name for name, tests in FEATURES.items() if not any(node.startswith(tests) for node in passed)]
