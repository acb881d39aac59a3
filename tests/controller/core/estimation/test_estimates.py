"""How long an action will take: the profile first, then what was seen."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.estimation.estimates import (
    CLOCK_MAX,
    QUANTILE,
    REBUILD_AT,
    STEP,
    STEP_MAX,
    Curve,
    LoadEstimate,
    Margin,
    Pace,
    Term,
    make_curve,
)
from mesh import wire

PROFILE = wire.Profile(exec_s={1: 0.010, 2: 0.012, 4: 0.016, 8: 0.024}, load_s=0.005)


def curve(any_batch: bool = True, batch_max: int = 8, profile: wire.Profile = PROFILE) -> Curve:
    return make_curve(profile, batch_max, any_batch, Term())


def settled(seed: int = 1, runs: int = 200, noise: float = 0.01) -> Curve:
    """A curve that has seen what its profile promised, within 1 %."""
    rng = random.Random(seed)
    one = curve()
    for _ in range(runs):
        one.learn(4, 0.016 * math.exp(rng.gauss(0.0, noise)))
    return one


# -- doubt ------------------------------------------------------------------------------------------------------------


def test_an_estimate_is_doubted_after_a_silence_until_a_batch_ends() -> None:
    one = curve()
    assert not one.doubt(1, 0.008, now=50.0)  # the profile is news
    assert not one.doubt(1, 0.008, now=50.2)
    assert not one.doubt(1, 0.004, now=50.4)  # less than half of it is not tried
    assert one.doubt(1, 0.008, now=50.4)
    assert one.exec_s(1) == pytest.approx(0.008, rel=2e-3)
    assert one.exec_s(1) < 0.008
    one.learn(1, 0.006)  # it was out of date
    assert one.exec_s(1) == pytest.approx(0.006)


def test_doubts_that_were_wrong_become_rarer_and_leave_nothing() -> None:
    one = curve()
    one.doubt(1, 0.008, now=50.0)
    doubted_at = []
    for tenth in range(500, 1500):
        if one.doubt(1, 0.008, now=tenth / 10):
            doubted_at.append(tenth / 10)
            one.learn(1, 0.010)
            assert one.exec_s(1) == pytest.approx(0.010, rel=0.01)
    gaps = [later - earlier for earlier, later in itertools.pairwise(doubted_at)]
    assert gaps == pytest.approx([0.6, 1.2, 2.4, 4.8, 9.6, 19.2, 38.4], abs=0.11)


# -- the prior --------------------------------------------------------------------------------------------------------


def test_the_profile_is_the_estimate_until_something_was_seen() -> None:
    one = curve()
    assert [one.exec_s(size) for size in (1, 2, 4, 8)] == pytest.approx([0.010, 0.012, 0.016, 0.024])


def test_between_profiled_sizes_the_estimate_is_on_the_line() -> None:
    one = curve()
    assert [one.exec_s(rows) for rows in (3, 5, 6, 7)] == pytest.approx([0.014, 0.018, 0.020, 0.022])


def test_below_the_smallest_size_the_estimate_is_that_of_the_smallest() -> None:
    one = curve(profile=wire.Profile(exec_s={4: 0.016, 8: 0.024}, load_s=0.005))
    assert [one.exec_s(rows) for rows in (1, 3, 4)] == pytest.approx([0.016, 0.016, 0.016])


def test_beyond_the_largest_size_the_estimate_grows_in_proportion() -> None:
    one = curve(batch_max=16)
    assert [one.exec_s(rows) for rows in (8, 12, 16)] == pytest.approx([0.024, 0.036, 0.048])


def test_no_rows_take_no_time() -> None:
    assert curve().exec_s(0) == 0.0


def test_a_batch_is_padded_up_to_a_size_that_is_quicker() -> None:
    profile = wire.Profile(exec_s={1: 0.003, 4: 0.006, 8: 0.010, 12: 0.013, 16: 0.010}, load_s=0.005)
    one = curve(profile=profile, batch_max=16)
    assert [one.padded(rows) for rows in (1, 3, 4, 6, 7, 8, 9, 12, 15, 16)] == [1, 3, 4, 6, 7, 8, 16, 16, 16, 16]
    assert [one.exec_s(rows) for rows in (1, 4, 8, 9, 12, 16)] == pytest.approx([0.003, 0.006] + [0.010] * 4)
    for _ in range(40):
        one.learn(16, 0.014)  # it is not that quick after all
    assert one.padded(9) == 9


def test_a_size_that_is_hardly_quicker_is_not_padded_to() -> None:
    one = curve(profile=wire.Profile(exec_s={1: 0.010, 2: 0.0097, 4: 0.016}, load_s=0.005), batch_max=4)
    assert [one.padded(rows) for rows in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert [one.exec_s(rows) for rows in (1, 2, 4)] == pytest.approx([0.010, 0.010, 0.016])  # and never falls


def test_a_duration_of_zero_in_a_profile_does_no_harm() -> None:
    one = curve(profile=wire.Profile(exec_s={1: 0.0, 2: 0.0}, load_s=0.0), batch_max=2)
    one.learn(1, 0.0)
    one.learn(2, 0.001)
    assert 0 < one.exec_s(1) <= one.exec_s(2)


# -- sizes that are padded --------------------------------------------------------------------------------------------


def test_rows_are_executed_as_they_are_where_any_batch_will_do() -> None:
    assert [curve().padded(rows) for rows in range(1, 9)] == list(range(1, 9))


def test_rows_are_padded_up_to_the_next_profiled_size() -> None:
    one = curve(any_batch=False)
    assert [one.padded(rows) for rows in range(1, 9)] == [1, 2, 4, 4, 8, 8, 8, 8]


def test_padded_rows_cost_what_the_padded_batch_costs() -> None:
    one = curve(any_batch=False)
    assert [one.exec_s(rows) for rows in range(1, 9)] == [one.exec_s(one.padded(rows)) for rows in range(1, 9)]


def test_no_batch_is_larger_than_the_largest_profiled_size_where_rows_are_padded() -> None:
    assert curve(any_batch=False, batch_max=16).batch_max == 8
    assert curve(any_batch=True, batch_max=16).batch_max == 16


# -- largest ----------------------------------------------------------------------------------------------------------


def test_largest_is_zero_below_one_row_and_the_maximum_above_all() -> None:
    one = curve()
    assert [one.largest(budget, 8) for budget in (-1.0, 0.0, 0.0099, 0.0101, 1.0, math.inf)] == [0, 0, 0, 1, 8, 8]


def test_largest_is_bound_by_the_rows_asked_for_and_by_the_largest_batch() -> None:
    one = curve()
    assert [one.largest(1.0, rows) for rows in (0, 1, 5, 8, 100)] == [0, 1, 5, 8, 8]


@settings(max_examples=200)
@given(
    durations=st.lists(st.floats(1e-4, 0.1), min_size=4, max_size=4),
    seen=st.lists(st.tuples(st.sampled_from([1, 2, 3, 5, 8]), st.floats(1e-4, 0.5)), max_size=30),
    budget_s=st.floats(1e-5, 0.5),
    any_batch=st.booleans(),
)
def test_largest_is_the_inverse_of_the_estimate(
    durations: list[float], seen: list[tuple[int, float]], budget_s: float, any_batch: bool
) -> None:
    profile = wire.Profile(exec_s=dict(zip((1, 2, 4, 8), sorted(durations), strict=True)), load_s=0.005)
    one = curve(any_batch=any_batch, profile=profile)
    for batch, duration_s in seen:
        one.learn(one.padded(batch), duration_s)
    rows = one.largest(budget_s, 8)
    assert rows == 0 or one.exec_s(rows) <= budget_s * (1 + 1e-9)
    assert rows == 8 or one.exec_s(rows + 1) > budget_s * (1 - 1e-9)


@settings(max_examples=200)
@given(
    durations=st.lists(st.floats(1e-4, 0.1), min_size=4, max_size=4),
    seen=st.lists(st.tuples(st.integers(1, 8), st.floats(1e-5, 1.0)), max_size=50),
    any_batch=st.booleans(),
)
def test_more_rows_are_never_estimated_to_take_less(
    durations: list[float], seen: list[tuple[int, float]], any_batch: bool
) -> None:
    profile = wire.Profile(exec_s=dict(zip((1, 2, 4, 8), durations, strict=True)), load_s=0.005)
    one = curve(any_batch=any_batch, profile=profile)
    for batch, duration_s in seen:
        one.learn(one.padded(batch), duration_s)
    estimates = [one.exec_s(rows) for rows in range(9)]
    assert estimates == sorted(estimates)
    assert all(math.isfinite(value) and value > 0 for value in estimates[1:])


# -- learning ---------------------------------------------------------------------------------------------------------


def test_learning_returns_the_error_that_was_seen() -> None:
    one = curve()
    assert one.learn(4, 0.032) == pytest.approx(math.log(2.0))
    assert curve().learn(4, 0.008) == pytest.approx(-math.log(2.0))


@pytest.mark.parametrize("factor", [1.5, 10.0, 1e6])
def test_one_outlier_however_large_moves_a_settled_estimate_by_at_most_one_step(factor: float) -> None:
    one = settled()
    before_s = one.exec_s(4)
    one.learn(4, 0.016 * factor)
    assert before_s < one.exec_s(4) <= before_s * math.exp(STEP)


def test_one_outlier_does_not_inflate_the_next_ten_estimates() -> None:
    one, twin = settled(), settled()
    rng = random.Random(2)
    one.learn(4, 0.8)
    for _ in range(10):
        usual_s = 0.016 * math.exp(rng.gauss(0.0, 0.01))
        assert one.exec_s(4) <= twin.exec_s(4) * math.exp(STEP) * (1 + 1e-9)
        one.learn(4, usual_s)
        twin.learn(4, usual_s)
    assert one.exec_s(4) <= twin.exec_s(4) * 1.01


def test_one_outlier_among_the_very_first_is_forgotten_soon() -> None:
    one = curve()
    one.learn(4, 1.6)
    assert one.exec_s(4) <= 0.016 * math.exp(STEP_MAX)
    for _ in range(30):
        one.learn(4, 0.016)
    assert one.exec_s(4) == pytest.approx(0.016, rel=0.05)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_a_term_converges_to_the_quantile_that_it_promises(noise: float) -> None:
    rng = random.Random(1)
    term = Term()
    covered = 0
    for i in range(6000):
        actual = rng.gauss(0.3, noise)
        covered += i >= 1000 and actual <= term.value
        term.learn(actual - term.value, 1.0)
    assert covered / 5000 == pytest.approx(QUANTILE, abs=0.05)


def test_an_estimate_covers_the_quantile_of_the_durations_that_it_promises() -> None:
    rng = random.Random(1)
    one = curve()
    covered = 0
    for i in range(6000):
        batch = rng.choice((1, 2, 3, 4, 8))
        actual_s = (0.012 + 0.003 * batch) * math.exp(rng.gauss(0.0, 0.1))
        covered += i >= 1000 and actual_s <= one.exec_s(batch)
        one.learn(batch, actual_s)
    assert covered / 5000 == pytest.approx(QUANTILE, abs=0.05)


def test_a_device_that_turns_twice_as_slow_is_followed_within_a_dozen_results() -> None:
    one = settled()
    for _ in range(12):
        one.learn(4, 0.032)
    assert one.exec_s(4) == pytest.approx(0.032, rel=0.1)


def test_a_device_that_turns_twice_as_fast_is_followed_within_forty_results() -> None:
    one = settled()
    for _ in range(40):
        one.learn(4, 0.008)
    assert one.exec_s(4) == pytest.approx(0.008, rel=0.1)


def test_an_estimate_moves_past_what_was_seen_by_no_more_than_the_coarseness_of_its_table() -> None:
    one = settled()
    for _ in range(100):
        one.learn(4, 0.020)
        assert one.exec_s(4) <= 0.020 * math.exp(REBUILD_AT)


def test_what_one_size_shows_is_shared_with_other_sizes_but_for_its_own_part() -> None:
    one = curve()
    for _ in range(30):
        one.learn(8, 0.048)
    assert one.exec_s(8) == pytest.approx(0.048, rel=0.1)
    assert 0.011 < one.exec_s(1) < 0.020


def test_what_one_model_shows_is_shared_with_the_device_s_other_models_in_part() -> None:
    device = Term()
    seen, other = make_curve(PROFILE, 8, True, device), make_curve(PROFILE, 8, True, device)
    for _ in range(30):
        seen.learn(4, 0.032)
    assert 0.016 < other.exec_s(4) < 0.5 * seen.exec_s(4) + 0.5 * 0.016


# -- LOAD and margins -------------------------------------------------------------------------------------------------


def test_a_load_is_estimated_by_its_profile_and_then_by_what_was_seen() -> None:
    estimate = LoadEstimate(0.005, Term())
    assert estimate.load_s() == pytest.approx(0.005)
    assert estimate.learn(0.010) == pytest.approx(math.log(2.0))
    assert 0.005 < estimate.load_s() <= 0.005 * math.exp(STEP_MAX)
    for _ in range(30):
        estimate.learn(0.010)
    assert estimate.load_s() == pytest.approx(0.010, rel=0.1)


def test_a_margin_grows_with_longer_delays_and_shrinks_slowly_with_shorter_ones() -> None:
    margin = Margin(0.001)
    margin.learn(0.002)
    assert margin.value_s == pytest.approx(0.001 + 0.9 * 50e-6)
    margin = Margin(0.001)
    margin.learn(0.001)
    assert margin.value_s == pytest.approx(0.001 - 0.1 * 50e-6)


def test_a_margin_stays_between_nothing_and_its_limit() -> None:
    margin = Margin(0.001)
    for _ in range(1000):
        margin.learn(1.0)
    assert margin.value_s == margin.limit_s
    for _ in range(10_000):
        margin.learn(0.0)
    assert 0.0 <= margin.value_s < 50e-6


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_margin_converges_to_its_quantile(seed: int) -> None:
    rng = random.Random(seed)
    margin = Margin(0.0003)
    covered = 0
    for i in range(6000):
        delay_s = rng.expovariate(1 / 0.001)
        covered += i >= 1000 and delay_s <= margin.value_s
        margin.learn(delay_s)
    assert covered / 5000 == pytest.approx(margin.quantile, abs=0.05)


# -- clock ------------------------------------------------------------------------------------------------------------


def test_a_slower_clock_makes_every_estimate_of_the_device_longer_at_once_and_teaches_no_term() -> None:
    device, pace = Term(), Pace()
    one, other = (make_curve(PROFILE, 8, True, device, pace) for _ in range(2))
    for _ in range(50):
        pace.seen(1980.0)
        one.learn(1, 0.010)
    before = (one.exec_s(1), other.exec_s(1), one.model.value, device.value)
    pace.seen(1800.0)
    assert one.exec_s(1) == pytest.approx(before[0] * 1.1)
    assert other.exec_s(1) == pytest.approx(before[1] * 1.1)
    assert (one.model.value, device.value) == before[2:]
    assert abs(one.learn(1, before[0] * 1.1)) < 1e-9, "as the clock says: nothing to learn"


def test_a_clock_explains_no_more_than_drift_and_none_that_is_not_told() -> None:
    """A sample of 345 MHz that was taken before the device woke must not shut everybody out."""
    pace = Pace()
    pace.seen(0.0)
    assert (pace.usual_mhz, pace.slower) == (0.0, 0.0)
    pace.seen(1980.0)
    pace.seen(345.0)
    assert pace.slower == CLOCK_MAX
    pace.seen(0.0)
    assert pace.slower == CLOCK_MAX, "what was told last holds"
    for _ in range(500):
        pace.seen(345.0)
    assert pace.slower < 0.02, "it has become the usual one: the terms have learned the rest"
    pace.seen(1980.0)
    assert pace.slower == -CLOCK_MAX
