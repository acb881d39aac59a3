"""Infer requests from forms: of a message only the id, the options and the numbers are new. No sockets, no time.

A form is made once for each target, from its description. It takes what is sent as it is: arrays of numpy that have the
model's dtypes and are contiguous. Anything else it leaves to `Conversation.infer`; where both can, the bytes are equal.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from . import strings

FRAMED_BYTES: Final = 64 * 1024  # larger tensors travel as frames of their own, not copied
SHAPES_MAX: Final = 1_000  # of one input that are remembered
FIELDS_MAX: Final = 15  # entries of a map, or of an array, that has one byte in front
OPTIONS: Final = frozenset({"context", "cache", "weight", "version"})
PLAIN: Final = (float, int, bool, str)  # types of options that are packed here

Array = npt.NDArray[Any]


class InputForm:
    """What a message has of one input beside its numbers."""

    __slots__ = ("_begins", "_dims", "dtype", "framed", "inline")

    def __init__(self, name: str, dtype: "np.dtype[Any]", dims: int) -> None:
        self.dtype = dtype
        self._dims = dims  # of an array with its rows
        self._begins = msgpack.packb(name, use_bin_type=True), msgpack.packb(dtype.name, use_bin_type=True)
        self.inline: dict[tuple[int, ...], bytes] = {}  # {shape as given: up to the numbers, which follow}
        self.framed: dict[tuple[int, ...], bytes] = {}  # {shape as given: all that the message has}

    def learn(self, shape: tuple[int, ...], *, framed: bool) -> bytes | None:
        """The bytes for arrays of this shape, remembered; None: it has neither the model's dimensions nor one less."""
        if len(shape) == self._dims:
            rows = shape
        elif len(shape) == self._dims - 1 and shape:
            rows = (1, *shape)
        else:
            return None
        name, dtype = self._begins
        parts = [_map_of(3 if framed else 4), b"\xa4name", name, b"\xa5dtype", dtype, b"\xa5shape", msgpack.packb(rows)]
        if not framed:
            size_bytes = self.dtype.itemsize
            for extent in shape:
                size_bytes *= extent
            parts += [b"\xa4data", _bytes_of(size_bytes)]
        known = self.framed if framed else self.inline
        if len(known) >= SHAPES_MAX:
            known.clear()
        found = known[shape] = b"".join(parts)
        return found


class RequestForm:
    """What all infer requests for one model or application have in common."""

    __slots__ = ("_heads", "_only", "_pack", "_target", "inputs", "spec")

    def __init__(self, spec: Mapping[str, Any], name: str, *, app: bool) -> None:
        """`spec`: its description, as it is in the answer to "models" or "apps"."""
        self.spec = spec
        self._pack = msgpack.Packer().pack
        self._target = self._pack("app" if app else "model") + self._pack(name) if _is_text(name) else None
        self.inputs: dict[str, InputForm | None] = {}  # None: of strings, or of a dtype that numpy lacks
        for given in spec.get("inputs", ()):
            self.inputs[given["name"]] = _input_of(given)
        first = next(iter(self.inputs), None)
        self._only = () if first is None else (first,)  # inputs of a request that gives one array and no names
        self._heads = [_map_of(fields + 4) + b"\xa2op\xa5infer\xa2id" for fields in range(FIELDS_MAX - 3)]

    def infer(self, call: int, x: Any, slo_ms: Any, options: Mapping[str, Any]) -> tuple[bytes, Sequence[Any]] | None:
        """(message, frames) of a request with these inputs; None: it is to be made the general way."""
        if self._target is None:
            return None
        if type(x) is np.ndarray:
            names: Sequence[str] = self._only
            arrays = (x,)
        elif type(x) is dict and x and len(x) <= FIELDS_MAX:
            names = tuple(x)
            arrays = tuple(x.values())
        else:
            return None
        fields = self._fields(slo_ms, options)
        if fields is None or len(names) != len(arrays):
            return None
        size_bytes = 0
        for array in arrays:
            if type(array) is not np.ndarray:
                return None
            size_bytes += array.nbytes
        framed = size_bytes > FRAMED_BYTES
        count, packed = fields
        parts: list[Any] = [self._heads[count], self._pack(call), self._target, packed, _INPUTS[len(arrays)]]
        frames: list[Any] = []
        for name, array in zip(names, arrays, strict=True):
            form = self.inputs.get(name)
            if form is None or array.dtype != form.dtype or not array.flags.c_contiguous:
                return None
            shape = array.shape
            known = (form.framed if framed else form.inline).get(shape) or form.learn(shape, framed=framed)
            if known is None:
                return None
            parts.append(known)
            if framed:
                frames.append(array.reshape(-1).view(np.uint8).data)
            else:
                parts.append(array)
        return b"".join(parts), frames

    def _fields(self, slo_ms: Any, options: Mapping[str, Any]) -> tuple[int, bytes] | None:
        """(how many, packed) of the options and the budget; None: there is one that has to be looked at."""
        pack = self._pack
        if not options:
            if slo_ms is None:
                return 0, b""
            kind = type(slo_ms)
            if kind is float or (kind is int and -(1 << 63) <= slo_ms < 1 << 64):
                return 1, b"\xa6slo_ms" + pack(slo_ms)
            return None
        named = {key: value for key, value in options.items() if value is not None}
        if slo_ms is not None:
            named["slo_ms"] = slo_ms
        parts = []
        for key, value in named.items():
            kind = type(value)
            if kind not in PLAIN or (key not in OPTIONS and key != "slo_ms"):
                return None
            if (kind is int and not -(1 << 63) <= value < 1 << 64) or (kind is str and not _is_text(value)):
                return None
            parts += [pack(key), pack(value)]
        return len(named), b"".join(parts)


def _input_of(given: Mapping[str, Any]) -> InputForm | None:
    """The form of an input; None: its numbers are not sent as they lie in memory."""
    if given["dtype"] in strings.VARIABLE or sys.byteorder != "little" or not _is_text(given["name"]):
        return None
    try:
        dtype = np.dtype(given["dtype"])
    except TypeError:
        return None
    return InputForm(given["name"], dtype, len(given["shape"])) if dtype.kind in "biuf" else None


def _is_text(value: Any) -> bool:
    """Whether it is a string that UTF-8 can hold."""
    try:
        value.encode()
    except (UnicodeEncodeError, AttributeError):
        return False
    return isinstance(value, str)


def _map_of(count: int) -> bytes:
    """The head of a map with at most 15 entries."""
    return bytes([0x80 | count])


def _bytes_of(size: int) -> bytes:
    """The head of so many bytes."""
    if size < 1 << 8:
        return b"\xc4" + size.to_bytes(1)
    if size < 1 << 16:
        return b"\xc5" + size.to_bytes(2)
    return b"\xc6" + size.to_bytes(4)


_INPUTS: Final = [b"\xa6inputs" + bytes([0x90 | count]) for count in range(FIELDS_MAX + 1)]
