from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from acclimate.errors import AcclimateError
from acclimate.remote.store import STALE_S, Store


def put(store: Store, data: bytes, age: float = 0.0) -> str:
    """Upload an image that was last used `age` seconds ago."""
    digest = hashlib.sha256(data).hexdigest()
    with store.reserve("images", digest, len(data)) as part:
        part.write_bytes(data)
        store.finish("images", digest)
    used = time.time() - age
    os.utime(store.place("images", digest), (used, used))
    return digest


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, bound=1000)
    old, older, new = put(store, b"a" * 400, 20), put(store, b"b" * 300, 30), put(store, b"c" * 300, 10)
    with store.using("images", older):
        pass
    last = put(store, b"d" * 350)
    assert [store.has("images", one) for one in (old, older, new, last)] == [False, True, True, True]
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 1000


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, bound=1000)
    used, unused = put(store, b"a" * 500, 20), put(store, b"b" * 400, 10)
    with store.using("images", used):
        with pytest.raises(AcclimateError, match=r"no room for 0\.0 MB: the agent keeps 0 MB"):
            put(store, b"c" * 600)
        put(store, b"d" * 400)
        assert store.has("images", used)
        assert not store.has("images", unused)
    put(store, b"c" * 600)
    assert not store.has("images", used)


def test_uploads_under_way_count_with_all_that_they_may_take(tmp_path: Path) -> None:
    store = Store(tmp_path, bound=1000)
    with store.reserve("images", "1" * 64, 600) as part:
        part.write_bytes(b"x" * 10)
        assert store.reserved("images", "1" * 64)
        with pytest.raises(AcclimateError, match="no room"), store.reserve("images", "2" * 64, 500):
            pass
        with store.reserve("images", "3" * 64, 400):
            pass
    assert not store.reserved("images", "1" * 64)
    assert store.received("images", "1" * 64) == 10
    with store.reserve("images", "2" * 64, 995):
        assert store.received("images", "1" * 64) == 0, "a broken upload gives way"


def test_a_package_needs_room_to_be_looked_through(tmp_path: Path) -> None:
    store = Store(tmp_path, bound=1000)
    with pytest.raises(AcclimateError, match="no room"), store.reserve("packages", "1" * 64, 400):
        pass


def test_what_did_not_arrive_whole_is_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path, bound=1000)
    store.part("images", "1" * 64).write_bytes(b"other")
    with pytest.raises(AcclimateError, match="the image did not arrive as it was sent"):
        store.finish("images", "1" * 64)
    digest = hashlib.sha256(b"no package").hexdigest()
    store.part("packages", digest).write_bytes(b"no package")
    with pytest.raises(AcclimateError, match="the package: not a package, or cut short"):
        store.finish("packages", digest)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_broken_uploads_do_not_stay_for_ever(tmp_path: Path) -> None:
    store = Store(tmp_path, bound=1000)
    stale, fresh = store.part("images", "1" * 64), store.part("images", "2" * 64)
    stale.write_bytes(b"x")
    fresh.write_bytes(b"x")
    past = time.time() - STALE_S - 1
    os.utime(stale, (past, past))
    put(store, b"y")
    assert not stale.exists()
    assert fresh.exists()
    Store(tmp_path, bound=1000)
    assert not fresh.exists()
