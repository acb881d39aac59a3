"""`Prediction`: an ok answer, as both clients return it. No sockets, no time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """An ok answer."""

    outputs: dict[str, Array]  # {name: [rows, ...]}
    model: str
    version: str
    latency_ms: float  # measured by the frontend, from receipt to answer
    predicted_ms: float | None  # predicted by admission
    batch_size: int | None
    device: str | None
    answer: Mapping[str, Any] = field(repr=False)  # the whole answer without the tensors' data
    cached: bool = False
    app: str | None = None  # this and the fields below: only for an application
    default_used: bool = False  # the output is the application's default, not a model's; `answer["error"]` says why
    confidence: float | None = None
    models_used: tuple[str, ...] = ()
    decision_id: str | None = None  # for `feedback`
    margin: float | None = None  # between the two most probable classes; None if there are no classes
    disagreement: float | None = None  # 0: all models that answered agree; unusual inputs make them disagree
    batch_padded: int | None = None  # rows that were computed: `batch_size`, those asked for, and padding
    request: int | None = None  # the number that the request log has

    def __getitem__(self, name: str) -> Array:
        """The output of this name. Raises: KeyError."""
        return self.outputs[name]

    @property
    def output(self) -> Array:
        """The first output."""
        return next(iter(self.outputs.values()))


class _Draft:
    """A prediction that can still be written: the assignments of a frozen one take three times as long as these."""

    __slots__ = Prediction.__slots__


def prediction_of(outputs: dict[str, Array], answer: Mapping[str, Any]) -> Prediction:
    """The prediction in an answer whose outputs are these arrays; what the answer lacks has its default."""
    get = answer.get
    made: Any = _Draft()
    made.outputs = outputs
    made.model = get("model", "")
    made.version = get("version", "")
    made.latency_ms = get("latency_ms", 0.0)
    made.predicted_ms = get("predicted_ms")
    made.batch_size = get("batch_size")
    made.device = get("device")
    made.answer = answer
    made.cached = bool(get("cached"))
    made.app = get("app")
    made.default_used = bool(get("default_used"))
    made.confidence = get("confidence")
    made.models_used = tuple(get("models_used") or ())
    made.decision_id = get("decision_id")
    made.margin = get("margin")
    made.disagreement = get("disagreement")
    made.batch_padded = get("batch_padded")
    made.request = get("request")
    made.__class__ = Prediction
    finished: Prediction = made
    return finished
