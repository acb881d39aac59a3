"""The public messages, how they are read, and what is wrong with them; docs/protocol.md tells other languages.

A message is one frame, a msgpack map with the tensors inside; or a header frame whose tensors have no `data`, followed
by one raw frame per tensor, in order. The answer comes in the form of the request. Strings and byte strings are lists
in the map, and packed in frames.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from frontend.core.elements import ELEMENTS_MAX, LISTED_BYTES_MAX, bytes_of, list_length
from mesh.codes import AnswerStatus, ErrorCode
from mesh.decoder_faults import FaultKind, read_fault

ID_LENGTH_MAX = 256
SMALL_BYTES = 4 * ID_LENGTH_MAX + 8  # an id, encoded, has no more
LARGE_BYTES = 1 << 20  # of a value of any form; a larger message is looked at before it is decoded
LISTS_BYTES = 1 << 16  # in a larger message the items of lists are counted before they are decoded
DIMENSIONS_MAX, INPUTS_MAX = 64, 1024  # of a tensor, of a request: longer lists are not decoded at all
OPS = (
    "infer", "cancel", "models", "status", "ping", "create_app", "update_app", "delete_app", "apps", "feedback",
)  # fmt: skip

ANY_FIELDS = {"create_app": ("app",), "update_app": ("app",), "feedback": ("label", "loss")}  # of any form
CANCELLED = "cancelled by its client"

Id = int | str


class RequestTensor(msgspec.Struct, forbid_unknown_fields=True):
    """One input of a request."""

    name: str
    dtype: str
    shape: Annotated[list[int], msgspec.Meta(max_length=DIMENSIONS_MAX)]
    data: memoryview | list[msgspec.Raw] | None = None  # C order, little endian; strings: a list; None: a frame follows

    @property
    def data_bytes(self) -> int:
        """Bytes of the data that is here."""
        data = self.data
        return bytes_of(data) if isinstance(data, list) else len(data or b"")


class InferRequest(msgspec.Struct, tag_field="op", tag="infer", forbid_unknown_fields=True):
    """Asks a model, or an application."""

    id: Id
    inputs: Annotated[list[RequestTensor], msgspec.Meta(max_length=INPUTS_MAX)]
    model: str | None = None
    app: str | None = None
    version: str | None = None
    slo_ms: float | None = None
    context: str | None = None
    cache: bool = True
    weight: float = 1.0
    source: str | None = None  # by which a proxy tells its own clients apart
    asked_id: str | None = None  # the id that such a client gave its request: for the log, in place of `id`


class CancelRequest(msgspec.Struct, tag_field="op", tag="cancel", forbid_unknown_fields=True):
    """Ends the open request with this id. It has no answer of its own: the request is answered, if it was open."""

    id: Id


class ModelsRequest(msgspec.Struct, tag_field="op", tag="models", forbid_unknown_fields=True):
    """Asks what is deployed."""

    id: Id


class StatusRequest(msgspec.Struct, tag_field="op", tag="status", forbid_unknown_fields=True):
    """Asks for the state of the mesh."""

    id: Id


class PingRequest(msgspec.Struct, tag_field="op", tag="ping", forbid_unknown_fields=True):
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


class AppsRequest(msgspec.Struct, tag_field="op", tag="apps", forbid_unknown_fields=True):
    """Asks for the applications, and what they learned in a context."""

    id: Id
    context: str | None = None


class FeedbackRequest(msgspec.Struct, tag_field="op", tag="feedback", forbid_unknown_fields=True):
    """Reports the truth about a decision: a label, or a loss."""

    id: Id
    decision_id: str
    label: Any = None
    loss: Any = None
    context: str | None = None


class Brief(msgspec.Struct):
    """As much of any message as a refusal needs: what else is in it is skipped, and not checked."""

    id: Id
    op: str
    model: str | None = None
    app: str | None = None
    slo_ms: float | None = None
    source: str | None = None


ABSENT = msgspec.Raw()


class LargeMessage(msgspec.Struct):
    """As much of a large message as its first check needs."""

    id: Id
    op: str
    app: msgspec.Raw = ABSENT
    label: msgspec.Raw = ABSENT
    loss: msgspec.Raw = ABSENT


class LargeTensor(msgspec.Struct):
    """As much of an input as its first check needs."""

    data: msgspec.Raw = ABSENT


class LargeRequest(msgspec.Struct):
    """As much of a request with many, or large, lists as its first check needs."""

    id: Id
    inputs: Annotated[list[LargeTensor], msgspec.Meta(max_length=INPUTS_MAX)] = []


class Told(msgspec.Struct):
    """What a message that is not valid tells of itself: what else is in it is skipped, however much that is."""

    id: msgspec.Raw = ABSENT
    op: msgspec.Raw = ABSENT


AppRequest = CreateApp | UpdateApp | DeleteApp | AppsRequest | FeedbackRequest
Asking = InferRequest | ModelsRequest | AppRequest  # these need to know what is deployed
Request = (
    InferRequest
    | CancelRequest
    | ModelsRequest
    | StatusRequest
    | PingRequest
    | CreateApp
    | UpdateApp
    | DeleteApp
    | AppsRequest
    | FeedbackRequest
)


class AnswerTensor(msgspec.Struct, omit_defaults=True):
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


class ClientAnswer(msgspec.Struct, omit_defaults=True):
    """The single answer to a request. Fields that do not apply are absent."""

    id: Id | None
    status: str  # an AnswerStatus
    outputs: list[AnswerTensor] | None = None
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
    batch_padded: int | None = None
    request: int | None = None  # the number that the request log of its controller has


@dataclass(slots=True)
class RequestRefused(Exception):
    """A request that is not valid or cannot be served; with `rejected`, only not now. Becomes an answer."""

    code: ErrorCode
    message: str
    field: str | None = None
    id: Id | None = None
    status: AnswerStatus = AnswerStatus.INVALID
    retry_after_ms: float | None = None

    def answer(self) -> ClientAnswer:
        """The answer with this error."""
        return ClientAnswer(
            id=self.id, status=self.status, error=Error(self.code, self.message, self.field, self.retry_after_ms)
        )


_decoder = msgspec.msgpack.Decoder(Request)
_large = msgspec.msgpack.Decoder(LargeMessage)
_lists = msgspec.msgpack.Decoder(LargeRequest)
_anything = msgspec.msgpack.Decoder()
_told = msgspec.msgpack.Decoder(Told)
_brief = msgspec.msgpack.Decoder(Brief)
_encode = msgspec.msgpack.Encoder().encode


def decode(header: bytes | memoryview) -> Request:
    """The request in a header frame. Raises: RequestRefused."""
    if len(header) > LISTS_BYTES:
        _check_lists(header)
        if len(header) > LARGE_BYTES:
            _check_large(header)
    try:
        request: Request = _decoder.decode(header)
    except RecursionError:
        raise RequestRefused(ErrorCode.MALFORMED, "the message is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _explain(header, error) from None
    except msgspec.DecodeError as error:
        raise RequestRefused(
            ErrorCode.MALFORMED, f"the message is not msgpack: {str(error) or 'it ends too early'}"
        ) from None
    except UnicodeDecodeError as error:
        raise RequestRefused(ErrorCode.MALFORMED, f"a string in the message is not UTF-8: {error.reason}") from None
    if isinstance(request.id, str) and len(request.id) > ID_LENGTH_MAX:
        raise RequestRefused(ErrorCode.BAD_ID, f"id must not be longer than {ID_LENGTH_MAX} characters", "id")
    return request


def brief(header: bytes | memoryview) -> Brief | None:
    """What a refusal needs of the request in a header frame; None if not even that can be read."""
    try:
        found = _brief.decode(header)
    except Exception:  # the whole decoder says what is wrong, whatever it is
        return None
    return None if isinstance(found.id, str) and len(found.id) > ID_LENGTH_MAX else found


def _explain(header: bytes | memoryview, error: msgspec.ValidationError) -> RequestRefused:
    """What is wrong with the header, in the protocol's terms, with the request's id if it can be read."""
    fault = read_fault(error)
    field, text = fault.place, fault.text
    told: Any = None
    try:
        told = (_told if len(header) > LARGE_BYTES else _anything).decode(header)
    except msgspec.ValidationError:
        pass  # too large to find out what there is, and no map of names
    except Exception:  # what precedes the fault did decode; anything may follow it
        unsure = fault.kind in (FaultKind.MISSING, FaultKind.LENGTH)  # the id, or what is cut off, may come after it
        seen = None if unsure else field
        return RequestRefused(
            ErrorCode.MALFORMED, f"the message is not msgpack throughout; {seen or 'as far as it is'}: {text}", seen
        )
    if isinstance(told, Told):
        told = {name: _small(raw) for name, raw in (("id", told.id), ("op", told.op)) if raw is not ABSENT}
    if not isinstance(told, dict):
        return RequestRefused(ErrorCode.MALFORMED, f"the message must be a map; got {type(told).__name__}")
    found = told.get("id")
    known = found if isinstance(found, (int, str)) and not isinstance(found, bool) else None
    if isinstance(known, str) and len(known) > ID_LENGTH_MAX:
        known = None
    if "op" not in told:
        return RequestRefused(ErrorCode.BAD_OP, f"op is missing; it is one of: {', '.join(OPS)}", "op", known)
    if told["op"] not in OPS:
        return RequestRefused(
            ErrorCode.BAD_OP, f"unknown op {repr(told['op'])[:64]}; it is one of: {', '.join(OPS)}", "op", known
        )
    is_shape = fault.kind is FaultKind.LENGTH and field is not None and field.endswith(".shape")
    code = ErrorCode.BAD_SHAPE if is_shape else ErrorCode.BAD_FIELD
    return RequestRefused(code, f"{field or 'message'}: {text}", field, known)


def _check_large(header: bytes | memoryview) -> None:
    """Values of any form, which are decoded before they are checked, may not be so large. Raises: RequestRefused."""
    try:
        found = _large.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return  # it is found out what is wrong
    for name in ANY_FIELDS.get(found.op, ()):
        size = len(memoryview(getattr(found, name)))
        if size > LARGE_BYTES:
            text = f"{name}: it has at most {LARGE_BYTES} bytes; got {size}"
            raise RequestRefused(ErrorCode.BAD_FIELD, text, name, found.id)


def _check_lists(header: bytes | memoryview) -> None:
    """Lists of strings may not hold so much that nobody else is served meanwhile. Raises: RequestRefused."""
    try:
        found = _lists.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return  # it is found out what is wrong
    count = size = 0
    for place, tensor in enumerate(found.inputs):
        items = list_length(tensor.data)
        count += items
        size += len(memoryview(tensor.data)) if items else 0
        check_elements(count, f"inputs[{place}].data", found.id)
        if size > LISTED_BYTES_MAX:
            text = f"lists have at most {LISTED_BYTES_MAX} bytes; got {size}: larger ones travel as frames"
            raise RequestRefused(ErrorCode.BAD_DATA, f"inputs[{place}].data: {text}", f"inputs[{place}].data", found.id)


def check_elements(count: int, field: str, request_id: Id) -> None:
    """Returns if a request may have so many strings, and byte strings, up to this field. Raises: RequestRefused."""
    if count > ELEMENTS_MAX:
        text = f"{field}: a request has at most {ELEMENTS_MAX} strings; got {count}: send them in several"
        raise RequestRefused(ErrorCode.BAD_DATA, text, field, request_id)


def _small(value: msgspec.Raw) -> Any:
    """The value; its size, if it is so large that nobody needs to see it."""
    size = len(memoryview(value))
    if size > SMALL_BYTES:
        return f"of {size} bytes"
    try:
        return msgspec.msgpack.decode(value) if size else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def cancelled(request_id: Id) -> RequestRefused:
    """The error for a request that its client ends."""
    return RequestRefused(ErrorCode.CANCELLED, CANCELLED, None, request_id, AnswerStatus.FAILED)


def duplicate(request_id: Id) -> RequestRefused:
    """The error for an id that is in use."""
    return RequestRefused(
        ErrorCode.DUPLICATE_ID, f"id {request_id!r} is in flight on this connection already", "id", request_id
    )


def busy(request_id: Id) -> RequestRefused:
    """The error for a request that could not be taken in soon enough."""
    return RequestRefused(ErrorCode.FRONTEND_BUSY, BUSY_TEXT, None, request_id, AnswerStatus.REJECTED, BUSY_RETRY_MS)


def expelled() -> RequestRefused:
    """The error for a connection that has sent too much that cannot be read."""
    text = "this connection has sent too many messages that cannot be read: it is closed"
    return RequestRefused(ErrorCode.JUNK, text)


def no_room(count: int, request_id: Id) -> RequestRefused:
    """The error for too many open requests, of all clients or of one."""
    text = f"{count} requests are in flight at this frontend: that is its limit, or leaves no more for this client"
    return RequestRefused(ErrorCode.FRONTEND_FULL, text, None, request_id, AnswerStatus.REJECTED, 50.0)


def no_memory(count: int, size: int, request_id: Id) -> RequestRefused:
    """The error for too many bytes of open requests."""
    text = (
        f"the inputs of the {count} requests in flight at this frontend take {size / (1 << 20):.0f} MiB: that is its "
        "limit (GEARMESH_IN_FLIGHT_MB), or leaves no more for this client"
    )
    return RequestRefused(ErrorCode.MEMORY_FULL, text, None, request_id, AnswerStatus.REJECTED, 50.0)


BUSY_RETRY_MS = 50.0
BUSY_TEXT = "more requests come than can be taken in"
_BUSY = _encode(
    ClientAnswer(
        None,
        AnswerStatus.REJECTED,
        latency_ms=0.0,
        error=Error(ErrorCode.FRONTEND_BUSY, BUSY_TEXT, None, BUSY_RETRY_MS),
    )
)
_BUSY_HEAD, _, _BUSY_REST = _BUSY.partition(_encode("id") + _encode(None))  # around the id, which comes first
_BUSY_HEAD += _encode("id")
_BUSY_STATUS, _, _BUSY_ERROR = _BUSY_REST.partition(_encode("latency_ms") + _encode(0.0))
_BUSY_STATUS += _encode("latency_ms")


def busy_answer(request_id: Id, latency_ms: float) -> bytes:
    """The answer to a request that could not be taken in soon enough, encoded: most of it is always the same."""
    return b"".join((_BUSY_HEAD, _encode(request_id), _BUSY_STATUS, _encode(latency_ms), _BUSY_ERROR))
