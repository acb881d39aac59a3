"""Durations as a line over sizes, fitted to what was seen lately. Pure."""

from dataclasses import dataclass

FORGET = 0.97  # factor on the weight of what was seen with each further observation
MIXED = 0.1  # relative spread of sizes below which the slope between them says little


@dataclass(slots=True)
class DurationLine:
    """Durations as a line over rows, or another size: least squares over all batches, whose weights fade with age."""

    weight: float = 0.0  # sum over batches
    rows: float = 0.0  # weighted mean, as are all below
    duration_s: float = 0.0
    rows_squared: float = 0.0
    product: float = 0.0

    def add(self, rows: float, duration_s: float) -> None:
        """A batch of so many rows took so long."""
        self.weight = self.weight * FORGET + 1.0
        share = 1.0 / self.weight
        self.rows += share * (rows - self.rows)
        self.duration_s += share * (duration_s - self.duration_s)
        self.rows_squared += share * (rows * rows - self.rows_squared)
        self.product += share * (rows * duration_s - self.product)

    def fit(self) -> tuple[float, float]:
        """(seconds of a batch, seconds of each row).

        Where all batches were of about one size, half of their time is taken to be in proportion to the rows.
        """
        variance = max(0.0, self.rows_squared - self.rows**2)
        covariance = self.product - self.rows * self.duration_s
        prior = 0.5 * self.duration_s / self.rows
        pull = (MIXED * self.rows) ** 2
        row_s = (covariance + pull * prior) / (variance + pull)
        row_s = min(max(0.0, row_s), self.duration_s / self.rows)
        return self.duration_s - row_s * self.rows, row_s
