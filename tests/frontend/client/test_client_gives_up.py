"""frontend/client: what is not waited for any more is cancelled, and what comes of it later harms nobody."""

import asyncio
import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

from frontend.client import connection as module
from frontend.client.async_client import AsyncClient
from frontend.client.client import Client, TimedOut
from frontend.client.connection import Connection
from tests.frontend.client.fakes import ROW, Asked, FakeFrontend, Serving, infers, ok, silent, usual
from tests.loops import LIMIT_S, on_loop


def cancelled(frontend: FakeFrontend, count: int) -> set[Any]:
    """The ids of the requests that were cancelled, once there are so many, each after it was sent."""
    ids = [asked.id for asked in frontend.wait(count, "cancel")]
    sent = [asked.id for asked in frontend.infers()]
    assert len(ids) == len(set(ids)) == count
    assert set(ids) <= set(sent)
    return set(ids)


# -- a Client ---------------------------------------------------------------------------------------------------------


def test_a_request_is_given_up_and_cancelled_when_its_time_is_up(serving: Serving) -> None:
    frontend, client = serving(infers(silent))
    client.models()
    with pytest.raises(TimedOut) as raised:
        client.infer("m", ROW, slo_ms=60_000, timeout_s=0.05)
    assert (raised.value.code, "timeout_s" in raised.value.message) == ("no_answer", True)
    assert cancelled(frontend, 1) == {asked.id for asked in frontend.infers()}


def test_of_many_requests_those_without_an_answer_by_then_are_given_up(serving: Serving) -> None:
    frontend, client = serving(infers(lambda asked: [ok(asked)] if asked.array()[0, 0] == 2.0 else []))
    first, second, third = client.infer_many([("m", ROW * i) for i in (1, 2, 3)], slo_ms=60_000, timeout_s=1.0)
    np.testing.assert_array_equal(second["y"], ROW * 4)
    assert [type(first), type(third)] == [TimedOut, TimedOut]
    assert len(cancelled(frontend, 2)) == 2


def test_the_time_counts_from_the_call_also_if_nothing_is_known_of_the_model(serving: Serving) -> None:
    frontend, client = serving(silent)
    with pytest.raises(TimedOut) as raised:
        client.infer("m", ROW, timeout_s=0.05)
    assert raised.value.code == "no_answer"
    assert frontend.infers() == []


def test_a_request_that_got_no_answer_by_the_end_of_its_budget_is_cancelled_too(
    serving: Serving, short_grace: float
) -> None:
    frontend, client = serving(infers(silent))
    client.models()
    with pytest.raises(TimedOut):
        client.infer("m", ROW, slo_ms=20.0, timeout_s=10 * LIMIT_S)
    cancelled(frontend, 1)


def test_only_infers_are_cancelled(serving: Serving) -> None:
    frontend, client = serving(lambda asked: [] if asked.message["op"] == "status" else usual(asked))
    with pytest.raises(TimedOut):
        client.call("status", timeout_s=0.02)
    client.call("ping")
    assert [asked.message["op"] for asked in frontend.asked] == ["status", "ping"]


def test_ctrl_c_cancels_what_is_waited_for(serving: Serving) -> None:
    frontend, client = serving(infers(silent))
    client.models()

    def interrupt() -> None:
        frontend.wait(3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            client.infer_many([("m", ROW * i) for i in range(3)], slo_ms=60_000)
    finally:
        thread.join()
    assert len(cancelled(frontend, 3)) == 3
    client.call("ping")


def test_what_was_not_sent_is_forgotten_without_a_word(make: Any) -> None:
    with FakeFrontend(infers(silent)) as frontend:
        address = frontend.address
    connection = Connection(address, None)
    flight = connection.request(1, module.packed({"op": "infer", "id": 1}), [], 60.0)
    connection.ask(flight)
    (socket,) = connection.sockets
    assert connection.waits(socket)
    connection.cancel(flight)
    assert not connection.waits(socket)
    assert not connection.ask_waiting()
    connection.close()


def test_more_cancels_than_there_is_room_for_wait_behind_each_other_and_all_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SENDING_MAX", 5)
    with FakeFrontend(infers(silent)) as frontend, Client(frontend.address) as client:
        client.models()
        outcomes = client.infer_many([("m", ROW)] * 300, slo_ms=60_000, timeout_s=0.5)
        assert all(isinstance(outcome, TimedOut) for outcome in outcomes)
        client.call("ping")  # what waits leaves while the client waits
        sent = frontend.infers()
        while len(frontend.asked) < 2 + 2 * len(sent):
            client.call("ping")
            sent = frontend.infers()
        assert cancelled(frontend, len(sent)) == {asked.id for asked in sent}


# -- an AsyncClient ---------------------------------------------------------------------------------------------------


async def cancel_task(client: AsyncClient, frontend: FakeFrontend) -> None:
    task = asyncio.ensure_future(client.infer("m", ROW, slo_ms=60_000))
    await asyncio.to_thread(frontend.wait, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_future(client: AsyncClient, frontend: FakeFrontend) -> None:
    client.submit("m", ROW, slo_ms=60_000).cancel()


async def time_out(client: AsyncClient, frontend: FakeFrontend) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.infer("m", ROW, slo_ms=60_000)


async def give_up(client: AsyncClient, frontend: FakeFrontend) -> None:
    with pytest.raises(TimedOut) as raised:
        await client.infer("m", ROW, slo_ms=60_000, timeout_s=0.05)
    assert raised.value.code == "no_answer"


async def leave_group(client: AsyncClient, frontend: FakeFrontend) -> None:
    async def fail() -> None:
        await asyncio.to_thread(frontend.wait, 1)
        raise ZeroDivisionError

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(client.infer("m", ROW, slo_ms=60_000))
            tasks.create_task(fail())

    with pytest.raises(ExceptionGroup):
        await both()


@pytest.mark.parametrize("end", [cancel_task, cancel_future, time_out, give_up, leave_group])
@on_loop
async def test_whoever_stops_waiting_for_it_cancels_the_request(end: Any) -> None:
    held: list[Asked] = []

    def late(asked: Asked) -> Any:
        held.append(asked)
        return [] if len(held) == 1 else [ok(held[0]), ok(asked)]

    with FakeFrontend(infers(late)) as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            await end(client, frontend)
            assert await asyncio.to_thread(cancelled, frontend, 1) == {held[0].id}
            np.testing.assert_array_equal((await client.infer("m", ROW * 3))["y"], ROW * 6)
            assert len(frontend.wait(1, "cancel")) == 1


@on_loop
async def test_what_was_answered_or_closed_is_not_cancelled() -> None:
    with FakeFrontend() as frontend:
        async with AsyncClient(frontend.address) as client:
            future = client.submit("m", ROW)
            await future
            assert not future.cancel()
            await client.call("ping")
        waits = AsyncClient(frontend.address)
        asked = waits.submit("m", ROW)
        waits.close()
        assert not asked.cancel()
        assert all(asked.message["op"] != "cancel" for asked in frontend.asked)


@on_loop
async def test_all_that_a_thousand_tasks_waited_for_is_cancelled() -> None:
    with FakeFrontend(infers(silent)) as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            tasks = [asyncio.ensure_future(client.infer("m", ROW * i, slo_ms=60_000)) for i in range(1500)]
            await asyncio.to_thread(frontend.wait, 1500)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            ids = await asyncio.to_thread(cancelled, frontend, 1500)
            assert ids == {asked.id for asked in frontend.infers()}
