"""Which runs a measurement asks for, and the profile that it gives."""

import pytest

from gpu_worker.core.measuring import FIRST_RUNS, LADDER, MORE_BELOW_S, MORE_RUNS, Measurement
from mesh import wire


def run_plan(measurement: Measurement, duration_s: float) -> None:
    """All that the plan asks for is run, and takes so long."""
    for batch, runs, _ in measurement.next_plan():
        for _ in range(runs):
            measurement.ran(batch, duration_s)


@pytest.mark.parametrize(
    ("batch_max", "sizes"),
    [(1, (1,)), (2, (1, 2)), (5, (1, 2, 3, 4, 5)), (8, (1, 2, 3, 4, 6, 8)), (1024, LADDER)],
)
def test_sizes_are_those_of_the_ladder_up_to_the_maximum_and_the_maximum(batch_max: int, sizes: tuple[int]) -> None:
    assert Measurement(batch_max).sizes == sizes


def test_first_every_size_is_run_a_few_times_smallest_first() -> None:
    assert Measurement(4).next_plan() == tuple((batch, FIRST_RUNS, ()) for batch in (1, 2, 3, 4))


def test_a_plan_is_due_when_it_is_done_and_a_load_was_seen() -> None:
    measurement = Measurement(1)
    measurement.next_plan()
    for _ in range(FIRST_RUNS - 1):
        measurement.ran(1, 1.0)
    measurement.loaded(0.5)
    assert not measurement.due
    measurement.ran(1, 1.0)
    assert measurement.due
    unloaded = Measurement(1)
    run_plan(unloaded, 1.0)
    assert not unloaded.due


def test_quick_sizes_are_run_some_more_and_slow_ones_are_not() -> None:
    measurement = Measurement(2)
    measurement.next_plan()
    for _ in range(FIRST_RUNS):
        measurement.ran(1, MORE_BELOW_S * 0.99)
        measurement.ran(2, MORE_BELOW_S)
    assert measurement.plan() == ((1, MORE_RUNS, ()),)


def test_the_first_run_of_a_size_warms_up_and_does_not_count() -> None:
    measurement = Measurement(1)
    measurement.loaded(0.5)
    measurement.ran(1, 100.0)
    for _ in range(FIRST_RUNS - 1):
        measurement.ran(1, 1.0)
    profile = measurement.profile("eager")
    assert profile is not None
    assert profile.exec_s == {1: 1.0}


def test_the_profile_has_the_medians_once_everything_is_measured() -> None:
    measurement = Measurement(2)
    measurement.loaded(0.4)
    measurement.loaded(0.5)
    measurement.loaded(0.9)
    run_plan(measurement, 0.001)
    assert measurement.profile("eager") is None
    run_plan(measurement, 0.003)
    assert measurement.plan() == ()
    assert measurement.profile("eager") == wire.Profile(exec_s={1: 0.003, 2: 0.003}, load_s=0.5, engine="eager")


def test_there_is_no_profile_without_a_load() -> None:
    measurement = Measurement(1)
    run_plan(measurement, 1.0)
    assert measurement.profile("eager") is None
    measurement.loaded(0.5)
    assert measurement.profile("eager") is not None
