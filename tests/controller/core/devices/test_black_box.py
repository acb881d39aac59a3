"""Containers in the scheduler: who serves them, what a batch waits for, what happens when their code dies."""

import msgspec
import pytest

from mesh import wire
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import Shard, hello, prepared, spec

REF = "f:1"


def container(
    member: str = "c1", *, ref: str = REF, ok: bool = True, rows_max: int = 64, wait_s: float = 0.0
) -> wire.WorkerHello:
    """A container's first words."""
    info = wire.DeviceInfo(name=member, kind="container", pages=1, page_bytes=1, any_batch=True, container=ref)
    words = report(ref, ok=ok, rows_max=rows_max, wait_s=wait_s)
    return wire.WorkerHello(member=member, host="h", device=info, free_pages=0, resident=(ref,), prepared=(words,))


def report(ref: str = REF, *, ok: bool = True, rows_max: int = 64, wait_s: float = 0.0) -> wire.Prepared:
    batching = wire.Batching(method="fixed", size=8, objective_s=0.02, wait_s=wait_s)
    faults = () if ok else ("it died",)
    return wire.Prepared(ref=ref, ok=ok, faults=faults, spec=spec(rows_max), pages=1, batching=batching)


def shard(*containers: wire.WorkerHello) -> Shard:
    made = Shard()
    made.want([REF], contained=[REF])
    for words in containers:
        made.join(words, now=0.0)
    made.wake(0.0)
    return made


def test_a_container_is_asked_for_its_version_only_and_devices_are_not_asked_for_it() -> None:
    made = Shard()
    made.want([REF, "m:1"], contained=[REF])
    made.join(hello("w1"), now=0.0)
    assert made.join(container(), now=0.0) == ["broker: f:1 is ready"]
    assert made.wake(0.0) == ["w1: prepare m:1"]


def test_a_container_that_came_before_its_version_was_wanted_is_asked_then_and_serves() -> None:
    made = Shard()
    assert made.join(container(), now=0.0) == []
    made.want([REF], contained=[REF])
    assert made.wake(0.0) == ["c1: prepare f:1"]
    assert made.report(report(), "c1") == ["broker: f:1 is ready"]
    made.submit(1, REF, now=1.0)
    assert made.wake(1.0) == ["c1: infer #1 f:1 x1 f/1"]


def test_what_waits_goes_out_in_one_batch_up_to_the_limit_and_a_client_s_own_batch_is_kept_whole() -> None:
    made = shard(container())
    for number in range(1, 11):
        made.submit(number, REF, now=1.0)
    assert made.wake(1.0)[0].startswith("c1: infer #1 f:1 x8 ")
    made = shard(container())
    made.submit(1, REF, now=1.0, rows=40)
    assert made.wake(1.0) == ["c1: infer #1 f:1 x40 f/1"]


def test_nothing_is_bound_behind_a_busy_replica_while_another_is_idle() -> None:
    made = shard(container("c1"), container("c2"))
    made.submit(1, REF, now=1.0)
    assert made.wake(1.0) == ["c1: infer #1 f:1 x1 f/1"]
    made.submit(2, REF, now=1.0)
    assert made.wake(1.0) == ["c2: infer #2 f:1 x1 f/2"]


def test_nothing_is_bound_behind_a_replica_that_seems_stuck() -> None:
    made = shard(container("c1"))
    made.submit(1, REF, now=1.0)
    made.wake(1.0)
    made.submit(2, REF, now=1.5, budget_s=1.0)
    assert made.wake(1.5) == []


@pytest.mark.parametrize("code", [ActionCode.MODEL_ERROR, ActionCode.CONTAINER_DIED, ActionCode.RESTARTING])
def test_batches_that_fail_neither_lower_the_limit_of_rows_nor_teach_how_long_a_batch_takes(code: str) -> None:
    aimd = wire.Batching(method="aimd", objective_s=0.02)
    made = shard(container())
    words = msgspec.structs.replace(container(), prepared=(msgspec.structs.replace(report(), batching=aimd),))
    made.join(words, now=0.0)
    made.wake(0.0)
    now = 1.0
    for action in range(1, 6):
        made.submit(action, REF, now=now)
        made.wake(now)
        made.ran(action, begin_s=now, duration_s=0.001, worker="c1")
        now += 0.1
    curve = made.state.devices["c1"].curves[REF]
    before = (curve.batch_max, curve.exec_s(1))
    assert before[0] > 1
    made.submit(6, REF, now=now)
    made.wake(now)
    made.result(6, now=now + 5.0, worker="c1", code=code)
    assert (curve.batch_max, curve.exec_s(1)) == before


def test_requests_of_code_that_died_go_to_another_replica() -> None:
    made = shard(container("c1"), container("c2"))
    made.submit(1, REF, now=1.0, budget_s=1.0)
    made.wake(1.0)
    assert made.report(report(ok=False), "c1", now=1.01) == []
    assert made.result(1, now=1.01, worker="c1", code=ActionCode.CONTAINER_DIED) == []
    assert made.wake(1.01) == ["c2: infer #2 f:1 x1 f/1"]


@pytest.mark.parametrize("table_first", [False, True])
def test_what_a_dead_process_had_not_begun_waits_for_the_next_one(*, table_first: bool) -> None:
    made = shard(container("c1"))
    made.submit(1, REF, now=1.0, budget_s=10.0)
    made.wake(1.0)
    made.report(report(ok=False), "c1", now=1.01)
    if table_first:  # the table says that the code is starting, before the batch has come back
        made.want([REF], contained=[REF], now=1.01)
    assert made.result(1, now=1.02, worker="c1", code=ActionCode.RESTARTING) == []
    made.report(report(), "c1", now=2.0)
    assert made.wake(2.0) == ["c1: infer #2 f:1 x1 f/1"]


def test_what_waited_when_the_last_process_died_waits_for_the_next_one() -> None:
    made = shard(container("c1"))
    made.submit(1, REF, now=1.0, budget_s=10.0)
    assert made.report(report(ok=False), "c1", now=1.01) == ["broker: f:1 failed: it died"]
    made.want([REF], contained=[REF], now=1.02)
    made.report(report(), "c1", now=2.0)
    assert made.wake(2.0) == ["c1: infer #1 f:1 x1 f/1"]


def test_a_model_without_a_replica_says_so_and_why() -> None:
    made = shard(container("c1"))
    made.report(report(ok=False), "c1", now=4.0)
    assert made.submit(1, REF, now=4.0) == ["f: 1 rejected no_replica"]
    made.report(report(), "c1", now=5.0)
    made.submit(2, REF, now=5.0)
    assert made.wake(5.0) == ["c1: infer #1 f:1 x1 f/2"]


def test_an_exception_fails_the_requests_and_nothing_else() -> None:
    made = shard(container("c1"))
    made.submit(1, REF, now=1.0)
    made.wake(1.0)
    assert made.result(1, now=1.01, worker="c1", code=ActionCode.MODEL_ERROR, message="ValueError: no") == [
        "f: 1 failed model_error"
    ]
    made.submit(2, REF, now=1.02)
    assert made.wake(1.02) == ["c1: infer #2 f:1 x1 f/2"]


def test_refusals_by_an_estimate_that_is_out_of_date_end() -> None:
    made = shard(container("c1"))
    for number in range(1, 4):
        made.submit(number, REF, now=float(number), budget_s=10.0)
        made.wake(float(number))
        made.ran(number, begin_s=float(number), duration_s=0.5, worker="c1")
    assert made.submit(4, REF, now=3.6, budget_s=0.02) == ["f: 4 rejected deadline"]
    assert made.submit(5, REF, now=4.5, budget_s=0.02) == []  # let in, to see


def test_a_hanging_batch_is_given_up_after_its_deadline_not_after_its_expected_time() -> None:
    made = shard(container("c1"))
    made.submit(1, REF, now=1.0, budget_s=60.0)
    (order,) = made.orders(1.0)
    assert isinstance(order.message, wire.Infer)
    assert order.message.overdue_s == pytest.approx(62.0, abs=0.01)
    assert made.state.devices["c1"].actions[1].overdue_s == pytest.approx(93.0, abs=0.01)  # it may be a first one
    made.ran(1, begin_s=1.0, duration_s=0.5, worker="c1")
    made.submit(2, REF, now=2.0, budget_s=60.0)
    (order,) = made.orders(2.0)
    assert isinstance(order.message, wire.Infer)
    assert order.message.overdue_s == pytest.approx(63.0, abs=0.01)
    assert made.state.devices["c1"].actions[2].overdue_s == pytest.approx(64.0, abs=0.01)


def test_whether_a_batch_is_the_first_of_its_process_is_for_the_worker_to_say() -> None:
    made = shard(container("c1"))
    made.submit(1, REF, now=1.0, budget_s=60.0)
    made.submit(2, REF, now=1.0, budget_s=60.0, rows=64)
    orders = made.orders(1.0) + made.orders(1.002)  # the second is bound before the first one's result has come
    assert [(order.message.action, order.message.cold_s) for order in orders] == [(1, 30.0), (2, 30.0)]  # type: ignore[union-attr]
    assert all(60.0 < order.message.overdue_s < 63.0 for order in orders)  # type: ignore[union-attr]


def test_a_batch_that_waits_goes_out_when_its_wait_is_over() -> None:
    made = shard(container("c1", wait_s=0.002))
    now = 1.0
    number = 0
    for i in range(60):
        for _ in range(4):
            number += 1
            made.submit(number, REF, now=now, budget_s=1.0)
            now += 0.0002
        orders = made.wake(now + 0.002)
        assert len(orders) == 1
        made.ran(i + 1, begin_s=now + 0.002, duration_s=0.002, worker="c1")
        now += 0.005
    made.submit(number + 1, REF, now=now, budget_s=1.0)
    assert made.wake(now) == []
    for _ in range(3):  # it may look around before
        wake_s = made.scheduler.wake_at()
        assert wake_s is not None
        if made.wake(wake_s + 1e-6):
            assert wake_s == pytest.approx(now + 0.002, abs=1e-5)
            return
    pytest.fail("it waits without end")


def test_prepared_devices_are_as_before() -> None:
    made = Shard().serve({"m:1": prepared().profile})  # type: ignore[dict-item]
    made.submit(1, now=1.0)
    assert made.wake(1.0) == ["w1: infer #1 m:1 x1 f/1"]
