from __future__ import annotations

from pathlib import Path

import pytest

from acclimate.edge.energy import Meter


def zone(root: Path, folder: str, name: str, energy_uj: int, limit: int = 999) -> Path:
    made = root / folder
    made.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", limit)):
        (made / file).write_text(f"{value}\n")
    return made


def test_packages_are_added_up_and_counters_wrap(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 990)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 100)
    # Part of a package, and the platform, which counts the packages again.
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    zone(tmp_path, "intel-rapl:2", "psys", 5)
    meter = Meter.of_machine(tmp_path)
    assert meter is not None
    assert meter.zones == (first, second)
    before = meter.read()
    (first / "energy_uj").write_text("10\n")
    (second / "energy_uj").write_text("600\n")
    # 990 -> 999, 0 -> 10 is 20 uJ.
    assert meter.between_mj(before, meter.read()) == pytest.approx(0.520)


def test_a_machine_that_does_not_tell_has_no_meter(tmp_path: Path) -> None:
    assert Meter.of_machine(tmp_path / "nothing") is None
    found = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    assert Meter.of_machine(tmp_path) is not None
    (found / "energy_uj").unlink()
    (found / "energy_uj").mkdir()  # cannot be read, as for all but root
    assert Meter.of_machine(tmp_path) is None
    (found / "energy_uj").rmdir()
    (found / "energy_uj").write_text("much\n")
    assert Meter.of_machine(tmp_path) is None
