"""Costs of batches by rows and length, as a study of lengths fitted or assumed them, and traffic of several kinds."""

import math
import random
from collections.abc import Callable, Iterator

from mesh import wire
from mesh.sizes import Extents

Cost = Callable[[int, Extents], float]  # seconds of a batch
SEQ = (wire.Dim(name="seq", least=1, most=512),)
IMAGE = (wire.Dim(name="h", least=32, most=512), wire.Dim(name="w", least=32, most=512))


def cpu(batch: int, extents: Extents) -> float:
    """An encoder of four layers on one core."""
    (length,) = extents
    return max(8.5, 5.9 + 0.159 * batch * length + 7.9e-6 * batch * length**2) / 1e3


def h100(batch: int, extents: Extents) -> float:
    """The same on a large GPU, whose cost is flat while it is not filled."""
    (length,) = extents
    return (0.9 + max(0.0, 0.0005 * (batch * length - 600)) + 2e-7 * batch * length**2) / 1e3


def image(batch: int, extents: Extents) -> float:
    """A convolutional network."""
    height, width = extents
    return (2.0 + 3e-4 * batch * height * width) / 1e3


def lengths(rng: random.Random, count: int) -> Iterator[tuple[str, list[int]]]:
    """(kind of traffic, lengths): log-uniform, uniform, and the study's short queries, passages and both."""

    def short() -> float:
        return min(64.0, max(2.0, rng.lognormvariate(math.log(9), 0.6)))

    def passage() -> float:
        return min(512.0, max(8.0, rng.lognormvariate(math.log(80), 0.8)))

    kinds: dict[str, Callable[[], float]] = {
        "log-uniform": lambda: math.exp(rng.uniform(0.0, math.log(512))),
        "uniform": lambda: rng.uniform(8, 512),
        "short": short,
        "passages": passage,
        "mix": lambda: short() if rng.random() < 0.8 else passage(),
    }
    for kind, draw in kinds.items():
        yield kind, [max(1, round(draw())) for _ in range(count)]
