"""What a scenario is made of: devices, models, load, noise, faults. `scenario.py` reads them from a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class SimModel:
    """One model that is served."""

    name: str
    weights_bytes: int
    batch_max: int
    exec_s: tuple[float, ...]  # seconds by batch, 0..batch_max; exec_s[0] == 0.0
    slo_ms: tuple[float, ...] = ()  # in place of the load's
    weight: float = 1.0  # value of one answer in time
    group: int = 0  # index of its [[models]] table
    rate_share: float | None = None  # the whole group's, of load.rate_rps


@dataclass(frozen=True, slots=True)
class Devices:
    """Equal devices; they start empty."""

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
        """Seconds that a LOAD of the model takes."""
        return self.load_fixed_s + model.weights_bytes / self.load_bytes_per_s


@dataclass(frozen=True, slots=True)
class Load:
    """The requests. Keys after `seconds` belong to the kinds named beside them."""

    kind: str
    rate_rps: float | None = None  # over all models; with a path: the recorded rate if None
    cv: float = 1.0  # of a model's gaps; gamma, burst
    zipf: float = 0.0  # rate of the k-th most popular model ~ k^-zipf; a seeded permutation says which it is
    slo_ms: tuple[float, ...] = (100.0,)
    slo_draw: str = "choice"  # or log_uniform
    seconds: float = 10.0  # log: the whole log if it was not given (then inf)
    path: Path | None = None  # log: the file; maf: an Azure Functions day file in place of the generator
    burst_s: float = 0.5  # burst: mean length of a model's bursts
    idle_s: float = 1.5  # burst: and of the pauses between them
    clients: int = 1  # closed: requests outstanding per model
    think_s: float = 0.0  # closed: mean of the exponential pause after each answer
    gaps: str = "poisson"  # ramp: or fixed
    steps: int = 5  # ramp: of equal length
    rate_end_rps: float | None = None  # ramp: last step's; each step is the same factor above the one before
    slo_end_ms: float | None = None  # ramp: last step's; the first slo_ms is the first step's
    functions: int = 46_000  # maf: rows of the trace; Source: gpu_and_literature 3.2
    minutes: int = 60  # maf: of the trace, squeezed into `seconds`
    start_minute: int = 0  # maf with a path: of the day, the first that is played
    mapping: str = "block"  # maf: function's rank -> model; or stripe, random


@dataclass(frozen=True, slots=True)
class Noise:
    """What makes the world differ from the profile. Nothing, by default."""

    exec_cv: float = 0.0  # lognormal factor of mean 1 on each EXEC
    outlier_share: float = 0.0  # of EXECs that take `outlier_factor` times as long
    outlier_factor: float = 1.0
    load_cv: float = 0.0  # lognormal factor of mean 1 on each LOAD
    network_ms: float = 0.0  # each way, mean
    network_jitter_ms: float = 0.0  # mean of an exponential part on top


@dataclass(frozen=True, slots=True)
class Fault:
    """Something breaks."""

    at_s: float
    kind: str  # see scenario.FAULTS
    device: int = 0
    seconds: float = 0.0  # that it lasts; kill: 0 is for good
    factor: float = 1.0  # slow: on the time of EXEC
    count: int = 1  # lose: results of this device that never reach the controller


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question to the simulator."""

    name: str
    devices: Devices
    models: tuple[SimModel, ...]
    load: Load
    noise: Noise = Noise()
    faults: tuple[Fault, ...] = ()
    policies: tuple[str, ...] = ("atc",)  # to be run, if nobody says otherwise
    notes: tuple[str, ...] = ()  # keys that have no effect, for a person
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # {policy: its parameters}
