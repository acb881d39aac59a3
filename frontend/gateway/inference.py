"""Turns an OIP inference request into a mesh request, and the answer into an OIP response (JSON and raw bytes).

Pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from frontend.client.conversation import Prediction
from frontend.gateway.errors import HttpRefusal
from frontend.gateway.tensors import (
    NAMES,
    Array,
    check_shape,
    datatype_of,
    dtype_of,
    from_bytes,
    from_json,
    size_of,
    to_bytes,
    to_json,
)
from mesh.codes import ErrorCode
from mesh.decoder_faults import WORDS, read_fault
from mesh.strings import pack
from mesh.tensors import VARIABLE, byte_count

INPUTS_MAX = 256
NOTHING: Mapping[str, Any] = {}
CONTEXT_BYTES_MAX = 256
PARAMETERS = ("slo_ms", "timeout", "cache", "weight", "context", "binary_data_output")
JSON_WORDS = {**WORDS, "null": "null", "None": "null"}
NOT_SERVED = {  # {start of the name of a parameter of a tensor that cannot be ignored: why}
    "shared_memory": "shared memory is not served; send the data itself",
    "classification": "classes are not picked here; take the output without it",
}
IGNORED_SHOWN, NAME_SHOWN = 32, 64  # names that an answer tells of what was ignored; characters of each
TOLD = (  # fields of an answer that go into the response's `parameters`
    "latency_ms", "predicted_ms", "batch_size", "device", "cached", "cold", "app", "decision_id", "models_used",
    "confidence", "margin", "disagreement", "default_used", "error", "batch_padded", "request",
)  # fmt: skip


class InputTensor(msgspec.Struct):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class RequestedOutput(msgspec.Struct):
    """One requested output."""

    name: str
    parameters: dict[str, Any] | None = None


class InferenceRequest(msgspec.Struct):
    """The JSON of a request. Fields that are not here are ignored, and named in the answer."""

    inputs: Sequence[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: Sequence[RequestedOutput] | None = None
    model_name: str | None = None
    model_version: str | None = None


class KnownInput(InputTensor, forbid_unknown_fields=True):
    """An input without other fields."""


class KnownOutput(RequestedOutput, forbid_unknown_fields=True):
    """A requested output without other fields."""


class KnownRequest(InferenceRequest, forbid_unknown_fields=True, kw_only=True):
    """A request without other fields, as most are: there is nothing to be looked for that would be ignored."""

    inputs: Sequence[KnownInput]
    outputs: Sequence[KnownOutput] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed request."""

    id: str | None
    inputs: dict[str, Array]
    slo_ms: float | None
    options: dict[str, Any]  # cache, weight and context, as in the public protocol
    outputs: tuple[str, ...] | None  # requested outputs in order; None: all
    binary: dict[str, bool] = field(default_factory=dict)  # {output: whether it is sent as raw bytes}
    binary_default: bool = False
    model: str | None = None  # as the body names it
    version: str | None = None  # as the body names it
    ignored: tuple[str, ...] = ()  # names of what was asked and is not known here

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all inputs, as the mesh gets them."""
        return sum(size_of(array) for array in self.inputs.values())


@dataclass(frozen=True, slots=True)
class Response:
    """A body: JSON, then raw bytes in order. `json_bytes`: length of the JSON if raw bytes follow."""

    parts: list[bytes | memoryview]
    json_bytes: int | None


_known = msgspec.json.Decoder(KnownRequest)
_decoder = msgspec.json.Decoder(InferenceRequest)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_fields_of_each = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | None)


def read_question(
    body: bytearray | bytes, json_bytes: int | None, spec: Mapping[str, Any], slo_ms: float | None = None
) -> Question:
    """The request in `body`; tensors in raw bytes are not copied. Raises: HttpRefusal.

    `json_bytes`: length of the JSON in front of raw bytes (Inference-Header-Content-Length); None: all is JSON; 0: all
    is the one input's raw bytes. `spec`: the model's description, empty if unknown. `slo_ms`: the header's.
    """
    whole = memoryview(body)
    if json_bytes is None:
        json_bytes = len(whole)
    if not 0 <= json_bytes <= len(whole):
        text = f"Inference-Header-Content-Length is {json_bytes}; the body has {len(whole)} bytes"
        raise HttpRefusal(text, ErrorCode.MALFORMED, "Inference-Header-Content-Length")
    if not len(whole):
        text = "the body is empty; it is JSON, or with Inference-Header-Content-Length 0 the rows of the only input"
        raise HttpRefusal(text, ErrorCode.MALFORMED)
    if json_bytes == 0:
        name, tensor = _whole_body(whole, spec)
        return Question(None, {name: tensor}, slo_ms, {}, None, binary_default=True)
    request, ignored = _decode(whole[:json_bytes])
    inputs = _inputs(request.inputs, whole[json_bytes:], spec, ignored)
    options = _options(request.parameters or {}, ignored)
    asked_ms = options.pop("slo_ms", None)
    binary_default = options.pop("binary_data_output", False)
    wanted, binary = _requested_outputs(request.outputs, spec, ignored)
    return Question(
        request.id,
        inputs,
        slo_ms if asked_ms is None else asked_ms,
        options,
        wanted,
        binary,
        binary_default,
        request.model_name or None,
        request.model_version or None,
        tuple(ignored[:IGNORED_SHOWN]),
    )


def version_asked(question: Question, name: str, path_version: str | None) -> str | None:
    """The version that path and body ask for, of what the path names; None: the deployed one. Raises: HttpRefusal."""
    if question.model not in (None, name):
        text = f"model_name is {question.model[:NAME_SHOWN]!r}; the path asks {name!r}"
        raise HttpRefusal(text, ErrorCode.BAD_FIELD, "model_name")
    if question.version is not None and path_version not in (None, question.version):
        text = f"model_version is {question.version[:NAME_SHOWN]!r}; the path asks {path_version[:NAME_SHOWN]!r}"
        raise HttpRefusal(text, ErrorCode.BAD_FIELD, "model_version")
    return path_version if path_version is not None else question.version


def rows_asked(question: Question, spec: Mapping[str, Any]) -> int:
    """How many rows the inputs have; one row needs no batch dimension."""
    name, array = next(iter(question.inputs.items()))
    due = next((tensor["shape"] for tensor in spec.get("inputs", ()) if tensor["name"] == name), array.shape)
    return len(array) if array.ndim == len(due) else 1


def _decode(header: memoryview) -> tuple[InferenceRequest, list[str]]:
    """(request, names of what else is in it)."""
    try:
        try:
            return _known.decode(header), []
        except msgspec.ValidationError:
            return _decoder.decode(header), list(islice(_unknown(header), IGNORED_SHOWN))
    except msgspec.ValidationError as error:
        fault = read_fault(error, JSON_WORDS)
        raise HttpRefusal(f"{fault.place or 'request'}: {fault.text}", ErrorCode.BAD_FIELD, fault.place) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = f"the body is not JSON: {error} (raw bytes behind JSON need Inference-Header-Content-Length)"
        raise HttpRefusal(text, ErrorCode.MALFORMED) from None
    except RecursionError:
        raise HttpRefusal("the JSON is nested too deeply", ErrorCode.MALFORMED) from None


def _whole_body(data: memoryview, spec: Mapping[str, Any]) -> tuple[str, Array]:
    """(name, tensor) of a body that consists of the rows of the only input."""
    inputs = spec.get("inputs") or []
    if len(inputs) != 1:
        text = f"a body without JSON goes with models of one input; this one has {len(inputs) or 'none that is known'}"
        raise HttpRefusal(text, ErrorCode.BAD_INPUTS, "inputs")
    (only,) = inputs
    if only["dtype"] in VARIABLE:
        return only["name"], _whole_element(data, only)
    if -1 in only["shape"][1:]:
        text = f"a body without JSON goes with inputs of one size; {only['name']} is {only['shape']}: say its shape"
        raise HttpRefusal(text, ErrorCode.BAD_SHAPE, "inputs[0].shape")
    row = byte_count(only["dtype"], only["shape"][1:])
    if len(data) % row:
        text = f"one row of {only['name']} is {row} bytes; the body's {len(data)} are no multiple of it"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, "inputs[0].data")
    return only["name"], from_bytes(data, only["dtype"], [len(data) // row, *only["shape"][1:]], "inputs[0].data")


def _whole_element(data: memoryview, only: Mapping[str, Any]) -> Array:
    """The one element of the only input, of one row, which is the whole body."""
    if any(extent not in (1, -1) for extent in only["shape"][1:]):
        text = f"a body without JSON is one element; a row of {only['name']} has more: {only['shape']}"
        raise HttpRefusal(text, ErrorCode.BAD_SHAPE, "inputs[0].shape")
    packed = pack([bytes(data)])
    return from_bytes(memoryview(packed), only["dtype"], [1] * len(only["shape"]), "inputs[0].data")


def _unknown(header: memoryview) -> Iterator[str]:
    """The fields of the request, of its inputs and of its requested outputs that are not known."""
    fields = _fields.decode(header)
    yield from (name[:NAME_SHOWN] for name in fields if name not in InferenceRequest.__struct_fields__)
    for place, kind in (("inputs", InputTensor), ("outputs", RequestedOutput)):
        for i, each in enumerate(_fields_of_each.decode(fields.get(place, msgspec.Raw(b"null"))) or ()):
            yield from (f"{place}[{i}].{name[:NAME_SHOWN]}" for name in each if name not in kind.__struct_fields__)


def _inputs(
    given: Sequence[InputTensor], behind: memoryview, spec: Mapping[str, Any], ignored: list[str]
) -> dict[str, Array]:
    if len(given) > INPUTS_MAX:
        raise HttpRefusal(f"inputs: at most {INPUTS_MAX}; got {len(given)}", ErrorCode.BAD_INPUTS, "inputs")
    known = {tensor["name"]: tensor["dtype"] for tensor in spec.get("inputs", ())}
    inputs: dict[str, Array] = {}
    at = 0
    for i, tensor in enumerate(given):
        where = f"inputs[{i}]"
        if tensor.name in inputs:
            raise HttpRefusal(
                f"{where}.name: {tensor.name[:64]!r} is there twice", ErrorCode.BAD_INPUTS, f"{where}.name"
            )
        parameters = tensor.parameters or NOTHING
        if parameters:
            _check_served(parameters, ("binary_data_size",), where, ignored)
        dtype = dtype_of(tensor.datatype, f"{where}.datatype", known.get(tensor.name))
        if known.get(tensor.name, dtype) != dtype:
            text = f"{where}.datatype: {tensor.name} must be {NAMES[known[tensor.name]]}; got {tensor.datatype}"
            raise HttpRefusal(text, ErrorCode.BAD_DTYPE, f"{where}.datatype")
        check_shape(tensor.shape, f"{where}.shape")
        size = parameters.get("binary_data_size")
        if size is None:
            if tensor.data is None:
                text = f"{where}.data is missing, and there is no binary_data_size in its parameters"
                raise HttpRefusal(text, ErrorCode.BAD_DATA, f"{where}.data")
            inputs[tensor.name] = from_json(tensor.data, dtype, tensor.shape, f"{where}.data")
            continue
        size = _binary_size(size, tensor, len(behind) - at, where)
        inputs[tensor.name] = from_bytes(behind[at : at + size], dtype, tensor.shape, where)
        at += size
    if at != len(behind):
        text = f"{len(behind)} bytes follow the JSON; the inputs' binary_data_size name {at}"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, "inputs")
    return inputs


def _binary_size(size: Any, tensor: InputTensor, left: int, where: str) -> int:
    at = f"{where}.parameters.binary_data_size"
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise HttpRefusal(f"{at} is a number of bytes; got {str(size)[:32]!r}", ErrorCode.BAD_DATA, at)
    if tensor.data is not None:
        raise HttpRefusal(f"{where} has data and binary_data_size as well", ErrorCode.BAD_DATA, f"{where}.data")
    if size > left:
        text = f"{at} is {size}; only {left} bytes are left behind the JSON (see Inference-Header-Content-Length)"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, at)
    return size


def _check_served(parameters: Mapping[str, Any], known: Sequence[str], where: str, ignored: list[str]) -> None:
    """Adds the tensor's parameters that are not known to `ignored`. Raises: HttpRefusal for what cannot be ignored."""
    for name in parameters:
        why = next((why for start, why in NOT_SERVED.items() if name.startswith(start)), None)
        if why is not None:
            at = f"{where}.parameters.{name[:NAME_SHOWN]}"
            raise HttpRefusal(f"{at}: {why}", ErrorCode.BAD_FIELD, at)
        if name not in known and len(ignored) < IGNORED_SHOWN:
            ignored.append(f"{where}.parameters.{name[:NAME_SHOWN]}")


def _options(parameters: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    """The request's parameters with checked types; the others are added to `ignored`.

    `timeout` (microseconds, as in Triton) means slo_ms.
    """
    options: dict[str, Any] = {}
    for name, value in parameters.items():
        where = f"parameters.{name[:64]}"
        if name not in PARAMETERS:
            if len(ignored) < IGNORED_SHOWN:
                ignored.append(name[:NAME_SHOWN])
        elif name in ("slo_ms", "timeout", "weight"):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise HttpRefusal(f"{where} is a number; got {str(value)[:32]!r}", ErrorCode.BAD_FIELD, where)
            options[name] = float(value)
        elif name == "context":
            if not isinstance(value, str) or len(value.encode()) > CONTEXT_BYTES_MAX:
                raise HttpRefusal(
                    f"{where} is a string of at most {CONTEXT_BYTES_MAX} bytes", ErrorCode.BAD_CONTEXT, where
                )
            options[name] = value
        elif not isinstance(value, bool):
            raise HttpRefusal(f"{where} is true or false; got {str(value)[:32]!r}", ErrorCode.BAD_FIELD, where)
        else:
            options[name] = value
    timeout_us = options.pop("timeout", None)
    if timeout_us is not None:
        options.setdefault("slo_ms", timeout_us / 1e3)
    return options


def _requested_outputs(
    outputs: Sequence[RequestedOutput] | None, spec: Mapping[str, Any], ignored: list[str]
) -> tuple[tuple[str, ...] | None, dict[str, bool]]:
    if not outputs:
        return None, {}
    known = [tensor["name"] for tensor in spec.get("outputs", ())]
    binary: dict[str, bool] = {}
    for i, wish in enumerate(outputs):
        where = f"outputs[{i}]"
        parameters = wish.parameters or NOTHING
        _check_served(parameters, ("binary_data",), where, ignored)
        if known and wish.name not in known:
            text = f"{where}.name: there is no output {wish.name[:64]!r}; there are: {', '.join(known)}"
            raise HttpRefusal(text, ErrorCode.BAD_OUTPUTS, f"{where}.name")
        asked = parameters.get("binary_data")
        if asked is not None:
            if not isinstance(asked, bool):
                at = f"{where}.parameters.binary_data"
                raise HttpRefusal(f"{at} is true or false; got {str(asked)[:32]!r}", ErrorCode.BAD_FIELD, at)
            binary[wish.name] = asked
    return tuple(dict.fromkeys(wish.name for wish in outputs)), binary


def _in_json(output: str, array: Array) -> list[Any]:
    try:
        return to_json(array)
    except UnicodeDecodeError:
        text = f"the output {output[:64]!r} holds bytes that are not UTF-8, which JSON cannot express: take it as raw"
        at = f"outputs.{output[:64]}"
        raise HttpRefusal(f"{text} bytes (binary_data in its parameters)", ErrorCode.BAD_OUTPUTS, at) from None


def respond(question: Question, prediction: Prediction, name: str) -> Response:
    """The response, in the requested form.

    Raises: HttpRefusal, if a requested output does not exist, or cannot be expressed in the form.
    """
    wanted = question.outputs if question.outputs is not None else tuple(prediction.outputs)
    outputs: list[dict[str, Any]] = []
    behind: list[bytes | memoryview] = []
    for output in wanted:
        array = prediction.outputs.get(output)
        if array is None:
            text = f"there is no output {output[:64]!r}; there are: {', '.join(prediction.outputs)}"
            raise HttpRefusal(text, ErrorCode.BAD_OUTPUTS, "outputs")
        told: dict[str, Any] = {"name": output, "datatype": datatype_of(array), "shape": list(array.shape)}
        if question.binary.get(output, question.binary_default):
            data = to_bytes(array)
            told["parameters"] = {"binary_data_size": len(data)}
            behind.append(data)
        else:
            told["data"] = _in_json(output, array)
        outputs.append(told)
    answer = prediction.answer
    header: dict[str, Any] = {"model_name": name}
    if prediction.version:
        header["model_version"] = prediction.version
    if question.id is not None:
        header["id"] = question.id
    header["parameters"] = {key: answer[key] for key in TOLD if answer.get(key) is not None}
    if question.ignored:
        header["parameters"]["ignored"] = question.ignored
    header["outputs"] = outputs
    encoded = msgspec.json.encode(header)
    return Response([encoded, *behind], len(encoded) if behind else None)
