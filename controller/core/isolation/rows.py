"""Inputs that failed alone: a request with exactly such inputs is known before it is executed. Pure."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

ROWS_MAX = 256  # remembered for one version; the oldest is forgotten for another
SAMPLE_BYTES = 64  # looked at of each tensor before all of it is


@dataclass(frozen=True, slots=True)
class RowDigest:
    """What tells the inputs of one request from all others."""

    whole: int  # digest of all bytes
    sample: int  # digest of a few of them

    @classmethod
    def of(cls, tensors: Sequence[Any]) -> "RowDigest | None":
        """The digests of these inputs; None without any."""
        return cls(_digest(tensors), _sample(tensors)) if tensors else None


@dataclass(frozen=True, slots=True)
class KnownRow:
    """The inputs of one request that failed alone."""

    sample: int  # digest of a few bytes
    until_s: float  # then it is forgotten
    ends_process: bool  # it ended the process that executed it


@dataclass(slots=True)
class KnownRows:
    """Such inputs of one version, found by a digest of 64 bits over all their bytes. Source: XXH3, xxhash.com."""

    _rows: OrderedDict[int, KnownRow] = field(default_factory=OrderedDict)  # {digest: row}, oldest first
    _samples: set[int] = field(default_factory=set)  # of all rows
    deadly: bool = False  # one of them ended a process

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, digest: RowDigest | None, until_s: float, *, ends_process: bool) -> None:
        """Requests with these inputs are known until then."""
        if digest is None:
            return
        self._rows.pop(digest.whole, None)
        self._rows[digest.whole] = KnownRow(digest.sample, until_s, ends_process)
        if len(self._rows) > ROWS_MAX:
            self._rows.popitem(last=False)
        self._changed()

    def find(self, tensors: Sequence[Any], now: float) -> KnownRow | None:
        """What is known of these inputs. Large inputs are read only if a few of their bytes are those of a row."""
        if not self._samples or not tensors or _sample(tensors) not in self._samples:
            return None
        row = self._rows.get(_digest(tensors))
        return row if row is not None and now < row.until_s else None

    def forget(self, now: float) -> None:
        """Rows whose time is over are gone."""
        for key in [key for key, row in self._rows.items() if now >= row.until_s]:
            del self._rows[key]
        self._changed()

    def _changed(self) -> None:
        self._samples = {row.sample for row in self._rows.values()}
        self.deadly = any(row.ends_process for row in self._rows.values())


def _digest(tensors: Sequence[Any]) -> int:
    state = xxhash.xxh3_64()
    for tensor in tensors:
        state.update(len(tensor).to_bytes(8, "little"))
        state.update(tensor)
    return state.intdigest()


def _sample(tensors: Sequence[Any]) -> int:
    state = xxhash.xxh3_64()
    for tensor in tensors:
        state.update(len(tensor).to_bytes(8, "little"))
        state.update(tensor[:SAMPLE_BYTES])
        state.update(tensor[len(tensor) // 2 :][:SAMPLE_BYTES])
    return state.intdigest()
