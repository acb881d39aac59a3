"""The learning thread, with SQLite and a real Redis: several at once, and while the store is down."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from frontend import keeper as keeper_module
from frontend.core.applications.messages import (
    Claim,
    DecisionClaimed,
    Drop,
    FeedbackStored,
    Learn,
    Park,
    ReadState,
    StoreOutcome,
)
from frontend.keeper import StateKeeper
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
    """A keeper on a running loop, and what it reported."""

    def __init__(self, url: str, folder: Path) -> None:
        self.told = Told()
        self.keeper = StateKeeper(open_store(url, folder, 100, 60.0), asyncio.get_running_loop(), self.told)
        self._asked = 0
        self.keeper.start()

    def learn(self, context: str = "", loss: float = 1.0, policy: Any = POLICY) -> int:
        """The number of an order that is submitted."""
        self._asked += 1
        observation = Observation({"a": loss}, {"a": 1.0})
        self.keeper.submit(Learn(self._asked, ("app", context), policy, MODELS, observation))
        return self._asked

    async def learned(self, number: int, least: int = 1) -> list[str]:
        """The outcomes of this order so far, once there are so many."""
        found = await self.told.until(lambda items: len(self._of(items, number)) >= least)
        return [event.outcome for event in self._of(found, number)]

    @staticmethod
    def _of(items: list[Any], number: int) -> list[FeedbackStored]:
        return [event for event in items if isinstance(event, FeedbackStored) and event.number == number]

    async def ask(self, order: Any) -> Any:
        """What is told next."""
        before = len(self.told.items)
        self.keeper.submit(order)
        return (await self.told.count(before + 1))[before]

    async def read(self, context: str = "") -> State | None:
        event = await self.ask(ReadState(("app", context)))
        assert (event.key, event.listing, event.error) == (("app", context), None, "")
        found: State | None = event.state
        return found


def test_two_frontends_that_learn_at_once_lose_nothing(store_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        keepers = [Kept(store_url, tmp_path) for _ in range(3)]
        keepers[0].keeper.submit(Drop("app"))
        assert await keepers[0].read() is None
        numbers = [(kept, kept.learn()) for _ in range(40) for kept in keepers]
        outcomes = await asyncio.gather(*(kept.learned(number) for kept, number in numbers))
        assert outcomes == [["done"]] * 120
        state = await keepers[1].read()
        assert state is not None
        assert state.rounds == state.arms["a"].seen == 120
        for kept in keepers:
            kept.keeper.stop()

    asyncio.run(scenario())


def test_a_redis_that_is_down_pauses_learning_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(threading.enumerate())
        with redis_server(tmp_path) as url:
            kept = Kept(url, tmp_path)
            assert await kept.learned(kept.learn()) == ["done"]
        held = kept.learn()
        assert await kept.learned(held) == ["held"]
        failed = await kept.ask(ReadState(("app", ""), 7))
        assert failed.error
        assert failed.listing == 7
        assert kept.keeper.status.down
        assert kept.keeper.held == 1
        with redis_server(tmp_path, int(url.rpartition(":")[2].partition("/")[0])):
            assert await kept.learned(held, 2) == ["held", "done"]
            state = await kept.read()
            assert state is not None
            assert state.rounds == 2
            assert kept.keeper.status.down == ""
            kept.keeper.stop()
        ours = {thread for thread in threading.enumerate() if thread.name == "selection state"}
        assert ours - before == set()

    asyncio.run(scenario())


def test_what_was_learned_before_an_application_is_dropped_goes_with_it(store_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        keeper = StateKeeper(open_store(store_url, tmp_path, 100, 60.0), asyncio.get_running_loop(), Told())
        observation = Observation({"a": 1.0}, {"a": 1.0})
        keeper.submit(Learn(1, ("app", "u"), POLICY, MODELS, observation))
        keeper.submit(Drop("app"))
        keeper.start()  # both jobs are queued: one round
        keeper.stop()
        later = Kept(store_url, tmp_path)
        assert await later.read("u") is None
        later.keeper.stop()

    asyncio.run(scenario())


def test_feedback_from_before_a_change_of_models_counts_for_those_that_stay(tmp_path: Path) -> None:
    async def scenario() -> None:
        changed, _ = make_policy("exp4", {}, ["a", "c"])
        told = Told()
        keeper = StateKeeper(open_store("", tmp_path, 100, 60.0), asyncio.get_running_loop(), told)
        for number, (policy, models) in enumerate(((POLICY, MODELS), (changed, ["a", "c"]))):
            observation = Observation(dict.fromkeys(models, 1.0), dict.fromkeys(models, 1.0))
            keeper.submit(Learn(number, ("app", ""), policy, models, observation))
        keeper.start()  # both jobs are queued: one round
        outcomes = await told.count(2)
        assert [(event.number, event.outcome) for event in outcomes] == [(0, "done"), (1, "done")]
        state = outcomes[-1].state
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
        assert await kept.learned(kept.learn(policy=odd)) == ["refused"]
        assert names(kept.told.items[-1].why, "KeyError")
        assert await kept.learned(kept.learn()) == ["done"]
        kept.keeper.submit(Park("x", b"1"))
        assert await kept.ask(Claim(5, "x", hold=False)) == DecisionClaimed(5, StoreOutcome.DONE, b"1")
        assert await kept.ask(Claim(6, "x", hold=False)) == DecisionClaimed(6, StoreOutcome.DONE, b"")
        assert await kept.ask(Claim(7, "y", hold=False)) == DecisionClaimed(7, StoreOutcome.DONE, None)
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
        told = Told()
        keeper = StateKeeper(DownForAWhile(tmp_path / "s.sqlite", 100, 60.0), asyncio.get_running_loop(), told)
        keeper.submit(Drop("app"))
        keeper.submit(Drop("other"))
        keeper.start()
        while keeper.status.down or not told.items:  # the thread tries again in each round
            keeper.submit(ReadState(("app", "")))
            await told.count(len(told.items) + 1)
        keeper.stop()

    monkeypatch.setattr(keeper_module, "RETRY_S", 0.0)
    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert [line["event"] for line in lines] == ["store_down", "store_back"]


def test_a_claim_is_held_while_the_store_is_down_if_it_may_be(tmp_path: Path) -> None:
    async def scenario() -> None:
        with redis_server(tmp_path) as url:
            kept = Kept(url, tmp_path)
            assert await kept.read() is None
        refused = await kept.ask(Claim(1, "x", hold=False))
        assert (refused.number, refused.outcome) == (1, "refused")
        assert refused.why
        assert await kept.ask(Claim(2, "x", hold=True)) == DecisionClaimed(2, StoreOutcome.HELD)
        assert kept.keeper.held == 1
        with redis_server(tmp_path, int(url.rpartition(":")[2].partition("/")[0])):
            found = await kept.told.count(4)
            assert found[-1] == DecisionClaimed(2, StoreOutcome.DONE, None)
            kept.keeper.stop()

    asyncio.run(scenario())


def test_the_queue_is_full_until_the_thread_has_taken_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "ORDERS_MAX", 1)

    async def scenario() -> None:
        told = Told()
        keeper = StateKeeper(open_store("", tmp_path, 100, 60.0), asyncio.get_running_loop(), told)
        assert not keeper.status.full
        keeper.submit(ReadState(("app", "")))
        assert keeper.status.full
        keeper.start()
        await told.count(1)
        assert not keeper.status.full
        keeper.stop()

    asyncio.run(scenario())
