"""Losses between 0 and 1 from feedback."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from selection.base import Array, Kind

LossName = Literal["auto", "zero_one", "absolute", "squared"]


class FeedbackError(Exception):
    """Feedback that is not valid. `field`: label or loss."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.message, self.field = message, field


def check_loss(loss: Any, loss_max: float) -> float:
    """The loss as a share of `loss_max`, 0 to 1. Raises: FeedbackError."""
    if isinstance(loss, bool) or not isinstance(loss, (int, float)):
        raise FeedbackError(f"loss must be a number from 0 to {loss_max:g}; got {type(loss).__name__}", "loss")
    if not 0 <= loss <= loss_max:
        raise FeedbackError(f"loss must lie in 0 to {loss_max:g}; got {loss:g}", "loss")
    return float(loss) / loss_max


def check_label(label: Any, kind: Kind, shape: tuple[int, ...], classes: int, names: Sequence[str] = ()) -> Array:
    """The label as an array to compare with predictions: int64 [rows], or float64 of `shape`. Raises: FeedbackError.

    `shape`: of the predictions, [rows] or [rows, ...]. `classes`: number of classes, 0 if unbounded.
    `names`: names of the classes, allowed instead of numbers. A label of one row needs no list around it.
    """
    if kind == "numeric":
        return _numbers(label, shape)
    given = label if isinstance(label, list) else [label]
    if len(given) != shape[0]:
        raise FeedbackError(f"label must be one class, or a list of one for each of the {shape[0]} rows", "label")
    return np.array([_class(item, classes, names) for item in given], np.int64)


def losses_of(name: LossName, kind: Kind, truth: Array, predicted: Array, loss_max: float) -> float:
    """Mean loss over the rows, 0 to 1. For numbers: the error (or its square) as a share of `loss_max`, at most 1."""
    if name == "zero_one" or (name == "auto" and kind != "numeric"):
        wrong = truth != predicted
        if wrong.ndim > 1:
            wrong = wrong.reshape(len(wrong), -1).any(axis=1)
        return float(wrong.mean())
    error = np.abs(truth.astype(np.float64) - predicted)
    if name == "squared":
        error = error * error
    return float(np.minimum(error / loss_max, 1.0).mean())


def _class(item: Any, classes: int, names: Sequence[str]) -> int:
    if isinstance(item, str) and item in names:
        return list(names).index(item)
    allowed = f"an integer from 0 to {classes - 1}" if classes else "an integer"
    if isinstance(item, bool) or not isinstance(item, int):
        raise FeedbackError(f"label must be {allowed}; got {_short(item)}", "label")
    if (classes and not 0 <= item < classes) or not -(2**63) <= item < 2**63:
        raise FeedbackError(f"label must be {allowed}; got {_short(item)}", "label")
    return item


def _numbers(label: Any, shape: tuple[int, ...]) -> Array:
    flat = _flattened(label, math.prod(shape) + 1)
    if len(flat) != math.prod(shape):
        raise FeedbackError(f"label must hold {math.prod(shape)} numbers, of shape {list(shape)}", "label")
    return np.array(flat, np.float64).reshape(shape)


def _flattened(label: Any, count_max: int) -> list[float]:
    """The numbers in nested lists, at most `count_max`."""
    flat: list[float] = []
    waiting = [label]
    while waiting and len(flat) < count_max:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(reversed(item))
        elif isinstance(item, bool) or not isinstance(item, (int, float)) or not math.isfinite(item):
            raise FeedbackError(f"label must be a finite number, or lists of them; got {_short(item)}", "label")
        else:
            flat.append(float(item))
    return flat


def _short(item: Any) -> str:
    return f"{type(item).__name__} {str(item)[:40]!r}"
