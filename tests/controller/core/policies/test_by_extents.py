"""Requests of unequal extents: who goes together, who is too late, and who is let in."""

from collections.abc import Mapping

import pytest

from controller.core.policies.by_extents import Together
from controller.core.queues import Request
from controller.core.state import Model
from mesh import wire
from mesh.codes import ErrorCode
from mesh.sizes import Extents
from tests.controller.core.controller_builders import Shard, hello, request
from tests.controller.core.open_models import IMAGE, encoder, open_prepared, open_spec, pixels, sized_profile

NOW = 100.0
LONG, SHORT = (512,), (16,)


def shard(
    spec: wire.ModelSpec | None = None,
    profile: wire.Profile | None = None,
    workers: int = 1,
    policy: Mapping[str, float] | None = None,
) -> Shard:
    one = Shard(policy=policy)
    one.want(["m:1"])
    for n in range(workers):
        report = open_prepared("m:1", spec or open_spec(), profile or sized_profile())
        one.join(hello(f"w{n + 1}", report, resident=["m:1"]), now=NOW)
    for device in one.state.devices.values():
        device.dispatch.value_s = 0.0
    return one


def model(one: Shard) -> Model:
    return one.state.models["m:1"]


def waits(one: Shard, number: int, extents: Extents, *, budget_s: float, rows: int = 1) -> Request:
    waiting = request(number, arrived_s=NOW, deadline_s=NOW + budget_s, extents=extents, rows=rows)
    one.state.push(model(one), waiting)
    one.state.check()
    return waiting


def together(one: Shard, *requests: Request, rows_max: int | None = None) -> Together:
    batch = Together(model(one), one.state.devices["w1"].curves["m:1"], rows_max)
    for waiting in requests:
        if not batch.add(waiting):
            break
    return batch


def test_a_batch_has_the_greatest_extents_of_each_dimension() -> None:
    one = shard(open_spec(IMAGE), sized_profile(pixels, IMAGE))
    batch = together(one, request(1, extents=(40, 200)), request(2, extents=(90, 100)))
    assert (batch.extents, batch.rows) == ((90, 200), 2)
    assert batch.exec_s() == pytest.approx(one.state.devices["w1"].curves["m:1"].exec_s(2, (90, 200)))


def test_nobody_joins_a_batch_that_would_not_fit() -> None:
    one = shard(open_spec(IMAGE), sized_profile(pixels, IMAGE, elements_max=4 << 16))
    rows = [request(n, extents=(256, 256)) for n in range(6)]
    assert len(together(one, *rows).requests) == 4
    wide, high = request(1, extents=(64, 256), rows=8), request(2, extents=(256, 64), rows=8)
    assert len(together(one, wide, high).requests) == 1  # each fits, and both padded to 256 x 256 do not


def test_only_equal_extents_go_together_where_nothing_is_padded() -> None:
    one = shard(open_spec(exact=True))
    batch = together(one, request(1, extents=(8,)), request(2, extents=(8,)), request(3, extents=(7,)))
    assert [r.number for r in batch.requests] == [1, 2]


def test_a_batch_has_no_more_rows_than_it_may() -> None:
    assert len(together(shard(), *(request(n, extents=SHORT) for n in range(9)), rows_max=5).requests) == 5


def test_a_long_request_is_too_late_before_a_short_one_with_an_earlier_deadline() -> None:
    one = shard()
    short = waits(one, 1, SHORT, budget_s=0.050)
    long = waits(one, 2, LONG, budget_s=0.120)
    policy = one.scheduler.policy
    assert list(policy.hopeless(model(one), NOW + 0.030)) == []
    assert list(policy.hopeless(model(one), NOW + 0.035)) == [long]  # it takes 89 ms
    one.state.take(model(one), [long])
    assert list(policy.hopeless(model(one), NOW + 0.045)) == [short]


def test_nobody_is_too_late_whom_another_device_could_serve() -> None:
    one = shard(workers=2)
    long = waits(one, 1, LONG, budget_s=0.120)
    one.state.devices["w1"].exec.add(999, 0.5, NOW, NOW)
    assert list(one.scheduler.policy.hopeless(model(one), NOW + 0.020)) == []
    one.state.check()
    assert list(one.scheduler.policy.hopeless(model(one), NOW + 0.035)) == [long]


def test_each_request_is_answered_when_it_is_too_late_and_not_at_its_deadline() -> None:
    one = shard()
    device = one.state.devices["w1"]
    device.exec.add(999, 0.02, NOW, NOW)
    assert one.submit(1, now=NOW, budget_s=0.121, extents=LONG) == []
    assert one.submit(2, now=NOW, budget_s=0.051, extents=SHORT) == []
    device.exec.ended(999, NOW)
    device.exec.add(998, 1.0, NOW, NOW)  # it takes longer than it was expected to
    told = {}
    while len(told) < 2:
        at = one.scheduler.wake_at()
        assert at is not None
        assert at < NOW + 0.2
        told |= {line.split()[1]: at - NOW for line in one.wake(at) if "rejected" in line}
    assert told["1"] <= 0.120 - encoder(1, LONG) + 0.001
    assert told["2"] <= 0.050 - encoder(1, SHORT) + 0.001


def test_what_waits_is_counted_by_what_it_costs_and_not_by_rows() -> None:
    one = shard()
    device = one.state.devices["w1"]
    waits(one, 1, SHORT, budget_s=5.0, rows=4)
    short_s = device.backlog_s
    waits(one, 2, LONG, budget_s=5.0)
    curve = device.curves["m:1"]
    assert short_s == pytest.approx(4 * curve.share(SHORT))
    assert device.backlog_s == pytest.approx(4 * curve.share(SHORT) + curve.share(LONG))
    assert curve.share(LONG) > 20 * curve.share(SHORT)


def admit(one: Shard, extents: Extents, budget_s: float) -> tuple[bool, ErrorCode | None, float]:
    asked = request(1000, arrived_s=NOW, deadline_s=NOW + budget_s, extents=extents)
    verdict = one.scheduler.policy.admit(model(one), asked, NOW)
    return verdict.admitted, verdict.code, verdict.predicted_s


def test_a_short_request_is_let_in_past_long_ones_and_a_long_one_is_not_let_in_behind_short_ones() -> None:
    one = shard()
    for number in range(20):
        waits(one, number, LONG, budget_s=5.0)
    admitted, _, predicted_s = admit(one, SHORT, 0.03)
    assert admitted
    assert predicted_s == pytest.approx(encoder(1, SHORT))
    one = shard()
    for number in range(200):
        waits(one, number, (100,), budget_s=5.0)
    admitted, code, _ = admit(one, LONG, 1.0)  # 200 x 16 ms go first
    assert (admitted, code) == (False, ErrorCode.OVERLOAD)


def test_nothing_goes_before_where_it_is_set_so() -> None:
    one = shard(policy={"refuse_ahead": 0})
    for number in range(200):
        waits(one, number, (100,), budget_s=5.0)
    assert admit(one, LONG, 1.0)[0]
    assert admit(one, LONG, 0.08)[1] is ErrorCode.DEADLINE  # it takes 89 ms


def test_a_request_that_is_late_even_alone_is_refused_by_its_own_length() -> None:
    one = shard()
    assert admit(one, LONG, 0.08)[1] is ErrorCode.DEADLINE
    assert admit(one, LONG, 0.10)[0]
    assert admit(one, SHORT, 0.009)[0]
    assert encoder(1, SHORT) < 0.009 < 0.08 < encoder(1, LONG)


def test_two_hosts_share_what_goes_before() -> None:
    lone, pair = shard(), shard(workers=2)
    for one in (lone, pair):
        for number in range(12):
            waits(one, number, (256,), budget_s=0.4)
    assert not admit(lone, (256,), 0.4)[0]
    assert admit(pair, (256,), 0.4)[0]


def test_equals_go_before_it_only_if_their_deadline_is_not_later() -> None:
    one = shard()
    for number in range(12):
        waits(one, number, (256,), budget_s=0.5)
    assert admit(one, (256,), 0.4)[0]
    assert admit(one, (256,), 0.5)[1] is ErrorCode.OVERLOAD


def test_it_joins_those_that_wait_and_does_not_come_behind_them_alone() -> None:
    one = shard()
    for number in range(10):
        waits(one, number, SHORT, budget_s=0.033)
    curve = one.state.devices["w1"].curves["m:1"]
    joined_s = 11 * curve.share(SHORT)
    assert joined_s < 0.033 < 10 * curve.share(SHORT) + encoder(1, SHORT)
    admitted, _, predicted_s = admit(one, SHORT, 0.033)
    assert admitted
    assert predicted_s == pytest.approx(joined_s)


def test_whoever_is_worth_more_goes_first() -> None:
    one = shard()
    for number in range(200):
        waits(one, number, (100,), budget_s=5.0)  # 200 x 16 ms
    asked = request(1000, arrived_s=NOW, deadline_s=NOW + 1.0, extents=LONG, weight=10.0)
    assert one.scheduler.policy.admit(model(one), asked, NOW).admitted
