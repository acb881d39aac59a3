"""Inputs that failed alone: a request with exactly such inputs is known before it is executed. Pure."""

from collections import OrderedDict
from dataclasses import dataclass, field

from controller.core.queues import Request
from mesh import digests

ROWS_MAX = 256  # remembered for one version; the oldest is forgotten for another


@dataclass(frozen=True, slots=True)
class RowDigest:
    """What tells the inputs of one request from all others."""

    whole: int  # digest of all bytes
    sample: int  # digest of a few of them

    @classmethod
    def of(cls, request: Request) -> "RowDigest | None":
        """The digests of the request's inputs; None without any. Those that its frontend keeps it has digested."""
        kept, inline = request.kept, request.inline
        if kept is not None:
            return cls(kept.whole, kept.sample)
        return cls(digests.whole(inline), digests.sample(inline)) if inline else None


@dataclass(frozen=True, slots=True)
class KnownRow:
    """The inputs of one request that failed alone."""

    sample: int  # digest of a few bytes
    until_s: float  # then it is forgotten
    ends_process: bool  # it ended the process that executed it


@dataclass(slots=True)
class KnownRows:
    """Such inputs of one version, found by a digest over all their bytes."""

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

    def find(self, request: Request, now: float) -> KnownRow | None:
        """What is known of the request's inputs. All are read only if a few of their bytes are those of a row."""
        kept, inline = request.kept, request.inline
        if not self._samples or (kept is None and not inline):
            return None
        if (kept.sample if kept is not None else digests.sample(inline)) not in self._samples:
            return None
        row = self._rows.get(kept.whole if kept is not None else digests.whole(inline))
        return row if row is not None and now < row.until_s else None

    def forget(self, now: float) -> None:
        """Rows whose time is over are gone."""
        for key in [key for key, row in self._rows.items() if now >= row.until_s]:
            del self._rows[key]
        self._changed()

    def _changed(self) -> None:
        self._samples = {row.sample for row in self._rows.values()}
        self.deadly = any(row.ends_process for row in self._rows.values())
