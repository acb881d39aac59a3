"""What load is wanted: phases one after the other, each of streams side by side. Pure.

A stream is an open loop (requests come when they come) or a closed loop (a client asks again once it is answered).
"""

from dataclasses import dataclass, field, replace

from gearmesh.load.errors import LoadError
from gearmesh.simulation.arrivals.recorded import Line
from gearmesh.simulation.parts import Load

OPEN_KINDS = ("poisson", "fixed", "gamma", "burst", "ramp", "maf", "log")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input of a model."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # of one row


@dataclass(frozen=True, slots=True)
class Target:
    """A model that can be asked, as the mesh describes it."""

    name: str
    inputs: tuple[Tensor, ...]
    batch_max: int = 1
    batch1_ms: float | None = None  # latency of a lone request, once it was measured


@dataclass(frozen=True, slots=True)
class Slo:
    """Budgets: each request draws one of `values` (choice), or one between the least and the greatest (log_uniform)."""

    values: tuple[float, ...]
    unit: str = "ms"  # or batch1: factors of the latency of a lone request to the same model
    draw: str = "choice"

    def values_ms(self, target: Target) -> tuple[float, ...]:
        """The budgets for one model. Raises: LoadError if they depend on a time that was not measured."""
        if self.unit == "ms":
            return self.values
        if target.batch1_ms is None:
            raise LoadError(f"--slo-factor: how long {target.name} takes for one request was not measured")
        return tuple(factor * target.batch1_ms for factor in self.values)


@dataclass(frozen=True, slots=True)
class Open:
    """Arrivals as the simulator draws them; `load.seconds` and `load.slo_ms` are the phase's and the stream's."""

    load: Load


@dataclass(frozen=True, slots=True)
class Replay:
    """Recorded requests, oldest first; their own budgets where they have one."""

    lines: tuple[Line, ...]
    rate_rps: float | None = None  # gaps are stretched or squeezed to this mean rate


@dataclass(frozen=True, slots=True)
class Growing:
    """Poisson arrivals, each to one of the models that are in use: one at first, one more every `every_s`."""

    rate_rps: float
    every_s: float


@dataclass(frozen=True, slots=True)
class Closed:
    """Clients that each have one request in flight."""

    clients: int
    per_model: bool = False  # so many for every model, each faithful to its own; else in all, drawing for each request
    think_s: float = 0.0  # mean of the exponential pause after each answer
    zipf: float = 0.0  # the k-th most popular model is drawn like k^-zipf


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of one kind."""

    name: str
    models: tuple[str, ...]
    source: Open | Replay | Growing | Closed
    slo: Slo


@dataclass(frozen=True, slots=True)
class Phase:
    """A span of load; the next begins when everything is answered."""

    name: str
    seconds: float
    streams: tuple[Stream, ...]
    warmup_s: float = 0.0  # requests due before this are sent, and left out of the report


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one call of the load generator does."""

    name: str
    phases: tuple[Phase, ...]
    seed: int = 0
    rows: int = 1
    cache: bool = False  # True: the mesh may answer from its prediction cache
    distinct_inputs: int = 1
    back_off: bool = False  # True: a refused client of a closed loop waits as long as it was told to
    notes: tuple[str, ...] = field(default=())  # for the report: what it stands for, and how it was scaled

    @property
    def models(self) -> tuple[str, ...]:
        """All models that are asked, in the order they first occur."""
        return tuple(dict.fromkeys(m for phase in self.phases for stream in phase.streams for m in stream.models))

    @property
    def needs_batch1(self) -> bool:
        """True if budgets are factors of the time of a lone request."""
        return any(stream.slo.unit != "ms" for phase in self.phases for stream in phase.streams)


def each_slo(plan: Plan) -> Plan:
    """The plan with every phase run once for each of its budgets, one after the other, on the same arrivals."""
    phases = []
    for phase in plan.phases:
        for value in dict.fromkeys(v for stream in phase.streams for v in stream.slo.values):
            unit = phase.streams[0].slo.unit
            label = f"slo {value:g} ms" if unit == "ms" else f"slo x{value:g}"
            streams = tuple(replace(s, slo=replace(s.slo, values=(value,))) for s in phase.streams)
            phases.append(replace(phase, name=f"{phase.name} {label}".strip(), streams=streams))
    return replace(plan, phases=tuple(phases))
