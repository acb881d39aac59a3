"""The public messages and their validation; docs/protocol.md describes them for other languages.

A message is one frame, a msgpack map with the tensors inside; or a header frame whose tensors have no `data`, followed
by one raw frame per tensor, in order. The answer comes in the form of the request.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode
from mesh.decoder_faults import FaultKind, read_fault
from mesh.names import NAME, VERSION
from mesh.tensors import DTYPES, byte_count

ID_LENGTH_MAX = 256
OPS = (
    "infer", "models", "status", "ping", "create_app", "update_app", "delete_app", "apps", "feedback",
)  # fmt: skip

Id = int | str


class Tensor(msgspec.Struct, forbid_unknown_fields=True):
    """One input of a request."""

    name: str
    dtype: str
    shape: list[int]
    data: memoryview | None = None  # C order, little endian; absent if the bytes follow as a frame


class Infer(msgspec.Struct, tag_field="op", tag="infer", forbid_unknown_fields=True):
    """Asks a model, or an application."""

    id: Id
    inputs: list[Tensor]
    model: str | None = None
    app: str | None = None
    version: str | None = None
    slo_ms: float | None = None
    context: str | None = None
    cache: bool = True
    weight: float = 1.0


class Models(msgspec.Struct, tag_field="op", tag="models", forbid_unknown_fields=True):
    """Asks what is deployed."""

    id: Id


class Status(msgspec.Struct, tag_field="op", tag="status", forbid_unknown_fields=True):
    """Asks for the state of the mesh."""

    id: Id


class Ping(msgspec.Struct, tag_field="op", tag="ping", forbid_unknown_fields=True):
    """Asks whether the frontend answers."""

    id: Id


class CreateApp(msgspec.Struct, tag_field="op", tag="create_app", forbid_unknown_fields=True):
    """Creates an application. `app`: the definition, see applications/definitions.py."""

    id: Id
    app: dict[str, Any]


class UpdateApp(msgspec.Struct, tag_field="op", tag="update_app", forbid_unknown_fields=True):
    """Replaces an application's definition; what was learned of models that stay is kept."""

    id: Id
    app: dict[str, Any]


class DeleteApp(msgspec.Struct, tag_field="op", tag="delete_app", forbid_unknown_fields=True):
    """Deletes an application and all that it learned."""

    id: Id
    app: str


class Apps(msgspec.Struct, tag_field="op", tag="apps", forbid_unknown_fields=True):
    """Asks for the applications, and what they learned in a context."""

    id: Id
    context: str | None = None


class Feedback(msgspec.Struct, tag_field="op", tag="feedback", forbid_unknown_fields=True):
    """Reports the truth about a decision: a label, or a loss."""

    id: Id
    decision_id: str
    label: Any = None
    loss: Any = None
    context: str | None = None


AppRequest = CreateApp | UpdateApp | DeleteApp | Apps | Feedback
Asking = Infer | Models | AppRequest  # these need to know what is deployed
Request = Infer | Models | Status | Ping | CreateApp | UpdateApp | DeleteApp | Apps | Feedback


class TensorOut(msgspec.Struct, omit_defaults=True):
    """One output of an answer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Any = None


class Error(msgspec.Struct, omit_defaults=True):
    """Why an answer is not ok."""

    code: str  # an ErrorCode or an ActionCode; a controller that is newer than this frontend may name others
    message: str
    field: str | None = None
    retry_after_ms: float | None = None


class Answer(msgspec.Struct, omit_defaults=True):
    """The single answer to a request. Fields that do not apply are absent."""

    id: Id | None
    status: str  # an AnswerStatus
    outputs: list[TensorOut] | None = None
    model: str | None = None
    version: str | None = None
    latency_ms: float | None = None
    predicted_ms: float | None = None
    batch_size: int | None = None
    device: str | None = None
    cached: bool | None = None
    cold: bool | None = None
    app: str | None = None
    default_used: bool | None = None
    confidence: float | None = None
    margin: float | None = None
    disagreement: float | None = None
    models_used: list[str] | None = None
    decision_id: str | None = None
    error: Error | None = None


@dataclass(slots=True)
class Invalid(Exception):
    """A request that is not valid or cannot be served; with `rejected`, only not now. Becomes an answer."""

    code: ErrorCode
    message: str
    field: str | None = None
    id: Id | None = None
    status: AnswerStatus = AnswerStatus.INVALID
    retry_after_ms: float | None = None

    def answer(self) -> Answer:
        """The answer with this error."""
        return Answer(
            id=self.id, status=self.status, error=Error(self.code, self.message, self.field, self.retry_after_ms)
        )


@dataclass(slots=True)
class Checked:
    """An infer request that fits its model."""

    rows: int
    tensors: list[bytes | memoryview]  # one per input of the spec, in the spec's order


_decoder = msgspec.msgpack.Decoder(Request)


def decode(header: bytes | memoryview) -> Request:
    """The request in a header frame. Raises: Invalid."""
    try:
        request: Request = _decoder.decode(header)
    except RecursionError:
        raise Invalid(ErrorCode.MALFORMED, "the message is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _explain(header, error) from None
    except msgspec.DecodeError as error:
        raise Invalid(ErrorCode.MALFORMED, f"the message is not msgpack: {str(error) or 'it ends too early'}") from None
    except UnicodeDecodeError as error:
        raise Invalid(ErrorCode.MALFORMED, f"a string in the message is not UTF-8: {error.reason}") from None
    if isinstance(request.id, str) and len(request.id) > ID_LENGTH_MAX:
        raise Invalid(ErrorCode.BAD_ID, f"id must not be longer than {ID_LENGTH_MAX} characters", "id")
    return request


def _explain(header: bytes | memoryview, error: msgspec.ValidationError) -> Invalid:
    """What is wrong with the header, in the protocol's terms, with the request's id if it can be read."""
    fault = read_fault(error)
    field, text = fault.place, fault.text
    try:
        message = msgspec.msgpack.decode(header)
    except Exception:  # what precedes the fault did decode; anything may follow it
        seen = None if fault.kind is FaultKind.MISSING else field  # the id may come after the fault
        return Invalid(
            ErrorCode.MALFORMED, f"the message is not msgpack throughout; {seen or 'as far as it is'}: {text}", seen
        )
    if not isinstance(message, dict):
        return Invalid(ErrorCode.MALFORMED, f"the message must be a map; got {type(message).__name__}")
    found = message.get("id")
    known = found if isinstance(found, (int, str)) and not isinstance(found, bool) else None
    if isinstance(known, str) and len(known) > ID_LENGTH_MAX:
        known = None
    if "op" not in message:
        return Invalid(ErrorCode.BAD_OP, f"op is missing; it is one of: {', '.join(OPS)}", "op", known)
    if message["op"] not in OPS:
        return Invalid(
            ErrorCode.BAD_OP, f"unknown op {repr(message['op'])[:64]}; it is one of: {', '.join(OPS)}", "op", known
        )
    return Invalid(ErrorCode.BAD_FIELD, f"{field or 'message'}: {text}", field, known)


def duplicate(request_id: Id) -> Invalid:
    """The error for an id that is in use."""
    return Invalid(
        ErrorCode.DUPLICATE_ID, f"id {request_id!r} is in flight on this connection already", "id", request_id
    )


def no_room(count: int, request_id: Id) -> Invalid:
    """The error for too many open requests."""
    text = f"{count} requests are in flight at this frontend, which is its limit"
    return Invalid(ErrorCode.FRONTEND_FULL, text, None, request_id, AnswerStatus.REJECTED, 50.0)


def no_memory(count: int, size: int, request_id: Id) -> Invalid:
    """The error for too many bytes of open requests."""
    text = (
        f"the inputs of the {count} requests in flight at this frontend take {size / (1 << 20):.0f} MiB, which is its "
        "limit (GEARMESH_IN_FLIGHT_MB)"
    )
    return Invalid(ErrorCode.MEMORY_FULL, text, None, request_id, AnswerStatus.REJECTED, 50.0)


def check_budget(request: Infer, slo_ms_default: float, slo_ms_max: float) -> float:
    """The budget in seconds. Raises: Invalid."""
    slo_ms = slo_ms_default if request.slo_ms is None else request.slo_ms
    if not math.isfinite(slo_ms) or slo_ms <= 0 or slo_ms > slo_ms_max:
        raise Invalid(
            ErrorCode.BAD_SLO,
            f"slo_ms must be a number above 0 and at most {slo_ms_max:g}; got {slo_ms:.12g}",
            "slo_ms",
            request.id,
        )
    return slo_ms / 1e3


def check_weight(request: Infer) -> float:
    """The value of an answer in time. Raises: Invalid."""
    if not 0.01 <= request.weight <= 100:
        raise Invalid(
            ErrorCode.BAD_WEIGHT, f"weight must lie in 0.01 to 100; got {request.weight:g}", "weight", request.id
        )
    return request.weight


def check_names(request: Infer) -> None:
    """Checks that exactly one of model and app is given, and that names have the form of names. Raises: Invalid."""
    if (request.model is None) == (request.app is None):
        raise Invalid(ErrorCode.BAD_TARGET, "give either model or app", "model", request.id)
    if request.model is not None:
        field, name, code = "model", request.model, ErrorCode.UNKNOWN_MODEL
    else:
        field, name, code = "app", request.app or "", ErrorCode.UNKNOWN_APP
    if not NAME.fullmatch(name):
        raise Invalid(code, f"{field} must match {NAME.pattern}; got {name[:80]!r}", field, request.id)
    if request.version is not None and not VERSION.fullmatch(request.version):
        text = f"version is a string of digits; got {request.version[:32]!r}"
        raise Invalid(ErrorCode.UNKNOWN_VERSION, text, "version", request.id)


class InputRules:
    """The rules for the inputs of one model, prepared for fast checks."""

    def __init__(self, spec: wire.ModelSpec, rows_max: int) -> None:
        self.spec = spec
        self.rows_max = rows_max
        first = spec.inputs[0]
        self._single = len(spec.inputs) == 1
        self._name, self._dtype, self._rest = first.name, first.dtype, list(first.shape[1:])
        self._row_bytes = byte_count(first.dtype, self._rest)

    def check(self, request: Infer, frames: Sequence[bytes | memoryview]) -> Checked:
        """The request's tensors, in the order of the spec, not copied. Raises: Invalid, which names the field."""
        if self._single and len(request.inputs) == 1:
            tensor = request.inputs[0]
            shape = tensor.shape
            data = frames[0] if len(frames) == 1 and tensor.data is None else tensor.data if not frames else None
            if (
                data is not None
                and shape
                and 1 <= shape[0] <= self.rows_max
                and len(data) == shape[0] * self._row_bytes
                and tensor.dtype == self._dtype
                and tensor.name == self._name
                and shape[1:] == self._rest
            ):
                return Checked(shape[0], [data])
        return check_inputs(request, frames, self.spec, self.rows_max)


def check_inputs(request: Infer, frames: Sequence[bytes | memoryview], spec: wire.ModelSpec, rows_max: int) -> Checked:
    """As InputRules.check, but for any number of inputs and with a message for every fault. Raises: Invalid."""
    given = request.inputs
    if frames and len(frames) != len(given):
        text = f"{len(frames)} frames follow the header; inputs names {len(given)} tensors, one frame each"
        raise Invalid(ErrorCode.BAD_FRAMES, text, "inputs", request.id)
    places = {tensor.name: i for i, tensor in enumerate(given)}
    wanted = [tensor.name for tensor in spec.inputs]
    if len(places) != len(given) or len(given) != len(wanted) or any(name not in places for name in wanted):
        names = ", ".join(tensor.name[:32] for tensor in given[:8]) or "none"
        raise Invalid(
            ErrorCode.BAD_INPUTS, f"the model takes the inputs {', '.join(wanted)}; got {names}", "inputs", request.id
        )
    rows = 0
    tensors: list[bytes | memoryview] = []
    for tensor_spec in spec.inputs:
        place = places[tensor_spec.name]
        data = frames[place] if frames else None
        rows = _check_tensor(request, place, tensor_spec, data, rows, rows_max)
        tensors.append(data if data is not None else given[place].data)  # type: ignore[arg-type]
    return Checked(rows, tensors)


def _check_tensor(
    request: Infer, place: int, spec: wire.TensorSpec, frame: bytes | memoryview | None, rows: int, rows_max: int
) -> int:
    """The rows of one tensor, if it fits its spec. Raises: Invalid."""
    tensor = request.inputs[place]
    shape = tensor.shape
    if tensor.dtype != spec.dtype:
        known = "" if tensor.dtype in DTYPES else f" (dtypes are {', '.join(DTYPES)})"
        text = f"{spec.name} must be {spec.dtype}; got {tensor.dtype[:32]!r}{known}"
        raise Invalid(ErrorCode.BAD_DTYPE, text, f"inputs[{place}].dtype", request.id)
    if len(shape) != len(spec.shape) or any(s != w for s, w in zip(shape[1:], spec.shape[1:], strict=True)):
        text = f"{spec.name} must have shape {list(spec.shape)}, -1 being the number of rows; got {shape[:8]}"
        raise Invalid(ErrorCode.BAD_SHAPE, text, f"inputs[{place}].shape", request.id)
    if not 1 <= shape[0] <= rows_max:
        text = f"{spec.name} must have 1 to {rows_max} rows; got {shape[0]}"
        raise Invalid(ErrorCode.BAD_SHAPE, text, f"inputs[{place}].shape", request.id)
    if rows and shape[0] != rows:
        text = f"all inputs must have the same number of rows; {spec.name} has {shape[0]}, others {rows}"
        raise Invalid(ErrorCode.BAD_SHAPE, text, f"inputs[{place}].shape", request.id)
    data = tensor.data if frame is None else frame
    if frame is not None and tensor.data is not None:
        text = f"{spec.name} has data in the header and a frame as well"
        raise Invalid(ErrorCode.BAD_FRAMES, text, f"inputs[{place}].data", request.id)
    wanted = byte_count(spec.dtype, shape)
    if data is None or len(data) != wanted:
        got = "none" if data is None else str(len(data))
        text = f"{spec.name}: shape {shape} of {spec.dtype} is {wanted} bytes; got {got}"
        raise Invalid(ErrorCode.BAD_DATA, text, f"inputs[{place}].data", request.id)
    return shape[0]
