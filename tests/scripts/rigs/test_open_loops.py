"""scripts/rigs/open_loops.py: sound clients ask when they are due, and count what became of each request."""

import asyncio
from collections.abc import Callable, Coroutine

import numpy as np
import pytest

from scripts.rigs.open_loops import OK, WRONG, Reply, Subject, capacity, drive, poisson, settled
from tests.loops import on_loop

ROW = np.ones((1, 4), np.float32)
SUBJECT = Subject("m", [ROW, 2 * ROW], [3 * ROW, 6 * ROW], slo_ms=1000.0, batch_max=4, replicas=2)
PATIENT_S = 600.0


def answering(outcome: Callable[[int], str]) -> Callable[[int], Coroutine[None, None, Reply]]:
    async def ask(number: int) -> Reply:
        await asyncio.sleep(0)
        return Reply(outcome(number), str(number % 2))

    return ask


def test_arrivals_are_seeded_and_of_the_rate() -> None:
    first, again, other = (poisson(500.0, 4.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first)
    assert 0 <= first[0] <= first[-1] < 4.0
    assert len(first) == pytest.approx(2000, rel=0.1)


@on_loop
async def test_every_request_is_asked_once_and_counted_by_its_outcome() -> None:
    outcomes = [OK, WRONG, "failed device_error", OK]
    seen = await drive(answering(outcomes.__getitem__), [0.0, 0.001, 0.001, 0.002], PATIENT_S)
    assert seen.outcomes == {OK: 2, WRONG: 1, "failed device_error": 1}
    assert len(seen.latencies_s) == 2


@on_loop
async def test_an_answer_beyond_the_budget_is_late_and_its_latency_counts_from_when_it_was_due() -> None:
    loop_held = asyncio.Event()

    async def ask(number: int) -> Reply:
        await loop_held.wait()
        return Reply(OK)

    driven = asyncio.create_task(drive(ask, [0.0, 0.0], 0.0))
    asyncio.get_running_loop().call_soon(loop_held.set)
    seen = await driven
    assert seen.outcomes == {"late": 2}
    assert min(seen.latencies_s) > 0


@on_loop
async def test_a_request_that_is_not_answered_holds_up_none_of_those_behind_it() -> None:
    asked: list[int] = []
    all_asked = asyncio.Event()

    async def ask(number: int) -> Reply:
        asked.append(number)
        if len(asked) == 3:
            all_asked.set()
        await all_asked.wait()
        return Reply(OK)

    assert (await drive(ask, [0.0, 0.0, 0.001], PATIENT_S)).outcomes == {OK: 3}
    assert asked == [0, 1, 2]


def test_an_output_is_compared_with_that_of_its_row() -> None:
    assert SUBJECT.is_right(0, 3 * ROW)
    assert SUBJECT.is_right(3, [6.0] * 4)  # as JSON tells it
    assert not SUBJECT.is_right(1, 3 * ROW)


@on_loop
async def test_capacity_counts_right_answers_alone() -> None:
    assert await capacity(answering(lambda number: WRONG), 2, 0.01) == 0
    assert await capacity(answering(lambda number: OK), 2, 0.2) > 0


@on_loop
async def test_a_model_has_settled_once_every_replica_answers() -> None:
    await settled(answering(lambda number: OK), SUBJECT, PATIENT_S)
    with pytest.raises(TimeoutError, match=r"m: 1 of 2 .* rejected no_replica"):
        await settled(answering(lambda number: "rejected no_replica" if number % 2 else OK), SUBJECT, 0.01)
