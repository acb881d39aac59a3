"""On/off processes for many sources at once: when each is on, and Poisson arrivals while on. Seeded; pure."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Draw = Callable[[Floats], Floats]  # means -> lengths, of the same shape


def within(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, ... counts[0] - 1, 0, 1, ... counts[1] - 1, ..."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def on_periods(
    rng: np.random.Generator, on_s: Floats, off_s: Floats, seconds: float, draw_on: Draw | None = None
) -> tuple[Floats, Floats]:
    """(starts, ends) of the time each source is on [sources, periods], cut to [0, seconds]; periods beyond are
    (seconds, seconds).

    `on_s`, `off_s`: mean lengths [sources]. Off times are exponential; on times too, unless `draw_on` draws them. The
    processes are close to equilibrium at 0: a warm-up of some cycles before 0 is drawn and cut off.
    """
    warm_s = 4.0 * (on_s + off_s)
    cycles = (warm_s + seconds) / (on_s + off_s)
    periods = int(np.ceil((cycles + 6.0 * np.sqrt(cycles) + 6.0).max(initial=1.0)))
    draw = draw_on or rng.exponential
    while True:
        shape = (len(on_s), periods)
        on = draw(np.broadcast_to(on_s[:, None], shape))
        off = rng.exponential(np.broadcast_to(off_s[:, None], shape))
        phase = rng.random(len(on_s)) * (on_s + off_s)
        ends = np.cumsum(on + off, axis=1) - off - (warm_s + phase)[:, None]
        if not len(on_s) or (ends[:, -1] >= seconds).all():
            return np.clip(ends - on, 0.0, seconds), np.clip(ends, 0.0, seconds)
        periods *= 2


def place_on(
    rng: np.random.Generator, rates: Floats, starts: Floats, ends: Floats
) -> tuple[Floats, npt.NDArray[np.int32]]:
    """(times, sources) of Poisson arrivals at `rates` [sources] while the source is on."""
    lengths = ends - starts
    total = lengths.sum(axis=1)
    counts = rng.poisson(rates * total)
    sources = np.repeat(np.arange(len(rates), dtype=np.int32), counts)
    edges = np.cumsum(lengths.ravel())
    before = np.concatenate([[0.0], np.cumsum(total)[:-1]]) if len(total) else total
    position = before[sources] + rng.random(len(sources)) * total[sources]
    which = np.minimum(np.searchsorted(edges, position, side="right"), max(0, edges.size - 1))
    times = ends.ravel()[which] - (edges[which] - position)
    return np.maximum(times, 0.0), sources
