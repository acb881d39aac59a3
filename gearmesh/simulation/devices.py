"""The devices of a scenario: what is prepared on each, and how long its work takes, with noise. Pure."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from gearmesh.simulation.scenario import Scenario, SimModel
from gpu_worker.core.emulation import fits
from gpu_worker.core.fitting import servable
from gpu_worker.core.jobs import Job, Phase, Servable
from gpu_worker.core.pump import Pump
from mesh import wire
from mesh.sizes import Extents


class AllPrepared:
    """Versions that are prepared from the start, with known profiles: the `SimVersions` of scenarios."""

    def __init__(self, reports: Sequence[wire.Prepared]) -> None:
        self._reports = tuple(reports)

    def attach(self, pump: Pump, tell: Callable[[wire.Prepared], None]) -> None:
        """The lanes of the worker, which starts or starts again, know all versions."""
        for report in self._reports:
            assert report.spec is not None
            alike = Servable(report.pages, report.spec.batch_max, None, ())  # nobody looks at their outputs
            sized = servable(report.spec, report.pages, None, report.profile)
            pump.lanes.prepared(report.ref, sized if report.spec.dims else alike)

    def reports(self) -> tuple[wire.Prepared, ...]:
        """The reports of all versions, as in the worker's hello."""
        return self._reports

    def prepare(self, ref: str, content: str) -> None:
        """Nothing changes: the controller knows all versions already."""

    def forget(self, ref: str) -> None:
        """Nothing changes: scenarios want all of their versions all of the time."""

    def executed(self, action: wire.Load | wire.Infer, duration_s: float) -> None:
        """Nothing changes: nothing is measured."""


class Durations:
    """How long LOAD and EXEC take on one device: as its scenario says, times noise drawn from `rng`."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        self.slow = 1.0  # factor on EXEC while a fault lasts
        self.busy_s = 0.0  # EXEC, of all batches so far
        self.load_s = 0.0  # LOAD, of all so far
        self._scenario = scenario
        self._models = {f"{model.name}:1": model for model in scenario.models}
        self._rng = rng
        self._known: dict[tuple[str, int, Extents], float] = {}  # {(ref, batch, extents): seconds} of open models

    def duration_s(self, phase: Phase, job: Job) -> float:
        """Seconds that this phase of the job takes; they are counted."""
        model = self._models[job.action.ref]
        noise = self._scenario.noise
        if isinstance(job.action, wire.Load):
            seconds = self._scenario.devices.load_s(model) * _noise_factor(self._rng, noise.load_cv)
            self.load_s += seconds
            return seconds
        seconds = self._exec_s(model, job.action) * self.slow * _noise_factor(self._rng, noise.exec_cv)
        if noise.outlier_share and self._rng.random() < noise.outlier_share:
            seconds *= noise.outlier_factor
        self.busy_s += seconds
        return seconds

    def _exec_s(self, model: SimModel, action: wire.Infer) -> float:
        """Seconds that EXEC of the batch takes by the profile."""
        if model.open is None:
            return model.exec_s[action.batch]
        key = (action.ref, action.batch, action.extents)
        if key not in self._known:
            assert len(action.extents) == len(model.open.dims), f"{action.ref} has other extents than {action.extents}"
            assert fits(model.open.times, action.batch, action.extents), f"{key} does not fit in memory"
            if model.open.padded:
                assert model.open.computed(action.extents) == action.extents, f"{key} is on no edge"
            self._known[key] = model.open.exec_s(action.batch, action.extents)
        return self._known[key]


def prepared(model: SimModel, scenario: Scenario) -> wire.Prepared:
    """The report of a worker that has the model prepared, with its profile."""
    given = result = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    cells: tuple[wire.SizeTimes, ...] = ()
    dims: tuple[wire.Dim, ...] = ()
    durations = {size: model.exec_s[size] for size in range(1, model.batch_max + 1)}
    if model.open is not None:
        dims = model.open.dims
        names = tuple(dim.name for dim in dims)
        given = wire.TensorSpec(name="x", dtype="float32", shape=(-1,) * (1 + len(dims)), dims=names)
        cells = model.open.cells
        durations = cells[-1].exec_s
    profile = wire.Profile(exec_s=durations, load_s=scenario.devices.load_s(model), engine="simulated", sizes=cells)
    spec = wire.ModelSpec(
        inputs=(given,),
        outputs=(result,),
        batch_max=model.batch_max,
        slo_ms=100.0 if model.open is None else min(model.slo_ms or scenario.load.slo_ms),
        dims=dims,
        exact=model.open is not None and model.open.exact,
    )
    return wire.Prepared(
        ref=f"{model.name}:1",
        ok=True,
        spec=spec,
        pages=scenario.devices.pages_of(model),
        weights_bytes=model.weights_bytes,
        profile=profile,
    )


def _noise_factor(rng: np.random.Generator, cv: float) -> float:
    """A log-normal factor with mean 1 and coefficient of variation `cv`."""
    if not cv:
        return 1.0
    sigma2 = math.log(1 + cv * cv)
    return math.exp(rng.normal(-sigma2 / 2, math.sqrt(sigma2)))
