"""An answer, as people read it."""

import base64
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from frontend.client.client import Prediction

SHOWN = 5  # of a row


def answer_shown(prediction: Prediction, labels: Sequence[str]) -> Iterator[RenderableType]:
    """Yields the first output row by row, then the latency and where the answer came from."""
    first = prediction.output
    rows = first.reshape(len(first), math.prod(first.shape[1:]))
    title = prediction.app or f"{prediction.model}:{prediction.version}"
    if prediction.default_used:
        title += " (the default answer)"
    values = rows.shape[1] == 1 or rows.dtype.kind == "O"
    large = first.ndim > 2 and not values
    table = Table("row", "shape" if large else "value" if values else "top", title=title)
    for i, row in enumerate(rows):
        table.add_row(str(i), range_text(row, first.shape[1:]) if large else row_text(row, labels))
    yield table
    took = f"{prediction.latency_ms:.2f} ms"
    if prediction.decision_id is not None:
        used = ", ".join(prediction.models_used) or "none"
        told = f"confidence {prediction.confidence:.2f}, disagreement {prediction.disagreement or 0:.2f}"
        yield f"{took}, {told}, models that answered: {used}"
        if prediction.default_used:
            yield f"the default, because: {prediction.answer['error']['message']}"
        yield f"gearmesh feedback {prediction.decision_id} --label TRUTH"
    elif prediction.cached:
        yield f"{took}, from the cache"
    else:
        predicted = "" if prediction.predicted_ms is None else f" (predicted {prediction.predicted_ms:.2f} ms)"
        padded = prediction.batch_padded or 0
        more = f", padded to {padded}," if padded > (prediction.batch_size or 0) else ""
        yield f"{took}{predicted}, batch of {prediction.batch_size}{more} on {prediction.device}"


def in_json(value: Any) -> Any:
    """The value of an output as JSON has it: bytes that are not UTF-8 become {"base64": ...}."""
    if isinstance(value, list):
        return [in_json(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def range_text(row: Any, shape: Sequence[int]) -> str:
    """The shape of a row with dimensions of its own, as of a map or of what was found, and its least and greatest."""
    span = f", {row.min():.6g} to {row.max():.6g}" if row.size else ""
    return f"{list(shape)}{span}"


def row_text(row: Any, labels: Sequence[str]) -> str:
    """The five highest scores of a row; or its single value, with the class that it names; or its first strings."""
    if row.dtype.kind == "O":
        shown = ", ".join(element if isinstance(element, str) else repr(element) for element in row[:SHOWN])
        return shown + (f" and {len(row) - SHOWN} more" if len(row) > SHOWN else "")
    if len(row) == 1:
        value = row[0]
        if row.dtype.kind in "iu" and 0 <= value < len(labels):
            return f"{labels[value]} ({value})"
        return f"{value:.6g}" if row.dtype.kind == "f" else str(value)
    best = row.argsort()[::-1][:SHOWN]
    return ", ".join(f"{labels[k] if k < len(labels) else k} ({row[k]:.3g})" for k in best)
