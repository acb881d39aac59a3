"""Batch sizes of black-box containers: how they grow, back off, and what is expected of a batch."""

from collections.abc import Callable

import numpy as np
import pytest

from controller.core.batching import QUIET, STEP, Aimd, BlackBoxCurve, QuantileLine, fit_quantile, make_black_box
from mesh import wire

Foreign = Callable[[np.random.Generator, float], float]  # how long what takes so long alone takes beside others


def run(
    curve: BlackBoxCurve, batches: int, base_s: float, row_s: float, noise: float = 0.0, seed: int = 1
) -> list[int]:
    """Full batches one after the other; the limits that they led to."""
    rng = np.random.default_rng(seed)
    limits = []
    for _ in range(batches):
        rows = curve.batch_max
        curve.learn(rows, (base_s + row_s * rows) * (1 + noise * rng.random()))
        limits.append(curve.batch_max)
    return limits


def black_box(method: str = "aimd", *, objective_s: float = 0.02, rows_max: int = 1024, size: int = 1) -> BlackBoxCurve:
    return make_black_box(wire.Batching(method=method, objective_s=objective_s, size=size), rows_max)


def test_the_first_batches_are_small() -> None:
    for method in ("aimd", "quantile", "none"):
        assert black_box(method).batch_max == 1


def test_a_full_batch_within_the_objective_adds_a_step_and_a_miss_takes_a_tenth() -> None:
    limit = Aimd(0.02, 1024)
    limit.ran(1, 0.001)
    assert limit.rows == 5
    limit.ran(5, 0.02)
    assert limit.rows == 9
    limit.ran(9, 0.0201)
    assert limit.rows == 8  # 8.1


def test_a_batch_that_was_not_full_raises_nothing() -> None:
    limit = Aimd(0.02, 1024, rows=9, exact=9.0)
    limit.ran(8, 0.001)
    assert limit.rows == 9


def test_a_small_batch_that_was_slow_for_once_does_not_lower_the_limit_below_one() -> None:
    limit = Aimd(0.02, 1024)
    for _ in range(10):
        limit.ran(1, 1.0)
    assert limit.rows == 1


@pytest.mark.parametrize("method", ["aimd", "quantile"])
def test_the_limit_settles_around_the_size_that_meets_the_objective(method: str) -> None:
    limits = run(black_box(method), 400, base_s=0.002, row_s=0.0001, noise=0.05)  # 20 ms: 171 rows at 5 %, 180 without
    assert all(150 <= limit <= 190 for limit in limits[-100:]), limits[-100:]


@pytest.mark.parametrize("method", ["aimd", "quantile"])
def test_the_limit_follows_when_the_code_becomes_slower(method: str) -> None:
    curve = black_box(method)
    run(curve, 400, base_s=0.002, row_s=0.0001)
    limits = run(curve, 400, base_s=0.002, row_s=0.001, seed=2)
    assert all(12 <= limit <= 24 for limit in limits[-50:]), limits[-50:]


@pytest.mark.parametrize(("method", "batches"), [("aimd", 120), ("quantile", 320)])
def test_the_limit_follows_when_the_code_becomes_faster(method: str, batches: int) -> None:
    curve = black_box(method)
    run(curve, 400, base_s=0.006, row_s=0.0003)  # 46 rows
    limits = run(curve, batches, base_s=0.002, row_s=0.0001, seed=2)  # 180
    assert 140 <= limits[-1] <= 200, limits


@pytest.mark.parametrize(("base_s", "row_s"), [(0.002, 0.0001), (0.006, 0.0003), (0.001, 0.006)])
def test_few_batches_miss_the_objective_whatever_the_size_is_that_meets_it(base_s: float, row_s: float) -> None:
    rng = np.random.default_rng(4)
    limit = Aimd(0.02, 1024)
    flying = [limit.rows, limit.rows]  # one runs, the next one is bound with the limit of before
    missed = []
    for _ in range(500):
        rows = flying.pop(0)
        duration_s = (base_s + row_s * rows) * (1 + 0.05 * rng.exponential())
        missed.append(duration_s > 0.02)
        limit.ran(rows, duration_s)
        flying.append(limit.rows)
    assert np.mean(missed[100:]) < 0.25


def under_load(limit: Aimd, batches: int, foreign: Foreign, seed: int, row_s: float = 0.0001) -> "np.ndarray":
    """Full batches of 2 ms + row_s each, two in flight, while others use the processor. [batch, (rows, duration)]."""
    rng = np.random.default_rng(seed)
    flying = [limit.rows, limit.rows]
    ran = []
    for _ in range(batches):
        rows = flying.pop(0)
        duration_s = foreign(rng, 0.002 + row_s * rows)
        limit.ran(rows, duration_s)
        ran.append((rows, duration_s))
        flying.append(limit.rows)
    return np.array(ran)


def hogs(slower: float, share: float, stall_s: float) -> Foreign:
    """Processes that never rest: everything takes up to `slower` times as long, and some of it a time slice more."""
    return lambda rng, s: s * rng.uniform(1, slower) + (rng.exponential(stall_s) if rng.random() < share else 0.0)


def throttled(share: float) -> Foreign:
    """A quota of the processor: now and again all of it is taken away for longer than the objective."""
    return lambda rng, s: s * (1 + 0.05 * rng.exponential()) + (rng.uniform(0.02, 0.05) if rng.random() < share else 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("foreign", "best"), [(hogs(1.6, 0.2, 0.004), 87), (hogs(2.2, 0.35, 0.006), 64)])
def test_beside_other_processes_the_limit_stays_around_the_size_of_most_goodput(
    foreign: Foreign, best: int, seed: int
) -> None:
    limit = Aimd(0.02, 1024)
    rows, durations = under_load(limit, 600, foreign, seed)[100:].T
    assert 0.7 * best <= np.median(rows) <= 1.3 * best
    assert rows.min() >= best / 3
    assert rows.max() <= 2 * best
    assert np.mean(durations > 0.02) < 0.2


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("share", [0.1, 0.25])
def test_misses_that_smaller_batches_would_not_have_been_spared_do_not_bring_the_limit_down_to_one(
    share: float, seed: int
) -> None:
    rows = under_load(Aimd(0.02, 1024), 600, throttled(share), seed)[100:, 0]
    assert np.median(rows) >= 40
    assert rows.min() >= 10


def test_code_that_really_became_slower_is_believed_though_it_usually_took_little() -> None:
    limit = Aimd(0.02, 64)
    under_load(limit, 100, throttled(0.0), 1)
    assert limit.rows == 64  # 8 ms: the operator allows no more
    rows = under_load(limit, 60, throttled(0.0), 2, row_s=0.002)[:, 0]  # 9 rows
    assert 6 <= rows[-1] <= 10


def test_one_row_that_stalled_says_nothing_about_full_batches() -> None:
    limit = Aimd(0.02, 1024, rows=100, exact=100.0)
    for _ in range(10):
        limit.ran(1, 0.001)
    limit.ran(1, 0.5)
    assert limit.rows == 100
    limit.ran(100, 0.021)  # nothing as large was seen: it is believed
    assert limit.rows == 90


def test_a_step_is_small_after_a_miss_until_all_has_gone_well_for_long() -> None:
    limit = Aimd(0.02, 1024, rows=80, exact=80.0)
    limit.ran(80, 0.03)
    assert limit.exact == 72.0
    limit.ran(72, 0.01)
    assert limit.exact == pytest.approx(72.0 * 41 / 40)
    for _ in range(QUIET - 1):
        limit.ran(limit.rows, 0.01)
    before = limit.exact
    limit.ran(limit.rows, 0.01)
    assert limit.exact == before + STEP


def test_a_batch_sent_before_the_limit_was_lowered_does_not_lower_it_once_more() -> None:
    limit = Aimd(0.02, 1024, rows=100, exact=100.0)
    limit.ran(100, 0.03)
    limit.ran(100, 0.03)
    assert limit.rows == 90
    limit.ran(90, 0.03)
    assert limit.rows == 81


def test_fixed_and_none_do_not_move_and_nothing_exceeds_what_one_request_may_have() -> None:
    assert set(run(black_box("fixed", size=16), 50, 0.001, 0.0)) == {16}
    assert set(run(black_box("none"), 50, 0.001, 0.0)) == {1}
    assert max(run(black_box("aimd", rows_max=32), 50, 0.001, 0.0)) == 32
    assert black_box("fixed", size=64, rows_max=32).batch_max == 32


def test_a_quantile_is_fitted_not_a_mean() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 100, 400).astype(float)
    durations = (0.001 + 0.0002 * sizes) * np.where(rng.random(400) < 0.1, 1.5, 1.0)
    base_s, row_s = fit_quantile(sizes, durations, 0.99)
    assert base_s + row_s * 100 == pytest.approx(1.5 * 0.021, rel=0.05)


def test_a_quantile_limit_never_reaches_far_beyond_what_was_seen() -> None:
    limit = QuantileLine(0.02, 1024)
    limit.ran(1, 1e-6)
    assert limit.rows <= 2
    limit.ran(2, 1e-6)
    assert limit.rows <= 3


def test_the_very_first_batch_is_not_learned_from() -> None:
    curve = black_box()
    first_s = curve.exec_s(1)
    curve.learn(1, 5.0)  # imports, compiles, fills caches
    assert curve.exec_s(1) == first_s
    assert curve.batch_max == 1


def test_durations_are_learned_from_real_batches_and_sizes_never_seen_are_taken_to_be_in_proportion() -> None:
    curve = black_box("fixed", size=64)
    for rows in (1, 8, 16, 4, 32, 2, 24, 12) * 6:
        curve.learn(rows, 0.004 + 0.0005 * rows)
    assert curve.exec_s(16) == pytest.approx(0.012, rel=0.05)
    assert curve.exec_s(64) == pytest.approx(curve.exec_s(32) * 2, rel=0.01)
    assert curve.largest(0.012, 64) in (15, 16)
    assert all(a <= b for a, b in zip(curve.base_s, curve.base_s[1:], strict=False))


def test_one_outlier_moves_the_expectation_a_little_only() -> None:
    curve = black_box("fixed", size=8)
    for _ in range(50):
        curve.learn(8, 0.01)
    curve.learn(8, 10.0)
    assert curve.exec_s(8) < 0.012


def test_what_is_forgotten_lets_the_next_one_in() -> None:
    curve = black_box()
    for _ in range(10):
        curve.learn(1, 2.0)
    assert curve.exec_s(1) > 1.0
    curve.forget()
    assert curve.exec_s(1) < 0.001


def test_a_replica_starts_from_what_another_has_shown() -> None:
    old, new = black_box(), black_box()
    run(old, 100, 0.001, 0.0001)
    new.inherit(old)
    assert new.batch_max == old.batch_max
    assert new.base_s == old.base_s
