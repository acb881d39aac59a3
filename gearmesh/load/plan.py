"""A plan of load: a sequence of phases, each with streams that run in parallel. Pure.

A stream is an open loop (requests arrive regardless of answers) or a closed loop (a client sends its next request after
an answer).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gearmesh.load.errors import LoadError
from gearmesh.simulation.arrivals.recorded import RecordedRequest
from gearmesh.simulation.parts import Workload
from mesh import wire

OPEN_KINDS = ("poisson", "fixed", "gamma", "burst", "ramp", "maf", "log")


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of a model."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # of one row; -1: an open extent
    dims: tuple[str, ...] = ()  # name of each dimension; (): none has one

    def row_shape(self, extents: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of one row with these extents in the open dimensions."""
        names = self.dims or ("",) * len(self.shape)
        return tuple(extents.get(name, extent) for name, extent in zip(names, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """A model that can be asked, as the mesh describes it."""

    name: str
    inputs: tuple[ModelInput, ...]
    batch_max: int = 1
    batch1_ms: float | None = None  # latency of a request that is alone in the mesh, once measured
    dims: tuple[wire.Dim, ...] = ()  # open dimensions of its inputs


@dataclass(frozen=True, slots=True)
class Slo:
    """Budgets: each request draws one of `values` (choice), or one between the least and the greatest (log_uniform)."""

    values: tuple[float, ...]
    unit: str = "ms"  # or batch1: multiples of the model's batch1_ms
    draw: str = "choice"

    def values_ms(self, target: LoadTarget) -> tuple[float, ...]:
        """The budgets for one model in ms. Raises: LoadError, if they depend on a time that was not measured."""
        if self.unit == "ms":
            return self.values
        if target.batch1_ms is None:
            raise LoadError(f"--slo-factor: how long {target.name} takes for one request was not measured")
        return tuple(factor * target.batch1_ms for factor in self.values)


@dataclass(frozen=True, slots=True)
class Open:
    """Arrivals as the simulator draws them.

    `load.seconds` and `load.slo_ms` are replaced by the phase's and the stream's.
    """

    load: Workload


@dataclass(frozen=True, slots=True)
class Replay:
    """Recorded requests, oldest first, with their own budgets if recorded."""

    lines: tuple[RecordedRequest, ...]
    rate_rps: float | None = None  # gaps are scaled to this mean rate; None: as recorded


@dataclass(frozen=True, slots=True)
class Growing:
    """Poisson arrivals, each for one of the models in use: one at first, one more every `every_s`."""

    rate_rps: float
    every_s: float


@dataclass(frozen=True, slots=True)
class Closed:
    """Clients that each have one request in flight."""

    clients: int
    per_model: bool = False  # True: so many per model, each asking only that one; False: so many in all
    think_s: float = 0.0  # mean of the exponential pause after each answer
    zipf: float = 0.0  # the k-th most popular model is drawn with weight k^-zipf


@dataclass(frozen=True, slots=True)
class RequestStream:
    """Requests of one kind."""

    name: str
    models: tuple[str, ...]
    source: Open | Replay | Growing | Closed
    slo: Slo


@dataclass(frozen=True, slots=True)
class LoadPhase:
    """A period of load; the next one begins once all requests are answered."""

    name: str
    seconds: float
    streams: tuple[RequestStream, ...]
    warmup_s: float = 0.0  # requests due before this are sent, but left out of the report


@dataclass(frozen=True, slots=True)
class LoadTestPlan:
    """What one call of the load generator does."""

    name: str
    phases: tuple[LoadPhase, ...]
    seed: int = 0
    rows: int = 1
    cache: bool = False  # True: the mesh may answer from its prediction cache
    distinct_inputs: int = 1
    back_off: bool = False  # True: a refused client of a closed loop waits for retry_after_ms
    sizes: str = ""  # law of the extents in open dimensions, see sizes.py; empty: each request has the greatest
    notes: tuple[str, ...] = field(default=())  # for the report: what the plan stands for, and how it was scaled

    @property
    def models(self) -> tuple[str, ...]:
        """All models that are asked, in the order of their first occurrence."""
        return tuple(dict.fromkeys(m for phase in self.phases for stream in phase.streams for m in stream.models))

    @property
    def needs_batch1(self) -> bool:
        """Whether budgets are multiples of batch1_ms."""
        return any(stream.slo.unit != "ms" for phase in self.phases for stream in phase.streams)


def each_slo(plan: LoadTestPlan) -> LoadTestPlan:
    """The plan with each phase repeated for each of its budgets, in sequence, with the same arrivals."""
    phases = []
    for phase in plan.phases:
        for value in dict.fromkeys(v for stream in phase.streams for v in stream.slo.values):
            unit = phase.streams[0].slo.unit
            label = f"slo {value:g} ms" if unit == "ms" else f"slo x{value:g}"
            streams = tuple(replace(s, slo=replace(s.slo, values=(value,))) for s in phase.streams)
            phases.append(replace(phase, name=f"{phase.name} {label}".strip(), streams=streams))
    return replace(plan, phases=tuple(phases))
