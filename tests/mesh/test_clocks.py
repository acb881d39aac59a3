"""mesh/clocks.py: the offset between two clocks, by a minimum filter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.clocks import SPAN_S, OffsetFilter


def test_nothing_is_claimed_before_both_directions_are_known() -> None:
    clock = OffsetFilter()
    assert (clock.smallest_s, clock.offset_s, clock.round_trip_s) == (None, 0.0, 0.0)
    clock.heard(sent_s=100.0, remote_delta_s=None, now=1.0)
    assert (clock.smallest_s, clock.offset_s, clock.round_trip_s) == (-99.0, 0.0, 0.0)


def test_the_offset_is_half_the_difference_of_the_smallest_deltas() -> None:
    clock = OffsetFilter()  # the peer's clock is 100 s ahead, and a transfer takes 0.5 s
    clock.heard(sent_s=101.0, remote_delta_s=100.5, now=1.5)
    assert clock.smallest_s == -99.5
    assert clock.offset_s == 100.0
    assert clock.round_trip_s == 1.0


def test_a_slow_message_does_not_change_the_estimate_and_a_quicker_one_does() -> None:
    clock = OffsetFilter()
    clock.heard(sent_s=1.0, remote_delta_s=0.5, now=1.5)
    clock.heard(sent_s=2.0, remote_delta_s=0.5, now=4.0)
    assert clock.smallest_s == 0.5
    clock.heard(sent_s=5.0, remote_delta_s=0.5, now=5.25)
    assert clock.smallest_s == 0.25


def test_an_envelope_without_the_peers_delta_leaves_what_it_said_before() -> None:
    clock = OffsetFilter()
    clock.heard(sent_s=1.0, remote_delta_s=0.5, now=1.5)
    clock.heard(sent_s=2.0, remote_delta_s=None, now=2.5)
    assert clock.remote_smallest_s == 0.5


@pytest.mark.parametrize(
    ("second_s", "third_s", "smallest_s"),
    [
        (SPAN_S - 0.5, 2 * SPAN_S - 0.5, 1.0),  # the first sample is of the last span
        (SPAN_S, 2 * SPAN_S - 0.5, 1.0),
        (SPAN_S, 2 * SPAN_S, 2.0),  # two spans later it is forgotten
        (SPAN_S, 2 * SPAN_S + 0.5, 2.0),
    ],
)
def test_a_sample_counts_for_one_to_two_spans(second_s: float, third_s: float, smallest_s: float) -> None:
    clock = OffsetFilter()
    clock.heard(sent_s=-1.0, remote_delta_s=None, now=0.0)
    clock.heard(sent_s=second_s - 2.0, remote_delta_s=None, now=second_s)
    assert clock.smallest_s == 1.0
    clock.heard(sent_s=third_s - 3.0, remote_delta_s=None, now=third_s)
    assert clock.smallest_s == smallest_s


@pytest.mark.parametrize(("after_s", "smallest_s"), [(19.5, 1.0), (20.0, 5.0), (20.5, 5.0), (1000.0, 5.0)])
def test_a_link_that_was_quiet_for_two_spans_begins_anew(after_s: float, smallest_s: float) -> None:
    clock = OffsetFilter()
    clock.heard(sent_s=-1.0, remote_delta_s=None, now=0.0)
    clock.heard(sent_s=after_s - 5.0, remote_delta_s=None, now=after_s)
    assert clock.smallest_s == smallest_s


def test_an_envelopes_age_is_counted_in_our_clock_and_is_never_negative() -> None:
    clock = OffsetFilter()
    clock.heard(sent_s=101.0, remote_delta_s=100.5, now=1.5)  # offset 100
    assert clock.age_s(sent_s=110.0, now=10.75) == 0.75
    assert clock.age_s(sent_s=110.0, now=10.0) == 0.0
    assert clock.age_s(sent_s=110.0, now=9.0) == 0.0


def test_the_first_envelope_from_another_host_is_not_taken_for_hours_old() -> None:
    clock = OffsetFilter()  # the peer booted 10 000 s after us; its own deltas are unknown
    clock.heard(sent_s=5.0, remote_delta_s=None, now=10_005.0)
    assert clock.age_s(sent_s=5.0, now=10_005.0) < 1.0


@given(
    offset_s=st.floats(-1e5, 1e5),
    there_s=st.lists(st.floats(0.0, 0.1), min_size=1, max_size=20),
    back_s=st.lists(st.floats(0.0, 0.1), min_size=1, max_size=20),
)
def test_the_error_is_at_most_half_the_difference_of_the_quickest_ways(
    offset_s: float, there_s: list[float], back_s: list[float]
) -> None:
    here, there = OffsetFilter(), OffsetFilter()  # the peer's clock is ours plus offset_s
    for i, way_s in enumerate(there_s):
        now = i * 0.1
        there.heard(sent_s=now, remote_delta_s=here.smallest_s, now=now + offset_s + way_s)
    for i, way_s in enumerate(back_s):
        now = 2.0 + i * 0.1
        here.heard(sent_s=now + offset_s, remote_delta_s=there.smallest_s, now=now + way_s)
    assert abs(here.offset_s - offset_s) <= abs(min(there_s) - min(back_s)) / 2 + 1e-6
    assert here.round_trip_s == pytest.approx(min(there_s) + min(back_s), abs=1e-6)


@pytest.mark.parametrize("misstated_s", [1e9, 1000.5])
def test_an_instant_that_cannot_be_moves_nothing(misstated_s: float) -> None:
    clock = OffsetFilter()
    clock.heard(sent_s=101.0, remote_delta_s=100.5, now=1.5)  # offset 100, round trip 1
    clock.heard(sent_s=misstated_s, remote_delta_s=100.5, now=2.0)  # it would have come before it was sent
    clock.heard(sent_s=102.0, remote_delta_s=-misstated_s, now=2.5)
    assert (clock.offset_s, clock.round_trip_s) == (100.0, 1.0)
    assert clock.age_s(sent_s=110.0, now=10.75) == 0.75


def test_a_clock_that_jumped_is_found_again_once_the_older_samples_have_gone() -> None:
    here, there = OffsetFilter(), OffsetFilter()  # the other clock stands still for 50 s, as in a suspended machine
    offset_s = 100.0
    for i in range(200):
        now = i * 0.25
        if i == 40:
            offset_s -= 50.0
        there.heard(sent_s=now, remote_delta_s=here.smallest_s, now=now + offset_s + 0.001)
        here.heard(sent_s=now + offset_s, remote_delta_s=there.smallest_s, now=now + 0.001)
    assert here.offset_s == pytest.approx(50.0, abs=0.01)
    assert there.offset_s == pytest.approx(-50.0, abs=0.01)
    assert here.round_trip_s == pytest.approx(0.002, abs=0.001)
