"""Reads safetensors files: the header checked whole, the data only where the header says that it is.

Source: the safetensors format: an 8-byte little-endian length, a JSON header of that length, the data.
"""

import errno
import math
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Annotated

import msgspec

from gpu_worker.packages.reading.files import fill, open_plain, read_exactly

HEADER_BYTES_MAX = 16 << 20
TENSORS_MAX = 100_000
MARKS_MAX = 10 * TENSORS_MAX  # fields, and colons in notes: a short header takes little memory
RANK_MAX = 32
NAME_MAX = 512  # characters
FAULTS_MAX = 20  # told at once
SHOWN = 100  # characters of what a file says
WIDTH = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1,
}  # fmt: skip
_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """The header's fields of one tensor."""

    dtype: str
    shape: Annotated[list[_Natural], msgspec.Meta(max_length=RANK_MAX)]
    data_offsets: tuple[_Natural, _Natural]  # start and end, from the end of the header


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file."""

    dtype: str  # in the notation of safetensors: F32, BF16, ...
    shape: tuple[int, ...]
    start: int  # byte of the file
    size: int  # bytes


class BadHeader(ValueError):
    """`faults`: what is wrong with the header."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def read_header(file: Path) -> dict[str, Stored]:
    """Returns {tensor: where it is}: all bytes of the file are one tensor's, and each tensor has as many as it takes.

    Raises: BadHeader; OSError.
    """
    with open_plain(file) as opened:
        return header_of(opened)


def header_of(opened: FileIO) -> dict[str, Stored]:
    """Returns what `read_header` does, of an opened file. Raises: BadHeader; OSError."""
    size = os.fstat(opened.fileno()).st_size
    length = int.from_bytes(read_exactly(opened, 0, min(8, size)), "little")
    if size < 8 or length > size - 8:
        raise BadHeader([f"cannot be read (cut short, or not safetensors): it has {size} bytes"])
    if length > HEADER_BYTES_MAX:
        raise BadHeader([f"its header has {length} bytes; at most {HEADER_BYTES_MAX} are read"])
    text = read_exactly(opened, 8, length)
    if text.count(b":") > MARKS_MAX:
        raise BadHeader([f"its header has more than {MARKS_MAX} fields"])
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadHeader([f"its header cannot be read (damaged, or not safetensors): {error}"]) from None
    entries.pop("__metadata__", None)
    if len(entries) > TENSORS_MAX:
        raise BadHeader([f"its header lists {len(entries)} tensors; at most {TENSORS_MAX} are read"])
    return _placed(entries, 8 + length, size)


def _placed(entries: dict[str, msgspec.Raw], start: int, end: int) -> dict[str, Stored]:
    """Returns the tensors of data between two places of a file. Raises: BadHeader."""
    found, faults = {}, list[str]()
    for name, raw in entries.items():
        try:
            entry = msgspec.json.decode(raw, type=_Entry)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            faults.append(f"{name[:SHOWN]!r}: its entry in the header is none: {error}")
            continue
        fault = _fault(name, entry)
        if fault:
            faults.append(f"{_shown(name)}{fault}")
        first, last = entry.data_offsets
        found[name] = Stored(entry.dtype, tuple(entry.shape), start + first, last - first)
    if faults:
        raise BadHeader(faults[:FAULTS_MAX])
    at = start
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != at:
            what = "overlaps the tensor before it" if tensor.start < at else "leaves a gap before it"
            raise BadHeader(
                [f"{name}: its data {what}: it must begin at {at - start}, and does at {tensor.start - start}"]
            )
        at += tensor.size
    if at != end:
        raise BadHeader([f"is cut short, or too long: its tensors take {at - start} bytes, and it has {end - start}"])
    return found


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= NAME_MAX else repr(name[:SHOWN])


def _fault(name: str, entry: _Entry) -> str:
    if len(name) > NAME_MAX or not name.isprintable():
        return f": the name of a tensor has at most {NAME_MAX} characters, all of them printable"
    if entry.dtype not in WIDTH:
        return f" has dtype {entry.dtype[:SHOWN]}; allowed are {', '.join(WIDTH)}"
    first, last = entry.data_offsets
    takes = math.prod(entry.shape) * WIDTH[entry.dtype]
    if last - first != takes:
        has = f"its data_offsets, {first} and {last}, hold {last - first}"
        return f": {entry.dtype} {str(entry.shape)[:SHOWN]} takes {str(takes)[:SHOWN]} bytes, and {has}"
    return ""


def read_tensors(file: Path, bytes_max: int) -> dict[str, tuple[Stored, bytearray]]:
    """Returns {tensor: (what it is, its bytes)} of a whole file.

    Raises: BadHeader; OSError, also if there are more bytes than `bytes_max`.
    """
    with open_plain(file) as opened:
        found = header_of(opened)
        total = sum(tensor.size for tensor in found.values())
        if total > bytes_max:
            raise OSError(errno.EFBIG, f"holds {total} bytes; at most {bytes_max} are read")
        return {name: (tensor, _bytes(opened, tensor)) for name, tensor in found.items()}


def _bytes(opened: FileIO, tensor: Stored) -> bytearray:
    data = bytearray(tensor.size)
    fill(opened.fileno(), memoryview(data), tensor.start)
    return data
