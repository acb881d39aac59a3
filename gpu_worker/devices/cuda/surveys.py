"""Which batches of a version with open dimensions are worth a graph, by the time that some take as graphs.

As graphs: run eagerly, small batches take the time that their operations take to be issued, whatever their extents.
"""

from collections.abc import Sequence
from functools import partial

import torch

from gpu_worker.core.figures import Cell
from gpu_worker.core.fixed import EDGES
from gpu_worker.core.surveying import Survey, cells_by_running
from gpu_worker.devices.cuda.driver import Driver, MemoryFull, Timed
from gpu_worker.devices.cuda.operations import filler, operate
from gpu_worker.devices.cuda.plans import SLOT_BYTES_MAX, BatchLayout, lay_out
from gpu_worker.devices.execution.executables import Forward
from gpu_worker.packages.package import Package
from mesh.sizes import Extents, most_of

RUNS_MIN, RUNS_MAX = 2, 4  # of each batch of the survey; the first warms caches and does not count
ENOUGH_S = 0.1  # of runs of one batch, but for RUNS_MIN


def survey_cells(
    driver: Driver, package: Package, forward: Forward, weights: Sequence[torch.Tensor]
) -> tuple[Cell, ...]:
    """Returns the cells of a version with open dimensions, at least one, ascending.

    `weights`: on the device, of its own. What the survey took is free once the driver trims.

    Raises: MemoryFull if not even one row of the greatest extents fits; RuntimeError if a batch cannot be captured.
    """
    spec = package.spec
    runner = _Runner(driver, package, forward, weights)
    survey = Survey(spec.dims, spec.batch_max, spec.slo_ms / 1e3)
    cells = cells_by_running(survey, runner.run, any_batch=False, most=EDGES[len(spec.dims)])
    if not cells:
        raise MemoryFull(runner.full)
    return cells


class _Runner:
    """Runs batches of one version for a survey."""

    def __init__(self, driver: Driver, package: Package, forward: Forward, weights: Sequence[torch.Tensor]) -> None:
        self.full = ""  # what the device said when a batch did not fit, last
        self._driver, self._spec, self._forward, self._weights = driver, package.spec, forward, weights
        self._fill_up = filler(package)
        largest = lay_out(package.spec, package.spec.batch_max, most_of(package.spec))
        self._buffer = driver.allocate(min(largest.end, SLOT_BYTES_MAX))
        self._timed: Timed | None = None

    def run(self, rows: int, extents: Extents) -> Sequence[float]:
        """Returns the seconds of some runs of a batch; () if there is no memory for it, or a slot does not hold it."""
        layout = lay_out(self._spec, rows, extents)
        if layout.end > SLOT_BYTES_MAX:
            return ()
        for _ in range(2):  # once more, as what smaller ones have left may have been in its way
            try:
                return self._run(layout)
            except MemoryFull as error:
                self.full = str(error)
            self._timed = None
            self._driver.trim()
        return ()

    def _run(self, layout: BatchLayout) -> Sequence[float]:
        if self._timed is None:
            self._timed = self._driver.timer()
        work = partial(operate, self._forward, self._weights, self._buffer, layout)
        self._driver.warm_up(partial(self._fill_up, self._buffer, layout))
        self._driver.warm_up(work)  # libraries choose and load their kernels, which no capture allows
        return self._timed(work, _enough)


def _enough(seconds: Sequence[float]) -> bool:
    return len(seconds) >= RUNS_MAX or (len(seconds) >= RUNS_MIN and sum(seconds) >= ENOUGH_S)
