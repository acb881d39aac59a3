"""Rows of an answer as printed text."""

import numpy as np
from rich.table import Table

from frontend.client.client import Prediction
from gearmesh.cli.terminal.answers import answer_shown, in_json, row_text


def test_a_row_of_scores_shows_the_best_by_name() -> None:
    assert row_text(np.array([0.1, 0.7, 0.2]), ["cat", "dog"]) == "dog (0.7), 2 (0.2), cat (0.1)"
    assert row_text(np.arange(10.0), []) == "9 (9), 8 (8), 7 (7), 6 (6), 5 (5)"


def test_a_row_of_one_value_shows_it_and_the_class_that_it_names() -> None:
    assert row_text(np.array([1]), ["cat", "dog"]) == "dog (1)"
    assert row_text(np.array([7]), ["cat", "dog"]) == "7"
    assert row_text(np.array([-1]), ["cat", "dog"]) == "-1"
    assert row_text(np.array([1.25]), ["cat", "dog"]) == "1.25"
    assert row_text(np.array([True]), []) == "True"


def test_a_row_of_strings_shows_the_first_as_they_are() -> None:
    assert row_text(np.array(["cat"], object), ["dog"]) == "cat"
    assert row_text(np.array([b"\xff", "b", "c", "d", "e", "f", "g"], object), []) == "b'\\xff', b, c, d, e and 2 more"


def test_a_row_with_dimensions_of_its_own_shows_its_shape_and_range() -> None:
    outputs = {"map": np.arange(12.0).reshape(2, 3, 2), "none": np.empty((1, 0, 4))}
    shown = []
    for array in outputs.values():
        table, *_ = answer_shown(Prediction({"y": array}, "m", "1", 1.0, 1.0, 1, "cpu:0", {"status": "ok"}), [])
        assert isinstance(table, Table)
        shown.append([str(cell) for column in table.columns for cell in column.cells])
    assert shown == [["0", "1", "[3, 2], 0 to 5", "[3, 2], 6 to 11"], ["0", "[0, 4]"]]


def test_an_answer_without_any_element_is_shown() -> None:
    outputs = {"boxes": np.empty((0, 4), np.float32)}
    nothing = Prediction(outputs, "m", "1", 1.0, 1.0, 1, "cpu:0", {"status": "ok"})
    table, *_ = answer_shown(nothing, [])
    assert isinstance(table, Table)
    assert table.row_count == 0


def test_json_has_text_for_bytes_that_are_text_and_base64_for_others() -> None:
    assert in_json([[b"a", "b"], [b"\xff\x00", 1.5]]) == [["a", "b"], [{"base64": "/wA="}, 1.5]]
