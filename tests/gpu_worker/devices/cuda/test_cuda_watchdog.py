"""When a device with CUDA graphs is given up: what was observed of its threads, and when. No clock, no thread."""

import pytest

from gpu_worker.devices.cuda.watchdog import PREPARE, HangLimits, ObservedWork, Watchdog
from tests.messages import names

LIMITS = HangLimits(least_s=10.0, times=20.0, preparing_s=60.0, prepare_s=600.0, look_s=1.0)


def exec_of(turn: int, expected_s: float = 0.001) -> ObservedWork:
    return ObservedWork("watch exec", turn, "EXEC of m:1", expected_s)


def given_up_at(*works: ObservedWork, until_s: int = 5000, ended: tuple[str, ...] = ()) -> tuple[int, str] | None:
    """Returns the second at which a device whose threads stay at these works is given up, and why."""
    dog = Watchdog(LIMITS)
    for second in range(until_s):
        why = dog.look(works, ended=ended, now=1000.0 + second)
        if why:
            return second, why
    return None


def test_what_was_issued_may_take_ten_seconds_and_no_more() -> None:
    found = given_up_at(exec_of(1))
    assert found is not None
    assert found[0] == 11
    assert names(found[1], "EXEC of m:1", "11 s", "10 s")


def test_the_limit_itself_is_not_beyond_it() -> None:
    dog = Watchdog(LIMITS)
    for now in (0.0, *range(1, 10), 10.0):
        assert dog.look([exec_of(1)], now=now) == ""
    assert dog.look([exec_of(1)], now=10.001) != ""


@pytest.mark.parametrize(("expected_s", "second"), [(0.0, 11), (0.5, 11), (0.55, 12), (3.0, 61)])
def test_what_is_expected_to_take_long_may_take_twenty_times_that(expected_s: float, second: int) -> None:
    assert (given_up_at(exec_of(1, expected_s)) or (None,))[0] == second


def test_each_work_has_its_own_time() -> None:
    """One thread works for one event after the other: only the same event, observed again and again, is too long."""
    dog = Watchdog(LIMITS)
    for second in range(200):
        assert dog.look([exec_of(turn=second // 10)], now=float(second)) == ""
    for second in range(200, 211):
        assert dog.look([exec_of(turn=20)], now=float(second)) == ""
    assert names(dog.look([exec_of(turn=20)], now=211.0), "EXEC of m:1")


def test_a_thread_that_rested_begins_anew() -> None:
    dog = Watchdog(LIMITS)
    for second in range(100):
        assert dog.look([exec_of(1)] if second % 10 else [], now=float(second)) == ""


def test_a_process_that_stood_still_is_no_device_that_hangs() -> None:
    """The process was stopped, or asleep with its machine: of an hour without observation, only two intervals count."""
    dog = Watchdog(LIMITS)
    assert dog.look([exec_of(1)], now=0.0) == ""
    assert dog.look([exec_of(1)], now=3600.0) == ""
    for second in range(3601, 3609):
        assert dog.look([exec_of(1)], now=float(second)) == ""
    assert dog.look([exec_of(1)], now=3609.0) != ""


def test_while_a_version_is_prepared_all_have_a_minute() -> None:
    preparing = ObservedWork(PREPARE, 1, "PREPARE of n:1")
    found = given_up_at(exec_of(1), preparing)
    assert found is not None
    assert found[0] == 61
    assert names(found[1], "EXEC of m:1", "61 s", "60 s")
    assert (given_up_at(exec_of(1, expected_s=4.0), preparing) or (None,))[0] == 81


def test_a_preparation_has_ten_minutes_and_the_time_that_its_weights_take() -> None:
    found = given_up_at(ObservedWork(PREPARE, 1, "PREPARE of n:1"))
    assert found is not None
    assert found[0] == 601
    assert names(found[1], "PREPARE of n:1", "601 s", "600 s")
    assert (given_up_at(ObservedWork(PREPARE, 1, "PREPARE of n:1", 50.0)) or (None,))[0] == 651


def test_issuing_that_does_not_come_back_counts_like_what_was_issued() -> None:
    found = given_up_at(ObservedWork("issue", 7, "issuing what was ordered"))
    assert found is not None
    assert found[0] == 11
    assert names(found[1], "issuing what was ordered", "11 s", "10 s")


def test_a_thread_that_is_not_there_any_more_is_told_at_once() -> None:
    found = given_up_at(ended=("watch exec", "issue"))
    assert found is not None
    assert found[0] == 0
    assert names(found[1], "watch exec")


def test_an_idle_device_is_never_given_up() -> None:
    assert given_up_at() is None


def test_patience_is_what_the_document_says() -> None:
    usual = HangLimits()
    assert (usual.least_s, usual.times, usual.preparing_s, usual.prepare_s) == (10.0, 20.0, 60.0, 600.0)
    assert usual.prepare_bytes_per_s == 10e6
