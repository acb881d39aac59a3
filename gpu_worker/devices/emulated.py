"""A device that takes its times from a profile, on the real wire: one machine can run hundreds for one controller."""

import asyncio
import itertools
import time
from pathlib import Path

from gpu_worker.core.cutting import hollow, varies
from gpu_worker.core.emulation import Emulator, ModelTimes, ProfileError, exec_s, own_edges, parse_profile, sizes_of
from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.core.sized_times import exact_edges
from gpu_worker.devices.base import DeviceError, Finished, Lost, Traits
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.codes import ActionCode
from mesh.errors import PackageError
from mesh.process.settings import Settings
from mesh.process.timers import Alarm
from mesh.sizes import most_of
from mesh.tensors import byte_count

_numbers = itertools.count()  # numbers of the emulated devices of this process
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class EmulatedDevice:
    """A Device whose outputs are zeros. LOAD and EXEC each run one action at a time."""

    def __init__(self, settings: Settings, file: Path) -> None:
        try:
            self._profile = parse_profile(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError, ProfileError) as error:
            raise DeviceError(f"GEARMESH_DEVICE=emulated:{file}: {error}") from error
        self.info = wire.DeviceInfo(
            name=f"emulated:{self._profile.name}/{next(_numbers)}",
            kind=f"emulated {self._profile.name}",
            pages=self._profile.pages,
            page_bytes=self._profile.page_bytes,
            any_batch=True,
        )
        self.depth = {Phase.LOAD: 2, Phase.INPUT: 64, Phase.EXEC: 2, Phase.OUTPUT: 64}
        self.ahead_s = 0.0
        self.measured = False
        self._packages: dict[str, Package] = {}
        self._emulator = Emulator(self._duration_s)
        self._finished: Finished | None = None
        self._alarm: Alarm | None = None

    def attach(self, finished: Finished, lost: Lost) -> None:
        """Phases are reported to `finished` from now on."""
        self._finished = finished
        self._alarm = Alarm(asyncio.get_running_loop(), self._ring)

    def prepare(self, package: Package) -> wire.Profile | None:
        """Returns the profile of the file for the batch sizes of LADDER. Raises: PackageError."""
        name, _ = wire.split_ref(package.ref)
        times = self._profile.times(name)
        if times is None:
            raise PackageError(
                package.ref, [f"the profile {self._profile.name!r} has no model {name!r} and no default"]
            )
        pages = package.pages(self.info.page_bytes)
        if pages > self.info.pages:
            raise PackageError(package.ref, [f"its weights take {pages} pages; the arena has {self.info.pages}"])
        self._packages[package.ref] = package
        sizes = sorted({size for size in LADDER if size <= package.spec.batch_max} | {package.spec.batch_max})
        cells = self._cells(package, times, sizes)
        return wire.Profile(
            exec_s=cells[-1].exec_s if cells else {size: exec_s(times, size) for size in sizes},
            load_s=self._profile.load_s(package.image_bytes),
            engine="emulated",
            sizes=cells,
        )

    def _cells(self, package: Package, times: ModelTimes, batches: list[int]) -> tuple[wire.SizeTimes, ...]:
        """Durations by extents; () without open dimensions. Raises: PackageError."""
        spec = package.spec
        if not spec.dims:
            return ()
        cells = sizes_of(times, spec.dims, batches, own_edges(times, spec.dims) or exact_edges(spec.dims))
        if not cells or cells[-1].extents != most_of(spec):
            most = list(most_of(spec))
            fault = f"the profile {self._profile.name!r} has no room for a row of the greatest extents, {most}"
            raise PackageError(package.ref, [fault])
        return cells

    def forget(self, ref: str) -> None:
        """The version is no longer prepared."""
        self._packages.pop(ref, None)

    def traits(self, ref: str) -> Traits:
        """Returns the same traits for every version."""
        return Traits("emulated")

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """Starts a phase. Returns its outcome if it takes no time; otherwise `finished` is called."""
        now = time.monotonic()
        if job.slot is None:
            # the job keeps it, even if the version is forgotten meanwhile
            job.slot = self._packages.get(job.action.ref)
        if job.slot is None:
            return Done(now, now, 0.0, ActionCode.UNKNOWN_MODEL)
        done = self._emulator.begin(phase, job, now)
        if phase is Phase.OUTPUT:
            self._make_outputs(job)
        assert self._alarm is not None
        self._alarm.by(self._emulator.wake_at())
        return done

    def release(self, job: Job) -> None:
        """The job holds nothing any more."""
        job.slot = None

    def unloaded(self, ref: str) -> None:
        """Does nothing: there are no views of pages."""

    def close(self) -> None:
        """No timer is left."""
        if self._alarm is not None:
            self._alarm.close()

    def _duration_s(self, phase: Phase, job: Job) -> float:
        package: Package = job.slot
        if isinstance(job.action, wire.Load):
            return self._profile.load_s(package.image_bytes)
        times = self._profile.times(wire.split_ref(job.action.ref)[0])
        assert times is not None
        return exec_s(times, job.action.batch, job.action.extents)

    def _make_outputs(self, job: Job) -> None:
        assert isinstance(job.action, wire.Infer)
        package: Package = job.slot
        spec = package.spec
        batch = job.action.batch
        if varies(spec):
            job.outputs, job.output_shapes = hollow(spec, batch, job.action.extents)
            return
        job.outputs = [memoryview(bytes(byte_count(t.dtype, t.shape[1:]) * batch)) for t in spec.outputs]

    def _ring(self, now: float) -> None:
        assert self._finished is not None
        assert self._alarm is not None
        for phase, job, done in self._emulator.due(now):
            self._finished(phase, job, done)
        self._alarm.by(self._emulator.wake_at())
