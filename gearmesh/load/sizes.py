"""Sizes of the requests of a load test: the option's text, read; and which requests of a model have which. Pure.

The laws are the simulator's, so that what is simulated can be run and the other way round.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gearmesh.load.errors import LoadError
from gearmesh.load.plan import LoadTarget
from gearmesh.simulation.arrivals.sizes import ListedSizes, LogNormalSizes, SizeLaw, UniformSizes
from mesh.sizes import Extents
from mesh.wire.ranges import EXTENT_MAX, OPEN_MAX

LINES_MAX = 1_000_000  # of a file
FORMS = "lognormal:80,0.8 (median, sigma), uniform, uniform:8-512, or a file with the extents of one request a line"


def read_sizes(text: str) -> SizeLaw:
    """The law in "lognormal:80,0.8", "uniform:8-512" or a file's name. Raises: LoadError."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "lognormal":
            median, sigma = (float(part) for part in rest.split(","))
            if not (0 < median <= EXTENT_MAX and 0 <= sigma <= 100):
                raise ValueError("the median is above 0, and sigma 0 to 100")
            return LogNormalSizes(median, sigma)
        if kind == "uniform":
            return _uniform(rest)
    except ValueError as error:
        raise LoadError(f"--sizes {text}: must be {FORMS}: {error}") from None
    return _recorded(Path(text))


def _uniform(rest: str) -> SizeLaw:
    if not rest:
        return UniformSizes()
    least, most = (int(part) for part in rest.split("-"))
    if not 1 <= least <= most <= EXTENT_MAX:
        raise ValueError(f"the extents are 1 to {EXTENT_MAX}, the least first")
    return UniformSizes(least, most)


def _recorded(file: Path) -> SizeLaw:
    """One request a line, its extents."""
    try:
        with file.open() as lines:
            rows = [[int(word) for word in line.split()] for _, line in zip(range(LINES_MAX), lines, strict=False)]
    except (OSError, ValueError) as error:
        raise LoadError(f"--sizes {file}: must be {FORMS}: {error}") from None
    rows = [row for row in rows if row]
    widths = {len(row) for row in rows}
    if (
        len(widths) != 1
        or max(widths) > OPEN_MAX
        or not all(1 <= extent <= EXTENT_MAX for row in rows for extent in row)
    ):
        raise LoadError(f"--sizes {file}: each line has 1 to {OPEN_MAX} extents, 1 to {EXTENT_MAX}, as many in each")
    return ListedSizes(np.array(rows, np.int32))


def check_sizes(text: str | None, targets: Mapping[str, LoadTarget]) -> None:
    """Returns if requests of these models can have such sizes. Raises: LoadError."""
    if text is None:
        return
    law = read_sizes(text)
    opened = [target for target in targets.values() if target.dims]
    if not opened:
        raise LoadError(f"--sizes: none of the models has an open dimension: {', '.join(list(targets)[:8])}")
    for target in opened:
        fault = law.fault(target.dims)
        if fault:
            raise LoadError(f"--sizes {text}: for {target.name}, {fault}")


def draw_extents(text: str, target: LoadTarget, count: int, rng: np.random.Generator) -> list[Extents]:
    """The extents of so many requests; the greatest, where no law is given. () for models without open dimensions."""
    if not target.dims:
        return [()] * count
    if not text:
        return [tuple(dim.most for dim in target.dims)] * count
    return [tuple(row) for row in read_sizes(text).draw(count, target.dims, rng).tolist()]
