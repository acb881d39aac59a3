"""frontend/core/window.py: how many calls may be open while services are behind."""

import pytest

from frontend.core.window import CALLS_MIN, GROW, GROW_CALLS, INTERVAL_S, LAG_S, SHRINK, Window

LONG, SHORT = 2 * LAG_S, LAG_S / 2


def intervals(window: Window, waits: list[list[float]], calls: int, start_s: float = 100.0) -> list[int]:
    """The limit after each interval, in which results came having waited so long."""
    limits = []
    window.turn(calls, start_s)
    for i, heard in enumerate(waits):
        for lag_s in heard:
            window.heard(lag_s)
        window.turn(calls, start_s + (i + 1) * INTERVAL_S)
        limits.append(window.limit)
    return limits


def test_there_is_no_limit_of_its_own_while_nothing_waits() -> None:
    window = Window(1000)
    assert intervals(window, [[SHORT], [], [LAG_S]], 900) == [1000] * 3
    assert window.room == float("inf")


def test_fewer_than_are_open_are_let_in_after_an_interval_in_which_all_waited() -> None:
    window = Window(1000)
    assert intervals(window, [[LONG, LONG, 3 * LONG]], 500) == [int(SHRINK * 500)]
    assert window.room < window.limit


def test_one_message_that_did_not_wait_shows_that_nothing_is_behind() -> None:
    assert intervals(Window(1000), [[LONG, SHORT, LONG]], 500) == [1000]


def test_the_least_number_is_let_in_however_long_it_lasts() -> None:
    assert intervals(Window(1000), [[LONG]] * 50, 500)[-1] == CALLS_MIN
    assert intervals(Window(10), [[LONG]] * 50, 10)[-1] == 10, "nor does a smaller limit of the operator's shrink"


def test_more_are_let_in_again_until_there_is_no_limit() -> None:
    window = Window(1000)
    limits = intervals(window, [[LONG]] + [[SHORT]] * 20, 500)
    assert limits[1] == int(GROW * limits[0]) + GROW_CALLS
    assert limits[-1] == 1000
    assert window.room == float("inf")


@pytest.mark.parametrize(("told", "limit"), [(LONG, int(SHRINK * 500)), (LAG_S, 1000)])
def test_what_a_controller_tells_holds_until_it_tells_otherwise(told: float, limit: int) -> None:
    window = Window(1000)
    window.turn(500, 99.9)
    window.told(told)
    window.turn(500, 99.9 + INTERVAL_S)
    assert window.limit == limit
    window.told(0.0)
    assert intervals(window, [[SHORT]] * 20, 500, 200.0)[-1] == 1000


@pytest.mark.parametrize(("budget_s", "limit"), [(0.1, int(SHRINK * 500)), (1.0, 1000)])
def test_calls_with_long_budgets_bear_longer_waits(budget_s: float, limit: int) -> None:
    window = Window(1000)
    for _ in range(1000):
        window.opened(budget_s)
    assert window.budget_s == pytest.approx(budget_s, rel=0.01)
    assert intervals(window, [[0.1]], 500) == [limit]
    before = intervals(window, [[]] * 20, 500, 200.0)[-1]
    assert (before, intervals(window, [[0.25]], 500, 300.0)) == (1000, [int(SHRINK * 500)])


@pytest.mark.parametrize(("budget_s", "lag_s"), [(40.0, 7.0), (600.0, 100.0)])
def test_where_all_budgets_are_long_nobody_is_refused_for_a_wait_that_harms_none(budget_s: float, lag_s: float) -> None:
    window = Window(1000)
    for _ in range(2000):
        window.opened(budget_s)
    assert intervals(window, [[lag_s]], 500) == [1000]
    assert intervals(window, [[budget_s / 2]], 500, 200.0) == [int(SHRINK * 500)]


def test_the_first_calls_count_for_more_than_a_hundredth_each() -> None:
    window = Window(1000)
    for _ in range(60):
        window.opened(40.0)
    assert window.budget_s > 4.0


def test_a_few_long_budgets_among_short_ones_change_little() -> None:
    window = Window(1000)
    for i in range(2000):
        window.opened(0.05 if i % 20 else 600.0)
    assert window.budget_s < 0.1


def test_one_very_long_budget_changes_little() -> None:
    window = Window(1000)
    window.opened(600.0)
    assert window.budget_s < 2 * 0.1


def test_within_an_interval_nothing_changes() -> None:
    window = Window(1000)
    window.turn(500, 1.0)
    window.heard(LONG)
    window.turn(500, 1.0 + 0.9 * INTERVAL_S)
    assert window.limit == 1000
