"""The thread that learns, beside SQLite and a real Redis: several at once, and while the store is down."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from frontend import keeper as keeper_module
from frontend.keeper import Claim, Drop, Learn, Park, Read, StateKeeper
from selection.base import Observation, State
from selection.registry import make_policy
from selection.stores.base import StoreDown
from selection.stores.opening import open_store
from selection.stores.sqlite import SqliteStore
from tests.loops import Told
from tests.messages import names
from tests.selection.stores.redis_server import redis_server

MODELS = ["a", "b"]
POLICY, _ = make_policy("exp4", {}, MODELS)


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


def test_two_frontends_that_learn_at_once_lose_nothing(store_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        keepers = [Kept(store_url, tmp_path) for _ in range(3)]
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
        assert error
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


def test_what_was_learned_before_an_application_is_dropped_goes_with_it(store_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        keeper = StateKeeper(open_store(store_url, tmp_path, 100, 60.0), asyncio.get_running_loop())
        observation = Observation({"a": 1.0}, {"a": 1.0})
        keeper.submit(Learn(("app", "u"), POLICY, MODELS, observation, lambda *_: None))
        keeper.submit(Drop("app"))
        keeper.start()  # both are there: one round
        keeper.stop()
        later = Kept(store_url, tmp_path)
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
        assert names(told[0][1], "refused", "KeyError")
        assert (await kept.learn())[0][1] == "applied"
        kept.keeper.submit(Park("x", b"1"))
        assert (await kept.ask(lambda done: Claim("x", done)))[0] == (b"1", "")
        kept.keeper.stop()

    asyncio.run(scenario())


def test_a_store_that_stays_down_is_logged_once_however_often_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DownForAWhile(SqliteStore):
        tries = 0

        def count(self, app: str) -> int:
            self.tries += 1
            if self.tries < 5:
                raise StoreDown("no disk")
            return super().count(app)

        def drop(self, app: str) -> None:
            if self.tries < 5:
                raise StoreDown("no disk")
            super().drop(app)

    async def scenario() -> None:
        keeper = StateKeeper(DownForAWhile(tmp_path / "s.sqlite", 100, 60.0), asyncio.get_running_loop())
        keeper.submit(Drop("app"))
        keeper.submit(Drop("other"))
        keeper.start()
        told = Told()
        while keeper.down or not told.items:  # each round of the thread tries once more
            keeper.submit(Read(("app", ""), lambda value, text: told((value, text))))
            await told.count(len(told.items) + 1)
        keeper.stop()

    monkeypatch.setattr(keeper_module, "RETRY_S", 0.0)
    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert [line["event"] for line in lines] == ["store_down", "store_back"]
