"""frontend/client/client.py: many requests at once, broken connections, silence, closing."""

import asyncio
import gc
import time
import weakref
from typing import Any

import numpy as np
import pytest
import zmq

from frontend.client import connection as module
from frontend.client.client import AsyncClient, Client, Disconnected, Invalid, Prediction, Rejected, TimedOut
from frontend.client.connection import Connection
from tests.frontend.client.fakes import DROP, ROW, Asked, FakeFrontend, Serving, error, infers, models, ok, usual
from tests.loops import LIMIT_S, on_loop

# -- many at once -----------------------------------------------------------------------------------------------------


def backwards(count: int) -> Any:
    """Answers nothing until there are `count` requests, then all of them, the last one first."""
    held: list[Asked] = []

    def behaviour(asked: Asked) -> Any:
        held.append(asked)
        return [ok(one) for one in reversed(held)] if len(held) == count else []

    return infers(behaviour)


def test_requests_are_in_flight_together_and_outcomes_come_in_the_order_of_the_requests(serving: Serving) -> None:
    _, client = serving(backwards(5))
    outcomes = client.infer_many([("m", ROW * i) for i in range(5)], slo_ms=60_000)
    assert [outcome["y"][0, 0] for outcome in outcomes] == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_of_many_requests_one_that_fails_takes_no_other_with_it(serving: Serving) -> None:
    _, client = serving(
        infers(lambda asked: [error(asked, "rejected", "late") if asked.array()[0, 0] == 1.0 else ok(asked)])
    )
    first, second, third = client.infer_many([("m", ROW * i) for i in range(3)])
    assert isinstance(second, Rejected)
    assert (first["y"][0, 0], third["y"][0, 0]) == (0.0, 4.0)


def test_of_many_requests_one_may_be_for_a_model_that_is_not_there(serving: Serving) -> None:
    def behaviour(asked: Asked) -> Any:
        there = asked.message["model"] == "m"
        return [ok(asked) if there else error(asked, "invalid", "unknown_model")]

    _, client = serving(infers(behaviour))
    first, second, third = client.infer_many([("m", ROW), ("nowhere", ROW), ("m", ROW)], slo_ms=60_000)
    assert isinstance(second, Invalid)
    assert (first["y"][0, 0], third["y"][0, 0]) == (2.0, 2.0)


def test_several_frontends_share_the_requests(make: Any) -> None:
    with FakeFrontend() as one, FakeFrontend() as other, make([one.address, other.address]) as client:
        for _ in range(20):
            client.infer("m", ROW)
        assert len(one.infers()) > 0
        assert len(other.infers()) > 0
        assert len(one.infers()) + len(other.infers()) == 20


def test_keys_open_a_frontend_that_asks_for_them(make: Any) -> None:
    server, client_ = zmq.curve_keypair(), zmq.curve_keypair()
    with FakeFrontend(secret=server[1]) as frontend, make(frontend.address, keys=(server[0], *client_)) as client:
        np.testing.assert_array_equal(client.infer("m", ROW)["y"], ROW * 2)


# -- broken connections -----------------------------------------------------------------------------------------------


def then(*behaviours: Any) -> Any:
    """The first behaviour for the first infer request, and so on; the last one for all further ones."""
    left = list(behaviours)
    return infers(lambda asked: (left.pop(0) if len(left) > 1 else left[0])(asked))


def drop(asked: Asked) -> Any:
    return DROP


def answer(asked: Asked) -> Any:
    return [ok(asked)]


def silent(asked: Asked) -> Any:
    return []


def test_what_was_not_answered_is_asked_again_with_what_is_left_of_its_budget(serving: Serving) -> None:
    frontend, client = serving(then(drop, answer))
    np.testing.assert_array_equal(client.infer("m", ROW, slo_ms=60_000)["y"], ROW * 2)
    first, second = frontend.infers()
    assert first.message["slo_ms"] == 60_000
    assert 0 < second.message["slo_ms"] < 60_000
    assert {**second.message, "slo_ms": 60_000} == first.message


def test_frames_are_sent_again_too(serving: Serving) -> None:
    frontend, client = serving(then(drop, answer))
    x = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(client.infer("m", x, slo_ms=60_000)["y"], x * 2)
    first, second = frontend.infers()
    assert first.frames == second.frames == [x.tobytes()]


def test_a_request_without_a_budget_is_asked_again_with_what_is_left_of_the_model_s(serving: Serving) -> None:
    frontend, client = serving(then(drop, answer))
    client.infer("m", ROW)
    first, second = frontend.infers()
    assert "slo_ms" not in first.message
    assert 0 < second.message.pop("slo_ms") < 60_000
    assert first.message == second.message


@on_loop
async def test_what_a_frontend_that_died_did_not_answer_is_asked_of_the_other_with_what_is_left() -> None:
    with FakeFrontend() as other:
        with FakeFrontend(infers(silent)) as dies:
            client = AsyncClient([dies.address, other.address])
            while not (dies.asked and other.asked):  # until both connections are up
                await client.call("ping")
            futures = [client.submit("m", ROW * i, slo_ms=60_000) for i in range(20)]
            await asyncio.to_thread(dies.wait, 10)
        outcomes: list[Any] = await asyncio.gather(*futures)
        assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(20)]
        lost = {asked.id for asked in dies.infers()}
        assert len(lost) == 10
        again = [asked.message["slo_ms"] for asked in other.infers() if asked.id in lost]
        assert len(again) == 10
        assert all(0 < slo_ms < 60_000 for slo_ms in again)
        later: list[Any] = await asyncio.gather(*(client.submit("m", ROW, slo_ms=60_000) for _ in range(20)))
        assert all(outcome["y"][0, 0] == 2.0 for outcome in later)
        client.close()


@on_loop
async def test_requests_that_waited_for_a_frontend_leave_with_what_is_left_of_their_budgets() -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    async with AsyncClient(address) as client:
        futures = [client.submit("m", ROW * i, slo_ms=slo_ms) for i, slo_ms in enumerate((60_000, 1e-6, 60_000, None))]
        later = FakeFrontend()
        later.address = address
        with later:
            for i in (0, 2, 3):
                outcome: Any = await futures[i]
                assert outcome["y"][0, 0] == 2.0 * i
            first, third, last = [asked.message for asked in later.infers()]
        assert 0 < first["slo_ms"] < 60_000
        assert 0 < third["slo_ms"] < 60_000
        assert "slo_ms" not in last


def test_other_messages_are_asked_again_as_well(serving: Serving) -> None:
    left = [DROP]
    frontend, client = serving(lambda asked: left.pop() if left else usual(asked))
    assert client.call("ping")["pong"] is True
    assert len(frontend.asked) == 2


def test_all_that_is_in_flight_is_asked_again(serving: Serving) -> None:
    frontend, client = serving(then(silent, silent, drop, answer))
    outcomes = client.infer_many([("m", ROW * i) for i in range(3)], slo_ms=60_000)
    assert [outcome["y"][0, 0] for outcome in outcomes] == [0.0, 2.0, 4.0]
    ids = [asked.id for asked in frontend.infers()]
    assert set(ids[3:]) == set(ids[:3])


def test_what_was_answered_is_not_asked_again(serving: Serving) -> None:
    frontend, client = serving(then(answer, drop, answer))
    client.infer("m", ROW)
    client.infer("m", ROW * 3, slo_ms=60_000)
    assert [asked.array()[0, 0] for asked in frontend.infers()] == [1.0, 3.0, 3.0]


def test_a_connection_may_break_several_times(serving: Serving) -> None:
    frontend, client = serving(then(drop, drop, drop, answer))
    client.infer("m", ROW, slo_ms=60_000)
    budgets = [asked.message["slo_ms"] for asked in frontend.infers()]
    assert len(budgets) == 4
    assert budgets == sorted(budgets, reverse=True)


def test_a_duplicate_id_after_asking_again_is_ignored(serving: Serving) -> None:
    def duplicate_then_ok(asked: Asked) -> Any:
        return [error(asked, "invalid", "duplicate_id"), ok(asked)]

    _, client = serving(then(drop, duplicate_then_ok))
    np.testing.assert_array_equal(client.infer("m", ROW, slo_ms=60_000)["y"], ROW * 2)


def test_any_other_refusal_after_asking_again_counts(serving: Serving) -> None:
    _, client = serving(then(drop, lambda asked: [error(asked, "invalid", "unknown_model")]))
    with pytest.raises(Invalid):
        client.infer("m", ROW, slo_ms=60_000)


def test_a_duplicate_id_without_asking_again_is_raised(serving: Serving) -> None:
    _, client = serving(infers(lambda asked: [error(asked, "invalid", "duplicate_id")]))
    with pytest.raises(Invalid) as raised:
        client.infer("m", ROW)
    assert raised.value.code == "duplicate_id"


def test_an_answer_that_comes_twice_is_taken_once(serving: Serving) -> None:
    _, client = serving(infers(lambda asked: [ok(asked), ok(asked, ROW * 9)]))
    for i in range(3):
        np.testing.assert_array_equal(client.infer("m", ROW * i)["y"], ROW * 2 * i)


def test_answers_to_nobody_are_ignored(serving: Serving) -> None:
    stray = [
        ({"id": None, "status": "invalid"}, []),
        ({"id": 999, "status": "ok"}, []),
        ({"id": "a", "status": "ok"}, []),
    ]
    _, client = serving(infers(lambda asked: [*stray, ok(asked)]))
    np.testing.assert_array_equal(client.infer("m", ROW)["y"], ROW * 2)


# -- no answer --------------------------------------------------------------------------------------------------------


def test_a_request_is_given_up_a_grace_after_its_budget_and_not_before() -> None:
    connection = Connection("tcp://127.0.0.1:9", None)
    short = connection.request({"op": "infer", "id": 1}, [], 0.5)
    long = connection.request({"op": "infer", "id": 2}, [], 8.0)
    for flight in (long, short):
        assert flight.budget_s is not None
        assert flight.deadline_s == flight.asked_s + flight.budget_s + module.GRACE_S
        connection.ask(flight)
    assert connection.expired(short.deadline_s - 1e-6) == []
    assert connection.expired(short.deadline_s) == [short]
    assert connection.expired(long.deadline_s) == [long]
    connection.close()


@pytest.mark.parametrize(("slo_ms", "wait_s"), [(40.0, 0.04), (None, 0.2)])
def test_a_request_without_an_answer_is_given_up_a_grace_after_its_budget(
    serving: Serving, short_grace: float, slo_ms: float | None, wait_s: float
) -> None:
    _, client = serving(infers(silent))
    client.models()
    began = time.monotonic()
    with pytest.raises(TimedOut) as raised:
        client.infer("hasty", ROW, slo_ms=slo_ms)
    assert wait_s + short_grace <= time.monotonic() - began
    assert raised.value.code == "no_answer"


def test_a_budget_that_was_used_up_meanwhile_is_not_asked_again(serving: Serving, short_grace: float) -> None:
    frontend, client = serving(then(drop, answer))
    client.models()
    with pytest.raises(TimedOut) as raised:
        client.infer("m", ROW, slo_ms=1e-6)
    assert raised.value.code == "no_answer"
    assert len(frontend.wait(1)) == 1


def test_a_late_answer_is_dropped_and_the_next_request_gets_its_own(serving: Serving, short_grace: float) -> None:
    held: list[Asked] = []

    def late(asked: Asked) -> Any:
        held.append(asked)
        return [] if len(held) == 1 else [ok(held[0], ROW * 9), ok(asked)]

    _, client = serving(infers(late))
    with pytest.raises(TimedOut):
        client.infer("m", ROW, slo_ms=1.0)
    np.testing.assert_array_equal(client.infer("m", ROW)["y"], ROW * 2)


def test_a_call_is_given_up_after_its_time(make: Any) -> None:
    with FakeFrontend(silent) as frontend, make(frontend.address) as client:
        began = time.monotonic()
        with pytest.raises(TimedOut):
            client.call("ping", timeout_s=0.05)
        assert time.monotonic() - began >= 0.05


def test_a_frontend_that_is_not_there_is_said_so(make: Any, short_grace: float) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    with make(address) as client, pytest.raises(TimedOut) as raised:
        client.call("ping", timeout_s=0.1)
    assert raised.value.code == "no_answer"


def test_a_client_may_be_made_before_its_frontend_is_there(make: Any) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    later = FakeFrontend()
    later.address = address
    with make(address) as client, later:
        assert client.call("ping")["pong"] is True


def test_more_than_may_wait_for_a_frontend_are_refused_at_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    monkeypatch.setattr(module, "UNSENT_MAX", 0)
    with make(address) as client:
        for ask in (lambda: client.infer("m", ROW), client.models, lambda: client.call("ping")):
            with pytest.raises(Rejected, match=address) as raised:
                ask()
            assert (raised.value.code, raised.value.retry_after_ms) == ("client_full", 100.0)


@on_loop
async def test_of_many_requests_those_that_may_not_wait_get_it_as_their_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    monkeypatch.setattr(module, "UNSENT_MAX", 3)
    async with AsyncClient(address) as client:
        futures = [client.submit("m", ROW, slo_ms=60_000) for _ in range(5)]
        assert [future.done() for future in futures] == [False, False, False, True, True]
        assert all(isinstance(future.result(), Rejected) for future in futures[3:])
        later = FakeFrontend()
        later.address = address
        with later:
            assert all(isinstance(outcome, Prediction) for outcome in await asyncio.gather(*futures[:3]))


@pytest.mark.parametrize("rows", [1, 100_000])
def test_what_is_asked_faster_than_it_is_read_waits_and_is_answered(
    make: Any, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(module, "SENDING_MAX", 2)
    with FakeFrontend() as frontend, make(frontend.address) as client:
        client.models()
        outcomes = client.infer_many([("m", np.repeat(ROW * i, rows, axis=0)) for i in range(40)], slo_ms=60_000)
        assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(40)]


# -- closing ----------------------------------------------------------------------------------------------------------


def test_a_client_that_was_closed_can_be_closed_again(make: Any) -> None:
    with FakeFrontend() as frontend, make(frontend.address) as client:
        client.call("ping")
        client.close()
        client.close()


def test_a_client_that_was_closed_says_so(make: Any) -> None:
    with FakeFrontend() as frontend, make(frontend.address) as client:
        client.models()
        client.close()
        for ask in (lambda: client.infer("m", ROW), lambda: client.call("ping")):
            with pytest.raises(Disconnected) as raised:
                ask()
            assert raised.value.code == "closed"


@on_loop
async def test_closing_answers_what_is_in_flight() -> None:
    with FakeFrontend(infers(silent)) as frontend:
        client = AsyncClient(frontend.address)
        await client.models()
        futures = [client.submit("m", ROW, slo_ms=60_000) for _ in range(3)]
        waiting = asyncio.ensure_future(client.infer("m", ROW))
        await asyncio.to_thread(frontend.wait, 4)
        client.close()
        assert [type(future.result()) for future in futures] == [Disconnected] * 3
        assert futures[0].result().code == "closed"
        with pytest.raises(Disconnected):
            await waiting


@on_loop
async def test_the_context_manager_closes_also_after_an_error() -> None:
    with FakeFrontend() as frontend:
        with pytest.raises(ZeroDivisionError):
            async with AsyncClient(frontend.address) as client:
                raise ZeroDivisionError
        with pytest.raises(Disconnected):
            await client.call("ping")


def test_the_blocking_context_manager_closes_also_after_an_error() -> None:
    with FakeFrontend() as frontend:
        with pytest.raises(ZeroDivisionError), Client(frontend.address) as client:
            raise ZeroDivisionError
        with pytest.raises(Disconnected):
            client.call("ping")


# -- only on a loop ---------------------------------------------------------------------------------------------------


@on_loop
async def test_a_submitted_request_leaves_at_once_and_its_outcome_is_a_value() -> None:
    with FakeFrontend(infers(lambda asked: [error(asked, "rejected", "late")])) as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            future = client.submit("m", ROW)
            frontend.wait(1)  # although the loop did not run
            assert isinstance(await future, Rejected)


@on_loop
async def test_all_who_wait_for_what_is_deployed_ask_once() -> None:
    with FakeFrontend() as frontend:
        async with AsyncClient(frontend.address) as client:
            outcomes = await asyncio.gather(*(client.infer("m", ROW * i) for i in range(20)))
            assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(20)]
            assert [asked.message["op"] for asked in frontend.asked].count("models") == 1


@on_loop
async def test_a_cancelled_request_harms_nobody() -> None:
    held: list[Asked] = []

    def hold_the_first(asked: Asked) -> Any:
        held.append(asked)
        return [] if len(held) == 1 else [ok(held[0]), ok(asked)]

    with FakeFrontend(infers(hold_the_first)) as frontend:
        async with AsyncClient(frontend.address) as client:
            first = asyncio.ensure_future(client.infer("m", ROW, slo_ms=60_000))
            await asyncio.to_thread(frontend.wait, 1)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            np.testing.assert_array_equal((await client.infer("m", ROW * 3))["y"], ROW * 6)


@on_loop
async def test_one_of_those_who_wait_for_what_is_deployed_may_be_cancelled() -> None:
    with FakeFrontend(lambda asked: [] if asked.message["op"] == "models" else usual(asked)) as frontend:
        async with AsyncClient(frontend.address) as client:
            first, second = (asyncio.ensure_future(client.infer("m", ROW)) for _ in range(2))
            (question,) = await asyncio.to_thread(frontend.wait, 1, "models")
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            frontend.answer(models(question))
            np.testing.assert_array_equal((await second)["y"], ROW * 2)


@on_loop
async def test_a_short_request_is_given_up_in_time_behind_a_long_one(short_grace: float) -> None:
    with FakeFrontend(infers(silent)) as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            await client.call("ping", timeout_s=10 * LIMIT_S)  # the timer is set to this time
            with pytest.raises(TimedOut):
                await client.infer("m", ROW, slo_ms=5.0)


@on_loop
async def test_hundreds_are_in_flight_at_once() -> None:
    with FakeFrontend() as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            futures = [client.submit("m", ROW * i) for i in range(500)]
            outcomes: list[Any] = [await future for future in futures]
            assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(500)]
            kept = [weakref.ref(future) for future in futures]
            del futures
            await client.call("ping")
            gc.collect()
            assert [future() for future in kept if future() is not None] == [], "answered requests are forgotten"
