"""A load like the Azure Functions trace of 2019, generated without the trace; and the trace itself, replayed.

Seeded; pure. Rates of functions are a capped lognormal. Each function has a trigger, which determines how its rate
varies. The rows of the trace (functions) are assigned to models by rank. The trace's minutes are compressed: `minutes`
of them take `seconds`, and all rates are scaled by one factor to `rate_rps`. So 30 s of simulation show an hour of
timers, bursts and daily variation; with minutes = seconds / 60 the trace runs in real time. The factor makes the
expected number of requests exact for the drawn on and off times: seeds differ in which functions are popular and when,
not in the total.

Source of every number that is not explained here: fitted to Shahrad et al., "Serverless in the Wild" (ATC 2020). The
assignment of rows to models: Clockwork (OSDI'20).
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.arrivals.periods import on_periods, place_on
from gearmesh.simulation.parts import Scenario

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int32]

TRIGGERS = ("http", "queue", "event", "timer", "orchestration", "others")
FUNCTION_MIX = np.array([0.55, 0.15, 0.02, 0.16, 0.07, 0.05])  # share of the functions, by trigger
REQUEST_MIX = np.array([0.36, 0.34, 0.25, 0.02, 0.02, 0.01])  # share of the requests, by trigger
BURSTY = (1, 2)
TIMER = 3
LOG_MEAN, LOG_SIGMA = 0.51, 4.08  # of ln(requests per hour)
HOURLY_MAX = 2.5e5  # requests per hour of one function
BOOSTED_MAX = 1e6  # after scaling to the trigger's share; else one function that is on 5 % of the time is all the load
CAP_ROUNDS = 4  # of scaling a trigger's functions to its share, then capping them
PERIODS_MIN = np.array([1.0, 5.0, 10.0, 15.0, 30.0, 60.0])  # of timers, minutes
ON_THE_MINUTE = 0.7  # share of the timers that fire at second 0; each other one has a second of its own
ON_SHARE = (0.05, 0.2)  # share of its time that a bursty function is on
ON_MEDIAN_MIN, ON_SIGMA = 1.0, 1.0  # lognormal lengths of the on periods, minutes; we chose sigma
MINUTE_CV = (0.5, 1.0)  # of the counts per minute of functions that are neither timers nor bursty
SWING, DAY_MIN, WEEKEND = 0.3, 1440, 0.7  # the day's sine: amplitude, minutes; factor on two days of seven
CELLS_MAX = 4_000_000  # (function, minute) pairs drawn at once


@dataclass(frozen=True, slots=True, eq=False)
class Functions:
    """Rows of a trace, by falling number of requests; arrays [functions]."""

    rate: Floats  # requests per minute of the trace, before scaling
    trigger: Ints  # index into TRIGGERS


def draw_functions(count: int, rng: np.random.Generator) -> Functions:
    """Draws functions such that each trigger has its share of functions and of requests."""
    hourly = np.minimum(rng.lognormal(LOG_MEAN, LOG_SIGMA, count), HOURLY_MAX)
    trigger = rng.choice(len(TRIGGERS), size=count, p=FUNCTION_MIX)
    wanted = REQUEST_MIX * hourly.sum()
    boosted = hourly
    for _ in range(CAP_ROUNDS):
        totals = np.bincount(trigger, weights=boosted, minlength=len(TRIGGERS))
        factors = np.divide(wanted, totals, out=np.zeros_like(totals), where=totals > 0)
        boosted = np.minimum(boosted * factors[trigger], BOOSTED_MAX)
    rate = boosted / 60.0
    order = np.argsort(-rate, kind="stable")
    return Functions(rate[order], trigger[order].astype(np.int32))


def deal(scenario: Scenario, functions: int, rng: np.random.Generator) -> Ints:
    """The model of each function [functions], by its rank.

    The blocks or stripes are assigned to models in random order.
    """
    models = len(scenario.models)
    ranks = np.arange(functions)
    if scenario.load.mapping == "random":
        return rng.integers(models, size=functions).astype(np.int32)
    place = ranks % models if scenario.load.mapping == "stripe" else ranks * models // functions
    return rng.permutation(models)[place].astype(np.int32)


def arrivals(scenario: Scenario, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """(times, models) of requests, in any order."""
    times, function, _ = function_arrivals(scenario, rng)
    return times, deal(scenario, scenario.load.functions, rng)[function]


def function_arrivals(scenario: Scenario, rng: np.random.Generator) -> tuple[Floats, Ints, Functions]:
    """(times, functions) of requests, in any order, and the functions."""
    load = scenario.load
    functions = draw_functions(load.functions, rng)
    swing = _swing(load.minutes, rng)
    bursty = np.flatnonzero(np.isin(functions.trigger, BURSTY))
    timers = np.flatnonzero(functions.trigger == TIMER)
    steady = np.flatnonzero(~np.isin(functions.trigger, (*BURSTY, TIMER)))
    on_share = rng.uniform(*ON_SHARE, size=len(bursty))
    starts, ends = _on_times(on_share, load.minutes, rng)
    on_rate = functions.rate[bursty] / on_share
    expected = functions.rate[steady].sum() * load.minutes + (on_rate * (ends - starts).sum(axis=1)).sum()
    expected += functions.rate[timers].sum() * load.minutes
    scale = (load.rate_rps or 0.0) * load.seconds / expected
    parts = [
        (steady, *_steady(functions.rate[steady] * scale, swing, rng)),
        (bursty, *_bursty(on_rate * scale, starts, ends, swing, rng)),
        (timers, *_timers(functions.rate[timers], scale, load.minutes, rng)),
    ]
    times = np.concatenate([minutes for _, minutes, _ in parts]) * (load.seconds / load.minutes)
    which = np.concatenate([members[local] for members, _, local in parts]).astype(np.int32)
    return np.minimum(times, np.nextafter(load.seconds, 0.0)), which, functions


def _swing(minutes: int, rng: np.random.Generator) -> Floats:
    """The factor on the rates in each minute [minutes]; its mean over the run is 1."""
    at = np.arange(minutes) + rng.integers(7 * DAY_MIN)
    factor = (1.0 + SWING * np.sin(2 * np.pi * at / DAY_MIN)) * np.where((at // DAY_MIN) % 7 >= 5, WEEKEND, 1.0)
    return np.asarray(factor / factor.mean())


def _on_times(on_share: Floats, minutes: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(starts, ends) of the on periods [functions, periods], in minutes."""
    mean_min = ON_MEDIAN_MIN * np.exp(ON_SIGMA**2 / 2)
    on_min = np.full(len(on_share), mean_min)

    def draw(means: Floats) -> Floats:
        return rng.lognormal(np.log(ON_MEDIAN_MIN), ON_SIGMA, means.shape)

    return on_periods(rng, on_min, on_min * (1 - on_share) / on_share, float(minutes), draw)


def _steady(rates: Floats, swing: Floats, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Arrivals whose counts per minute are Poisson with a gamma-distributed mean; uniform inside the minute."""
    shape = (1.0 / rng.uniform(*MINUTE_CV, size=len(rates)) ** 2)[:, None]
    block = max(1, CELLS_MAX // max(1, len(rates)))
    times, which = [np.empty(0)], [np.empty(0, np.int32)]
    for first in range(0, len(swing), block):
        minutes = swing[first : first + block]
        mean = rng.gamma(shape, 1.0 / shape, (len(rates), len(minutes))) * rates[:, None] * minutes
        placed, sources = place_counts(rng.poisson(mean), rng)
        times.append(placed + first)
        which.append(sources)
    return np.concatenate(times), np.concatenate(which)


def place_counts(counts: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[Floats, Ints]:
    """(times in minutes, sources) of requests from counts [sources, minutes]."""
    sources, minutes = np.nonzero(counts)
    many = counts[sources, minutes]
    times = np.repeat(minutes, many) + rng.random(int(many.sum()))
    return times, np.repeat(sources, many).astype(np.int32)


def _bursty(
    rates: Floats, starts: Floats, ends: Floats, swing: Floats, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """Poisson arrivals while on, thinned by the day's factor."""
    most = swing.max()
    times, which = place_on(rng, rates * most, starts, ends)
    minute = np.minimum(times.astype(np.int64), len(swing) - 1)
    kept = rng.random(len(times)) * most < swing[minute]
    return times[kept], which[kept]


def _timers(rates: Floats, scale: float, minutes: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Arrivals with equal gaps: the allowed period nearest to the unscaled rate's. The requests per firing are scaled,
    and
    rounded at random.
    """
    nearest = np.abs(np.log(PERIODS_MIN[None, :] * np.maximum(rates, 1e-9)[:, None])).argmin(axis=1)
    period = PERIODS_MIN[nearest]
    second = np.where(rng.random(len(rates)) < ON_THE_MINUTE, 0.0, rng.random(len(rates)))
    phase = np.floor(rng.random(len(rates)) * period) + second
    fires = np.maximum(np.ceil((minutes - phase) / period), 0).astype(np.int64)
    which = np.repeat(np.arange(len(rates), dtype=np.int32), fires)
    order = np.arange(len(which)) - np.repeat(np.cumsum(fires) - fires, fires)
    times = phase[which] + order * period[which]
    many = np.floor(rates[which] * period[which] * scale + rng.random(len(which))).astype(np.int64)
    return np.repeat(times, many), np.repeat(which, many)


def replay(scenario: Scenario, counts: Floats, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """(times, models) of requests from recorded counts [functions, minutes]: Poisson, uniform inside the minute.

    `rate_rps` scales the counts; without it they are used unscaled.
    """
    load = scenario.load
    total = counts.sum()
    scale = load.rate_rps * load.seconds / total if load.rate_rps and total else 1.0
    ranked = counts[np.argsort(-counts.sum(axis=1), kind="stable")]
    times, function = place_counts(rng.poisson(ranked * scale), rng)
    models = deal(scenario, len(ranked), rng)[function]
    return times * (load.seconds / counts.shape[1]), models
