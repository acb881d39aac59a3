"""Earlier measurements of versions with open dimensions, and a device whose times follow from what it computes."""

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu_worker.core.figures import Cell, SizedFigures
from gpu_worker.core.measuring_sizes import SizedMeasurement
from gpu_worker.core.surveying import Survey
from gpu_worker.devices.base import Traits
from gpu_worker.devices.cuda.driver import Enough, MemoryFull, Timed, Work
from gpu_worker.devices.cuda.host import HostDriver
from gpu_worker.devices.cuda.nvidia import NvidiaDriver
from gpu_worker.devices.cuda.versions import ENGINE
from gpu_worker.packages.package import Package
from gpu_worker.profiling import profile_kind, write_profile
from mesh import wire
from mesh.sizes import Extents


def kinds() -> list[str]:
    """The kinds of the devices that tests run on here."""
    return [HostDriver().kind, *([NvidiaDriver(0, lambda work: work()).kind] if torch.cuda.is_available() else [])]


def keep(package: Package, places: Sequence[Extents], rows: Sequence[Sequence[int]] = (), *, kind: str = "") -> None:
    """A profile with these extents, as if measured before, lies beside the version; `rows`: of each, else 1, 2 and 4.

    `kind`: of device; empty: of the one on this process's memory.
    """
    sizes = tuple(
        wire.SizeTimes(extents=extents, exec_s={size: 0.001 * size for size in (rows[i] if rows else (1, 2, 4))})
        for i, extents in enumerate(places)
    )
    _write(package, wire.Profile(exec_s=dict(sizes[-1].exec_s), load_s=0.01, engine=ENGINE, sizes=sizes), kind)


def measure(package: Package, cells: tuple[Cell, ...]) -> None:
    """The version is measured in these cells, each element takes 0.1 ms, and the profile lies beside it."""
    spec = package.spec
    measurement = SizedMeasurement(Survey(spec.dims, spec.batch_max, spec.slo_ms / 1e3), SizedFigures(), cells)
    measurement.loaded(0.01)
    while plan := measurement.next_plan():
        for batch, runs, extents in plan:
            for _ in range(runs):
                measurement.ran(batch, 1e-4 * batch * math.prod(extents), extents)
    profile = measurement.profile(ENGINE)
    assert profile is not None
    _write(package, profile, "")


def _write(package: Package, profile: wire.Profile, kind: str) -> None:
    kept = profile_kind(kind or HostDriver().kind, Traits(engine=ENGINE))
    write_profile(package.folder, kept, profile, package.spec.slo_ms)


class Computing(HostDriver):
    """A device on which a batch takes `fixed_s`, and so much for each operation, as long as it fits."""

    def __init__(self, fixed_s: float, flop_s: float, flops_max: float = float("inf")) -> None:
        super().__init__()
        self._fixed_s, self._flop_s, self._flops_max = fixed_s, flop_s, flops_max
        self.runs: list[list[float]] = []  # of each batch that was timed

    def timer(self) -> Timed:
        """Returns what tells how long a work takes. Raises: MemoryFull."""
        return self._seconds

    def _seconds(self, work: Work, enough: Enough) -> list[float]:
        with FlopCounterMode(display=False) as counter:
            self.warm_up(work)
        flops = counter.get_total_flops()
        if flops > self._flops_max:
            raise MemoryFull("tried to allocate 1 GiB; 3 MiB are free")
        found = [self._fixed_s + self._flop_s * flops]
        while not enough(found):
            found.append(found[0])
        self.runs.append(found)
        return found
