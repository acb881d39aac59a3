"""frontend/client/client.py: many requests at once, and callers that are cancelled."""

import asyncio
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import zmq

from frontend.client.async_client import AsyncClient
from frontend.client.client import Invalid, Rejected
from tests.frontend.client.fakes import ROW, Asked, FakeFrontend, Serving, error, infers, models, ok, usual
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


def test_requests_leave_together_whichever_of_their_models_are_known(serving: Serving) -> None:
    _, client = serving(backwards(4))
    client.models()
    names = ["m", "nowhere", "m", "nowhere"]
    outcomes = client.infer_many([(name, ROW * i) for i, name in enumerate(names)], slo_ms=60_000, timeout_s=LIMIT_S)
    assert [outcome["y"][0, 0] for outcome in outcomes] == [0.0, 2.0, 4.0, 6.0]


def test_models_that_stay_unknown_are_looked_for_once_for_all_their_requests(serving: Serving) -> None:
    frontend, client = serving()
    client.infer_many([("nowhere", ROW), ("elsewhere", ROW), ("nowhere", ROW)])
    assert [asked.message["op"] for asked in frontend.asked] == ["models", "infer", "infer", "infer"]


def test_several_frontends_share_the_requests(make: Any) -> None:
    with FakeFrontend() as one, FakeFrontend() as other, make([one.address, other.address]) as client:
        while not (one.asked and other.asked):  # until both connections are up
            client.call("ping")
        for _ in range(20):
            client.infer("m", ROW)
        assert len(one.infers()) > 0
        assert len(other.infers()) > 0
        assert len(one.infers()) + len(other.infers()) == 20


def test_keys_open_a_frontend_that_asks_for_them(make: Any) -> None:
    server, client_ = zmq.curve_keypair(), zmq.curve_keypair()
    with FakeFrontend(secret=server[1]) as frontend, make(frontend.address, keys=(server[0], *client_)) as client:
        np.testing.assert_array_equal(client.infer("m", ROW)["y"], ROW * 2)


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
