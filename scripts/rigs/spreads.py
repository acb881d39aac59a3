"""Figures of several rounds: their middle, how far they are apart, and whether they are what was aimed at. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from gearmesh.telemetry.machine import median


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure of several rounds."""

    median: float  # of an even number of rounds, the lower of the two in the middle
    least: float
    most: float
    lower: float  # quartiles, interpolated
    upper: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of at least one value."""
        rounds = sorted(values)
        lower, _, upper = statistics.quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else rounds * 3
        return cls(median(rounds), rounds[0], rounds[-1], lower, upper)

    def words(self, digits: int = 2) -> str:
        """median (least-most; IQR lower-upper)."""
        middle, least, most, lower, upper = (
            f"{value:,.{digits}f}" for value in (self.median, self.least, self.most, self.lower, self.upper)
        )
        return f"{middle} ({least}-{most}; IQR {lower}-{upper})"

    def described(self) -> dict[str, float]:
        """For the JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Aim:
    """What one ratio should be."""

    figure: str  # name of the ratio
    bound: float
    most: bool = False  # the bound is the most that it may be; else the least

    def is_hit(self, value: float) -> bool:
        """Whether this value is as aimed at."""
        return value <= self.bound if self.most else value >= self.bound

    @property
    def words(self) -> str:
        """The bound, with its sign."""
        return f"{'≤' if self.most else '≥'} {self.bound:g}"


def paired(mine: Sequence[float], other: Sequence[float]) -> Spread:
    """The ratio of two systems' figures, of each round by itself."""
    return Spread.of(one / two for one, two in zip(mine, other, strict=True))


def judged(aims: Iterable[Aim], ratios: Mapping[str, Spread]) -> list[dict[str, Any]]:
    """For the JSON: each aim whose ratio was measured, and whether its median hits it."""
    return [
        {"figure": aim.figure, "aim": aim.words, "median": found.median, "hit": aim.is_hit(found.median)}
        for aim in aims
        if (found := ratios.get(aim.figure)) is not None
    ]


def aims_table(aims: Iterable[Aim], ratios: Mapping[str, Spread]) -> Table:
    """A row for each ratio, with its aim if it has one: hit or missed by the median of its rounds."""
    by_figure = {aim.figure: aim for aim in aims}
    table = Table("ratio, paired by round", "median", "min-max", "IQR", "aim", "", title="ratios and aims")
    for name, found in ratios.items():
        aim = by_figure.get(name)
        table.add_row(
            name,
            f"{found.median:.2f}",
            f"{found.least:.2f}-{found.most:.2f}",
            f"{found.lower:.2f}-{found.upper:.2f}",
            aim.words if aim else "",
            "" if aim is None else "hit" if aim.is_hit(found.median) else "miss",
        )
    return table
