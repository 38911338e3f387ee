from __future__ import annotations

import os
import platform

import pytest

from acclimate import machine

INTEL = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R) 8481C\nflags\t: avx\n"
)
PI = "processor\t: 0\nFeatures\t: fp asimd\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (INTEL, "Intel(R) Xeon(R) 8481C"),
        (PI, "Raspberry Pi 4 Model B Rev 1.4"),
        ("", platform.processor() or platform.machine()),
    ],
)
def test_a_processor_is_named_as_its_system_names_it(text: str, name: str) -> None:
    assert machine.processor(text) == name


def test_the_machine_is_named() -> None:
    facts = machine.facts()
    assert facts["processor"]
    assert int(facts["cores"]) == os.cpu_count()
    assert all(isinstance(value, str) for value in facts.values())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes to cores")
def test_cores_are_those_that_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
