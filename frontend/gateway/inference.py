"""Turns an OIP inference request into a mesh request, and the answer into an OIP response (JSON and raw bytes).

Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from frontend.client.conversation import Prediction
from frontend.gateway.errors import HttpRefusal
from frontend.gateway.tensors import NAMES, Array, check_shape, dtype_of, from_bytes, from_json, to_json
from mesh.codes import ErrorCode
from mesh.decoder_faults import WORDS, read_fault
from mesh.tensors import byte_count, raw

INPUTS_MAX = 256
CONTEXT_BYTES_MAX = 256
PARAMETERS = ("slo_ms", "timeout", "cache", "weight", "context", "binary_data_output")
JSON_WORDS = {**WORDS, "null": "null", "None": "null"}
NOT_SERVED = ("shared_memory_region", "classification")
TOLD = (  # fields of an answer that go into the response's `parameters`
    "latency_ms", "predicted_ms", "batch_size", "device", "cached", "cold", "app", "decision_id", "models_used",
    "confidence", "margin", "disagreement", "default_used", "error", "batch_padded", "request",
)  # fmt: skip


class InputTensor(msgspec.Struct, forbid_unknown_fields=True):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class RequestedOutput(msgspec.Struct, forbid_unknown_fields=True):
    """One requested output."""

    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of a request."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] | None = None


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

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all inputs, as the mesh gets them."""
        return sum(array.nbytes for array in self.inputs.values())


@dataclass(frozen=True, slots=True)
class Response:
    """A body: JSON, then raw bytes in order. `json_bytes`: length of the JSON if raw bytes follow."""

    parts: list[bytes | memoryview]
    json_bytes: int | None


_decoder = msgspec.json.Decoder(InferenceRequest)


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
    if json_bytes == 0 and len(whole):
        name, tensor = _whole_body(whole, spec)
        return Question(None, {name: tensor}, slo_ms, {}, None, binary_default=True)
    request = _decode(whole[:json_bytes])
    inputs = _inputs(request.inputs, whole[json_bytes:], spec)
    options = _options(request.parameters)
    asked_ms = options.pop("slo_ms", None)
    binary_default = options.pop("binary_data_output", False)
    wanted, binary = _requested_outputs(request.outputs, spec)
    return Question(
        request.id, inputs, slo_ms if asked_ms is None else asked_ms, options, wanted, binary, binary_default
    )


def _decode(header: memoryview) -> InferenceRequest:
    try:
        return _decoder.decode(header)
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
    row = byte_count(only["dtype"], only["shape"][1:])
    if len(data) % row:
        text = f"one row of {only['name']} is {row} bytes; the body's {len(data)} are no multiple of it"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, "inputs[0].data")
    return only["name"], from_bytes(data, only["dtype"], [len(data) // row, *only["shape"][1:]], "inputs[0].data")


def _inputs(given: Sequence[InputTensor], behind: memoryview, spec: Mapping[str, Any]) -> dict[str, Array]:
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
        _none_of(tensor.parameters, where)
        dtype = dtype_of(tensor.datatype, f"{where}.datatype")
        if known.get(tensor.name, dtype) != dtype:
            text = f"{where}.datatype: {tensor.name} must be {NAMES[known[tensor.name]]}; got {tensor.datatype}"
            raise HttpRefusal(text, ErrorCode.BAD_DTYPE, f"{where}.datatype")
        check_shape(tensor.shape, f"{where}.shape")
        size = tensor.parameters.get("binary_data_size")
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


def _none_of(parameters: Mapping[str, Any], where: str) -> None:
    for name in NOT_SERVED:
        if name in parameters:
            raise HttpRefusal(
                f"{where}.parameters.{name} is not served here", ErrorCode.BAD_FIELD, f"{where}.parameters.{name}"
            )


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The request's parameters with checked types. `timeout` (microseconds, as in Triton) means slo_ms."""
    options: dict[str, Any] = {}
    for name, value in parameters.items():
        where = f"parameters.{name[:64]}"
        if name not in PARAMETERS:
            text = f"{where}: there is no such parameter; there are: {', '.join(PARAMETERS)}"
            raise HttpRefusal(text, ErrorCode.BAD_FIELD, where)
        if name in ("slo_ms", "timeout", "weight"):
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
    outputs: Sequence[RequestedOutput] | None, spec: Mapping[str, Any]
) -> tuple[tuple[str, ...] | None, dict[str, bool]]:
    if not outputs:
        return None, {}
    known = [tensor["name"] for tensor in spec.get("outputs", ())]
    binary: dict[str, bool] = {}
    for i, wish in enumerate(outputs):
        where = f"outputs[{i}]"
        _none_of(wish.parameters, where)
        if known and wish.name not in known:
            text = f"{where}.name: there is no output {wish.name[:64]!r}; there are: {', '.join(known)}"
            raise HttpRefusal(text, ErrorCode.BAD_OUTPUTS, f"{where}.name")
        asked = wish.parameters.get("binary_data")
        if asked is not None:
            if not isinstance(asked, bool):
                at = f"{where}.parameters.binary_data"
                raise HttpRefusal(f"{at} is true or false; got {str(asked)[:32]!r}", ErrorCode.BAD_FIELD, at)
            binary[wish.name] = asked
    return tuple(dict.fromkeys(wish.name for wish in outputs)), binary


def respond(question: Question, prediction: Prediction, name: str) -> Response:
    """The response, in the requested form. Raises: HttpRefusal, if a requested output does not exist."""
    wanted = question.outputs if question.outputs is not None else tuple(prediction.outputs)
    outputs: list[dict[str, Any]] = []
    behind: list[bytes | memoryview] = []
    for output in wanted:
        array = prediction.outputs.get(output)
        if array is None:
            text = f"there is no output {output[:64]!r}; there are: {', '.join(prediction.outputs)}"
            raise HttpRefusal(text, ErrorCode.BAD_OUTPUTS, "outputs")
        told: dict[str, Any] = {"name": output, "datatype": NAMES[array.dtype.name], "shape": list(array.shape)}
        if question.binary.get(output, question.binary_default):
            told["parameters"] = {"binary_data_size": array.nbytes}
            behind.append(raw(array))
        else:
            told["data"] = to_json(array)
        outputs.append(told)
    answer = prediction.answer
    header: dict[str, Any] = {"model_name": name}
    if prediction.version:
        header["model_version"] = prediction.version
    if question.id is not None:
        header["id"] = question.id
    header["parameters"] = {key: answer[key] for key in TOLD if answer.get(key) is not None}
    header["outputs"] = outputs
    encoded = msgspec.json.encode(header)
    return Response([encoded, *behind], len(encoded) if behind else None)
