"""frontend/client/client.py: what is asked again when a connection breaks, and with which budget."""

import asyncio
from typing import Any

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Invalid
from tests.frontend.client.fakes import (
    DROP,
    ROW,
    Asked,
    FakeFrontend,
    Serving,
    answer,
    drop,
    error,
    infers,
    ok,
    silent,
    then,
    usual,
)
from tests.loops import on_loop


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


def test_a_client_may_be_made_before_its_frontend_is_there(make: Any) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    later = FakeFrontend()
    later.address = address
    with make(address) as client, later:
        assert client.call("ping")["pong"] is True
