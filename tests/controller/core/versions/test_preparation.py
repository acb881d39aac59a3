"""Versions on their way to being ready on one device."""

import msgspec
import pytest

from controller.core.versions.preparation import (
    FIRST_GUESS_S,
    IDLE_S,
    PREPARES_MAX,
    RETRY_S,
    SHARE_OF_TIME,
    Preparation,
)
from mesh import wire
from tests.controller.core.controller_builders import TEN_MS, prepared

IDLE_SINCE = -1e9  # the device never ran anything for a client


def wanting(*refs: str) -> Preparation:
    preparation = Preparation()
    preparation.want(list(refs))
    preparation.check()
    return preparation


def measuring(*plan: tuple[int, int], ref: str = "a:1") -> Preparation:
    """One version, prepared, with these (batch, runs) to be measured."""
    preparation = wanting(ref)
    preparation.to_prepare()
    preparation.reported(prepared(ref, None, measure=plan))
    preparation.check()
    return preparation


def failed(ref: str) -> wire.Prepared:
    return wire.Prepared(ref=ref, ok=False, faults=("model.toml: is not TOML",))


def test_prepares_go_out_in_order_and_only_as_many_as_a_worker_takes() -> None:
    preparation = wanting("a:1", "b:1", "c:1", "d:1")
    assert preparation.to_prepare() == ["a:1", "b:1"]
    assert PREPARES_MAX == 2
    assert preparation.to_prepare() == []
    preparation.reported(prepared("b:1", TEN_MS))
    preparation.check()
    assert preparation.to_prepare() == ["c:1"]
    preparation.reported(failed("a:1"))
    preparation.check()
    assert preparation.to_prepare() == ["d:1"]


def test_a_failed_version_stays_failed_until_it_is_wanted_anew() -> None:
    preparation = wanting("a:1")
    preparation.to_prepare()
    assert preparation.reported(failed("a:1"))
    preparation.check()
    assert preparation.stages["a:1"].failed
    assert preparation.want(["a:1"]) == []
    assert preparation.to_prepare() == []
    assert preparation.want([]) == ["a:1"]
    preparation.check()
    assert preparation.want(["a:1"]) == []
    assert not preparation.stages["a:1"].failed
    assert preparation.to_prepare() == ["a:1"]


def test_versions_not_wanted_any_more_are_to_be_forgotten_in_any_stage() -> None:
    preparation = wanting("ready:1", "preparing:1", "unsent:1", "unsent:2")
    preparation.to_prepare()
    preparation.reported(prepared("ready:1", TEN_MS))
    preparation.to_prepare()
    assert preparation.want(["unsent:2", "new:1"]) == ["ready:1", "preparing:1", "unsent:1"]
    preparation.check()
    assert list(preparation.stages) == ["unsent:2", "new:1"]
    assert preparation.to_prepare() == ["unsent:2", "new:1"]


def test_a_report_of_a_version_that_is_not_wanted_is_not_taken() -> None:
    preparation = wanting("a:1")
    assert not preparation.reported(prepared("b:1", TEN_MS))
    assert list(preparation.stages) == ["a:1"]


def test_a_report_that_comes_before_its_prepare_was_sent_makes_that_unnecessary() -> None:
    preparation = wanting("a:1", "b:1")
    assert preparation.reported(prepared("a:1", TEN_MS))
    preparation.check()
    assert preparation.to_prepare() == ["b:1"]


def test_a_version_with_a_profile_is_not_measured() -> None:
    preparation = wanting("a:1")
    preparation.reported(prepared("a:1", TEN_MS, measure=((1, 4),)))
    assert preparation.to_measure(0.0, IDLE_SINCE) is None
    assert preparation.complete


def test_runs_are_measured_one_at_a_time_smallest_first_as_the_worker_planned() -> None:
    preparation = measuring((1, 2), (4, 1))
    assert not preparation.complete
    ran = []
    now = 0.0
    while (run := preparation.to_measure(now, IDLE_SINCE)) is not None:
        ref, batch, *_ = run
        ran.append((ref, batch))
        preparation.measuring(ref)
        assert preparation.to_measure(now, IDLE_SINCE) is None
        preparation.measured(ref, batch, 0.01, now)
        preparation.check()
        now += 1.0
    assert ran == [("a:1", 1), ("a:1", 1), ("a:1", 4)]


def test_a_plan_that_is_done_waits_for_the_worker_s_next_word() -> None:
    preparation = measuring((1, 1))
    preparation.measuring("a:1")
    preparation.measured("a:1", 1, 0.01, now=0.0)
    assert preparation.to_measure(9.0, IDLE_SINCE) is None
    preparation.reported(prepared("a:1", None, measure=((1, 16),)))
    assert preparation.to_measure(9.0, IDLE_SINCE) == ("a:1", 1, pytest.approx(0.01), ())
    preparation.reported(prepared("a:1", TEN_MS))
    preparation.check()
    assert preparation.to_measure(9.0, IDLE_SINCE) is None
    assert preparation.complete


def test_the_expected_duration_of_a_run_follows_from_the_one_before() -> None:
    preparation = measuring((1, 1), (4, 1), (2, 1))
    assert preparation.to_measure(0.0, IDLE_SINCE) == ("a:1", 1, FIRST_GUESS_S, ())
    preparation.measuring("a:1")
    preparation.measured("a:1", 1, 0.01, now=0.0)
    assert preparation.to_measure(9.0, IDLE_SINCE) == ("a:1", 4, pytest.approx(0.04), ())
    preparation.measuring("a:1")
    preparation.measured("a:1", 4, 0.02, now=9.0)
    assert preparation.to_measure(19.0, IDLE_SINCE) == ("a:1", 2, pytest.approx(0.02), ())


def test_a_device_with_other_work_measures_for_a_tenth_of_its_time_at_most() -> None:
    preparation = measuring((1, 5))
    preparation.measuring("a:1")
    preparation.measured("a:1", 1, 0.01, now=10.0)
    due_s = 10.0 + 0.01 / SHARE_OF_TIME
    assert preparation.to_measure(due_s - 1e-6, busy_until_s=10.0) is None
    assert preparation.to_measure(due_s, busy_until_s=10.0) is not None
    assert preparation.to_measure(due_s + 1e-6, busy_until_s=10.0) is not None


def test_a_device_without_other_work_measures_all_the_time() -> None:
    preparation = measuring((1, 5))
    preparation.measuring("a:1")
    preparation.measured("a:1", 1, 0.5, now=10.0)
    assert preparation.to_measure(10.0, busy_until_s=10.0 - IDLE_S + 1e-6) is None
    assert preparation.to_measure(10.0, busy_until_s=10.0 - IDLE_S) is not None
    assert preparation.to_measure(10.0, busy_until_s=10.0 - IDLE_S - 1e-6) is not None


def test_a_run_that_failed_is_tried_again_after_a_while_though_the_device_is_idle() -> None:
    preparation = measuring((1, 1))
    preparation.measuring("a:1")
    preparation.measured("a:1", 1, None, now=10.0)
    preparation.check()
    assert preparation.to_measure(10.0 + RETRY_S - 1e-6, IDLE_SINCE) is None
    assert preparation.to_measure(10.0 + RETRY_S, IDLE_SINCE) == ("a:1", 1, FIRST_GUESS_S, ())


def test_a_run_of_a_version_that_was_let_go_meanwhile_is_not_counted() -> None:
    preparation = measuring((1, 1))
    preparation.measuring("a:1")
    preparation.want([])
    preparation.measured("a:1", 1, 0.01, now=10.0)
    preparation.check()
    assert preparation.complete


def test_a_run_of_a_size_that_is_not_next_is_not_taken_off_the_plan() -> None:
    preparation = measuring((2, 1))
    preparation.measuring("a:1")
    preparation.measured("a:1", 1, 0.01, now=0.0)
    assert preparation.to_measure(9.0, IDLE_SINCE) == ("a:1", 2, pytest.approx(0.02), ())


def test_the_next_version_is_measured_while_the_first_has_a_run_on_its_way() -> None:
    preparation = wanting("a:1", "b:1")
    for ref in ("a:1", "b:1"):
        preparation.reported(prepared(ref, None, measure=((1, 1),)))
    preparation.measuring("a:1")
    run = preparation.to_measure(0.0, IDLE_SINCE)
    assert run is not None
    assert run[0] == "b:1"


def measuring_open(*plan: tuple[int, int, tuple[int, ...]]) -> Preparation:
    """One version with open dimensions, prepared, with these (batch, runs, extents) to be measured."""
    preparation = wanting("a:1")
    preparation.to_prepare()
    preparation.reported(msgspec.structs.replace(prepared("a:1", None), measure=plan))
    return preparation


def test_runs_of_extents_are_measured_as_the_worker_planned() -> None:
    preparation = measuring_open((1, 2, (8,)), (1, 1, (16,)))
    ran, now = [], 0.0
    while (run := preparation.to_measure(now, IDLE_SINCE)) is not None:
        ran.append((run.batch, run.extents))
        preparation.measuring("a:1")
        preparation.measured("a:1", run.batch, 0.01, now, run.extents)
        preparation.check()
        now += 1.0
    assert ran == [(1, (8,)), (1, (8,)), (1, (16,))]


def test_a_run_of_other_extents_than_are_next_is_not_taken_off_the_plan() -> None:
    preparation = measuring_open((1, 1, (8,)))
    preparation.measuring("a:1")
    preparation.measured("a:1", 1, 0.01, 0.0, (16,))
    run = preparation.to_measure(9.0, IDLE_SINCE)
    assert run is not None
    assert (run.batch, run.extents) == (1, (8,))


def test_the_duration_of_a_run_of_extents_is_expected_between_those_of_fewer_and_of_more_elements() -> None:
    preparation = measuring_open((1, 1, (8,)), (1, 1, (32,)), (2, 1, (8,)), (4, 1, (16,)), (1, 1, (4,)))
    expected = []
    for duration_s in (0.010, 0.022, 0.1, 0.5, 0.0):
        run = preparation.to_measure(9.0, IDLE_SINCE)
        assert run is not None
        expected.append(run.expected_s)
        preparation.measuring("a:1")
        preparation.measured("a:1", run.batch, duration_s, -9.0, run.extents)
    # 8 elements, 32, then 16 between them, 64 beyond the most, 4 below the least
    assert expected == pytest.approx([FIRST_GUESS_S, 0.010 * 4, 0.010 + 0.012 / 3, 0.022 * 2, 0.010])


def test_after_a_run_that_did_not_fit_neither_it_nor_larger_ones_are_sent() -> None:
    preparation = measuring_open((4, 2, (16,)), (2, 1, (32,)), (8, 1, (16,)), (4, 1, (32,)))
    preparation.measuring("a:1")
    preparation.did_not_fit("a:1", 4, (16,), now=0.0)
    preparation.check()
    run = preparation.to_measure(RETRY_S, IDLE_SINCE)
    assert run is not None
    assert (run.batch, run.extents) == (2, (32,))
    preparation.measuring("a:1")
    preparation.measured("a:1", 2, 0.01, 1.0, (32,))
    assert preparation.to_measure(9.0, IDLE_SINCE) is None
    assert preparation.again_at() < 9.0, "a worker that does not say more is asked again"


def test_the_last_run_that_does_not_fit_ends_the_plan() -> None:
    preparation = measuring_open((4, 2, (16,)))
    preparation.measuring("a:1")
    preparation.did_not_fit("a:1", 4, (16,), now=1.0)
    assert preparation.to_measure(9.0, IDLE_SINCE) is None
    assert 1.0 < preparation.again_at() < 9.0
    preparation.want([])
    preparation.did_not_fit("a:1", 4, (16,), now=1.0)
    preparation.check()
