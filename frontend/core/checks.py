"""Checks of an infer request: its budget, weight and names, and its inputs against the spec of its model. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from frontend.core.elements import STRING, TEXT_BYTES_MAX, ElementFault, check_packed, packed_list
from frontend.core.protocol import InferRequest, RequestRefused, RequestTensor, check_elements
from mesh import wire
from mesh.codes import ErrorCode
from mesh.names import NAME, VERSION
from mesh.sizes import Extents
from mesh.tensors import DTYPES, VARIABLE, byte_count


@dataclass(slots=True)
class Checked:
    """An infer request that fits its model."""

    rows: int
    tensors: list[bytes | memoryview]  # one per input of the spec, in the spec's order
    extents: Extents = ()  # of the inputs, in the model's open dimensions


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


@dataclass(frozen=True, slots=True)
class QuickRule:
    """What a quick look at one input needs."""

    place: int  # in the spec
    dtype: str
    rest: list[int]  # extents after the rows; of an open one ~i, i being its place among the model's dimensions
    open: bool
    unit_bytes: int  # of a row; with open extents: of an element


class InputRules:
    """The rules for the inputs of one model, prepared for fast checks."""

    def __init__(self, spec: wire.ModelSpec, rows_max: int) -> None:
        self.spec = spec
        self.rows_max = rows_max
        strings = any(tensor.dtype in VARIABLE for tensor in spec.inputs)
        self._quick = {} if strings else {t.name: _quick_rule(i, t, spec.dims) for i, t in enumerate(spec.inputs)}
        self._ranges = [(dim.least, dim.most) for dim in spec.dims]
        first = spec.inputs[0]
        self._single = len(spec.inputs) == 1 and not strings and not any(first.dims)
        self._name, self._dtype, self._rest = first.name, first.dtype, list(first.shape[1:])
        self._row_bytes = byte_count(first.dtype, self._rest) if self._single else 0

    def plain(self, request: InferRequest, frames: Sequence[bytes | memoryview]) -> bytes | memoryview | None:
        """The only input of a request that fits a model with one input and no open dimensions, not copied. None: it is
        none of these, or something is wrong.
        """
        inputs = request.inputs
        if not self._single or len(inputs) != 1:
            return None
        tensor = inputs[0]
        shape, inside = tensor.shape, tensor.data
        if not frames:
            if inside is None or isinstance(inside, list):
                return None
            data: bytes | memoryview = inside
        elif inside is None and len(frames) == 1:
            data = frames[0]
        else:
            return None
        if not shape or tensor.dtype != self._dtype or tensor.name != self._name:
            return None
        rows = shape[0]
        if not 1 <= rows <= self.rows_max or len(data) != rows * self._row_bytes or shape[1:] != self._rest:
            return None
        return data

    def check(self, request: InferRequest, frames: Sequence[bytes | memoryview]) -> Checked:
        """The request's tensors in the order of the spec, not copied. Raises: RequestRefused, which names the field."""
        if self._single:
            data = self.plain(request, frames)
            if data is not None:
                return Checked(request.inputs[0].shape[0], [data])
        elif len(request.inputs) == len(self._quick) and len(frames) in (0, len(self._quick)):
            found = self._look(request.inputs, frames)
            if found is not None:
                return found
        return check_inputs(request, frames, self.spec, self.rows_max)

    def _look(self, given: Sequence[RequestTensor], frames: Sequence[bytes | memoryview]) -> Checked | None:
        """As `check`; None if something is wrong, or might be."""
        rows = 0
        extents = [0] * len(self._ranges)
        tensors: dict[int, bytes | memoryview] = {}
        for i, tensor in enumerate(given):
            rule, shape = self._quick.get(tensor.name), tensor.shape
            if rule is None or tensor.dtype != rule.dtype or not shape:
                return None
            size = self._unit(rule, shape, extents) if rule.open else rule.unit_bytes if shape[1:] == rule.rest else 0
            rows = rows or shape[0]
            inside = tensor.data
            data = inside if not frames else frames[i] if inside is None else None
            if not size or shape[0] != rows or data is None or isinstance(data, list) or len(data) != rows * size:
                return None
            tensors[rule.place] = data
        if not 1 <= rows <= self.rows_max or len(tensors) < len(self._quick):
            return None
        return Checked(rows, [tensors[place] for place in range(len(tensors))], tuple(extents))

    def _unit(self, rule: QuickRule, shape: Sequence[int], extents: list[int]) -> int:
        """Bytes of a row with open extents, which enter `extents`; 0 if these cannot be."""
        if len(shape) != len(rule.rest) + 1:
            return 0
        size = rule.unit_bytes
        for wanted, extent in zip(rule.rest, shape[1:], strict=True):
            if wanted < 0:
                index = ~wanted
                least, most = self._ranges[index]
                if not extents[index] and least <= extent <= most:
                    extents[index] = extent
                wanted = extents[index]
            if extent != wanted:
                return 0
            size *= extent
        return size


def _quick_rule(place: int, tensor: wire.TensorSpec, dims: Sequence[wire.Dim]) -> QuickRule:
    rest = list(tensor.shape[1:])
    if not any(tensor.dims):
        return QuickRule(place, tensor.dtype, rest, False, byte_count(tensor.dtype, rest))
    order = {dim.name: ~i for i, dim in enumerate(dims)}
    named = [order.get(name, extent) for name, extent in zip(tensor.dims, rest, strict=True)]
    return QuickRule(place, tensor.dtype, named, True, byte_count(tensor.dtype, ()))


def check_inputs(
    request: InferRequest, frames: Sequence[bytes | memoryview], spec: wire.ModelSpec, rows_max: int
) -> Checked:
    """As InputRules.check, but for any inputs and with a message for every fault. Raises: RequestRefused."""
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
    check = InputCheck(request, spec, rows_max)
    tensors: list[bytes | memoryview] = []
    for tensor_spec in spec.inputs:
        place = places[tensor_spec.name]
        check.shape(place, tensor_spec)
        tensors.append(check.data(place, tensor_spec, frames[place] if frames else None))
    return Checked(check.rows, tensors, tuple(check.extents[dim.name][0] for dim in spec.dims))


@dataclass(slots=True)
class InputCheck:
    """The check of one request's inputs, one after the other, as they have rows and open dimensions in common."""

    request: InferRequest
    spec: wire.ModelSpec
    rows_max: int
    rows: int = 0  # 0: of no input yet
    extents: dict[str, tuple[int, str]] = field(default_factory=dict)  # {open dimension: (extent, input that has it)}
    elements: int = 0  # strings and byte strings so far
    text_bytes: int = 0

    def shape(self, place: int, spec: wire.TensorSpec) -> None:
        """Takes in dtype and shape of the input at this place of the request. Raises: RequestRefused."""
        tensor = self.request.inputs[place]
        shape = tensor.shape
        if tensor.dtype != spec.dtype:
            known = "" if tensor.dtype in KNOWN else f" (dtypes are {', '.join(KNOWN)})"
            text = f"{spec.name} must be {spec.dtype}; got {tensor.dtype[:32]!r}{known}"
            raise self._refused(ErrorCode.BAD_DTYPE, text, f"inputs[{place}].dtype")
        where = f"inputs[{place}].shape"
        if len(shape) != len(spec.shape) or any(
            s != w for s, w in zip(shape[1:], spec.shape[1:], strict=True) if w != -1
        ):
            text = f"{spec.name} must have shape {shape_text(spec)}, -1 being the number of rows"
            raise self._refused(ErrorCode.BAD_SHAPE, f"{text}{self._dims_text(spec)}; got {shape[:8]}", where)
        if not 1 <= shape[0] <= self.rows_max:
            text = f"{spec.name} must have 1 to {self.rows_max} rows; got {shape[0]}"
            raise self._refused(ErrorCode.BAD_SHAPE, text, where)
        if self.rows and shape[0] != self.rows:
            text = f"all inputs must have the same number of rows; {spec.name} has {shape[0]}, others {self.rows}"
            raise self._refused(ErrorCode.BAD_SHAPE, text, where)
        self.rows = shape[0]
        for name, extent in zip(spec.dims, shape[1:], strict=False):
            if name:
                self._extent(name, extent, spec, where)

    def _extent(self, name: str, extent: int, spec: wire.TensorSpec, where: str) -> None:
        """Takes in one extent of an open dimension."""
        known, other = self.extents.setdefault(name, (extent, spec.name))
        if known != extent:
            text = f"{name} is {known} in {other}, and {extent} in {spec.name}: it is one and the same dimension"
            raise self._refused(ErrorCode.BAD_SHAPE, text, where)
        dim = next(dim for dim in self.spec.dims if dim.name == name)
        if not dim.least <= extent <= dim.most:
            text = f"{spec.name} must have shape {shape_text(spec)}, with {name} from {dim.least} to {dim.most}"
            raise self._refused(ErrorCode.BAD_SHAPE, f"{text}; got {extent}", where)

    def _dims_text(self, spec: wire.TensorSpec) -> str:
        """The ranges of the input's open dimensions, for a sentence; empty if it has none."""
        return "".join(f", {dim.name} {dim.least} to {dim.most}" for dim in self.spec.dims if dim.name in spec.dims)

    def data(self, place: int, spec: wire.TensorSpec, frame: bytes | memoryview | None) -> bytes | memoryview:
        """The bytes of the input at this place, as they travel in the mesh. Raises: RequestRefused."""
        tensor = self.request.inputs[place]
        where = f"inputs[{place}].data"
        if frame is not None and tensor.data is not None:
            text = f"{spec.name} has data in the header and a frame as well"
            raise self._refused(ErrorCode.BAD_FRAMES, text, where)
        if spec.dtype in VARIABLE:
            return self._elements(tensor, where, spec, frame)
        data = tensor.data if frame is None else frame
        if isinstance(data, list):
            text = f"{spec.name}: {spec.dtype} is bin, in C order and little endian; got a list"
            raise self._refused(ErrorCode.BAD_DATA, text, where)
        wanted = byte_count(spec.dtype, tensor.shape)
        if data is None or len(data) != wanted:
            got = "none" if data is None else str(len(data))
            text = f"{spec.name}: shape {tensor.shape} of {spec.dtype} is {wanted} bytes; got {got}"
            raise self._refused(ErrorCode.BAD_DATA, text, where)
        return data

    def _elements(
        self, tensor: RequestTensor, where: str, spec: wire.TensorSpec, frame: bytes | memoryview | None
    ) -> bytes | memoryview:
        """The strings, or byte strings, of one input, packed."""
        count = math.prod(tensor.shape)
        self.elements += count
        check_elements(self.elements, where, self.request.id)
        items = tensor.data
        if frame is None and (not isinstance(items, list) or len(items) != count):
            got = f"{len(items)} items" if isinstance(items, list) else "none" if items is None else "bin"
            text = f"{spec.name}: shape {tensor.shape} of {spec.dtype} is a list of {count} items; got {got}"
            raise self._refused(ErrorCode.BAD_DATA, text, where)
        try:
            if isinstance(items, list):
                packed: bytes | memoryview = packed_list(items, spec.dtype)
                self._text(len(packed), where, spec)
            else:
                assert frame is not None
                self._text(len(frame), where, spec)
                check_packed(frame, count, spec.dtype)
                packed = frame
        except ElementFault as fault:
            if fault.place is None:
                raise self._refused(ErrorCode.BAD_DATA, f"{spec.name}: {fault.text}", where) from None
            text = f"{spec.name}: element {fault.place} {fault.text}"
            raise self._refused(ErrorCode.BAD_DATA, text, f"{where}[{fault.place}]") from None
        return packed

    def _text(self, size: int, where: str, spec: wire.TensorSpec) -> None:
        """Takes in how many bytes one more input of strings has."""
        self.text_bytes += size if spec.dtype == STRING else 0
        if self.text_bytes > TEXT_BYTES_MAX:
            text = f"{spec.name}: the strings of a request take at most {TEXT_BYTES_MAX} bytes; got {self.text_bytes}"
            raise self._refused(ErrorCode.BAD_DATA, text, where)

    def _refused(self, code: ErrorCode, text: str, where: str) -> RequestRefused:
        return RequestRefused(code, text, where, self.request.id)


KNOWN = (*DTYPES, *VARIABLE)


def shape_text(spec: wire.TensorSpec) -> str:
    """The shape with the names of open dimensions in their places: "[-1, seq]"."""
    dims = spec.dims or ("",) * (len(spec.shape) - 1)
    rest = (name or str(extent) for name, extent in zip(dims, spec.shape[1:], strict=True))
    return f"[{', '.join(['-1', *rest])}]"
