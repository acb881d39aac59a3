"""Reads what ONNX files refer to, without the library: the operations they call, and the other files they read.

Every occurrence of a field is looked at, also where a library would take the last alone. Source: the encoding of
protocol buffers, and onnx.proto3 (the numbers of fields).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

ONNX_BYTES_MAX = 256 << 20  # of a package's graph: tables of integers stay in it
DEPTH_MAX = 32
PARTS_MAX = 1_000_000  # nodes, tensors and attributes
NONE = "is no ONNX model that onnxruntime could load"
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, FUNCTION, ENTRY = range(7)
# {kind of message: {field: kind of message in it}}
INNER = {
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    TENSOR: {13: ENTRY},
    SPARSE: {1: TENSOR, 2: TENSOR},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    ENTRY: {},
}
MODEL_GRAPH, MODEL_FUNCTION = 7, 25
OP_TYPE, DOMAIN, EXTERNAL = 4, 7, 14  # fields of a node, and of a tensor
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # whose operations onnxruntime itself has
FROM_FILES = ("EPContext",)  # operations whose code is in another file


class BadModel(ValueError):
    """The file is no ONNX model, or a damaged one."""


@dataclass(slots=True)
class Parts:
    """What a model refers to."""

    operations: set[tuple[str, str]] = field(default_factory=set)  # (domain, name)
    files: list[dict[str, str]] = field(default_factory=list)  # of each tensor outside: location, offset, length
    outside: bool = False  # whether a tensor is outside, wherever it says that it is
    functions: int = 0
    count: int = 0


def fault_of(content: bytes) -> str:
    """Returns why a package may not have this graph; empty if it may. Raises: BadModel."""
    found = parts_of(content)
    strange = sorted(f"{domain}.{name}" for domain, name in found.operations if domain not in DOMAINS)
    if found.outside:
        return "has tensors in other files; a package's are in weights.safetensors"
    if found.functions:
        return "has functions of its own: import it with `gearmesh import`, which puts them in place of their uses"
    if strange or any(name in FROM_FILES for _, name in found.operations):
        named = ", ".join(strange) or ", ".join(FROM_FILES)
        return f"calls what onnxruntime itself does not have, or what is code in another file: {named[:200]}"
    return ""


def parts_of(content: bytes) -> Parts:
    """Returns what a model refers to. Raises: BadModel."""
    found = Parts()
    try:
        for number, value in _fields(memoryview(content)):
            if number == MODEL_GRAPH and isinstance(value, memoryview):
                _look(GRAPH, value, found, 0)
            elif number == MODEL_FUNCTION and isinstance(value, memoryview):
                found.functions += 1
                _look(FUNCTION, value, found, 0)
    except IndexError:
        raise BadModel(f"{NONE}: it is cut short") from None
    return found


def _look(kind: int, message: memoryview, found: Parts, depth: int) -> None:
    """Adds what a message of this kind refers to. Raises: BadModel; IndexError."""
    found.count += 1
    if depth > DEPTH_MAX or found.count > PARTS_MAX:
        raise BadModel(f"is nested more than {DEPTH_MAX} deep, or has more than {PARTS_MAX} parts")
    texts, inner = {OP_TYPE: "", DOMAIN: ""}, INNER[kind]
    entries: dict[str, str] = {}
    for number, value in _fields(message):
        if isinstance(value, int):
            found.outside |= kind == TENSOR and number == EXTERNAL and value != 0
        elif number in inner and inner[number] == ENTRY:
            entries.update([_entry(value)])
        elif number in inner:
            _look(inner[number], value, found, depth + 1)
        elif kind == NODE and number in texts:
            texts[number] = bytes(value).decode("utf-8", "replace")
            found.operations.add((texts[DOMAIN], texts[OP_TYPE]))
    if entries:
        found.outside = True
        found.files.append(entries)


def _entry(message: memoryview) -> tuple[str, str]:
    texts: Sequence[str] = [
        bytes(value).decode("utf-8", "replace") for _, value in _fields(message) if not isinstance(value, int)
    ]
    if len(texts) != 2:
        raise BadModel("has a tensor in another file that it does not name")
    return texts[0], texts[1]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (number, value) of each field. Raises: BadModel; IndexError."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif kind == BYTES:
            size, at = _varint(message, at)
            if size > end - at:
                raise IndexError(size)
            yield key >> 3, message[at : at + size]
            at += size
        elif kind in (FIXED_32, FIXED_64):
            at += 4 if kind == FIXED_32 else 8
            if at > end:
                raise IndexError(at)
        else:
            raise BadModel(f"{NONE}: it has fields of a kind that ONNX has not")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise BadModel(f"{NONE}: it has a number of more than 64 bits")
