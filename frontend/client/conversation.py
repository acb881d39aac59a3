"""What both Python clients say and understand: requests worded, answers read, errors named. No sockets, no time.

Needs msgpack's maps and numpy; of gearmesh only the codes, which are plain data, and the layout of strings.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import strings
from .codes import AnswerStatus, ErrorCode
from .forms import FRAMED_BYTES, RequestForm
from .prediction import Prediction as Prediction
from .prediction import prediction_of

Array = npt.NDArray[Any]
Inputs = Array | Mapping[str, Array] | Sequence[Any]


class RequestError(Exception):
    """An answer other than ok. `str()` is its message."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        error = answer.get("error") or {}
        self.status: str = answer.get("status", AnswerStatus.FAILED)
        self.code: str = error.get("code", ErrorCode.UNNAMED)
        self.message: str = error.get("message", "")
        self.field: str | None = error.get("field")
        self.retry_after_ms: float | None = error.get("retry_after_ms")
        self.predicted_ms: float | None = answer.get("predicted_ms")
        self.latency_ms: float | None = answer.get("latency_ms")
        self.request: int | None = answer.get("request")  # the number that the request log has
        super().__init__(f"{self.status} ({self.code}): {self.message}")


class Rejected(RequestError):
    """Refused before any work was done, because the budget cannot be met. `retry_after_ms`: when it might be."""


class TimedOut(RequestError):
    """The deadline passed before an answer was there."""


class Failed(RequestError):
    """The model failed, or a worker that could not be replaced in time."""


class Invalid(RequestError):
    """The request is not valid; `field` names the part that is wrong."""


class Disconnected(RequestError):
    """The client was closed while the request was in flight."""


ERRORS: dict[str, type[RequestError]] = {
    AnswerStatus.REJECTED: Rejected,
    AnswerStatus.TIMED_OUT: TimedOut,
    AnswerStatus.FAILED: Failed,
    AnswerStatus.INVALID: Invalid,
}


class RequestTarget(NamedTuple):
    """The model or application that a request asks."""

    name: str
    app: bool = False


def target_of(model: Any, x: Any, app: str | None) -> tuple[RequestTarget, Any]:
    """(target, input) from the arguments of a call: infer("m", x) or infer(x, app="a"). Raises: TypeError."""
    if app is None:
        if not isinstance(model, str) or x is None:
            raise TypeError("infer takes a model's name and an input, or an input and app=")
        return RequestTarget(model), x
    if x is None:
        model, x = None, model
    if model is not None or x is None:
        raise TypeError("infer with app= takes an input, and no model")
    return RequestTarget(app, app=True), x


class Conversation:
    """Makes requests and reads answers for both clients. Knows nothing of sockets or time."""

    def __init__(self) -> None:
        self.specs: dict[str, dict[str, Any]] = {}  # {model: its entry in the answer to "models"}
        self.apps: dict[str, dict[str, Any]] = {}  # {application: its entry in the answer to "apps"}
        self.frame_bytes_max: int | None = None  # that frontends take; None: not known
        self._forms: dict[
            RequestTarget, RequestForm
        ] = {}  # of targets that were asked; each has the spec it is made of
        self._ids = itertools.count(1)

    def next_id(self) -> int:
        """An id that this client has not used yet."""
        return next(self._ids)

    def form(self, target: RequestTarget) -> RequestForm | None:
        """The form of requests for a target that is known; None: it is not known."""
        spec = (self.apps if target.app else self.specs).get(target.name)
        if spec is None:
            return None
        form = self._forms.get(target)
        if form is None or form.spec is not spec:
            form = RequestForm(spec, target.name, app=target.app)
            if len(self._forms) > len(self.specs) + len(self.apps):  # of targets that are no more
                self._forms.clear()
            self._forms[target] = form
        return form

    def learn(self, answer: Mapping[str, Any]) -> None:
        """Takes in the answer to "models"."""
        self.specs = {model["name"]: model for model in answer["models"]}
        self.frame_bytes_max = answer.get("frame_bytes_max")

    def learn_apps(self, answer: Mapping[str, Any]) -> None:
        """Takes in the answer to "apps"."""
        self.apps = {app["name"]: app for app in answer["apps"]}
        self.frame_bytes_max = answer.get("frame_bytes_max")

    def spec(self, target: RequestTarget) -> Mapping[str, Any]:
        """The description of a model or an application; empty if it is not known."""
        return (self.apps if target.app else self.specs).get(target.name, {})

    def infer(
        self, call: int, target: RequestTarget, x: Inputs, options: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[Any]]:
        """(header, frames) of an infer request; small tensors are inside the header."""
        tensors = self._tensors(target, x)
        message: dict[str, Any] = {"op": "infer", "id": call, "app" if target.app else "model": target.name, **options}
        frames: list[Any] = []
        framed = sum(tensor.size for tensor in tensors) > FRAMED_BYTES
        inputs = []
        for tensor in tensors:
            entry: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.array.shape)}
            if framed:
                frames.append(tensor.frame())
            else:
                entry["data"] = tensor.data()
            inputs.append(entry)
        message["inputs"] = inputs
        return message, frames

    def _tensors(self, target: RequestTarget, x: Inputs) -> "list[SentTensor]":
        """The inputs in the model's dtypes, contiguous and little endian; a single row gets a batch dimension."""
        specs = self.spec(target).get("inputs", [])
        given: Mapping[str, Any] = x if isinstance(x, Mapping) else {specs[0]["name"] if specs else "x": x}
        by_name = {spec["name"]: spec for spec in specs}
        tensors = []
        for name, value in given.items():
            array = _array(name, value)
            if array.dtype.kind in strings.FIXED_KINDS and not isinstance(value, np.ndarray):
                array = np.asarray(value, object)  # numpy's own strings lose zeros at their ends
            spec = by_name.get(name)
            dtype = strings.dtype_of(array)
            if spec is not None:
                due = spec["dtype"]
                if due not in strings.VARIABLE:
                    array = converted(array, np.dtype(due))
                elif dtype is not None:
                    dtype = due
                if array.ndim == len(spec["shape"]) - 1:
                    array = array[np.newaxis]
            if dtype is None:
                array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                tensors.append(SentTensor(name, array.dtype.name, array))
            else:
                tensors.append(SentTensor(name, dtype, array, strings.elements_of(array, dtype)))
        return tensors

    def too_large(self, frames: Sequence[Any]) -> Invalid | None:
        """The error for frames so large that a frontend would close the connection; None if they fit."""
        most = self.frame_bytes_max
        if most is None or all(len(frame) <= most for frame in frames):
            return None
        largest = max(map(len, frames))
        text = f"an input of {largest} bytes is more than a frontend takes, {most} (GEARMESH_REQUEST_BYTES_MAX)"
        return Invalid(error_answer(AnswerStatus.INVALID, ErrorCode.TOO_LARGE, text, field="inputs"))

    def understand(self, header: Any, frames: Sequence[Any]) -> Prediction | RequestError | Mapping[str, Any]:
        """A prediction, an error to be raised, or any other answer as it is."""
        status = header.get("status")
        if status in ERRORS:
            return ERRORS[status](header)
        if "outputs" not in header:
            answer: Mapping[str, Any] = header
            return answer
        outputs = {}
        for i, tensor in enumerate(header.pop("outputs")):
            data = frames[i] if frames else tensor["data"]
            dtype = tensor["dtype"]
            if dtype in strings.VARIABLE:
                outputs[tensor["name"]] = strings.array_of(data, dtype, tensor["shape"])
                continue
            outputs[tensor["name"]] = np.frombuffer(data, WIRE_DTYPES.get(dtype) or _wire_dtype(dtype)).reshape(
                tensor["shape"]
            )
        return prediction_of(outputs, header)


@dataclass(frozen=True, slots=True)
class SentTensor:
    """One input of a request, as it travels."""

    name: str
    dtype: str  # of the protocol
    array: Array
    elements: list[Any] | None = None  # of strings and byte strings, in C order

    @property
    def size(self) -> int:
        """Bytes of its data."""
        return self.array.nbytes if self.elements is None else strings.size_of(self.elements)

    def data(self) -> Any:
        """As a message has it."""
        return self.array.tobytes() if self.elements is None else self.elements

    def frame(self) -> Any:
        """As a frame of its own, not copied if it is one of numbers. Raises: TypeError."""
        if self.elements is None:
            return self.array.reshape(-1).view(np.uint8).data
        return strings.packed(self.elements)


def _wire_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(name).newbyteorder("<")


WIRE_DTYPES = {
    name: _wire_dtype(name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
        "float64",
    )
}  # fmt: skip


def error_answer(status: AnswerStatus, code: ErrorCode, message: str, **fields: Any) -> dict[str, Any]:
    """An answer that is not ok, as a frontend would send it."""
    return {"status": status, "error": {"code": code, "message": message, **fields}}


def _array(name: str, value: Any) -> Array:
    """The value as an array. Raises: Invalid for lists of unequal lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        text = (
            f"{name} is no array: its rows, or lists within them, are of unequal lengths. The rows of a request have "
            "one length: fill the shorter ones up and say so in a mask, or ask for each by itself (infer_many)"
        )
        raise Invalid(error_answer(AnswerStatus.INVALID, ErrorCode.BAD_DATA, text, field="inputs")) from None


def converted(array: Array, wanted: np.dtype[Any]) -> Array:
    """The array in this dtype if no number changes except by rounding of floats; else the array itself."""
    kind, fits = array.dtype.kind, False
    if array.dtype == wanted or kind not in "biuf":
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if wanted.kind == "f":
        fits = bool((np.isfinite(cast) == np.isfinite(array)).all())
    elif wanted.kind in "iu" and kind in "biu":
        fits = np.can_cast(array.dtype, wanted) or bool((cast == array).all())
    return cast if fits else array


def tensor(name: str, array: Any) -> dict[str, Any]:
    """A tensor with its bytes inside the message."""
    plain = np.ascontiguousarray(array)
    plain = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
    return {"name": name, "dtype": plain.dtype.name, "shape": list(plain.shape), "data": plain.tobytes()}
