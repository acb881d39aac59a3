"""The arrivals of a scenario: when each model is asked, and when each answer is due. Each seed gives one trace.

A seed feeds four random streams: the models' popularity, the arrival times, the deadlines, and the sizes. So a sweep
over the rate, the SLO or the number of devices keeps the popularity of the seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.arrivals import maf, recorded
from gearmesh.simulation.arrivals.periods import on_periods, place_on, within
from gearmesh.simulation.fields import EmptyTrace, UnusableFile
from gearmesh.simulation.parts import Scenario
from mesh.wire.ranges import OPEN_MAX

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int32]
Arrivals = tuple[Floats, Ints]  # times and models, in any order
CLIENTS_START_S = 0.01  # closed: the first requests are spread over this time


@dataclass(slots=True, eq=False)
class Trace:
    """Requests, oldest first; all arrays [requests]."""

    time_s: Floats  # of arrival, sorted, from 0
    model: Ints  # index into scenario.models
    slo_s: Floats  # the answer is due at time_s + slo_s
    weight: Floats  # value of an answer in time
    rows: Ints  # rows of a batch that the request takes: 1, except in logs
    extents: Ints = field(default_factory=lambda: np.empty(0, np.int32))  # [requests, OPEN_MAX]; 0: no such dimension

    def __post_init__(self) -> None:
        if not self.extents.size:
            self.extents = np.zeros((len(self.time_s), OPEN_MAX), np.int32)

    def __len__(self) -> int:
        return len(self.time_s)


def arrivals(scenario: Scenario, seed: int) -> Trace:
    """The requests of a scenario. Of a closed loop only each client's first: the others follow the answers.

    Raises: EmptyTrace, UnusableFile.
    """
    popular, arriving, due, sizing = np.random.default_rng(seed).spawn(4)
    load = scenario.load
    if load.kind == "log":
        log = recorded.read_log(scenario)
        return _trace(
            scenario, (log.time_s, log.model), log.slo_s, log.rows, draw_sizes(scenario, log.model, sizing, log.extents)
        )
    if load.kind == "maf" and load.path:
        times, models = maf.replay(scenario, recorded.read_counts(scenario), arriving)
    elif load.kind == "maf":
        times, models = maf.arrivals(scenario, arriving)
    else:
        times, models = _KINDS[load.kind](scenario, model_rates(scenario, popular), arriving)
    order = np.argsort(times, kind="stable")
    times, models = times[order], models[order]
    slo_s, rows = draw_slos(scenario, times, models, due), np.ones(len(times), np.int32)
    return _trace(scenario, (times, models), slo_s, rows, draw_sizes(scenario, models, sizing))


def _trace(scenario: Scenario, pair: Arrivals, slo_s: Floats, rows: Ints, extents: Ints) -> Trace:
    times, models = pair
    if not len(times):
        raise EmptyTrace(scenario.name, scenario.load.seconds, scenario.load.path is not None)
    weights = np.array([model.weight for model in scenario.models])
    return Trace(times, models, slo_s, weights[models], rows, extents)


def draw_sizes(scenario: Scenario, models: Ints, rng: np.random.Generator, known: Ints | None = None) -> Ints:
    """The extents of each request [requests, OPEN_MAX]; 0 where its model has no such open dimension.

    `known` [requests, OPEN_MAX]: those that a log says; 0 where it does not.
    """
    found = np.zeros((len(models), OPEN_MAX), np.int32)
    for index, model in enumerate(scenario.models):
        if model.open is None:
            continue
        mine = np.flatnonzero(models == index)
        width = len(model.open.dims)
        if known is not None:
            found[mine] = known[mine]
            mine = mine[known[mine, 0] == 0]
        if len(mine) and model.open.sizes is None:
            raise UnusableFile(scenario.name, [f"requests of {model.name} must have extents, or give load.sizes"])
        if len(mine) and model.open.sizes is not None:
            found[mine, :width] = model.open.sizes.draw(len(mine), model.open.dims, rng)
    return found


def model_rates(scenario: Scenario, rng: np.random.Generator) -> Floats:
    """Mean requests per second of each model [models].

    A group with a `rate_share` gets that share; the others divide the rest in proportion to their numbers of models.
    Inside a group (or over all models if no group has a share) the k-th most popular model has a rate proportional to
    k^-zipf.
    """
    load, models = scenario.load, scenario.models
    shares = {model.group: model.rate_share for model in models if model.rate_share is not None}
    groups = np.array([model.group for model in models]) if shares else np.zeros(len(models), np.int64)
    free = np.array([group not in shares for group in groups.tolist()])
    rest = 1.0 - sum(shares.values())
    rates = np.empty(len(models))
    for group in np.unique(groups).tolist():
        members = np.flatnonzero(groups == group)
        popularity = np.arange(1, len(members) + 1, dtype=np.float64) ** -load.zipf
        share = shares.get(group)
        if share is None:
            share = rest * len(members) / free.sum() if shares else 1.0
        rates[rng.permutation(members)] = share * popularity / popularity.sum()
    return rates * (load.rate_rps or 0.0)


def draw_slos(scenario: Scenario, times: Floats, models: Ints, rng: np.random.Generator) -> Floats:
    """The budget of each request in seconds [requests]: from its model's list, else from the load's."""
    load = scenario.load
    drawn = _draw(load.slo_ms, load.slo_draw, rng.random(len(times)))
    lists = sorted({model.slo_ms for model in scenario.models if model.slo_ms})
    which = np.array([lists.index(model.slo_ms) if model.slo_ms else -1 for model in scenario.models])[models]
    for index, slo_ms in enumerate(lists):
        chosen = which == index
        drawn[chosen] = _draw(slo_ms, load.slo_draw, rng.random(int(chosen.sum())))
    if load.kind == "ramp" and load.slo_end_ms is not None:
        step = np.minimum(times / load.seconds * load.steps, load.steps - 1).astype(np.int64)
        drawn *= _stairs(1.0, load.slo_end_ms / load.slo_ms[0], load.steps)[step]
    return drawn / 1e3


def _draw(slo_ms: tuple[float, ...], how: str, uniform: Floats) -> Floats:
    """One value for each uniform number in [0, 1)."""
    if how == "log_uniform":
        low, high = np.log(min(slo_ms)), np.log(max(slo_ms))
        return np.asarray(np.exp(low + (high - low) * uniform))
    return np.array(slo_ms)[(uniform * len(slo_ms)).astype(np.int64)]


def _stairs(first: float, last: float, steps: int) -> Floats:
    """The values of the steps, in geometric progression."""
    return np.geomspace(first, last, steps)


def _poisson(scenario: Scenario, rates: Floats, rng: np.random.Generator) -> Arrivals:
    """Independent Poisson processes, drawn as one."""
    seconds = scenario.load.seconds
    times = rng.random(rng.poisson(rates.sum() * seconds)) * seconds
    edges = np.cumsum(rates) / rates.sum()
    models = np.minimum(np.searchsorted(edges, rng.random(len(times)), side="right"), len(rates) - 1)
    return times, models.astype(np.int32)


def _gamma(scenario: Scenario, rates: Floats, rng: np.random.Generator) -> Arrivals:
    """Renewal processes with gamma-distributed gaps of the given coefficient of variation, in equilibrium from the
    start.

    Source: the time from 0 to the first arrival of a renewal process in equilibrium is a uniform share of a
    length-biased gap (Cox, "Renewal theory", 1962); a length-biased gamma gap of shape k has shape k + 1.
    """
    load = scenario.load
    if load.cv == 0:
        return _fixed(scenario, rates, rng)
    shape = 1.0 / load.cv**2
    mean_s = 1.0 / rates
    last = rng.random(len(rates)) * rng.gamma(shape + 1.0, size=len(rates)) * mean_s / shape
    active = np.flatnonzero(last < load.seconds)
    times, models = [last[active]], [active]
    while len(active):
        left = (load.seconds - last[active]) * rates[active]
        counts = np.ceil(left + 3.0 * load.cv * np.sqrt(left) + 4.0).astype(np.int64)
        gaps = rng.gamma(shape, size=int(counts.sum())) * np.repeat(mean_s[active] / shape, counts)
        total = np.cumsum(gaps)
        ends = np.cumsum(counts)
        before = np.concatenate([[0.0], total[ends[:-1] - 1]])
        times.append(total - np.repeat(before - last[active], counts))
        models.append(np.repeat(active, counts))
        last[active] = times[-1][ends - 1]
        active = active[last[active] < load.seconds]
    all_times, all_models = np.concatenate(times), np.concatenate(models).astype(np.int32)
    kept = all_times < load.seconds
    return all_times[kept], all_models[kept]


def _fixed(scenario: Scenario, rates: Floats, rng: np.random.Generator) -> Arrivals:
    """Equal gaps for each model, from a random phase."""
    expected = rates * scenario.load.seconds
    phase = rng.random(len(rates))
    counts = np.maximum(np.ceil(expected - phase), 0).astype(np.int64)
    models = np.repeat(np.arange(len(rates), dtype=np.int32), counts)
    times = (within(counts) + np.repeat(phase, counts)) / rates[models]
    return np.minimum(times, np.nextafter(scenario.load.seconds, 0)), models


def _burst(scenario: Scenario, rates: Floats, rng: np.random.Generator) -> Arrivals:
    """For each model alternating bursts and pauses, both exponential; Poisson inside a burst, at the rate that keeps
    the mean.

    With a cv above 1 the gaps have that coefficient of variation, and only the ratio of burst_s and idle_s counts. Over
    a short run the mean may be far off; this is intended. Sources: Clockwork's bursty generator; for the cv, the
    squared one of an interrupted Poisson process is 1 + 2 x rate x (share of time off) x (mean time off) (Kuczura, "The
    interrupted Poisson process as an overflow process", 1973, with the mean rate for the rate while on).
    """
    load = scenario.load
    share = load.burst_s / (load.burst_s + load.idle_s)
    off_s = np.full(len(rates), load.idle_s) if load.cv <= 1 else (load.cv**2 - 1) / (2 * rates * (1 - share))
    on_s = off_s * share / (1 - share)
    starts, ends = on_periods(rng, on_s, off_s, load.seconds)
    return place_on(rng, rates / share, starts, ends)


def _ramp(scenario: Scenario, rates: Floats, rng: np.random.Generator) -> Arrivals:
    """Steps of equal length; the rate grows by the same factor from step to step (deadlines: `draw_slos`)."""
    load = scenario.load
    factors = _stairs(1.0, (load.rate_end_rps or rates.sum()) / rates.sum(), load.steps)
    length_s = load.seconds / load.steps
    times, models = [], []
    for step, factor in enumerate(factors.tolist()):
        expected = rates * factor * length_s
        if load.gaps == "fixed":
            counts = np.floor(expected + rng.random(len(rates))).astype(np.int64)
            positions = (within(counts) + np.repeat(rng.random(len(rates)), counts)) / np.repeat(counts, counts)
        else:
            counts = rng.poisson(expected)
            positions = rng.random(int(counts.sum()))
        times.append((step + positions) * length_s)
        models.append(np.repeat(np.arange(len(rates), dtype=np.int32), counts))
    return np.minimum(np.concatenate(times), np.nextafter(load.seconds, 0)), np.concatenate(models)


def _closed(scenario: Scenario, rates: Floats, rng: np.random.Generator) -> Arrivals:
    """The first request of every client of every model."""
    models = np.repeat(np.arange(len(rates), dtype=np.int32), scenario.load.clients)
    return rng.random(len(models)) * min(CLIENTS_START_S, scenario.load.seconds), models


_KINDS: dict[str, Callable[[Scenario, Floats, np.random.Generator], Any]] = {
    "poisson": _poisson,
    "gamma": _gamma,
    "fixed": _fixed,
    "burst": _burst,
    "ramp": _ramp,
    "closed": _closed,
}
