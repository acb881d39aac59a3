"""Versions that are prepared on one device, and what they share: images, executables, and the ring of slots."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch

from gpu_worker.core.cutting import varies
from gpu_worker.core.figures import Cell
from gpu_worker.core.fixed import fixed_rows, kept_cells
from gpu_worker.devices.attempts import Attempts
from gpu_worker.devices.base import Traits
from gpu_worker.devices.cuda.driver import Driver
from gpu_worker.devices.cuda.graphs import GraphExecutable, build, try_out
from gpu_worker.devices.cuda.memory import Memory, Ring
from gpu_worker.devices.cuda.records import CudaVersion, Figures, PinnedImage
from gpu_worker.devices.cuda.waiting.threads import Helper
from gpu_worker.devices.execution.executables import Checks, read_image
from gpu_worker.devices.execution.open_rows import OpenInputs
from gpu_worker.devices.execution.rows import padding_rows
from gpu_worker.devices.images import DISK, HostImage, Image, Images
from gpu_worker.packages.package import Package
from gpu_worker.profiling import profile_kind, read_profile
from mesh import wire

ENGINE = "graph"  # how EXEC runs here
ExecutableKey = tuple[str, int, tuple[wire.Dim, ...]]  # architecture, batch_max, open dimensions


class CudaVersions:
    """The prepared versions. `prepare` runs on the thread that prepares; everything else on any thread."""

    def __init__(
        self,
        driver: Driver,
        memory: Memory,
        helper: Helper,
        figures: Figures,
        *,
        host_bytes_max: int,
        prepare_disk: Callable[[], None],
        attempts: Attempts | None,
    ) -> None:
        """`prepare_disk`: called when weights stay on disk, before the first of them are loaded."""
        self._driver, self._memory, self._helper, self._figures = driver, memory, helper, figures
        self._prepare_disk, self._attempts = prepare_disk, attempts
        self.images = Images(host_bytes_max, read_image, self._pinned_image)
        self.ring = Ring(0)
        self._prepared: dict[str, CudaVersion] = {}  # {ref: version}
        # an executable lasts as long as a version that has it
        self._executables: WeakValueDictionary[ExecutableKey, GraphExecutable] = WeakValueDictionary()
        self._checks = Checks()
        self._preparations = 0

    def get(self, ref: str) -> CudaVersion | None:
        """Returns the version if it is prepared, else None."""
        return self._prepared.get(ref)

    def prepare(self, package: Package, kind: str) -> None:
        """The version is prepared; `kind`: of the device.

        Raises: PackageError, MemoryFull, MemoryError, RuntimeError.
        """
        with self._attempt(package, kind):
            image = self.images.take(package)
            try:
                self._add(package, image, kind)
            except Exception:
                self.images.drop(package.ref)
                raise

    def forget(self, ref: str) -> None:
        """The version, and what it alone used, is gone."""
        self.images.drop(ref)
        # on the helper's thread, because destroying graphs takes time
        self._helper.drop(self._prepared.pop(ref, None))

    @contextmanager
    def _attempt(self, package: Package, kind: str) -> Iterator[None]:
        """The preparation is on record while it lasts.

        The record stays if the device or the process does not survive.
        """
        if self._attempts is None:
            yield
            return
        self._attempts.begin(package, kind)
        well = False
        try:
            yield
            well = True
        finally:
            if well or not self._driver.lost():
                self._attempts.end(package.ref, well=well)

    def _add(self, package: Package, image: Image, kind: str) -> None:
        spec = package.spec
        inputs = OpenInputs.of(package) if varies(spec) else None
        padding = padding_rows(package) if inputs is None else ()
        key = (package.architecture, spec.batch_max, spec.dims)
        if image.place == DISK:
            self._prepare_disk()
        executable = self._executables.get(key)
        if executable is None:
            executable = self._build(package, image, kind)
        elif self._checks.are_needed(package):  # it was captured with another version's weights
            try_out(self._driver, package, executable.forward, self._weights(package, image))
        self._checks.passed(package)
        needed = max(layout.end for layout in executable.layouts.values())
        if needed > self.ring.slot_bytes:
            self.ring = Ring.allocate(self._driver, needed)
        self._executables[key] = executable
        self._preparations += 1
        self._prepared[package.ref] = CudaVersion(package, self._preparations, image, executable, padding, inputs)

    def _build(self, package: Package, image: Image, kind: str) -> GraphExecutable:
        """Returns the executable of the architecture, checked with the weights of the image.

        Of a version that was measured before, it has the batches that were: so its profile holds.
        """
        weights, cells = self._weights(package, image), _measured_cells(package, kind, image.place)
        executable = build(self._driver, package, weights, self._memory.execution_buffer, cells=cells)
        self._figures.graphs += len(executable.replays)
        self._figures.graph_bytes += executable.graph_bytes
        return executable

    def _weights(self, package: Package, image: Image) -> torch.Tensor:
        """Returns the weights on the host, as a flat image, uint8."""
        if isinstance(image, PinnedImage):
            return image.pinned.tensor
        data = HostImage.allocate(package.image_bytes).data
        read_image(package, data)
        return torch.from_numpy(data)

    def _pinned_image(self, size: int) -> PinnedImage:
        return PinnedImage(self._driver.pin(size))


def _measured_cells(package: Package, kind: str, place: str) -> tuple[Cell, ...]:
    """Returns the cells with which a version was measured, its weights in this place; (): it was not, or has none."""
    spec = package.spec
    if not spec.dims:
        return ()
    traits = Traits(engine=ENGINE, load_from=place)
    profile = read_profile(package.folder, profile_kind(kind, traits), spec, rows=fixed_rows(spec))
    return kept_cells(spec, profile) if profile is not None else ()
