"""Rows of an answer as printed text."""

import numpy as np

from gearmesh.cli.terminal.answers import row_text


def test_a_row_of_scores_shows_the_best_by_name() -> None:
    assert row_text(np.array([0.1, 0.7, 0.2]), ["cat", "dog"]) == "dog (0.7), 2 (0.2), cat (0.1)"
    assert row_text(np.arange(10.0), []) == "9 (9), 8 (8), 7 (7), 6 (6), 5 (5)"


def test_a_row_of_one_value_shows_it_and_the_class_that_it_names() -> None:
    assert row_text(np.array([1]), ["cat", "dog"]) == "dog (1)"
    assert row_text(np.array([7]), ["cat", "dog"]) == "7"
    assert row_text(np.array([-1]), ["cat", "dog"]) == "-1"
    assert row_text(np.array([1.25]), ["cat", "dog"]) == "1.25"
    assert row_text(np.array([True]), []) == "True"
