"""Versions that workers came with and that nobody wants, or not yet: a table that wants them may be on its way. Pure.

At a succession a worker may be met before the table that names its versions. What it was told to forget at once would
have to be prepared again a moment later.
"""

import math
from dataclasses import dataclass, field

from mesh import wire

UNCLAIMED_S = 3.0  # a version that a worker came with, and that is not wanted, is kept so long


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """One version on one device."""

    report: wire.Prepared
    until_s: float


@dataclass(slots=True)
class UnclaimedVersions:
    """All of them. Their pages count as taken, and may be taken from them."""

    kept: dict[str, dict[str, Unclaimed]] = field(
        default_factory=dict
    )  # {worker: {ref: it}}, none empty; others only read

    def keep(self, worker: str, report: wire.Prepared, now: float) -> None:
        """The worker came with this version, which nobody wants now."""
        self.kept.setdefault(worker, {})[report.ref] = Unclaimed(report, now + UNCLAIMED_S)

    def changed(self, worker: str, report: wire.Prepared) -> None:
        """The worker says something newer of a version, which may be among these."""
        kept = self.kept.get(worker, {}).get(report.ref)
        if kept is not None:
            self.kept[worker][report.ref] = Unclaimed(report, kept.until_s)

    def claim(self, worker: str, ref: str) -> wire.Prepared | None:
        """The version is wanted there now. Returns its report, if it is among these, which it is no more."""
        kept = self.kept.get(worker, {}).pop(ref, None)
        self._tidy(worker)
        return kept.report if kept is not None else None

    def leave(self, worker: str) -> None:
        """The worker is gone."""
        self.kept.pop(worker, None)

    def due(self, now: float) -> list[tuple[str, str]]:
        """(worker, ref) of those that were kept long enough, which are among these no more."""
        ended = [(worker, ref) for worker, of in self.kept.items() for ref, kept in of.items() if now >= kept.until_s]
        for worker, ref in ended:
            del self.kept[worker][ref]
            self._tidy(worker)
        return ended

    def due_at(self) -> float:
        """When `due` next returns something; infinity: never."""
        return min((kept.until_s for of in self.kept.values() for kept in of.values()), default=math.inf)

    def of(self, worker: str) -> list[str]:
        """Refs that are kept at this worker."""
        return list(self.kept.get(worker, ()))

    def _tidy(self, worker: str) -> None:
        if not self.kept.get(worker, True):
            del self.kept[worker]
