"""Checks of an infer request: its budget, weight and names, and its inputs against the spec of its model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frontend.core.protocol import InferRequest, RequestRefused
from mesh import wire
from mesh.codes import ErrorCode
from mesh.names import NAME, VERSION
from mesh.tensors import DTYPES, byte_count


@dataclass(slots=True)
class Checked:
    """An infer request that fits its model."""

    rows: int
    tensors: list[bytes | memoryview]  # one per input of the spec, in the spec's order


def check_budget(request: InferRequest, slo_ms_default: float, slo_ms_max: float) -> float:
    """The budget in seconds. Raises: RequestRefused."""
    slo_ms = slo_ms_default if request.slo_ms is None else request.slo_ms
    if not math.isfinite(slo_ms) or slo_ms <= 0 or slo_ms > slo_ms_max:
        raise RequestRefused(
            ErrorCode.BAD_SLO,
            f"slo_ms must be a number above 0 and at most {slo_ms_max:g}; got {slo_ms:.12g}",
            "slo_ms",
            request.id,
        )
    return slo_ms / 1e3


def check_weight(request: InferRequest) -> float:
    """The value of an answer in time. Raises: RequestRefused."""
    if not 0.01 <= request.weight <= 100:
        raise RequestRefused(
            ErrorCode.BAD_WEIGHT, f"weight must lie in 0.01 to 100; got {request.weight:g}", "weight", request.id
        )
    return request.weight


def check_names(request: InferRequest) -> None:
    """Exactly one of model and app is given, and names have the form of names. Raises: RequestRefused."""
    if (request.model is None) == (request.app is None):
        raise RequestRefused(ErrorCode.BAD_TARGET, "give either model or app", "model", request.id)
    if request.model is not None:
        field, name, code = "model", request.model, ErrorCode.UNKNOWN_MODEL
    else:
        field, name, code = "app", request.app or "", ErrorCode.UNKNOWN_APP
    if not NAME.fullmatch(name):
        raise RequestRefused(code, f"{field} must match {NAME.pattern}; got {name[:80]!r}", field, request.id)
    if request.version is not None and not VERSION.fullmatch(request.version):
        text = f"version is a string of digits; got {request.version[:32]!r}"
        raise RequestRefused(ErrorCode.UNKNOWN_VERSION, text, "version", request.id)


class InputRules:
    """The rules for the inputs of one model, prepared for fast checks."""

    def __init__(self, spec: wire.ModelSpec, rows_max: int) -> None:
        self.spec = spec
        self.rows_max = rows_max
        first = spec.inputs[0]
        self._single = len(spec.inputs) == 1
        self._name, self._dtype, self._rest = first.name, first.dtype, list(first.shape[1:])
        self._row_bytes = byte_count(first.dtype, self._rest)

    def check(self, request: InferRequest, frames: Sequence[bytes | memoryview]) -> Checked:
        """The request's tensors in the order of the spec, not copied. Raises: RequestRefused, which names the field."""
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


def check_inputs(
    request: InferRequest, frames: Sequence[bytes | memoryview], spec: wire.ModelSpec, rows_max: int
) -> Checked:
    """As InputRules.check, but for any number of inputs and with a message for every fault. Raises: RequestRefused."""
    given = request.inputs
    if frames and len(frames) != len(given):
        text = f"{len(frames)} frames follow the header; inputs names {len(given)} tensors, one frame each"
        raise RequestRefused(ErrorCode.BAD_FRAMES, text, "inputs", request.id)
    places = {tensor.name: i for i, tensor in enumerate(given)}
    wanted = [tensor.name for tensor in spec.inputs]
    if len(places) != len(given) or len(given) != len(wanted) or any(name not in places for name in wanted):
        names = ", ".join(tensor.name[:32] for tensor in given[:8]) or "none"
        raise RequestRefused(
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
    request: InferRequest, place: int, spec: wire.TensorSpec, frame: bytes | memoryview | None, rows: int, rows_max: int
) -> int:
    """The rows of one tensor, if it fits its spec. Raises: RequestRefused."""
    tensor = request.inputs[place]
    shape = tensor.shape
    if tensor.dtype != spec.dtype:
        known = "" if tensor.dtype in DTYPES else f" (dtypes are {', '.join(DTYPES)})"
        text = f"{spec.name} must be {spec.dtype}; got {tensor.dtype[:32]!r}{known}"
        raise RequestRefused(ErrorCode.BAD_DTYPE, text, f"inputs[{place}].dtype", request.id)
    if len(shape) != len(spec.shape) or any(s != w for s, w in zip(shape[1:], spec.shape[1:], strict=True)):
        text = f"{spec.name} must have shape {list(spec.shape)}, -1 being the number of rows; got {shape[:8]}"
        raise RequestRefused(ErrorCode.BAD_SHAPE, text, f"inputs[{place}].shape", request.id)
    if not 1 <= shape[0] <= rows_max:
        text = f"{spec.name} must have 1 to {rows_max} rows; got {shape[0]}"
        raise RequestRefused(ErrorCode.BAD_SHAPE, text, f"inputs[{place}].shape", request.id)
    if rows and shape[0] != rows:
        text = f"all inputs must have the same number of rows; {spec.name} has {shape[0]}, others {rows}"
        raise RequestRefused(ErrorCode.BAD_SHAPE, text, f"inputs[{place}].shape", request.id)
    data = tensor.data if frame is None else frame
    if frame is not None and tensor.data is not None:
        text = f"{spec.name} has data in the header and a frame as well"
        raise RequestRefused(ErrorCode.BAD_FRAMES, text, f"inputs[{place}].data", request.id)
    wanted = byte_count(spec.dtype, shape)
    if data is None or len(data) != wanted:
        got = "none" if data is None else str(len(data))
        text = f"{spec.name}: shape {shape} of {spec.dtype} is {wanted} bytes; got {got}"
        raise RequestRefused(ErrorCode.BAD_DATA, text, f"inputs[{place}].data", request.id)
    return shape[0]
