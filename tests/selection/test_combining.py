"""Votes, averages, medians, confidence; labels and losses."""

from typing import Any

import numpy as np
import pytest

from mesh.wire import TensorSpec
from selection.base import Answers
from selection.combining import average, kind_of, median, pass_on, vote
from selection.losses import FeedbackError, check_label, check_loss, losses_of


def scores(*classes: int, of: int = 4, sure: float = 5.0) -> list[Any]:
    """Scores for which these classes win, one per row."""
    return [np.eye(of, dtype=np.float32)[list(classes)] * sure]


def asked(*models: str, kind: Any = "scores", confidence: Any = "agreement", **came: list[Any]) -> Answers:
    return Answers(models or tuple(came), came, kind, confidence)


@pytest.mark.parametrize(
    ("dtype", "shape", "kind"),
    [
        ("float32", (-1, 10), "scores"),
        ("float64", (-1, 2), "scores"),
        ("float32", (-1, 1), "numeric"),
        ("float32", (-1,), "numeric"),
        ("float32", (-1, 3, 3), "numeric"),
        ("int64", (-1,), "labels"),
        ("uint8", (-1, 1), "labels"),
        ("bool", (-1,), "labels"),
        ("int64", (-1, 5), "numeric"),
    ],
)
def test_a_spec_says_what_kind_of_answer_there_is(dtype: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(TensorSpec(name="y", dtype=dtype, shape=shape)) == kind


def test_the_heavier_side_wins_a_vote_and_confidence_is_the_share_that_agrees() -> None:
    combined = vote(asked(a=scores(1), b=scores(2), c=scores(2)), {"a": 0.6, "b": 0.2, "c": 0.2})
    assert combined.outputs[0].argmax() == 1
    assert combined.outputs[0].sum() == pytest.approx(1.0)
    assert combined.outputs[0].dtype == np.float32
    assert combined.confidence == pytest.approx(1 / 3)
    assert combined.disagreement == pytest.approx(2 / 3)


def test_a_tie_goes_to_the_surer_side() -> None:
    combined = vote(asked(a=scores(1, sure=1.5), b=scores(2, sure=9.0)), {"a": 0.5, "b": 0.5})
    assert combined.outputs[0].argmax() == 2


def test_a_missing_member_lowers_the_confidence_but_is_no_disagreement() -> None:
    combined = vote(asked("a", "b", "c", a=scores(1), b=scores(1)), {"a": 0.3, "b": 0.3, "c": 0.4})
    assert combined.confidence == pytest.approx(2 / 3)
    assert combined.disagreement == 0


def test_the_least_sure_row_counts() -> None:
    combined = vote(asked(a=scores(1, 1), b=scores(1, 3)), {"a": 0.7, "b": 0.3})
    assert combined.outputs[0].argmax(axis=1).tolist() == [1, 1]
    assert combined.confidence == 0.5


def test_confidence_may_be_the_margin_between_the_two_likeliest_classes() -> None:
    sure = pass_on(asked("a", confidence="margin", a=scores(1, sure=20.0)))
    torn = pass_on(asked("a", confidence="margin", a=[np.array([[2.0, 2.1, 0.0]], np.float32)]))
    assert sure.confidence > 0.99
    assert torn.confidence < 0.1


def test_numbers_are_averaged_by_weight_or_answered_by_their_median() -> None:
    came = {"a": [np.array([[1.0]])], "b": [np.array([[2.0]])], "c": [np.array([[99.0]])]}
    weighted = average(asked(kind="numeric", **came), {"a": 0.5, "b": 0.25, "c": 0.25})
    assert weighted.outputs[0].tolist() == [[0.5 + 0.5 + 24.75]]
    assert weighted.confidence == 0
    middle = median(asked(kind="numeric", **came))
    assert middle.outputs[0].tolist() == [[2.0]]
    assert middle.confidence == pytest.approx(1 / 3)


def test_labels_are_voted_on_and_keep_their_shape_and_dtype() -> None:
    came = {"a": [np.array([[3], [1]], np.uint8)], "b": [np.array([[3], [2]], np.uint8)]}
    combined = vote(asked(kind="labels", **came), {"a": 0.4, "b": 0.6})
    assert combined.outputs[0].tolist() == [[3], [2]]
    assert combined.outputs[0].dtype == np.uint8


@pytest.mark.parametrize("label", [10, -1, True, 1.0, "7", None, [1, 2], [], {"a": 1}, 2**70])
def test_a_label_of_another_type_or_range_is_refused(label: Any) -> None:
    with pytest.raises(FeedbackError) as refused:
        check_label(label, "scores", (1,), 10)
    assert refused.value.field == "label"
    assert len(str(refused.value)) < 200


def test_a_label_may_be_a_name_a_class_or_a_list_of_one_for_each_row() -> None:
    assert check_label("dog", "scores", (1,), 2, ("cat", "dog")).tolist() == [1]
    assert check_label([0, "dog"], "scores", (2,), 2, ("cat", "dog")).tolist() == [0, 1]
    assert check_label(7, "labels", (1,), 0).tolist() == [7]


@pytest.mark.parametrize("label", ["x", [1.0, 2.0], float("nan"), [[1.0], ["x"]], None, True])
def test_a_number_that_is_none_is_refused(label: Any) -> None:
    with pytest.raises(FeedbackError) as refused:
        check_label(label, "numeric", (1, 1), 0)
    assert refused.value.field == "label"


@pytest.mark.parametrize("loss", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True])
def test_a_loss_outside_the_stated_interval_is_refused(loss: Any) -> None:
    with pytest.raises(FeedbackError) as refused:
        check_loss(loss, 1.0)
    assert refused.value.field == "loss"


def test_losses_are_shares_of_the_stated_interval() -> None:
    assert check_loss(5, 10.0) == 0.5
    truth, said = np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0])
    assert losses_of("auto", "scores", truth, said, 1.0) == 0.5
    assert losses_of("auto", "numeric", np.array([3.0]), np.array([1.0]), 4.0) == 0.5
    assert losses_of("squared", "numeric", np.array([3.0]), np.array([1.0]), 8.0) == 0.5
    assert losses_of("absolute", "numeric", np.array([9.0]), np.array([1.0]), 4.0) == 1.0
