"""Opens archives of exported programs (.pt2) without torch: known entries alone, none compressed, each bounded.

torch writes such archives uncompressed, so what they take in memory is what they have on disk. Some entries are pickles
(of example inputs, of objects): those are never read.
"""

import os
import re
import struct
import zlib
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

from gpu_worker.packages.reading.files import open_plain, read_exactly

MODEL, NOTES = "models/model.json", "extra/gearmesh.json"
SAMPLES = "data/sample_inputs/model.pt"  # a pickle
ARCHIVE_BYTES_MAX = 8 << 30  # a program of its author holds its weights, too
GRAPH_BYTES_MAX = 32 << 20  # of MODEL; 30,000 operations have 20 MB
NOTES_BYTES_MAX = 8 << 20
DIRECTORY_BYTES_MAX = 16 << 20  # the list of entries takes some five times as much in memory
WRITTEN = (  # by torch.export.save; values of tensors are raw bytes, described in the two configs
    r"archive_format|archive_version|byteorder|\.format_version|\.storage_alignment|\.data/version"
    r"|\.data/serialization_id|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(?:model_weights_config\.json|weight_\d+)|data/constants/(?:model_constants_config\.json|tensor_\d+)"
)
PACKAGED = re.compile(rf"(?:{WRITTEN}|extra/gearmesh\.json)", re.ASCII)
EXPORTED = re.compile(rf"(?:{WRITTEN}|extra/[^/\\]+)", re.ASCII)  # by an author: with notes of any name
# Source: the ZIP format (APPNOTE.TXT 4.3.7, 4.3.12, 4.3.14 to 4.3.16, 4.5.3), little endian
END = struct.Struct("<4sHHHHIIH")  # signature, disks (2), entries (2), bytes and offset of the list, comment
END_64 = struct.Struct("<4sQHHIIQQQQ")  # signature, size, versions (2), disks (2), entries (2), bytes, offset
LOCATOR = struct.Struct("<4sIQI")  # signature, disk, offset of END_64, disks
ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")  # in the list
LOCAL = struct.Struct("<4sHHHHHIIIHH")  # before the data
WIDE = struct.Struct("<HH")  # tag and bytes of an extra field; tag 1: sizes and offset of 64 bits
ENCRYPTED, MANY = 1, 0xFFFFFFFF


class BadArchive(ValueError):
    """The file is no archive of a program, or a damaged one."""


class UnsafeArchive(BadArchive):
    """The archive holds what could run code, or take more memory than it says."""


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One entry of an archive."""

    at: int  # byte of the file at which its local header begins
    size: int  # bytes
    checksum: int  # CRC-32


class Archive:
    """An opened archive; a context manager."""

    def __init__(self, file: Path, allowed: re.Pattern[str]) -> None:
        """Only entries of the allowed names are in it. Raises: BadArchive; OSError."""
        self._opened = open_plain(file)
        try:
            self._entries = _entries(self._opened, allowed)
        except struct.error:
            self._opened.close()
            raise BadArchive(f"{UNREADABLE}: its list of entries is damaged") from None
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def size(self, name: str) -> int:
        """Returns the bytes of an entry; 0 if there is none."""
        return self._entries[name].size if name in self._entries else 0

    def read(self, name: str, bytes_max: int) -> bytes:
        """Returns the bytes of an entry. Raises: BadArchive; OSError."""
        entry = self._entries.get(name)
        if entry is None:
            raise BadArchive(f"has no {name} in it")
        if entry.size > bytes_max:
            raise UnsafeArchive(f"{name} in it has {entry.size} bytes; at most {bytes_max} are read")
        signature, *_, named, extra = LOCAL.unpack(read_exactly(self._opened, entry.at, LOCAL.size))
        if signature != b"PK\x03\x04":
            raise BadArchive(f"{UNREADABLE}: {name} is not where it should be")
        data = read_exactly(self._opened, entry.at + LOCAL.size + named + extra, entry.size)
        if zlib.crc32(data) != entry.checksum:
            raise BadArchive(f"{UNREADABLE}: {name} in it is damaged")
        return data


def _entries(opened: FileIO, allowed: re.Pattern[str]) -> dict[str, ArchiveEntry]:
    """Returns {entry, without the archive's folder: where it is}. Raises: BadArchive; struct.error; OSError."""
    size = os.fstat(opened.fileno()).st_size
    if size > ARCHIVE_BYTES_MAX:
        raise UnsafeArchive(f"has {size} bytes; at most {ARCHIVE_BYTES_MAX} are read")
    start, length = _list_of_entries(opened, size)
    if length > DIRECTORY_BYTES_MAX:
        raise UnsafeArchive(f"lists its entries in {length} bytes; at most {DIRECTORY_BYTES_MAX} are read")
    if start + length > size:
        raise BadArchive(f"{UNREADABLE}: it is cut short")
    content, at, total = read_exactly(opened, start, length), 0, 0
    found: dict[str, ArchiveEntry] = {}
    while at < length:
        path, entry, at = _entry(content, at)
        root, _, name = path.partition("/")
        if not root or not allowed.fullmatch(name):
            raise UnsafeArchive(f"holds {path[:200]!r}, which is no part of a graph")
        if name in found:
            raise UnsafeArchive(f"holds {name} twice")
        found[name], total = entry, total + entry.size
    if total > size:
        raise UnsafeArchive("holds entries that overlap")
    return found


def _list_of_entries(opened: FileIO, size: int) -> tuple[int, int]:
    """Returns (first byte, bytes) of the list. Raises: BadArchive; struct.error; OSError."""
    content = read_exactly(opened, max(0, size - END.size), min(size, END.size))
    if len(content) < END.size or content[:4] != b"PK\x05\x06":
        raise BadArchive(f"{UNREADABLE}: no list of entries is at its end (cut short?)")
    *_, length, start, _ = END.unpack(content)
    at = size - END.size - LOCATOR.size
    located = read_exactly(opened, at, LOCATOR.size) if at >= 0 else b""
    if located[:4] == b"PK\x06\x07":
        _, _, wide_at, _ = LOCATOR.unpack(located)
        if wide_at > at - END_64.size:
            raise BadArchive(f"{UNREADABLE}: its list of entries is damaged")
        *_, length, start = END_64.unpack(read_exactly(opened, wide_at, END_64.size))
    return start, length


def _entry(content: bytes, at: int) -> tuple[str, ArchiveEntry, int]:
    """Returns (path, entry, place of the next) of an entry in the list. Raises: BadArchive; struct.error."""
    (signature, _, _, flags, method, _, _, checksum, packed, size, named, extra, comment, _, _, _, offset) = (
        ENTRY.unpack_from(content, at)
    )
    after = at + ENTRY.size + named
    if signature != b"PK\x01\x02" or after + extra + comment > len(content):
        raise BadArchive(f"{UNREADABLE}: its list of entries is damaged")
    path = content[at + ENTRY.size : after].decode("utf-8", "replace")
    if MANY in (size, packed, offset):
        size, packed, offset = _wide(content[after : after + extra], size, packed, offset)
    if method or size != packed:
        raise UnsafeArchive(f"holds {path[:200]!r} compressed; torch.export.save compresses nothing")
    if flags & ENCRYPTED:
        raise UnsafeArchive(f"holds {path[:200]!r} encrypted")
    return path, ArchiveEntry(offset, size, checksum), after + extra + comment


def _wide(extra: bytes, *narrow: int) -> tuple[int, int, int]:
    """Returns the size, the compressed size and the offset, of 64 bits where they need them. Raises: struct.error."""
    at = 0
    while at < len(extra):
        tag, length = WIDE.unpack_from(extra, at)
        if tag == 1:
            wide = iter(struct.unpack_from(f"<{narrow.count(MANY)}Q", extra, at + WIDE.size))
            size, packed, offset = (next(wide) if value == MANY else value for value in narrow)
            return size, packed, offset
        at += WIDE.size + length
    raise struct.error("no sizes of 64 bits")


UNREADABLE = "is not a readable torch.export archive"
