"""The parts of a scenario: devices, models, load, noise, faults. `scenario.py` reads them from a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gearmesh.simulation.arrivals.sizes import SizeLaw
from gpu_worker.core.emulation import ModelTimes, exec_s
from gpu_worker.core.sized_times import rounded
from mesh import wire
from mesh.sizes import Extents


@dataclass(frozen=True, slots=True)
class SimModel:
    """One model that is served."""

    name: str
    weights_bytes: int
    batch_max: int
    exec_s: tuple[float, ...]  # seconds by batch, 0..batch_max, at the greatest extents; exec_s[0] == 0.0
    slo_ms: tuple[float, ...] = ()  # replaces the load's
    weight: float = 1.0  # value of one answer in time
    group: int = 0  # index of its [[models]] table
    rate_share: float | None = None  # share of load.rate_rps for the whole group
    open: "OpenTimes | None" = None  # its open dimensions; None: it has none


@dataclass(frozen=True, slots=True)
class OpenTimes:
    """The open dimensions of a model, which sizes its requests have, and how long its batches take."""

    dims: tuple[wire.Dim, ...]
    times: ModelTimes
    edges: tuple[tuple[int, ...], ...]  # at which it was measured, by dimension; the last is the greatest extent
    cells: tuple[wire.SizeTimes, ...]  # what was measured there
    padded: bool  # EXEC computes these edges only; False: any extents, as always if `exact`
    sizes: SizeLaw | None = None  # of its requests; None: the log says it
    exact: bool = False  # only requests of equal extents share a batch

    @property
    def most(self) -> Extents:
        """The greatest extents."""
        return tuple(dim.most for dim in self.dims)

    def computed(self, extents: Extents) -> Extents:
        """The least extents that EXEC can compute for requests of these."""
        return rounded(self.edges, extents) if self.padded else extents

    def exec_s(self, batch: int, extents: Extents) -> float:
        """Seconds that EXEC of so many rows takes, computed with these extents; it never falls in an extent."""
        return exec_s(self.times, batch, extents)


@dataclass(frozen=True, slots=True)
class Devices:
    """A number of equal devices, empty at first."""

    count: int
    memory_bytes: int
    page_bytes: int
    load_bytes_per_s: float
    load_fixed_s: float

    @property
    def pages(self) -> int:
        """Pages of one device."""
        return self.memory_bytes // self.page_bytes

    def pages_of(self, model: SimModel) -> int:
        """Pages that the model needs."""
        return -(-model.weights_bytes // self.page_bytes)

    def load_s(self, model: SimModel) -> float:
        """Duration of a LOAD of the model in seconds."""
        return self.load_fixed_s + model.weights_bytes / self.load_bytes_per_s


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests. Fields after `seconds` apply to the kinds named beside them."""

    kind: str
    rate_rps: float | None = None  # over all models; None, with a path: the recorded rate
    cv: float = 1.0  # coefficient of variation of a model's gaps; gamma, burst
    zipf: float = 0.0  # the k-th most popular model's rate ~ k^-zipf; a seeded permutation says which it is
    slo_ms: tuple[float, ...] = (100.0,)
    slo_draw: str = "choice"  # or log_uniform
    seconds: float = 10.0  # log: the whole log if not given (then inf)
    path: Path | None = None  # log: the file; maf: an Azure Functions day file instead of the generator
    burst_s: float = 0.5  # burst: mean length of a model's bursts
    idle_s: float = 1.5  # burst: mean length of the pauses between them
    clients: int = 1  # closed: outstanding requests per model
    think_s: float = 0.0  # closed: mean of the exponential pause after each answer
    gaps: str = "poisson"  # ramp: or fixed
    steps: int = 5  # ramp: of equal length
    rate_end_rps: float | None = None  # ramp: of the last step; the rate grows by the same factor each step
    slo_end_ms: float | None = None  # ramp: of the last step; the first slo_ms is the first step's
    functions: int = 46_000  # maf: rows of the trace; as many as in Shahrad et al. (ATC 2020)
    minutes: int = 60  # maf: of the trace, compressed into `seconds`
    start_minute: int = 0  # maf with a path: first minute of the day that is played
    mapping: str = "block"  # maf: from function's rank to model; or stripe, random


@dataclass(frozen=True, slots=True)
class Noise:
    """How the simulated world differs from the profile; by default not at all."""

    exec_cv: float = 0.0  # lognormal factor of mean 1 on each EXEC
    outlier_share: float = 0.0  # share of EXECs that take `outlier_factor` times as long
    outlier_factor: float = 1.0
    load_cv: float = 0.0  # lognormal factor of mean 1 on each LOAD
    network_ms: float = 0.0  # mean, each way
    network_jitter_ms: float = 0.0  # mean of an additional exponential part


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """One fault."""

    at_s: float
    kind: str  # see scenario.FAULTS
    device: int = 0
    seconds: float = 0.0  # how long it lasts; kill: 0 means for good
    factor: float = 1.0  # slow: factor on the duration of EXEC
    count: int = 1  # lose: number of this device's results that never reach the controller


@dataclass(frozen=True, slots=True)
class Scenario:
    """One experiment for the simulator."""

    name: str
    devices: Devices
    models: tuple[SimModel, ...]
    load: Workload
    noise: Noise = Noise()
    faults: tuple[InjectedFault, ...] = ()
    policies: tuple[str, ...] = ("atc",)  # run unless the command names others
    notes: tuple[str, ...] = ()  # warnings about keys without effect
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # {policy: its parameters}
