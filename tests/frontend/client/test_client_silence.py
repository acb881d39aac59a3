"""frontend/client/client.py: requests that get no answer, and clients that are closed."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from frontend.client import connection as module
from frontend.client.async_client import AsyncClient
from frontend.client.client import Client, Disconnected, TimedOut
from frontend.client.connection import Connection
from tests.frontend.client.fakes import ROW, Asked, FakeFrontend, Serving, answer, drop, infers, ok, silent, then
from tests.loops import LIMIT_S, on_loop

# -- no answer --------------------------------------------------------------------------------------------------------


def test_a_request_is_given_up_a_grace_after_its_budget_and_not_before() -> None:
    connection = Connection("tcp://127.0.0.1:9", None)
    short = connection.request(1, module.packed({"op": "infer", "id": 1}), [], 0.5)
    long = connection.request(2, module.packed({"op": "infer", "id": 2}), [], 8.0)
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


@on_loop
async def test_a_short_request_is_given_up_in_time_behind_a_long_one(short_grace: float) -> None:
    with FakeFrontend(infers(silent)) as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            await client.call("ping", timeout_s=10 * LIMIT_S)  # the timer is set to this time
            with pytest.raises(TimedOut):
                await client.infer("m", ROW, slo_ms=5.0)


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
