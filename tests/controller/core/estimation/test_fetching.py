"""How long workers take to fetch inputs."""

import random

from controller.core.estimation.fetching import (
    FIRST_MEGABYTE_S,
    FIRST_S,
    MARGIN,
    PAUSE_S,
    PAUSE_S_MAX,
    FetchEstimate,
)


def test_nothing_takes_no_time_and_a_slow_network_is_assumed_until_one_is_seen() -> None:
    estimate = FetchEstimate()
    assert estimate.expected_s(0) == 0.0
    assert estimate.expected_s(2_000_000) == (FIRST_S + 2 * FIRST_MEGABYTE_S) * (1 + MARGIN)
    estimate.learn(0, 5.0)
    assert estimate.expected_s(2_000_000) == (FIRST_S + 2 * FIRST_MEGABYTE_S) * (1 + MARGIN)


def test_it_learns_what_a_fetch_and_what_a_megabyte_takes() -> None:
    estimate, rng = FetchEstimate(), random.Random(5)
    for _ in range(400):
        size = rng.choice((100_000, 600_000, 4_000_000))
        estimate.learn(size, 0.0005 + size * 1e-9)
    for size in (100_000, 600_000, 4_000_000):
        assert 1.0 <= estimate.expected_s(size) / (0.0005 + size * 1e-9) < 1.1


def test_nearly_all_fetches_are_over_by_the_time_that_it_expects() -> None:
    estimate, rng = FetchEstimate(), random.Random(6)
    over = 0
    for number in range(3000):
        size = rng.choice((100_000, 600_000))
        took_s = (0.001 + size * 2e-9) * rng.lognormvariate(0.0, 0.3)
        over += number >= 1000 and took_s > estimate.expected_s(size)
        estimate.learn(size, took_s)
    assert over / 2000 < 0.1


def test_one_fetch_that_took_far_longer_changes_little_and_many_change_all() -> None:
    estimate = FetchEstimate()
    for _ in range(300):
        estimate.learn(600_000, 0.002)
    before_s = estimate.expected_s(600_000)
    estimate.learn(600_000, 1.0)
    assert estimate.expected_s(600_000) < 1.3 * before_s
    for _ in range(40):
        estimate.learn(600_000, 0.02)
    assert estimate.expected_s(600_000) > 0.015


def test_a_fetch_that_was_given_up_makes_it_longer() -> None:
    estimate = FetchEstimate()
    before_s = estimate.expected_s(600_000)
    for _ in range(20):
        estimate.missed(600_000, 0.05, 100.0)
    assert estimate.expected_s(600_000) > max(0.04, before_s)


def test_what_fetches_that_were_given_up_have_taught_is_forgotten_after_pauses_that_double() -> None:
    estimate = FetchEstimate()
    for _ in range(50):
        estimate.learn(600_000, 0.003)
    before_s, pause_s, now = estimate.expected_s(600_000), PAUSE_S, 100.0
    for _ in range(8):
        for _ in range(30):
            estimate.missed(600_000, 0.5, now)
        estimate.wake(now + pause_s - 1e-6)
        assert estimate.expected_s(600_000) > 10 * before_s
        estimate.wake(now + pause_s)
        assert estimate.expected_s(600_000) == before_s
        estimate.wake(now + 1e6)
        assert estimate.expected_s(600_000) == before_s
        pause_s = min(2 * pause_s, PAUSE_S_MAX)
    estimate.learn(600_000, 0.003)
    estimate.missed(600_000, 0.5, now)
    estimate.wake(now + PAUSE_S)
    assert estimate.expected_s(600_000) <= before_s


def test_a_fetch_that_succeeds_leaves_what_was_learned_of_those_given_up() -> None:
    estimate = FetchEstimate()
    for _ in range(20):
        estimate.missed(600_000, 0.1, 100.0)
    estimate.learn(600_000, 0.08)
    estimate.wake(1e6)
    assert estimate.expected_s(600_000) > 0.08
