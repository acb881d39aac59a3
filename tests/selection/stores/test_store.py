"""State in SQLite, in a real Redis and in memory: all behave alike, and are bounded."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.errors import SettingsError
from selection.base import fresh
from selection.contexts import FRESH_S, StateCache, check_context
from selection.stores import sqlite as store_module
from selection.stores.base import NOTHING, Store, StoreDown
from selection.stores.opening import open_store

MODELS = ["a", "b"]


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(store_url, tmp_path, 100, 60.0)
    opened.drop("app")
    yield opened
    opened.close()


def test_a_state_is_written_only_over_the_version_that_was_read(store: Store) -> None:
    assert store.read("app", "u") == NOTHING
    first = store.swap("app", "u", 0, b"one")
    assert first
    assert store.swap("app", "u", 0, b"too late") == 0
    second = store.swap("app", "u", first, b"two")
    assert second > first
    assert store.swap("app", "u", first, b"too late") == 0
    assert store.read("app", "u") == (second, b"two")
    store.drop("app")
    assert store.read("app", "u") == NOTHING
    assert store.swap("app", "u", second, b"of another life") == 0


def test_contexts_are_bounded_and_the_oldest_leave_first(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url, tmp_path, 3, 60.0)
    store.drop("app")
    for i in range(10):
        assert store.swap("app", f"u{i}", 0, b"x")
    assert store.count("app") == 3
    assert store.read("app", "u9") != NOTHING
    assert store.read("app", "u0") == NOTHING
    store.close()


def test_a_file_stays_bounded_whatever_is_written_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SWEEP_EVERY", 4)
    monkeypatch.setattr(store_module, "PARKED_MAX", 5)
    store = open_store("", tmp_path, 5, 60.0)
    version = store.swap("app", "kept", 0, b"x")
    for i in range(40):
        version = store.swap("app", "kept", version, b"x")
        assert version
        store.swap("app", f"u{i}", 0, b"x")
        store.swap("other", f"u{i}", 0, b"x")
        store.park([(f"d{i}", b"known")])
        assert store.count("app") <= 5 + 4
        assert store.count("other") <= 5 + 4
    assert store.read("app", "kept") != NOTHING
    assert store.claim("d39") == b"known"
    assert [store.claim(f"d{i}") for i in range(30)] == [None] * 30
    store.close()


def test_a_parked_decision_is_claimed_once(store: Store, request: pytest.FixtureRequest) -> None:
    name = request.node.name
    store.park([(name, b"known"), (name + "2", b"other")])
    assert store.claim(name) == b"known"
    assert store.claim(name) == b""
    assert store.claim("never-" + name) is None


@pytest.mark.parametrize("url", ["http://x", "redis", "mysql://h/d", "redis://h:port/0"])
def test_an_address_that_is_none_is_refused_with_those_that_are(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="GEARMESH_STATE_URL"):
        open_store(url, tmp_path, 10, 60.0)


@pytest.mark.parametrize("url", ["sqlite:////proc/nowhere/state.sqlite", "redis://127.0.0.1:1/0"])
def test_a_store_that_is_not_there_says_so(url: str, tmp_path: Path) -> None:
    store = open_store(url, tmp_path, 10, 60.0)
    with pytest.raises(StoreDown, match=r"\S"):
        store.read("app", "")
    store.close()


def test_a_context_key_is_short_and_printable() -> None:
    assert check_context("user-17") is None
    assert check_context("é" * 128) is None
    assert "256" in str(check_context("x" * 10_000_000))
    assert check_context("a\nb")


def test_states_in_memory_are_bounded_and_read_again_once_they_are_old() -> None:
    cache = StateCache(2)
    assert cache.begin_read(("app", "u"), 10.0)
    assert not cache.begin_read(("app", "u"), 99.0)  # it is being read already
    cache.refreshed(("app", "u"), fresh(MODELS), 11.0)
    assert not cache.begin_read(("app", "u"), 11.0 + FRESH_S * 0.9)
    assert cache.begin_read(("app", "u"), 11.0 + FRESH_S)
    cache.failed(("app", "u"), 12.0)
    held = cache.get(("app", "u"))
    assert held is not None
    assert held.state == fresh(MODELS)
    for name in "vw":
        cache.refreshed(("app", name), None, 12.0)
    assert len(cache) == 2
    assert cache.get(("app", "u")) is None
    cache.forget("app")
    assert len(cache) == 0
