from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from acclimate.edge.pipeline import in_stages


def test_order_is_kept_and_stages_overlap() -> None:
    """Three stages of 4 ms for 30 things take about as long as one of them, not as all."""
    seen: set[str] = set()

    def stage(thing: int) -> int:
        seen.add(threading.current_thread().name)
        time.sleep(0.004)
        return thing + 1

    serial = list(in_stages(range(30), [stage, stage], stage, 0))
    assert seen == {threading.current_thread().name}
    assert list(in_stages(range(30), [stage, stage], stage)) == serial == list(range(3, 33))
    assert len(seen) == 3


def test_what_is_in_flight_is_bounded() -> None:
    drawn = 0

    def things() -> Iterator[int]:
        nonlocal drawn
        for number in range(1000):
            drawn = number
            yield number

    with contextlib.closing(in_stages(things(), [lambda x: x, lambda x: x], lambda x: x, 2)) as results:
        for number in results:
            time.sleep(0.002)
            assert drawn - number <= 3 * 2 + 4
            if number == 40:
                break
    assert drawn < 60
    assert not [one for one in threading.enumerate() if one.name == "feed" or one.name.startswith("stage ")]


@pytest.mark.parametrize("where", ["things", "first", "second", "last"])
@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_comes_in_its_place(where: str, ahead: int) -> None:
    def at(place: str, thing: int) -> int:
        if place == where and thing == 5:
            raise KeyError(place)
        return thing

    things = (at("things", number) for number in range(100))
    results = in_stages(things, [lambda x: at("first", x), lambda x: at("second", x)], lambda x: at("last", x), ahead)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError, match=where):
        next(results)
