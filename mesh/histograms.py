"""Histograms with fixed bounds: adding one costs a search among a dozen numbers, and two of a kind can be added. Pure.

Why these bounds: durations from a tenth of a small batch on a GPU to the longest budgets, in steps of 2 to 2.5, so that
a quantile that is interpolated between two of them is wrong by less than that factor.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from mesh.facts import Distribution

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLACK_S = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # the first: none was left
RATIO = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # |actual - predicted| / actual


@dataclass(slots=True)
class Histogram:
    """How often values fell between which bounds."""

    bounds: tuple[float, ...]  # upper ones, rising; a value that equals one is below it
    counts: list[int] = field(default_factory=list)  # one more than bounds: the last is of values above all of them
    sum: float = 0.0  # of the values

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """The value is counted. It must not be below 0: sums never shrink."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def merge(self, other: "Histogram") -> None:
        """The values of another one with these bounds are counted here, too."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def told(self) -> Distribution | None:
        """What is told of it; None while it is empty."""
        return Distribution(counts=tuple(self.counts), sum=self.sum) if any(self.counts) else None
