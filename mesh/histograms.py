"""Histograms with fixed bounds: adding a value is appending it; many are counted at once, with numpy. Pure.

Why these bounds: durations from a tenth of a small batch on a GPU to the longest budgets, in steps of 2 to 2.5, so that
a quantile that is interpolated between two of them is wrong by less than that factor.
"""

from dataclasses import dataclass, field

import numpy as np

from mesh.facts import Distribution

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLACK_S = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # the first: none was left
RATIO = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # |actual - predicted| / actual
PENDING_MAX = 512  # values that wait to be counted; counting them takes some 20 us


@dataclass(slots=True)
class Histogram:
    """How often values fell between which bounds."""

    bounds: tuple[float, ...]  # upper ones, rising; a value that equals one is below it
    pending: list[float] = field(default_factory=list)  # not counted yet; who appends here sees to PENDING_MAX itself
    _counts: list[int] = field(default_factory=list)  # one more than bounds: the last is of values above all of them
    _sum: float = 0.0  # of the counted values

    def __post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    @property
    def counts(self) -> list[int]:
        """How many values there were up to each bound and above the one before; the last: above all."""
        self.settle()
        return self._counts

    @property
    def sum(self) -> float:
        """The sum of the values."""
        self.settle()
        return self._sum

    def add(self, value: float) -> None:
        """The value counts. It must not be below 0: sums never shrink."""
        self.pending.append(value)
        if len(self.pending) >= PENDING_MAX:
            self.settle()

    def settle(self) -> None:
        """No value is pending."""
        if self.pending:
            values = np.array(self.pending)
            places = np.searchsorted(np.array(self.bounds), values)
            found = np.bincount(places, minlength=len(self._counts)).tolist()
            self._counts = [a + b for a, b in zip(self._counts, found, strict=True)]
            self._sum += float(values.sum())
            self.pending.clear()

    def merge(self, other: "Histogram") -> None:
        """The values of another one with these bounds count here, too."""
        self._counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self._sum += other.sum

    def told(self) -> Distribution | None:
        """What is told of it; None while it is empty."""
        return Distribution(counts=tuple(self.counts), sum=self.sum) if any(self.counts) else None
