"""When a lane comes free."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.estimation.forecast import OVERDUE_S_MIN, OVERDUE_SHARE, LaneForecast


def test_a_lane_with_nothing_to_do_is_free_now() -> None:
    lane = LaneForecast()
    assert lane.free_at(5.0) == 5.0
    assert len(lane) == 0


def test_a_lane_is_free_when_what_was_sent_has_ended_one_after_the_other() -> None:
    lane = LaneForecast()
    assert lane.add(1, 2.0, 10.0, 10.0) == 12.0
    assert lane.add(2, 3.0, 10.0, 10.0) == 15.0
    assert lane.free_at(10.0) == 15.0
    assert [lane.end_of(1, 10.0), lane.end_of(2, 10.0)] == [12.0, 15.0]
    assert len(lane) == 2


def test_an_action_that_cannot_start_yet_leaves_a_gap() -> None:
    lane = LaneForecast()
    lane.add(1, 1.0, 10.0, 10.0)
    assert lane.add(2, 1.0, 20.0, 10.0) == 21.0
    assert lane.free_at(10.0) == 21.0
    assert lane.end_of(1, 10.0) == 11.0


def test_an_action_that_ends_early_or_late_moves_those_behind_it() -> None:
    lane = LaneForecast()
    lane.add(1, 2.0, 10.0, 10.0)
    lane.add(2, 3.0, 10.0, 10.0)
    lane.ended(1, 11.0)
    assert lane.free_at(11.0) == 14.0
    late = LaneForecast()
    late.add(1, 2.0, 10.0, 10.0)
    late.add(2, 3.0, 10.0, 10.0)
    late.ended(1, 13.5)
    assert late.free_at(13.5) == 16.5


def test_an_action_past_its_expected_end_is_expected_to_end_after_another_tenth_of_what_it_took() -> None:
    lane = LaneForecast()
    lane.add(1, 2.0, 10.0, 10.0)
    lane.add(2, 3.0, 10.0, 10.0)
    assert lane.free_at(11.999) == 15.0
    assert lane.free_at(12.0) == 15.0
    assert lane.free_at(12.5) == pytest.approx(12.5 + OVERDUE_SHARE * 2.5 + 3.0)
    assert lane.end_of(1, 12.5) == pytest.approx(12.5 + OVERDUE_SHARE * 2.5)


def test_a_very_short_action_past_its_end_is_given_a_moment() -> None:
    lane = LaneForecast()
    lane.add(1, 1e-5, 10.0, 10.0)
    assert lane.free_at(10.00002) == pytest.approx(10.00002 + OVERDUE_S_MIN)


def test_what_ends_out_of_turn_does_not_make_the_lane_free_earlier() -> None:
    lane = LaneForecast()
    lane.add(1, 2.0, 10.0, 10.0)
    lane.add(2, 3.0, 10.0, 10.0)
    lane.ended(2, 10.5)
    assert lane.free_at(10.5) == 12.5
    lane.ended(1, 10.2)
    assert lane.free_s == 10.5
    assert lane.free_at(10.2) == 10.5


def test_the_end_of_an_action_that_was_never_sent_changes_nothing() -> None:
    lane = LaneForecast()
    lane.add(1, 2.0, 10.0, 10.0)
    lane.ended(7, 99.0)
    assert lane.free_at(10.0) == 12.0
    with pytest.raises(KeyError):
        lane.end_of(7, 10.0)


@settings(max_examples=200)
@given(
    sent=st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.001, 3.0)), min_size=1, max_size=6),
    now=st.floats(0.0, 40.0),
    later=st.floats(0.0, 10.0),
)
def test_a_lane_is_free_when_its_last_action_ends_and_never_earlier_as_time_goes_by(
    sent: list[tuple[float, float]], now: float, later: float
) -> None:
    lane = LaneForecast()
    for number, (not_before_s, expected_s) in enumerate(sent):
        lane.add(number, expected_s, not_before_s, 0.0)
    assert lane.free_at(now) == pytest.approx(lane.end_of(len(sent) - 1, now))
    assert now <= lane.free_at(now) <= lane.free_at(now + later) + 1e-9
    ends = [lane.end_of(number, now) for number in range(len(sent))]
    assert ends == sorted(ends)
