"""Simulated workers: the production lanes on an emulated device, with noise."""

import math

import numpy as np

from gearmesh.simulation.scenario import Scenario, SimModel
from gpu_worker.core.emulation import Emulator
from gpu_worker.core.lanes import Job, Lanes, Phase, Prepared
from gpu_worker.core.pages import PageTable
from mesh import wire


class SimDevice:
    """One worker. A killed one comes back as new, with an empty arena."""

    def __init__(self, index: int, scenario: Scenario, rng: np.random.Generator) -> None:
        self.worker = f"worker-{index:04}"
        self.pages = scenario.devices.pages
        self._models = {f"{model.name}:1": model for model in scenario.models}
        self._prepared = tuple(_prepared(model, scenario) for model in scenario.models)
        self._scenario = scenario
        self._rng = rng
        self.slow = 1.0  # factor on EXEC while a fault lasts
        self.alive = True
        self.hung = False
        self.losing = 0  # results that the controller is not to hear of
        self.epoch = 1  # of the controller that it obeys
        self.busy_s = 0.0  # EXEC, so far
        self.load_s = 0.0  # LOAD, so far
        self.renew()

    def renew(self) -> None:
        """As if just started."""
        self.lanes = Lanes(PageTable(self.pages), {Phase.LOAD: 2, Phase.INPUT: 64, Phase.EXEC: 2, Phase.OUTPUT: 64})
        self.lanes.welcome(self.epoch)
        self.emulator = Emulator(self._duration_s)
        for report in self._prepared:
            assert report.spec is not None
            self.lanes.prepared(report.ref, Prepared(report.pages, report.spec.batch_max, None, ()))

    def welcome(self, epoch: int) -> None:
        """Another controller took over; what its predecessor ordered and has not begun is dropped."""
        self.epoch = epoch
        self.lanes.welcome(epoch)

    def hello(self) -> wire.WorkerHello:
        """What the worker says of itself."""
        page_bytes = self._scenario.devices.page_bytes
        info = wire.DeviceInfo(
            name=self.worker, kind="simulated", pages=self.pages, page_bytes=page_bytes, any_batch=True
        )
        return wire.WorkerHello(
            member=self.worker,
            host="simulated",
            device=info,
            free_pages=self.lanes.table.free,
            resident=self.lanes.table.resident(),
            prepared=self._prepared,
        )

    def _duration_s(self, phase: Phase, job: Job) -> float:
        model = self._models[job.action.ref]
        noise = self._scenario.noise
        if isinstance(job.action, wire.Load):
            seconds = self._scenario.devices.load_s(model) * _spread(self._rng, noise.load_cv)
            self.load_s += seconds
            return seconds
        seconds = model.exec_s[job.action.batch] * self.slow * _spread(self._rng, noise.exec_cv)
        if noise.outlier_share and self._rng.random() < noise.outlier_share:
            seconds *= noise.outlier_factor
        self.busy_s += seconds
        return seconds


def _prepared(model: SimModel, scenario: Scenario) -> wire.Prepared:
    """The model as a worker reports it."""
    tensor = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    profile = wire.Profile(
        exec_s={size: model.exec_s[size] for size in range(1, model.batch_max + 1)},
        load_s=scenario.devices.load_s(model),
        engine="simulated",
    )
    return wire.Prepared(
        ref=f"{model.name}:1",
        ok=True,
        spec=wire.ModelSpec(inputs=(tensor,), outputs=(tensor,), batch_max=model.batch_max, slo_ms=100.0),
        pages=scenario.devices.pages_of(model),
        weights_bytes=model.weights_bytes,
        profile=profile,
    )


def _spread(rng: np.random.Generator, cv: float) -> float:
    """A log-normal factor of mean 1."""
    if not cv:
        return 1.0
    sigma2 = math.log(1 + cv * cv)
    return math.exp(rng.normal(-sigma2 / 2, math.sqrt(sigma2)))
