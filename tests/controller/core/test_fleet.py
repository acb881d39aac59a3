"""Workers that come and go, versions that become ready, and who is told of it."""

import msgspec
import pytest

from controller.core.orders import ToBroker
from controller.core.versions.preparation import Terms
from controller.core.versions.unclaimed import UNCLAIMED_S
from controller.core.versions.wanted import LET_GO_S
from mesh import wire
from mesh.codes import ActionCode, ErrorCode, PackageCode
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, prepared, spec, wake_at


def failed(ref: str, *faults: str) -> wire.Prepared:
    return wire.Prepared(ref=ref, ok=False, faults=faults)


def test_a_new_worker_is_told_to_prepare_what_is_wanted() -> None:
    shard = Shard()
    assert shard.want(["a:1", "b:1", "c:1"]) == []
    assert shard.join(hello("w1"), now=0.0) == []
    assert shard.wake(0.0) == ["w1: prepare a:1", "w1: prepare b:1"]
    assert shard.wake(0.0) == []


def test_the_broker_and_the_frontends_hear_that_a_version_is_ready_once() -> None:
    shard = Shard()
    shard.want(["a:1"])
    assert shard.checked(shard.scheduler.frontend_joined("f")) == ["f: serving reset"]
    for worker in ("w1", "w2"):
        shard.join(hello(worker), now=0.0)
    shard.wake(0.0)
    assert shard.report(prepared("a:1"), "w1") == ["broker: a:1 is ready", "f: serving +a:1"]
    assert shard.report(prepared("a:1"), "w2") == []
    assert shard.checked(shard.scheduler.frontend_joined("g")) == ["g: serving reset +a:1"]


def test_the_report_to_the_broker_carries_what_a_client_may_send() -> None:
    shard = Shard()
    shard.want(["a:1"])
    shard.join(hello("w1"), now=0.0)
    shard.wake(0.0)
    assert shard.scheduler.prepared("w1", prepared("a:1"), now=100.0) == [
        ToBroker(wire.PrepareReport(ref="a:1", ok=True, spec=spec()))
    ]


def test_a_version_has_failed_once_it_failed_on_every_device_and_the_faults_are_told_once_each() -> None:
    shard = Shard()
    shard.want(["a:1"])
    for worker in ("w1", "w2"):
        shard.join(hello(worker), now=0.0)
    shard.wake(0.0)
    assert shard.report(failed("a:1", "no weights", "no graph"), "w1") == []
    assert shard.report(failed("a:1", "no weights", "too large"), "w2") == [
        "broker: a:1 failed: no weights; no graph; too large"
    ]


def test_a_version_that_one_device_cannot_prepare_is_served_from_the_other() -> None:
    shard = Shard()
    shard.want(["a:1"])
    for worker in ("w1", "w2"):
        shard.join(hello(worker), now=0.0)
    shard.wake(0.0)
    assert shard.report(failed("a:1", "too large"), "w1") == []
    assert shard.report(prepared("a:1"), "w2") == ["broker: a:1 is ready"]
    assert shard.wake(0.0) == ["w2: load #1 a:1"]


def test_the_broker_is_told_again_when_it_waits_for_word_of_a_version() -> None:
    shard = Shard().serve({"a:1": TEN_MS})
    assert shard.want(["a:1"], terms={"a:1": Terms()}) == []
    assert shard.want(["a:1", "b:1"], terms={"a:1": Terms(pending=True), "b:1": Terms(pending=True)}) == [
        "broker: a:1 is ready"
    ]


def test_a_worker_that_comes_with_models_in_its_memory_need_not_load_them() -> None:
    shard = Shard()
    shard.want(["a:1", "b:1"])
    words = hello("w1", prepared("a:1"), prepared("b:1"), resident=["a:1"])
    assert shard.join(words, now=0.0) == ["broker: a:1 is ready", "broker: b:1 is ready"]
    assert shard.wake(0.0) == ["w1: load #1 b:1"]
    assert shard.state.devices["w1"].residency.free == 8 - 2 - 2


def test_a_worker_forgets_what_it_came_with_and_nobody_has_come_to_want() -> None:
    shard = Shard()
    shard.want(["a:1"])
    words = hello("w1", prepared("old:1"), prepared("a:1"), resident=["old:1", "a:1"])
    assert shard.join(words, now=100.0) == ["broker: a:1 is ready"]
    assert shard.state.devices["w1"].residency.free == 4
    assert shard.wake(100.0 + UNCLAIMED_S - 1e-3) == []
    assert wake_at(shard) == pytest.approx(100.0 + UNCLAIMED_S)
    assert shard.wake(100.0 + UNCLAIMED_S) == ["w1: forget old:1"]
    assert shard.state.devices["w1"].residency.free == 6


def test_what_a_worker_came_with_is_served_as_it_is_when_the_table_that_wants_it_comes_later() -> None:
    shard = Shard()
    assert shard.join(hello("w1", prepared("a:1"), resident=["a:1"]), now=100.0) == []
    assert shard.want(["a:1"], now=100.5) == ["broker: a:1 is ready"]
    assert shard.wake(100.5) == []
    assert shard.submit(1, "a:1", now=100.6) == []
    assert shard.wake(100.6) == ["w1: infer #1 a:1 x1 f/1"]
    shard.ran(1, begin_s=100.6, duration_s=0.01)
    assert shard.wake(100.0 + 2 * UNCLAIMED_S) == []


def test_what_a_worker_came_with_leaves_its_memory_for_what_is_asked_for() -> None:
    shard = Shard()
    shard.want(["a:1"])
    shard.join(hello("w1", prepared("old:1"), prepared("a:1"), pages=3, resident=["old:1"], free_pages=1), now=100.0)
    shard.submit(1, "a:1", now=100.0)
    assert shard.wake(100.0) == ["w1: unload #1 old:1", "w1: load #2 a:1"]


def test_a_worker_that_came_and_left_leaves_nothing_to_be_forgotten() -> None:
    shard = Shard()
    shard.join(hello("w1", prepared("old:1")), now=100.0)
    shard.lose("w1", now=100.1)
    assert shard.scheduler.wake_at() is None
    assert shard.wake(100.0 + UNCLAIMED_S) == []


def test_a_version_let_go_is_forgotten_everywhere_and_served_no_more() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, workers=("w1", "w2"))
    shard.scheduler.frontend_joined("f")
    assert shard.want(["b:1"], now=100.0) == []
    assert shard.wake(100.0 + LET_GO_S - 1e-3) == []
    assert shard.scheduler.wake_at() == pytest.approx(100.0 + LET_GO_S)
    assert shard.wake(100.0 + LET_GO_S) == ["w1: forget a:1", "w2: forget a:1", "f: serving -a:1"]
    assert shard.state.devices["w1"].residency.free == 6
    assert list(shard.state.models) == ["b:1"]


def test_a_version_let_go_is_served_to_frontends_that_do_not_know_yet() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS})
    shard.scheduler.frontend_joined("f")
    shard.wake(100.0)
    assert shard.want(["b:1"], now=102.0 - LET_GO_S) == []
    assert shard.scheduler.wake_at() == 102.0
    assert shard.submit(1, "a:1", now=101.995) == []
    assert shard.wake(101.995) == ["w1: infer #1 a:1 x1 f/1"]
    assert shard.wake(102.0) == []  # it has a request
    assert shard.ran(1, begin_s=101.996, duration_s=0.010) == []
    assert shard.wake(102.006) == ["w1: forget a:1", "f: serving -a:1"]
    (refusal,) = shard.submit(2, "a:1", now=102.01)
    assert ErrorCode.NOT_DEPLOYED in refusal


def test_a_version_let_go_that_nobody_asks_for_is_kept_no_longer_than_told() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS})
    shard.wake(100.0)
    assert shard.want(["b:1"], now=102.0 - LET_GO_S) == []
    assert shard.wake(101.999) == []
    assert shard.wake(102.0) == ["w1: forget a:1"]


def test_a_version_wanted_again_while_it_drains_stays() -> None:
    shard = Shard().serve({"a:1": TEN_MS})
    shard.submit(1, "a:1", now=100.0)
    shard.want([])
    assert shard.want(["a:1"]) == ["broker: a:1 is ready"]
    shard.wake(100.0)
    shard.ran(1, begin_s=100.001, duration_s=0.010)
    assert shard.wake(100.011) == []
    assert shard.submit(2, "a:1", now=100.02) == []


def test_a_worker_that_leaves_is_given_nothing_more_and_its_models_are_not_served_from_it() -> None:
    shard = Shard().serve({"a:1": TEN_MS})
    shard.scheduler.frontend_joined("f")
    shard.submit(1, "a:1", now=100.0)
    assert shard.leave("w1") == ["f: serving -a:1"]
    assert shard.wake(100.0) == []
    assert shard.submit(2, "a:1", now=100.0) == ["f: 2 rejected not_ready"]


def test_a_worker_that_leaves_may_end_what_it_has() -> None:
    shard = Shard().serve({"a:1": TEN_MS})
    shard.submit(1, "a:1", now=100.0)
    shard.wake(100.0)
    shard.leave("w1")
    assert shard.ran(1, begin_s=100.001, duration_s=0.010) == []
    assert shard.scheduler.open_requests == 0
    assert shard.lose("w1", now=100.1) == []


def test_an_unknown_worker_may_leave_or_report_without_harm() -> None:
    shard = Shard()
    shard.want(["a:1"])
    assert shard.leave("w9") == []
    assert shard.lose("w9", now=0.0) == []
    assert shard.report(prepared("a:1"), "w9") == []
    assert shard.result(1, now=0.0, worker="w9") == []


# -- measuring --------------------------------------------------------------------------------------------------------


def to_be_measured(*plan: tuple[int, int], pages: int = 8) -> Shard:
    """One worker, one model without a profile."""
    shard = Shard()
    shard.want(["a:1"])
    shard.join(hello("w1", pages=pages), now=100.0)
    shard.wake(100.0)
    assert shard.report(prepared("a:1", None, measure=plan)) == []
    return shard


def test_a_version_without_a_profile_is_loaded_and_run_in_every_size_and_then_served() -> None:
    shard = to_be_measured((1, 2), (4, 1))
    assert shard.wake(100.0) == ["w1: load #1 a:1", "w1: infer #2 a:1 x1 measuring"]
    assert shard.loaded(1, now=100.01) == []
    assert shard.wake(100.01) == []
    assert shard.ran(2, begin_s=100.01, duration_s=0.01) == []
    assert shard.wake(100.02) == ["w1: infer #3 a:1 x1 measuring"]
    shard.ran(3, begin_s=100.02, duration_s=0.01)
    assert shard.wake(100.03) == ["w1: infer #4 a:1 x4 measuring"]
    shard.ran(4, begin_s=100.03, duration_s=0.02)
    assert shard.wake(100.05) == []
    assert shard.report(prepared("a:1", TEN_MS)) == ["broker: a:1 is ready"]
    assert shard.submit(1, "a:1", now=100.06) == []
    assert shard.wake(100.06) == ["w1: infer #5 a:1 x1 f/1"]


def test_a_version_that_is_still_measured_is_not_served() -> None:
    shard = to_be_measured((1, 1))
    shard.wake(100.0)
    assert shard.submit(1, "a:1", now=100.0) == ["f: 1 rejected not_ready"]


def test_a_measuring_run_waits_for_clients_requests() -> None:
    shard = Shard()
    shard.want(["m:1", "a:1"])
    shard.join(hello("w1", prepared("m:1"), prepared("a:1", None, measure=((1, 1),)), resident=["m:1"]), now=100.0)
    shard.submit(1, "m:1", now=100.0)
    shard.submit(2, "m:1", now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x2 f/1 f/2"]
    shard.ran(1, begin_s=100.0, duration_s=0.012)
    assert shard.wake(100.012) == ["w1: load #2 a:1", "w1: infer #3 a:1 x1 measuring"]


def test_a_measuring_run_that_failed_is_sent_again_after_a_while() -> None:
    shard = to_be_measured((1, 1))
    shard.wake(100.0)
    shard.loaded(1, now=100.01)
    assert shard.result(2, now=100.02, code=ActionCode.LATE) == []
    assert shard.wake(100.02) == []
    wake_s = shard.scheduler.wake_at()
    assert wake_s is not None
    assert shard.wake(wake_s) == ["w1: infer #3 a:1 x1 measuring"]


def open_version(*plan: tuple[int, int, tuple[int, ...]]) -> wire.Prepared:
    """A version with one open dimension, to be measured so."""
    dims = (wire.Dim(name="seq", least=1, most=64),)
    tensor = wire.TensorSpec(name="x", dtype="float32", shape=(-1, -1), dims=("seq",))
    model = wire.ModelSpec(inputs=(tensor,), outputs=(tensor,), batch_max=8, slo_ms=50.0, dims=dims)
    return msgspec.structs.replace(prepared("a:1", None), spec=model, measure=plan)


def measuring_open(*plan: tuple[int, int, tuple[int, ...]]) -> Shard:
    """A worker has loaded such a version, and its first run is on its way."""
    shard = Shard()
    shard.want(["a:1"])
    shard.join(hello("w1", pages=8), now=100.0)
    shard.wake(100.0)
    shard.report(open_version(*plan))
    shard.wake(100.0)
    shard.loaded(1, now=100.01)
    return shard


def test_a_run_that_does_not_fit_ends_measuring_of_larger_ones_and_of_nothing_else() -> None:
    shard = measuring_open((2, 3, (32,)), (8, 3, (64,)), (4, 1, (16,)))
    assert shard.result(2, now=100.02, code=ActionCode.NO_MEMORY) == []
    wake_s = shard.scheduler.wake_at()
    assert wake_s is not None
    assert shard.wake(wake_s) == ["w1: infer #3 a:1 x4 measuring"]
    shard.ran(3, begin_s=wake_s, duration_s=0.01)
    assert shard.wake(wake_s + 0.01) == []
    assert shard.report(open_version((1, 1, (8,)))) == []
    assert shard.wake(wake_s + 1.0) == ["w1: infer #4 a:1 x1 measuring"]


def test_a_version_that_does_not_fit_at_all_is_not_served_and_the_worker_s_reason_is_told() -> None:
    shard = measuring_open((1, 2, (64,)))
    shard.result(2, now=100.02, code=ActionCode.NO_MEMORY)
    why = "one row of seq = 64 does not fit"
    report = wire.Prepared(ref="a:1", ok=False, faults=(why,), code=PackageCode.NO_MEMORY)
    (said,) = shard.report(report)
    assert why in said


@pytest.mark.parametrize("code", [ActionCode.BAD_OUTPUTS, ActionCode.ROWS_CHANGED, ActionCode.DEVICE_ERROR])
def test_a_version_that_fails_wherever_it_is_measured_is_not_tried_for_ever(code: str) -> None:
    shard = to_be_measured((1, 3))
    shard.wake(100.0)
    shard.loaded(1, now=100.01)
    for action in (2, 3):
        assert shard.result(action, now=100.0 + action, code=code) == []
        assert shard.wake(100.5 + action) == [f"w1: infer #{action + 1} a:1 x1 measuring"]
    orders = shard.result(4, now=104.0, code=code, message="2 rows for 1")
    assert orders[0] == "w1: forget a:1"
    assert orders[1].startswith("broker: a:1 failed")
    assert "2 rows for 1" in orders[1]
    assert shard.wake(200.0) == []
    assert shard.state.devices["w1"].residency.free == 8


def test_a_run_that_ends_well_makes_good_for_those_that_failed_before() -> None:
    shard = to_be_measured((1, 8))
    shard.wake(100.0)
    shard.loaded(1, now=100.01)
    bad = ActionCode.BAD_OUTPUTS
    for action, code in enumerate((bad, bad, ActionCode.OK, bad, ActionCode.LATE, bad), 2):
        now = 100.0 + action
        if code == ActionCode.OK:
            shard.ran(action, begin_s=now, duration_s=0.01)
        else:
            assert shard.result(action, now=now, code=code) == []
        assert shard.wake(now + 0.5) == [f"w1: infer #{action + 1} a:1 x1 measuring"]


def test_a_version_that_failed_where_it_was_measured_is_tried_again_when_an_operator_asks() -> None:
    shard = to_be_measured((1, 1))
    shard.wake(100.0)
    shard.loaded(1, now=100.01)
    for action in (2, 3, 4):
        shard.result(action, now=100.0 + action, code=ActionCode.BAD_OUTPUTS)
        shard.wake(100.5 + action)
    shard.want(["a:1"], terms={"a:1": Terms(tries=1)})
    assert shard.wake(105.0) == ["w1: prepare a:1"]


def test_a_measuring_run_whose_weights_turned_out_missing_is_preceded_by_a_load_next_time() -> None:
    shard = to_be_measured((1, 1))
    shard.wake(100.0)
    shard.loaded(1, now=100.01)
    assert shard.result(2, now=100.02, code=ActionCode.WEIGHTS_MISSING) == []
    assert shard.wake(101.0) == ["w1: load #3 a:1", "w1: infer #4 a:1 x1 measuring"]


def test_a_version_is_measured_in_the_place_of_one_that_nobody_asks_for_now() -> None:
    shard = Shard()
    shard.want(["m:1", "a:1"])
    words = hello("w1", prepared("m:1"), prepared("a:1", None, measure=((1, 1),)), pages=3, resident=["m:1"])
    shard.join(words, now=100.0)
    assert shard.wake(100.0) == ["w1: unload #1 m:1", "w1: load #2 a:1", "w1: infer #3 a:1 x1 measuring"]


def test_a_version_without_room_to_be_measured_waits_without_harm() -> None:
    shard = to_be_measured((1, 1), pages=1)
    assert shard.wake(100.0) == []
    wake_s = shard.scheduler.wake_at()
    assert wake_s is not None
    assert wake_s > 100.0
    assert shard.wake(wake_s) == []


def test_a_version_let_go_while_it_is_measured_ends_quietly() -> None:
    shard = to_be_measured((1, 2))
    shard.wake(100.0)
    assert shard.want([], now=100.0 - LET_GO_S) == []
    assert shard.wake(100.0) == ["w1: forget a:1"]
    assert shard.loaded(1, now=100.01) == []
    assert shard.ran(2, begin_s=100.01, duration_s=0.01) == []
    assert shard.wake(100.02) == []
    assert shard.state.devices["w1"].residency.free == 8
