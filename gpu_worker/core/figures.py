"""What measuring runs of one version with open dimensions have shown: times, memory, and what does not fit. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu_worker.core.surfaces import Floats, Point, Surface
from mesh.sizes import Extents, holds

ROOM = 1.25  # a batch that was not run yet is expected to take so much more memory than what was measured, scaled to it
MEMORY_MIN = 1 << 20  # bytes: less cannot be told from what the process takes beside

NEWS = 1.05  # times what was taken before: less is no news
SURPRISING = 2.0  # times what others foretell
SURPRISING_MIN = 16 << 20  # bytes


class Cell(NamedTuple):
    """Batches that are executed, or measured, with the same extents."""

    extents: Extents
    batches: tuple[int, ...]  # ascending


def covers(outer: Point, inner: Point) -> bool:
    """Returns whether a batch as large as `inner`, in rows and extents, is no larger than `outer` in either."""
    return outer[0] >= inner[0] and holds(outer[1], inner[1])


@dataclass(slots=True)
class SizedFigures:
    """Runs so far. A batch that is no larger than one that has run fits; one that covers one that did not, does not."""

    memory_bytes: int = 0  # that a batch may take; 0: the device says itself what does not fit
    exec_s: dict[Point, list[float]] = field(default_factory=dict)  # durations, oldest first
    taken: dict[Point, int] = field(default_factory=dict)  # bytes, the least seen; of those that took more than before
    unfit: list[Point] = field(default_factory=list)  # batches for which there is no memory
    spent_s: float = 0.0  # by batches of more than one row
    runs: int = 0
    _reach: list[Point] = field(default_factory=list)  # batches that ran in the memory there is, none within another
    _surface: Surface | None = None

    def ran(self, point: Point, duration_s: float, memory_bytes: int = 0) -> None:
        """A run has ended well. `memory_bytes`: what it took; 0: that was not seen.

        Engines keep what they took for later runs. So a run that took no more than an earlier one tells nothing.
        """
        self.exec_s.setdefault(point, []).append(max(duration_s, 1e-9))
        self.spent_s += duration_s if point[0] > 1 else 0.0
        self.runs += 1
        self._surface = None
        if memory_bytes and (point in self.taken or memory_bytes > NEWS * max(self.taken.values(), default=0)):
            self.taken[point] = max(MEMORY_MIN, min(self.taken.get(point, memory_bytes), memory_bytes))
        if not self.too_much(point) and not self.fitted(point):
            self._reach = [*(other for other in self._reach if not covers(point, other)), point]

    def did_not_fit(self, point: Point) -> None:
        """A run ended because there was not enough memory."""
        self.unfit.append(point)
        self.runs += 1

    def seconds(self, point: Point) -> float:
        """Returns the median duration at a point that was run. The first run warms caches: alone it counts."""
        runs = self.exec_s[point]
        return statistics.median(runs[1:] or runs)

    @property
    def surface(self) -> Surface:
        """Durations between and beyond the points that were run. There is at least one."""
        if self._surface is None:
            self._surface = Surface({point: self.seconds(point) for point in self.exec_s})
        return self._surface

    def fitted(self, point: Point) -> bool:
        """Returns whether a run has shown that such a batch fits in memory."""
        return any(covers(ran, point) for ran in self._reach)

    def may_fit(self, points: Sequence[Point]) -> list[bool]:
        """Returns for each point whether what was measured so far, scaled to it, fits with ROOM to spare."""
        allowed = [not any(covers(point, one) for one in self.unfit) for point in points]
        if not self.memory_bytes or not self.taken or len(self.exec_s) < 2:
            return allowed  # the first is the least of all, and its memory may be doubted once there is another
        expected = self._foretold(self.taken, points).tolist()
        return [
            may and (taken * ROOM <= self.memory_bytes or self.fitted(point))
            for may, taken, point in zip(allowed, expected, points, strict=True)
        ]

    def too_much(self, ran: Point) -> bool:
        """Returns whether this run took more than a batch may take, though the memory was there."""
        return bool(self.memory_bytes) and self.taken.get(ran, 0) > self.memory_bytes

    @property
    def doubtful(self) -> Point | None:
        """The batch whose memory all else follows from, if it took too much, or far more than others foretell.

        Something else in the process may have taken it. None: it is not so, or nothing else was run yet.
        """
        if not self.memory_bytes or not self.taken or len(self.exec_s) < 2:
            return None
        most = max(self.taken, key=lambda point: self.taken[point])
        others = {point: taken for point, taken in self.taken.items() if point != most}
        if self.taken[most] <= SURPRISING_MIN:
            return None
        if self.too_much(most) or not others:
            return most
        return most if self.taken[most] > SURPRISING * float(self._foretold(others, [most])[0]) else None

    @staticmethod
    def _foretold(taken: dict[Point, int], points: Sequence[Point]) -> Floats:
        """Returns the bytes that these points are expected to take, in proportion to those that took most."""
        most = max(taken, key=lambda point: taken[point])
        fit = Surface({point: float(value) for point, value in taken.items()}, proportional=True).fit([*points, most])
        found: Floats = taken[most] * fit[:-1] / fit[-1]
        return found
