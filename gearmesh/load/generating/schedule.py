"""When each request is due, and what the clients of closed loops do. Pure and seeded: one seed, one schedule.

Arrivals are those of the simulator (`gearmesh.simulation.arrivals.loads`), so that what is simulated can be run and
the other way round. Phases of one plan share the seed: a sweep over budgets meets the same arrivals each time.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gearmesh.load.errors import LoadError
from gearmesh.load.plan import Closed, Growing, LoadPhase, LoadTarget, Open, Replay, RequestStream
from gearmesh.simulation.arrivals import loads
from gearmesh.simulation.fields import EmptyTrace, UnusableFile
from gearmesh.simulation.parts import Devices, Scenario, SimModel, Workload

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
NO_DEVICE = Devices(count=1, memory_bytes=1, page_bytes=1, load_bytes_per_s=1.0, load_fixed_s=0.0)
BLOCK = 1024  # random numbers drawn at once
ARRIVALS_BLOCK = 4096  # requests of the schedule that are unpacked at once

Arrival = tuple[float, int, float, int, int]  # (due_s, model, slo_s, rows, stream)


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Requests of open loops, oldest first; all arrays [requests]."""

    due_s: Floats  # from the start of the phase, sorted
    model: Ints  # index into the plan's models
    slo_s: Floats
    rows: Ints
    stream: Ints  # index into the phase's streams

    def __len__(self) -> int:
        return len(self.due_s)

    def share(self, part: int, parts: int) -> "Arrivals":
        """Every `parts`-th request, starting with number `part`."""
        chosen = slice(part, None, parts)
        return Arrivals(
            self.due_s[chosen], self.model[chosen], self.slo_s[chosen], self.rows[chosen], self.stream[chosen]
        )


def unpacked(arrivals: Arrivals) -> Iterator[Arrival]:
    """Yields the arrivals one by one. As a list of tuples, 20 million of them would take 4 GB."""
    columns = (arrivals.due_s, arrivals.model, arrivals.slo_s, arrivals.rows, arrivals.stream)
    for first in range(0, len(arrivals), ARRIVALS_BLOCK):
        yield from zip(*(column[first : first + ARRIVALS_BLOCK].tolist() for column in columns), strict=True)


@dataclass(frozen=True, slots=True)
class ClosedLoopClients:
    """Clients of one closed loop with equal behaviour."""

    stream: int
    count: int
    models: tuple[int, ...]  # indices into the plan's models; only one if the clients ask a single model
    weights: tuple[float, ...]  # probabilities of these models
    slo_ms: tuple[tuple[float, ...], ...]  # budgets for each of these models
    draw: str
    think_s: float


def open_arrivals(
    phase: LoadPhase, index: Mapping[str, int], targets: Mapping[str, LoadTarget], seed: int, rows: int = 1
) -> Arrivals:
    """The requests of all open streams of a phase. Each has `rows` rows, except those of a recorded log.

    `index`: {model: its index in the plan}. Raises: LoadError, if a stream has no requests, or its file cannot be used.
    """
    parts = []
    for number, stream in enumerate(phase.streams):
        if isinstance(stream.source, Closed):
            continue
        models = np.array([index[model] for model in stream.models], np.int32)
        try:
            due_s, model, slo_s, rows_of = _stream_arrivals(phase, stream, targets, _seed(seed, number), rows)
        except UnusableFile as error:
            raise LoadError("; ".join(f"--file: {text}" for text in error.texts)) from error
        except EmptyTrace as error:
            raise LoadError(error.explanation("--rate", "--seconds")) from error
        parts.append((due_s, models[model], slo_s, rows_of, np.full(len(due_s), number, np.int32)))
    if not parts:
        none, nothing = np.empty(0), np.empty(0, np.int32)
        return Arrivals(none, nothing, none, nothing, nothing)
    due_s, model, slo_s, rows_of, stream_of = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(due_s, kind="stable")
    return Arrivals(due_s[order], model[order], slo_s[order], rows_of[order], stream_of[order])


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) if number else seed


def _stream_arrivals(
    phase: LoadPhase, stream: RequestStream, targets: Mapping[str, LoadTarget], seed: int, rows: int
) -> tuple[Floats, Ints, Floats, Ints]:
    """(due_s, index into the stream's models, slo_s, rows)."""
    if isinstance(stream.source, Replay):
        return replayed(stream.source, stream, targets, phase.seconds)
    scenario = _scenario(phase, stream, targets)
    if isinstance(stream.source, Growing):
        arriving, due = np.random.default_rng(seed).spawn(2)
        due_s, model = growing(stream.source, len(stream.models), phase.seconds, arriving)
        return due_s, model, loads.draw_slos(scenario, due_s, model, due), np.full(len(due_s), rows, np.int32)
    trace = loads.arrivals(scenario, seed)
    return trace.time_s, trace.model, trace.slo_s, np.full(len(trace), rows, np.int32)


def _scenario(phase: LoadPhase, stream: RequestStream, targets: Mapping[str, LoadTarget]) -> Scenario:
    """The models and the load, in the form of the simulator's generators."""
    own = stream.slo.unit != "ms"
    models = tuple(
        SimModel(name, 1, targets[name].batch_max, (0.0,), slo_ms=stream.slo.values_ms(targets[name]) if own else ())
        for name in stream.models
    )
    load = stream.source.load if isinstance(stream.source, Open) else Workload("poisson")
    values = stream.slo.values_ms(targets[stream.models[0]])
    load = replace(load, seconds=phase.seconds, slo_ms=values, slo_draw=stream.slo.draw)
    return Scenario(f"stream {stream.name}", NO_DEVICE, models, load)


def replayed(
    source: Replay, stream: RequestStream, targets: Mapping[str, LoadTarget], seconds: float
) -> tuple[Floats, Ints, Floats, Ints]:
    """(due_s, index into the stream's models, slo_s, rows) of the recorded requests to those models."""
    index = {model: i for i, model in enumerate(stream.models)}
    default_ms = {model: stream.slo.values_ms(targets[model])[0] for model in stream.models}
    lines = [line for line in source.lines if line.model in index]
    due_s = np.array([line.t_s for line in lines], np.float64)
    if source.rate_rps and len(due_s) and due_s[-1] > 0:
        due_s *= (len(due_s) - 1) / source.rate_rps / due_s[-1]
    kept = due_s < seconds
    model = np.array([index[line.model] for line in lines], np.int32)
    slo_s = np.array([line.slo_ms or default_ms[line.model] for line in lines], np.float64) / 1e3
    rows = np.array([line.rows for line in lines], np.int32)
    return due_s[kept], model[kept], slo_s[kept], rows[kept]


def growing(source: Growing, models: int, seconds: float, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """(due_s, model): at time t the models 0 .. t // every_s are in use, with equal probability.

    Source: the major workload of the Clockwork paper's experiment 6.2 (OSDI'20).
    """
    due_s = np.sort(rng.random(rng.poisson(source.rate_rps * seconds)) * seconds)
    in_use = np.minimum((due_s // source.every_s).astype(np.int64) + 1, models)
    return due_s, np.minimum((rng.random(len(due_s)) * in_use).astype(np.int32), models - 1)


def closed_clients(
    phase: LoadPhase, index: Mapping[str, int], targets: Mapping[str, LoadTarget], seed: int
) -> list[ClosedLoopClients]:
    """The clients of all closed streams of a phase. Raises: LoadError."""
    found = []
    for number, stream in enumerate(phase.streams):
        source = stream.source
        if not isinstance(source, Closed):
            continue
        slo_ms = {model: stream.slo.values_ms(targets[model]) for model in stream.models}
        whole = ClosedLoopClients(
            number, source.clients, tuple(index[m] for m in stream.models), (), tuple(slo_ms.values()),
            stream.slo.draw, source.think_s,
        )  # fmt: skip
        if source.per_model:
            pairs = zip(whole.models, whole.slo_ms, strict=True)
            found += [replace(whole, models=(m,), weights=(1.0,), slo_ms=(budgets,)) for m, budgets in pairs]
            continue
        popularity = np.arange(1, len(stream.models) + 1, dtype=np.float64) ** -source.zipf
        weights = np.empty(len(popularity))
        weights[np.random.default_rng(_seed(seed, number)).permutation(len(popularity))] = popularity / popularity.sum()
        found.append(replace(whole, weights=tuple(weights.tolist())))
    return found


def share_clients(clients: Sequence[ClosedLoopClients], part: int, parts: int) -> list[ClosedLoopClients]:
    """The clients that this generator process plays; each client is played by exactly one process."""
    shares, first = [], 0
    for group in clients:
        count = len(range((part - first) % parts, group.count, parts))
        first += group.count
        if count:
            shares.append(replace(group, count=count))
    return shares


def draws(group: ClosedLoopClients, rng: np.random.Generator) -> Iterator[tuple[int, float, float]]:
    """Yields (model, slo_s, think_s) of the group's requests without end."""
    weights = np.cumsum(group.weights)
    while True:
        which = np.searchsorted(weights / weights[-1], rng.random(BLOCK), side="right").tolist()
        uniform = rng.random(BLOCK)
        pauses = (rng.exponential(size=BLOCK) * group.think_s).tolist()
        for i, pause in zip(range(BLOCK), pauses, strict=True):
            values = group.slo_ms[which[i]]
            if group.draw == "log_uniform":
                low, high = np.log(min(values)), np.log(max(values))
                slo_ms = float(np.exp(low + (high - low) * uniform[i]))
            else:
                slo_ms = values[int(uniform[i] * len(values))]
            yield group.models[which[i]], slo_ms / 1e3, pause


def first_asked(count: int, spread_s: float) -> list[float]:
    """The times of the clients' first requests: evenly spread over `spread_s`."""
    return list(itertools.islice(itertools.count(0.0, spread_s / max(1, count)), count))
