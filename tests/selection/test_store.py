"""State in SQLite and in a real Redis: the same behaviour, also when several learn at once, and when it is down."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.errors import SettingsError
from selection import store as store_module
from selection.base import Observation, State, fresh
from selection.contexts import FRESH_S, StateCache, check_context
from selection.keeper import Claim, Drop, Learn, Park, Read, StateKeeper
from selection.registry import make_policy
from selection.store import NOTHING, Store, StoreDown, open_store
from tests.loops import Told
from tests.selection.redis_server import redis_server

MODELS = ["a", "b"]
POLICY, _ = make_policy("exp4", {}, MODELS)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that is there."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.sqlite"
    found: str = request.getfixturevalue("redis_url")
    return found


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(url, tmp_path, 100, 60.0)
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


def test_contexts_are_bounded_and_the_oldest_leave_first(url: str, tmp_path: Path) -> None:
    store = open_store(url, tmp_path, 3, 60.0)
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
    with pytest.raises(StoreDown, match="cannot be reached"):
        store.read("app", "")
    store.close()


class Kept:
    """A keeper on a running loop, and what it told."""

    def __init__(self, url: str, folder: Path) -> None:
        self.keeper = StateKeeper(open_store(url, folder, 100, 60.0), asyncio.get_running_loop())
        self.keeper.start()

    async def ask(self, make: Any) -> list[tuple[Any, str]]:
        """What the job tells first; `told` goes on."""
        told = self.told = Told()
        self.keeper.submit(make(lambda value, text: told((value, text))))
        await told.until(bool)
        return told.items

    async def learn(self, context: str = "", loss: float = 1.0) -> list[tuple[Any, str]]:
        observation = Observation({"a": loss}, {"a": 1.0})
        return await self.ask(lambda done: Learn(("app", context), POLICY, MODELS, observation, done))

    async def read(self, context: str = "") -> State | None:
        ((state, error),) = await self.ask(lambda done: Read(("app", context), done))
        assert not error
        found: State | None = state
        return found


def test_two_frontends_that_learn_at_once_lose_nothing(url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        keepers = [Kept(url, tmp_path) for _ in range(3)]
        keepers[0].keeper.submit(Drop("app"))
        assert await keepers[0].read() is None
        outcomes = await asyncio.gather(*(kept.learn() for _ in range(40) for kept in keepers))
        assert all(told[0][1] == "applied" for told in outcomes)
        state = await keepers[1].read()
        assert state is not None
        assert state.rounds == state.arms["a"].seen == 120
        for kept in keepers:
            kept.keeper.stop()

    asyncio.run(scenario())


def test_a_redis_that_is_down_pauses_learning_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        with redis_server(tmp_path) as url:
            kept = Kept(url, tmp_path)
            assert (await kept.learn())[0][1] == "applied"
        assert (await kept.learn())[0][1] == "held"
        told = kept.told
        ((_, error),) = await kept.ask(lambda done: Read(("app", ""), done))
        assert "cannot be reached" in error
        assert kept.keeper.down
        assert kept.keeper.held == 1
        with redis_server(tmp_path, int(url.rpartition(":")[2].partition("/")[0])):
            await told.until(lambda items: len(items) == 2)
            assert told.items[1][1] == "applied"
            state = await kept.read()
            assert state is not None
            assert state.rounds == 2
            assert kept.keeper.down == ""
            kept.keeper.stop()
        assert not any(thread.name == "selection state" for thread in threading.enumerate())

    asyncio.run(scenario())


def test_what_was_learned_before_an_application_is_dropped_goes_with_it(url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        keeper = StateKeeper(open_store(url, tmp_path, 100, 60.0), asyncio.get_running_loop())
        observation = Observation({"a": 1.0}, {"a": 1.0})
        keeper.submit(Learn(("app", "u"), POLICY, MODELS, observation, lambda *_: None))
        keeper.submit(Drop("app"))
        keeper.start()  # both are there: one round
        keeper.stop()
        later = Kept(url, tmp_path)
        assert await later.read("u") is None
        later.keeper.stop()

    asyncio.run(scenario())


def test_feedback_from_before_a_change_of_models_counts_for_those_that_stay(tmp_path: Path) -> None:
    async def scenario() -> None:
        changed, _ = make_policy("exp4", {}, ["a", "c"])
        keeper = StateKeeper(open_store("", tmp_path, 100, 60.0), asyncio.get_running_loop())
        told = Told()
        for policy, models in ((POLICY, MODELS), (changed, ["a", "c"])):
            observation = Observation(dict.fromkeys(models, 1.0), dict.fromkeys(models, 1.0))
            keeper.submit(Learn(("app", ""), policy, models, observation, told))
        keeper.start()  # both are there: one round
        outcomes = await told.count(2)
        assert [outcome for _, outcome in outcomes] == ["applied", "applied"]
        state = outcomes[-1][0]
        assert {name: arm.seen for name, arm in state.arms.items()} == {"a": 2, "c": 1}
        keeper.stop()

    asyncio.run(scenario())


def test_a_policy_that_raises_refuses_that_feedback_and_no_other(tmp_path: Path) -> None:
    class Raises:
        def observe(self, state: State, observation: Observation) -> State:
            raise KeyError("oh")

    async def scenario() -> None:
        kept = Kept("", tmp_path)
        odd: Any = Raises()
        observation = Observation({"a": 1.0}, {"a": 1.0})
        told = await kept.ask(lambda done: Learn(("app", ""), odd, MODELS, observation, done))
        assert told[0][1].startswith("refused: the policy raised KeyError")
        assert (await kept.learn())[0][1] == "applied"
        kept.keeper.submit(Park("x", b"1"))
        assert (await kept.ask(lambda done: Claim("x", done)))[0] == (b"1", "")
        kept.keeper.stop()

    asyncio.run(scenario())


def test_a_context_key_is_short_and_printable() -> None:
    assert check_context("user-17") is None
    assert check_context("é" * 128) is None
    assert "256 bytes" in str(check_context("x" * 10_000_000))
    assert "printable" in str(check_context("a\nb"))


def test_states_in_memory_are_bounded_and_read_again_once_they_are_old() -> None:
    cache = StateCache(2)
    assert cache.stale(("app", "u"), 10.0)
    assert not cache.stale(("app", "u"), 99.0)  # it is being read
    cache.came(("app", "u"), fresh(MODELS), 11.0)
    assert not cache.stale(("app", "u"), 11.0 + FRESH_S * 0.9)
    assert cache.stale(("app", "u"), 11.0 + FRESH_S)
    cache.failed(("app", "u"), 12.0)
    held = cache.get(("app", "u"))
    assert held is not None
    assert held.state == fresh(MODELS)
    for name in "vw":
        cache.came(("app", name), None, 12.0)
    assert len(cache) == 2
    assert cache.get(("app", "u")) is None
    cache.forget("app")
    assert len(cache) == 0
