"""controller/core/intake.py: what is decided of a request at its arrival."""

import pytest

from controller.core.devices.base import DISPATCH_S
from controller.core.orders import ToFrontend
from controller.core.scheduler import Parameters
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, one, prepared
from tests.messages import names

# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_version_that_is_not_wanted_is_not_deployed() -> None:
    assert one().submit(1, "x:1", now=100.0) == ["f: 1 rejected not_deployed"]


def test_without_a_worker_there_is_no_worker() -> None:
    shard = Shard()
    shard.want(["m:1"])
    assert shard.submit(1, now=100.0) == ["f: 1 rejected no_worker"]


def test_a_version_that_no_worker_has_prepared_yet_is_not_ready() -> None:
    shard = Shard()
    shard.want(["m:1"])
    shard.join(hello("w1"), now=0.0)
    refused = shard.scheduler.submit(
        wire.Submit(request=1, attempt=2, ref="m:1", rows=1, budget_s=1.0), "f", age_s=0.0, now=100.0, hollow=True
    )
    assert refused == [
        ToFrontend(
            "f",
            wire.Refused(
                request=1, attempt=2, status=AnswerStatus.REJECTED, code=ErrorCode.NOT_READY,
                message="m:1 is still being prepared", retry_after_s=1.0,
            ),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(("rows", "refused"), [(7, False), (8, False), (9, True)])
def test_more_rows_than_the_largest_batch_are_refused(rows: int, refused: bool) -> None:
    assert one().submit(1, now=100.0, rows=rows) == (["f: 1 failed bad_batch"] if refused else [])


def test_more_requests_than_may_wait_are_refused() -> None:
    shard = Shard(Parameters(queue_max=3)).serve({"m:1": TEN_MS})
    answers = [shard.submit(number, now=100.0, budget_s=5.0) for number in (1, 2, 3, 4)]
    assert answers == [[], [], [], ["f: 4 rejected queue_full"]]
    shard.wake(100.0)
    assert shard.submit(5, now=100.0, budget_s=5.0) == []


def test_a_budget_that_cannot_be_met_even_alone_is_refused_with_the_prediction() -> None:
    shard = one()
    message = wire.Submit(request=1, attempt=0, ref="m:1", rows=1, budget_s=0.008)
    (order,) = shard.scheduler.submit(message, "f", age_s=0.0, now=100.0, hollow=True)
    assert isinstance(order.message, wire.Refused)
    assert (order.message.code, order.message.retry_after_s) == (ErrorCode.DEADLINE, None)
    assert order.message.predicted_s == pytest.approx(DISPATCH_S + 0.010)
    assert names(order.message.message, "10.3 ms", "1.0 ms", "8.0 ms")  # it would take, for the way back, are left
    shard.scheduler.check()
    assert shard.wake(100.0) == []


def test_a_refusal_adds_up_where_only_the_way_back_exceeds_the_budget() -> None:
    message = wire.Submit(request=1, attempt=0, ref="m:1", rows=1, budget_s=0.0107)
    (order,) = one().scheduler.submit(message, "f", age_s=0.0, now=100.0, hollow=True)
    assert isinstance(order.message, wire.Refused)
    assert names(order.message.message, "10.3 ms", "1.0 ms", "10.7 ms")


def test_an_estimate_that_nothing_confirms_is_tried_once_a_while() -> None:
    shard = one()
    refused = ["f: 1 rejected deadline"]
    assert shard.submit(1, now=100.0, budget_s=0.009) == refused
    assert shard.submit(1, now=100.2, budget_s=0.009) == refused
    assert shard.submit(1, now=101.1, budget_s=0.009) == []
    assert shard.wake(101.1) == ["w1: infer #1 m:1 x1 f/1"]
    shard.ran(1, begin_s=101.1, duration_s=0.006)
    assert shard.submit(2, now=101.2, budget_s=0.009) == []


def test_a_budget_that_what_waits_uses_up_is_refused_for_overload_and_told_when_to_come_again() -> None:
    shard = one()
    for number in range(1, 9):
        shard.submit(number, now=100.0, budget_s=1.0)
    message = wire.Submit(request=9, attempt=0, ref="m:1", rows=1, budget_s=0.020)
    (order,) = shard.scheduler.submit(message, "f", age_s=0.0, now=100.0, hollow=True)
    assert isinstance(order.message, wire.Refused)
    assert (order.message.status, order.message.code) == (AnswerStatus.REJECTED, ErrorCode.OVERLOAD)
    took, _, rest = order.message.message.removeprefix("it would take up to ").partition(" ms ")
    assert float(took) == pytest.approx(order.message.predicted_s * 1e3, abs=0.05)
    assert rest == "behind what runs and waits, and 1.0 ms for the way back; 20.0 ms of the budget are left"
    late_s = DISPATCH_S + 0.024 + 0.010 - 0.019
    assert late_s <= order.message.retry_after_s <= late_s + 0.003
    assert shard.scheduler.counters.refused == {ErrorCode.OVERLOAD: 1}


# -- the same request again -------------------------------------------------------------------------------------------


def test_a_request_submitted_twice_runs_once() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    assert shard.submit(1, now=100.0, attempt=1) == []
    (order,) = shard.orders(100.0)
    assert isinstance(order.message, wire.Infer)
    assert [(part.request, part.attempt) for part in order.message.parts] == [(1, 1)]
    assert shard.submit(1, now=100.001, attempt=2) == []
    assert shard.wake(100.02) == []
    assert shard.scheduler.counters.submitted == 1


def test_the_same_number_from_another_frontend_is_another_request() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.submit(1, now=100.0, frontend="g")
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x2 f/1 g/1"]


def test_a_number_may_be_used_again_once_its_request_has_ended() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.0, duration_s=0.01)
    shard.submit(1, now=100.02)
    assert shard.wake(100.02) == ["w1: infer #2 m:1 x1 f/1"]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("wrong", [(), (b"",), (0, 1), (0, 0), (-1,), (1,)], ids=str)
def test_inputs_that_are_not_those_of_its_rows_never_meet_those_of_others(
    rows: int, kept: bool, wrong: tuple[bytes | int, ...]
) -> None:
    """`wrong`: tensors, or by how many bytes they are too long."""
    shard = one()
    tensors = [each if isinstance(each, bytes) else bytes(4 * rows + each) for each in wrong]
    bad, good = (wire.Kept(sizes=tuple(map(len, given))) for given in (tensors, [bytes(4 * rows)]))
    told = (
        shard.submit(1, now=100.0, rows=rows, kept=bad)
        if kept
        else shard.submit(1, now=100.0, rows=rows, tensors=tensors)
    )
    assert told == ["f: 1 failed bad_input"]
    if kept:
        assert shard.submit(2, now=100.0, rows=rows, kept=good) == []
    else:
        assert shard.submit(2, now=100.0, rows=rows, tensors=[bytes(4 * rows)]) == []
    assert shard.wake(100.0) == [f"w1: infer #1 m:1 x{rows} f/2"]


def test_inputs_that_came_before_any_worker_are_looked_at_when_there_is_one() -> None:
    shard = Shard()
    shard.want(["m:1"])
    assert shard.submit(1, now=0.1, budget_s=5.0, tensors=[b"?"]) == []
    assert shard.join(hello("w1", prepared("m:1"), resident=["m:1"]), now=0.2)[-1] == "f: 1 failed bad_input"
