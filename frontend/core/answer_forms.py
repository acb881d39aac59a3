"""The ok answers of one version of a model, encoded: all but a few of their bytes are always the same. Pure.

They are, to the byte, what the encoder makes of `answers.ok_answer`, for outputs that have the shapes of the spec.
"""

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from frontend.core.protocol import AnswerTensor, ClientAnswer
from mesh import wire
from mesh.codes import AnswerStatus
from mesh.tensors import byte_count

KEPT_MAX: Final = 256  # row counts, or batches, whose bytes are kept
FLOAT: Final = b"\xcb"  # of eight bytes, which follow
LATENCY: Final = struct.Struct(">d")
_encode = msgspec.msgpack.Encoder().encode


def _field(name: str, value: object) -> bytes:
    return _encode(name) + _encode(value)


PREDICTED: Final = _encode("predicted_ms") + FLOAT
TIMES: Final = struct.Struct(f">d{len(PREDICTED)}sd")
NOT_CACHED: Final = _field("cached", False)
CACHED: Final = _field("cached", True)
REQUEST: Final = _encode("request")
ID: Final = _encode("id")


def _head(padded: int | None, *, computed: bool) -> bytes:
    """What precedes the id."""
    answer = ClientAnswer(None, AnswerStatus.OK, [], "", "", 0.0, cached=not computed, batch_padded=padded)
    if computed:
        answer.predicted_ms, answer.batch_size, answer.device, answer.cold, answer.request = 0.0, 1, "", False, 1
    return _encode(answer).partition(ID)[0] + ID


def _tensor_head(data: bytes | None) -> bytes:
    """What precedes the name of an output."""
    return _encode(AnswerTensor("", "", (), data)).partition(_encode("name"))[0]


COMPUTED_HEAD: Final = _head(None, computed=True)
PADDED_HEAD: Final = _head(1, computed=True)
CACHED_HEAD: Final = _head(None, computed=False)
INSIDE: Final = _tensor_head(b"")
BESIDE: Final = _tensor_head(None)


class AnswerForm:
    """What is always the same in the answers of one version."""

    def __init__(self, ref: str, spec: wire.ModelSpec) -> None:
        """None of the outputs has open dimensions, or a dtype of VARIABLE."""
        name, version = wire.split_ref(ref)
        self._specs = spec.outputs
        self._sizes = [byte_count(tensor.dtype, tensor.shape[1:]) for tensor in spec.outputs]  # bytes of a row
        self._single = self._sizes[0] if len(self._sizes) == 1 else -1
        self._between = _field("model", name) + _field("version", version) + _encode("latency_ms") + FLOAT
        self._status = _field("status", AnswerStatus.OK) + _encode("outputs")
        self._framed: dict[int, bytes] = {}  # {rows: all outputs}
        self._inside: dict[int, list[bytes]] = {}  # {rows: what precedes the bytes of each output}
        self._batches: dict[tuple[int, str, bool, int], bytes] = {}  # {(batch, device, cold, padded): what follows}

    @property
    def kept(self) -> int:
        """How many row counts and batches it keeps the bytes of."""
        return len(self._framed) + len(self._inside) + len(self._batches)

    def fits(self, rows: int, outputs: Sequence[bytes | memoryview]) -> bool:
        """Whether the outputs have the number and sizes that so many rows have."""
        sizes = self._sizes
        if len(outputs) != len(sizes):
            return False
        if self._single >= 0:
            return len(outputs[0]) == rows * self._single
        return all(len(data) == rows * size for data, size in zip(outputs, sizes, strict=True))

    def computed(
        self,
        call_id: int | str,
        rows: int,
        outputs: Sequence[bytes | memoryview],
        framed: bool,
        latency_s: float,
        predicted_s: float,
        batch_size: int,
        device: str,
        cold: bool,
        batch_padded: int,
        number: int,
    ) -> bytes:
        """The answer with outputs that a worker has computed, which fit. `number`: of the request; 0 batch_padded: it
        is not told.
        """
        head = PADDED_HEAD if batch_padded else COMPUTED_HEAD
        times = TIMES.pack(latency_s * 1e3, PREDICTED, predicted_s * 1e3)
        key = (batch_size, device, cold, batch_padded)
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batch(batch_size, device, cold, batch_padded)
        if framed or self._single < 0:
            described = self._described(rows, outputs, framed)
            return b"".join((head, _encode(call_id), described, self._between, times, batch, _encode(number)))
        pieces = self._inside.get(rows)
        if pieces is None:
            pieces = self._pieces(rows)
        return b"".join((head, _encode(call_id), pieces[0], outputs[0], self._between, times, batch, _encode(number)))

    def cached(
        self,
        call_id: int | str,
        rows: int,
        outputs: Sequence[bytes | memoryview],
        framed: bool,
        latency_s: float,
    ) -> bytes:
        """The answer with outputs from the cache, which fit."""
        described = self._described(rows, outputs, framed)
        times = LATENCY.pack(latency_s * 1e3)
        return b"".join((CACHED_HEAD, _encode(call_id), described, self._between, times, CACHED))

    def _described(self, rows: int, outputs: Sequence[bytes | memoryview], framed: bool) -> bytes:
        """The status, and the outputs; without their bytes, which travel as frames, if `framed`."""
        if framed:
            known = self._framed.get(rows)
            return self._without_data(rows) if known is None else known
        pieces = self._inside.get(rows)
        if pieces is None:
            pieces = self._pieces(rows)
        parts: list[bytes | memoryview] = []
        for place, piece in enumerate(pieces):
            parts.append(piece)
            if place < len(outputs):
                parts.append(outputs[place])
        return b"".join(parts)

    def _without_data(self, rows: int) -> bytes:
        tensors = [AnswerTensor(tensor.name, tensor.dtype, (rows, *tensor.shape[1:])) for tensor in self._specs]
        if len(self._framed) >= KEPT_MAX:
            self._framed.clear()
        known = self._framed[rows] = self._status + _encode(tensors)
        return known

    def _pieces(self, rows: int) -> list[bytes]:
        """What precedes the bytes of each output; of a model without outputs, all that there is."""
        count = len(self._specs)
        begin = self._status + _encode([None] * count)[: -count or None]
        pieces = []
        for tensor, size in zip(self._specs, self._sizes, strict=True):
            described = _encode(AnswerTensor(tensor.name, tensor.dtype, (rows, *tensor.shape[1:])))
            fields = described[len(BESIDE) :]
            pieces.append(begin + INSIDE + fields + _encode("data") + _bin_head(rows * size))
            begin = b""
        if len(self._inside) >= KEPT_MAX:
            self._inside.clear()
        self._inside[rows] = pieces or [begin]
        return self._inside[rows]

    def _batch(self, batch_size: int, device: str, cold: bool, batch_padded: int) -> bytes:
        """What follows the times, up to the request's number."""
        told = _field("batch_size", batch_size) + _field("device", device) + NOT_CACHED + _field("cold", cold)
        if batch_padded:
            told += _field("batch_padded", batch_padded)
        if len(self._batches) >= KEPT_MAX:
            self._batches.clear()
        known = self._batches[batch_size, device, cold, batch_padded] = told + REQUEST
        return known


def _bin_head(size: int) -> bytes:
    """What precedes so many bytes in msgpack. Raises: OverflowError, from 4 GiB on."""
    if size < 1 << 8:
        return b"\xc4" + size.to_bytes(1, "big")
    if size < 1 << 16:
        return b"\xc5" + size.to_bytes(2, "big")
    return b"\xc6" + size.to_bytes(4, "big")
