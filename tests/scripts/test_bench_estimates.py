"""scripts/bench_estimates.py: its figures for each estimator."""

import pytest

from scripts.bench_estimates import ESTIMATORS, errors, made_up


def test_an_outlier_inflates_the_window_for_ten_predictions_and_ours_for_none() -> None:
    durations = [0.01] * 50 + [0.03] + [0.01] * 49
    inflated = {name: errors(make, durations)[1] * 80 for name, make in ESTIMATORS.items()}
    assert inflated["window of 10"] == pytest.approx(10)
    assert inflated["gearmesh"] == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_never_changes_is_predicted_exactly(name: str) -> None:
    found, inflated = errors(ESTIMATORS[name], [0.01] * 60)
    assert max(map(abs, found)) < 1e-9
    assert inflated == 0


def test_made_up_durations_are_seeded() -> None:
    assert made_up(30, 1) == made_up(30, 1) != made_up(30, 2)
