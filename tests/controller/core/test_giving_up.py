"""Versions that cannot be loaded or measured where they are prepared: tried with pauses, and given up in the end."""

import itertools

import pytest

from controller.core.failures import LOAD_FINAL
from controller.core.versions.preparation import AGAIN_S, RETRY_S, RETRY_S_MAX, Terms
from controller.core.versions.readiness import LOAD_FAULTS_MAX
from mesh import wire
from mesh.codes import ActionCode, ActionKind
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, prepared
from tests.controller.core.test_fleet import to_be_measured
from tests.messages import names

# -- while it is measured ---------------------------------------------------------------------------------------------


def test_a_version_that_cannot_be_loaded_to_be_measured_is_not_tried_for_ever() -> None:
    shard = to_be_measured((1, 3))
    shard.wake(100.0)
    for load, now in ((1, 100.1), (3, 101.1)):
        assert shard.result(load, ActionKind.LOAD, now=now, code=ActionCode.DEVICE_ERROR) == []
        assert shard.result(load + 1, now=now, code=ActionCode.WEIGHTS_MISSING) == []
        assert shard.wake(now + 0.001) == []
        assert shard.wake(now + 0.5) == [f"w1: load #{load + 2} a:1", f"w1: infer #{load + 3} a:1 x1 measuring"]
    forget, report = shard.result(5, ActionKind.LOAD, now=102.1, code=ActionCode.DEVICE_ERROR, message="no such disk")
    assert forget == "w1: forget a:1"
    assert names(report, "broker", "a:1 failed", "no such disk", "gearmesh deploy a --version 1")
    assert shard.result(6, now=102.1, code=ActionCode.WEIGHTS_MISSING) == []
    assert shard.scheduler.wake_at() is None
    assert shard.wake(1e6) == []


@pytest.mark.parametrize(
    ("load", "infer"),
    [
        (ActionCode.NO_PAGES, ActionCode.WEIGHTS_MISSING),
        (ActionCode.LATE, ActionCode.WEIGHTS_MISSING),
        (ActionCode.OK, ActionCode.LATE),
        (ActionCode.OK, ActionCode.LOST),
        (ActionCode.OK, ActionCode.NO_SLOTS),
        (ActionCode.OK, ActionCode.WEIGHTS_MISSING),
    ],
)
def test_measuring_that_fails_otherwise_is_tried_again_and_again_with_pauses_that_grow(load: str, infer: str) -> None:
    shard = to_be_measured((1, 3))
    now, runs = 100.0, []
    while now < 200.0:
        for order in shard.orders(now):
            message = order.message
            assert isinstance(message, wire.Load | wire.Infer)
            if isinstance(message, wire.Infer):
                runs.append(now)
                assert shard.result(message.action, now=now, code=infer) == []
            elif load == ActionCode.OK:
                shard.loaded(message.action, now=now)
            else:
                assert shard.result(message.action, ActionKind.LOAD, now=now, code=load) == []
        wake_s = shard.scheduler.wake_at()
        assert wake_s is not None
        now = max(wake_s, now + 0.001)
    pauses = [later - earlier for earlier, later in itertools.pairwise(runs)]
    assert pauses[0] == pytest.approx(RETRY_S, abs=0.05)
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(pauses[:5]))
    assert pauses[-1] == pytest.approx(RETRY_S_MAX, abs=0.2)
    assert len(runs) < 30


def test_another_version_is_measured_while_one_that_failed_waits_for_its_next_turn() -> None:
    shard = Shard()
    shard.want(["a:1", "b:1"])
    reports = [prepared(ref, None, measure=((1, 1),)) for ref in ("a:1", "b:1")]
    shard.join(hello("w1", *reports, resident=["a:1", "b:1"]), now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 a:1 x1 measuring"]
    shard.result(1, now=100.01, code=ActionCode.NO_SLOTS)
    assert shard.wake(100.02) == ["w1: infer #2 b:1 x1 measuring"]


# -- served, and then not ---------------------------------------------------------------------------------------------


def fail_loads(shard: Shard, count: int, *, now: float, code: str = ActionCode.DEVICE_ERROR) -> tuple[list[str], float]:
    """A request for a:1 comes whenever it can be loaded, and its LOAD fails; what was said after the last, and when."""
    said: list[str] = []
    for number in range(count):
        shard.submit(1000 + number, "a:1", now=now, budget_s=5.0)
        loads = [o.message.action for o in shard.orders(now) if isinstance(o.message, wire.Load)]
        assert len(loads) == 1
        said = shard.result(loads[0], ActionKind.LOAD, now=now, code=code, message="no such disk")
        now += 1.1
    return said, now - 1.1


def served(*, workers: tuple[str, ...] = ("w1",)) -> Shard:
    """a:1 is ready, but in no device's memory."""
    return Shard().serve({"a:1": TEN_MS}, workers=workers, resident=[])


@pytest.mark.parametrize("code", sorted(LOAD_FINAL))
def test_a_served_version_whose_loads_fail_again_and_again_is_given_up_and_what_waits_is_told_why(code: str) -> None:
    shard = served()
    said, now = fail_loads(shard, LOAD_FAULTS_MAX - 1, now=100.0, code=code)
    assert said == []
    shard.scheduler.frontend_joined("f")
    (forget, report, serving, *refused), now = fail_loads(shard, 1, now=now + 1.1, code=code)
    assert (forget, serving) == ("w1: forget a:1", "f: serving -a:1")
    assert names(report, "broker", "a:1 failed", "no such disk")
    assert refused
    assert {word.split(" ", 2)[2] for word in refused} == {"rejected not_ready"}
    (refusal,) = shard.scheduler.submit(
        wire.Submit(request=1, attempt=0, ref="a:1", rows=1, budget_s=1.0), "f", age_s=0.0, now=now, hollow=True
    )
    assert isinstance(refusal.message, wire.Refused)
    assert "no such disk" in refusal.message.message
    assert shard.wake(now + 1.0) == []


def test_loads_that_fail_otherwise_do_not_end_what_is_served() -> None:
    shard = served()
    said, now = fail_loads(shard, 3 * LOAD_FAULTS_MAX, now=100.0, code=ActionCode.NO_PAGES)
    assert said == []
    assert shard.submit(1, "a:1", now=now) == []


def test_a_load_that_ends_well_makes_good_for_those_that_failed_before() -> None:
    shard = served()
    _, now = fail_loads(shard, LOAD_FAULTS_MAX - 1, now=100.0)
    (load,) = [o.message.action for o in shard.orders(now + 1.1) if isinstance(o.message, wire.Load)]
    shard.loaded(load, now=now + 1.2)
    assert not shard.state.devices["w1"].load_faults


def test_a_version_given_up_is_prepared_again_after_a_while_and_later_each_time() -> None:
    shard = served()
    now = 100.0
    for pause_s in (AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S):
        _, now = fail_loads(shard, LOAD_FAULTS_MAX, now=now)
        assert shard.wake(now + 0.01) == []
        assert shard.scheduler.wake_at() == pytest.approx(now + pause_s)
        assert shard.wake(now + pause_s - 0.01) == []
        now += pause_s
        assert shard.wake(now) == ["w1: prepare a:1"]
        assert shard.report(prepared("a:1"), now=now) == ["broker: a:1 is ready"]


def test_a_version_given_up_is_prepared_again_at_once_when_an_operator_asks() -> None:
    shard = served()
    _, now = fail_loads(shard, LOAD_FAULTS_MAX, now=100.0)
    shard.want(["a:1"], terms={"a:1": Terms(tries=1)}, now=now)
    assert shard.wake(now) == ["w1: prepare a:1"]
    assert shard.report(prepared("a:1"), now=now) == ["broker: a:1 is ready"]
    assert all("prepare" not in word for word in shard.wake(now + 10 * AGAIN_S))


def test_a_version_that_its_worker_withdraws_is_looked_for_again_until_its_files_are_back() -> None:
    shard = served()
    shard.wake(100.0)
    gone = wire.Prepared(ref="a:1", ok=False, faults=("other files",), code=ActionCode.CONTENT_CHANGED)
    shard.result(1, ActionKind.LOAD, now=100.0, code=ActionCode.CONTENT_CHANGED)
    shard.submit(1, "a:1", now=100.0)
    assert shard.report(gone, now=100.0) == ["broker: a:1 failed: other files", "f: 1 rejected not_ready"]
    assert shard.wake(100.0 + AGAIN_S) == ["w1: prepare a:1"]
    assert shard.report(gone, now=131.0) == []
    assert shard.wake(131.0 + 2 * AGAIN_S - 0.01) == []
    assert shard.wake(131.0 + 2 * AGAIN_S) == ["w1: prepare a:1"]
    assert shard.report(prepared("a:1"), now=200.0) == ["broker: a:1 is ready"]


def test_a_version_given_up_on_one_device_is_served_from_the_other() -> None:
    shard = served(workers=("w1", "w2"))
    gone = wire.Prepared(ref="a:1", ok=False, faults=("other files",), code=ActionCode.CONTENT_CHANGED)
    shard.submit(1, "a:1", now=100.0)
    assert shard.report(gone, "w1") == []
    assert list(shard.state.models["a:1"].ready) == ["w2"]
    assert "w2" in shard.wake(100.0)[0]


def test_a_device_that_leaves_is_not_waited_for_by_what_was_given_up_there() -> None:
    shard = served()
    _, now = fail_loads(shard, LOAD_FAULTS_MAX, now=100.0)
    shard.leave("w1")
    assert shard.wake(now + 0.01) == []
    assert shard.scheduler.wake_at() is None
