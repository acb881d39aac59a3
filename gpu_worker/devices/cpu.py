"""The CPU as a device: the same pages, execution buffers and lanes as a GPU, in host memory, with a real copy on LOAD.

EXEC runs on one thread at a time: short ones on the loop's thread (handing them over costs more than they take), long
ones on their own thread, so that the worker keeps answering its controller.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch

from gpu_worker.core.cutting import Indivisible, check_shapes, cut_outputs, varies
from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.core.outputs import row_bytes
from gpu_worker.devices.arena import Arena, Bytes, MappingCache
from gpu_worker.devices.base import DeviceError, Finished, Lost, Traits
from gpu_worker.devices.execution.compiled import Compiler
from gpu_worker.devices.execution.executables import (
    Checks,
    Forward,
    check_by_running,
    dtypes_of,
    load_forward,
    read_image,
    views,
    warm_up,
)
from gpu_worker.devices.execution.open_rows import OpenInputs, tensors
from gpu_worker.devices.execution.passed import PassedChecks
from gpu_worker.devices.execution.rows import fill, owned, padding_rows
from gpu_worker.devices.gauge import MemoryGauge
from gpu_worker.devices.images import (
    HOST,
    HostImage,
    Image,
    Images,
    WeightsChanged,
    available_bytes,
    batch_budget,
    host_budget,
)
from gpu_worker.devices.locks import DeviceLock, claim_first
from gpu_worker.devices.slots import SlotPool
from gpu_worker.devices.task_thread import TaskThread
from gpu_worker.packages.package import Package
from gpu_worker.packages.stored import ONNX
from gpu_worker.packages.trials import Promise, code_of, keeps, output_faults, promise
from mesh import wire
from mesh.codes import ActionCode, PackageCode
from mesh.errors import PackageError
from mesh.process.settings import Settings
from mesh.tensors import DTYPES, raw

ARENA_MB = 1024
PAGE_MB = 2
MAPPINGS_SHARE = 2  # address space for mappings of pages, in sizes of the arena; page tables take 1/512 of it
# longer actions go to a thread. Source: scripts/bench_worker.py, a hand-over costs 0.1-0.2 ms here
INLINE_S_MAX = 0.001
INLINE_BYTES_MAX = 256 * 1024  # the same limit for LOAD: copying 256 KiB takes some 30 us
ONNXRUNTIME = "onnxruntime"  # an engine, with memory of its own
SLOTS = 8  # buffers for inputs: the lanes hold a handful of INFERs at a time


@dataclass(frozen=True, slots=True, weakref_slot=True)
class CpuExecutable:
    """One architecture, ready to run."""

    forward: Forward
    engine: str  # eager | aot | onnxruntime
    dtypes: frozenset[torch.dtype]  # of all computed values


@dataclass(slots=True)
class CpuVersion:
    """One prepared version of a model."""

    package: Package
    executable: CpuExecutable
    image: Image  # the weights, outside the arena
    row_bytes: tuple[int, ...]  # of each input; () if it is `open`
    padding: tuple[Bytes, ...]  # one row of each input; () if it is `open`
    promise: Promise  # of its outputs; () if it is `open`
    open: OpenInputs | None  # of a version whose rows may differ in size
    # (pages, views of the weights in them); None after an UNLOAD. It follows from the pages alone: so the thread of
    # either lane, or the loop's, may replace it at any time, and whoever reads it once has a pair that fits
    loaded: tuple[tuple[int, ...], list[torch.Tensor]] | None = None


class CpuDevice:
    """A Device that runs on the CPU.

    The thread that prepares adds versions and executables, each by one assignment once it is whole, and the loop's
    removes versions: the worker never forgets one for good while it is being added (`RepositoryVersions`).
    """

    def __init__(
        self,
        settings: Settings,
        name: str = "",
        lock: DeviceLock | None = None,
        *,
        host_bytes_max: int | None = None,
    ) -> None:
        """`host_bytes_max`: for weights outside the arena, in place of what the settings say."""
        folder = settings.data_dir / "locks"
        self._lock = lock if lock is not None else DeviceLock(folder, "cpu:0")
        torch.set_num_threads(settings.threads)
        torch.set_grad_enabled(False)
        page_bytes = (settings.page_mb or PAGE_MB) << 20
        count = ((settings.arena_mb or ARENA_MB) << 20) // page_bytes
        try:
            self._arena = _make_arena(count, page_bytes)
        except DeviceError:
            self._lock.release()
            raise
        self._mappings = MappingCache(self._arena, MAPPINGS_SHARE * count * page_bytes)
        self.info = wire.DeviceInfo(
            name=name or "cpu:0", kind=_kind(settings.threads), pages=count, page_bytes=page_bytes, any_batch=True
        )
        self.depth = {Phase.LOAD: 2, Phase.INPUT: 4, Phase.EXEC: 2, Phase.OUTPUT: 4}
        self.ahead_s = 0.0
        self.measured = True
        self._versions: dict[str, CpuVersion] = {}
        # {architecture: executable}; an executable lasts as long as a version that has it
        self._executables: WeakValueDictionary[str, CpuExecutable] = WeakValueDictionary()
        self._checks = Checks(PassedChecks(settings.data_dir / "checked", self.info.kind))
        self._compiler = Compiler(
            settings.data_dir / "executables", self.info.kind, settings.compile_s_max, settings.threads
        )
        budget = host_budget(settings.host_memory_mb) if host_bytes_max is None else host_bytes_max
        self._images = Images(budget, read_image)
        self._slots = SlotPool(0, 0)  # replaced by the thread that prepares, used by the loop's
        self._weights_bytes_max = settings.window_mb << 20
        self._finished: Finished | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gauge = MemoryGauge()
        self._batch_bytes_max = batch_budget(settings.batch_memory_mb)
        self._exec = TaskThread("exec", self._execute)
        self._load = TaskThread("load", self.load)

    @classmethod
    def claim(cls, settings: Settings) -> "CpuDevice":
        """Returns the first CPU device that no worker drives; there are as many as the cores allow."""
        count = max(1, (os.cpu_count() or 1) // settings.threads)
        name, lock = claim_first(settings.data_dir / "locks", [f"cpu:{i}" for i in range(count)])
        return cls(settings, name, lock)

    def attach(self, finished: Finished, lost: Lost) -> None:
        """The lanes' threads run, and report to `finished` through the loop."""
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._exec.start(self._tell)
        self._load.start(self._tell)

    def prepare(self, package: Package) -> wire.Profile | None:
        """The version can be loaded and executed. Returns None, as its profile is measured. Raises: PackageError."""
        faults = []
        if package.image_bytes > self._weights_bytes_max:
            faults.append(
                f"its weights take {package.image_bytes >> 20} MiB; the execution buffer is "
                f"{self._weights_bytes_max >> 20} MiB (GEARMESH_WINDOW_MB)"
            )
        if package.pages(self.info.page_bytes) > self.info.pages:
            faults.append(
                f"its weights take {package.pages(self.info.page_bytes)} pages; the arena has {self.info.pages} "
                "(GEARMESH_ARENA_MB)"
            )
        if faults:
            raise PackageError(package.ref, faults)
        torch.set_grad_enabled(False)  # of this thread
        image = self._images.take(package)
        try:
            executable = self._executable(package, image)
        except Exception:
            self._images.drop(package.ref)
            raise
        self._executables[package.architecture] = executable
        version, needed = _version(package, executable, image)
        if needed > self._slots.slot_bytes:
            self._slots = SlotPool(needed, SLOTS)
        self._versions[package.ref] = version
        return None

    def _executable(self, package: Package, image: Image) -> CpuExecutable:
        """Returns the executable of the package's architecture, checked with the version's own weights and batches."""
        executable = self._executables.get(package.architecture)
        if executable is None:
            forward = load_forward(package)
            weights = _own_weights(package, image)
            if self._checks.are_needed(package):
                check_by_running(package, forward, weights)
            else:
                warm_up(package, forward, weights)
            executable = self._quickest(package, forward, weights)
        elif self._checks.are_needed(package):
            check_by_running(package, executable.forward, _own_weights(package, image), dtypes=executable.dtypes)
        self._checks.passed(package)
        return executable

    def _quickest(self, package: Package, forward: Forward, weights: Sequence[torch.Tensor]) -> CpuExecutable:
        dtypes = frozenset(dtypes_of(forward))
        compiled = self._compiler.better(package, forward, weights)
        if compiled is not None:
            return CpuExecutable(compiled, "aot", dtypes)
        onnx = package.graph is not None and package.graph.suffix == ONNX
        return CpuExecutable(forward, ONNXRUNTIME if onnx else "eager", dtypes)

    def check(self) -> None:
        """Every invariant holds. On the loop's thread."""
        self._images.check()
        assert {version.package.architecture for version in self._versions.values()} <= set(self._executables)

    def traits(self, ref: str) -> Traits:
        """Returns the engine, the place of the image, and the memory of a batch, of a prepared version."""
        version = self._versions[ref]
        return Traits(version.executable.engine, version.image.place, memory_bytes=self._batch_bytes_max)

    def forget(self, ref: str) -> None:
        """The version is dropped, and its executable with the last version of its architecture."""
        self._images.drop(ref)
        self._versions.pop(ref, None)
        self._gauge.forget(ref)

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """Starts a phase. Short phases run now and their outcome is returned; others run on a lane's thread."""
        if phase is Phase.INPUT:
            return self._input(job)
        if phase is Phase.OUTPUT:
            return self._output(job)
        if phase is Phase.EXEC:
            if self._exec.idle and job.action.expected_s <= INLINE_S_MAX:
                return self._execute(job)
            self._exec.give((phase, job))
            return None
        version = self._versions.get(job.action.ref)
        if self._load.idle and (version is None or _short(version.image)):
            return self.load(job)
        self._load.give((phase, job))
        return None

    def release(self, job: Job) -> None:
        """The job's input buffer is free; one of a pool that was replaced is dropped."""
        slot, job.slot = job.slot, None
        if slot is not None:
            self._slots.give(slot)

    def unloaded(self, ref: str) -> None:
        """The views of the version's pages are dropped."""
        version = self._versions.get(ref)
        if version is not None:
            version.loaded = None

    def close(self) -> None:
        """The lanes have ended, and the arena and the lock are released."""
        self._exec.stop()
        self._load.stop()
        self._mappings.clear()
        self._arena.close()
        self._lock.release()

    # -- phases -------------------------------------------------------------------------------------------------------

    def _input(self, job: Job) -> Done:
        action = job.action
        assert isinstance(action, wire.Infer)
        begin_s = time.monotonic()
        version = self._versions.get(action.ref)
        if version is None:
            return Done(begin_s, begin_s, 0.0, ActionCode.UNKNOWN_MODEL)
        if version.open is not None:
            return self._input_open(job, action, version.open, begin_s)
        job.slot = slot = self._slots.take()
        if slot is None:
            return Done(begin_s, begin_s, 0.0, ActionCode.NO_SLOTS)
        fault = fill(slot.data, action, job.tensors, version.row_bytes, version.padding)
        if fault:
            return Done(begin_s, begin_s, 0.0, ActionCode.BAD_INPUT, fault)
        end_s = time.monotonic()
        return Done(begin_s, end_s, end_s - begin_s)

    def _input_open(self, job: Job, action: wire.Infer, inputs: OpenInputs, begin_s: float) -> Done:
        layout, size = inputs.places(action.batch, action.extents)
        if size > self._slots.slot_bytes and size > available_bytes():
            why = f"the inputs of {action.batch} rows of extents {list(action.extents)} take {size >> 20} MiB"
            return Done(begin_s, begin_s, 0.0, ActionCode.NO_MEMORY, why)
        job.slot = slot = self._slots.take(size)
        if slot is None:
            return Done(begin_s, begin_s, 0.0, ActionCode.NO_SLOTS)
        fault = inputs.fill(slot.data, layout, action.extents, action.parts, job.tensors)
        if fault:
            return Done(begin_s, begin_s, 0.0, ActionCode.BAD_INPUT, fault)
        end_s = time.monotonic()
        return Done(begin_s, end_s, end_s - begin_s)

    def _execute(self, job: Job) -> Done:
        """EXEC; of a measuring run with open dimensions the memory that it takes is seen, too."""
        action = job.action
        assert isinstance(action, wire.Infer)
        if action.parts or not action.extents or not self._gauge.begin(action.ref, (action.batch, action.extents)):
            return self._run_exec(job)
        done = self._run_exec(job)
        version = self._versions.get(action.ref)
        kept = version is not None and version.executable.engine == ONNXRUNTIME
        done.memory_bytes = self._gauge.read(action.ref, kept=kept)
        return done

    def _run_exec(self, job: Job) -> Done:
        action = job.action
        assert isinstance(action, wire.Infer)
        begin_s = time.monotonic()
        if begin_s > action.latest_s:
            return Done(begin_s, begin_s, 0.0, ActionCode.LATE)
        version = self._versions.get(action.ref)
        if version is None:
            return Done(begin_s, begin_s, 0.0, ActionCode.UNKNOWN_MODEL)
        try:
            loaded = version.loaded
            gathered = loaded is None or loaded[0] != job.pages
            if loaded is None or gathered:
                version.loaded = loaded = (job.pages, views(self._mappings.get(job.pages), version.package))
            weights = loaded[1]
            inputs = self._inputs(version, job.slot.data, action)
            outputs = version.executable.forward(*weights, *inputs)
            if version.open is not None:
                _check_open(version.package.spec, outputs, action)
            elif not keeps(version.promise, outputs, action.batch):
                return _broken(version.package, outputs, action.batch, begin_s)
            lent = {tensor.untyped_storage().data_ptr() for tensor in (*weights[:1], *inputs)}
            job.outputs = [raw(owned(output, lent).numpy()) for output in outputs]
            if version.open is not None:
                job.output_shapes = [tuple(output.shape) for output in outputs]
                job.cut = cut_outputs(version.package.spec, action, job.outputs, job.output_shapes)
        except Indivisible as error:
            end_s = time.monotonic()
            return Done(begin_s, end_s, end_s - begin_s, error.code, f"{version.package.ref}: {error}")
        except (MemoryError, torch.OutOfMemoryError) as error:
            end_s = time.monotonic()
            return Done(begin_s, end_s, end_s - begin_s, ActionCode.NO_MEMORY, f"{type(error).__name__}: {error}")
        # whatever the model raises is the outcome of that action, and must not end the process
        except Exception as error:
            end_s = time.monotonic()
            return Done(begin_s, end_s, end_s - begin_s, ActionCode.DEVICE_ERROR, f"{type(error).__name__}: {error}")
        end_s = time.monotonic()
        return Done(begin_s, end_s, end_s - begin_s, gathered=gathered)

    def _inputs(self, version: CpuVersion, slot: Bytes, action: wire.Infer) -> list[torch.Tensor]:
        batch = action.batch
        if version.open is not None:
            return tensors(slot, version.open.places(batch, action.extents)[0])
        inputs = []
        at = 0
        for spec, size in zip(version.package.spec.inputs, version.row_bytes, strict=True):
            end = at + size * batch
            inputs.append(torch.from_numpy(slot[at:end].view(DTYPES[spec.dtype]).reshape((batch, *spec.shape[1:]))))
            at = end
        return inputs

    def _output(self, job: Job) -> Done:
        now = time.monotonic()  # host memory: the outputs are already in place
        return Done(now, now, 0.0)

    def load(self, job: Job) -> Done:
        """The weights are in the pages of the job, or why they are not. On any thread."""
        begin_s = time.monotonic()
        version = self._versions.get(job.action.ref)
        if version is None:
            return Done(begin_s, begin_s, 0.0, ActionCode.UNKNOWN_MODEL)
        mapped = self._mappings.get(job.pages)
        try:
            version.image.copy_into(mapped)
        except WeightsChanged as error:
            end_s = time.monotonic()
            return Done(begin_s, end_s, end_s - begin_s, ActionCode.CONTENT_CHANGED, str(error))
        except OSError as error:  # an image on disk: that LOAD has failed, others go on
            end_s = time.monotonic()
            return Done(begin_s, end_s, end_s - begin_s, ActionCode.DEVICE_ERROR, str(error))
        version.loaded = (job.pages, views(mapped, version.package))
        end_s = time.monotonic()
        return Done(begin_s, end_s, end_s - begin_s)

    def _tell(self, phase: Phase, job: Job, done: Done) -> None:
        assert self._loop is not None
        assert self._finished is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finished, phase, job, done)


def _make_arena(count: int, page_bytes: int) -> Arena:
    """Returns an arena. Raises: DeviceError with the figures if there is no memory for it."""
    available = available_bytes()
    if count * page_bytes > available:  # otherwise allocating it might make the kernel kill other processes
        raise DeviceError(
            f"an arena of {count * page_bytes >> 20} MiB does not fit in the {available >> 20} MiB of memory that are "
            "available: lower GEARMESH_ARENA_MB"
        )
    try:
        return Arena(count, page_bytes)
    except (OSError, MemoryError) as error:
        raise DeviceError(
            f"cannot allocate an arena of {count * page_bytes >> 20} MiB ({error}): lower GEARMESH_ARENA_MB"
        ) from error


def _version(package: Package, executable: CpuExecutable, image: Image) -> tuple[CpuVersion, int]:
    """Returns the version, and the bytes of the buffers that it needs for inputs. Raises: PackageError."""
    spec = package.spec
    if varies(spec):
        inputs = OpenInputs.of(package)
        return CpuVersion(package, executable, image, (), (), (), inputs), inputs.buffer_bytes
    sizes = row_bytes(spec.inputs)
    padding = padding_rows(package)
    version = CpuVersion(package, executable, image, sizes, padding, promise(spec.outputs), None)
    return version, sum(sizes) * spec.batch_max


def _check_open(spec: wire.ModelSpec, outputs: Sequence[torch.Tensor], action: wire.Infer) -> None:
    """The outputs have the promised dtypes and shapes, as far as these are promised. Raises: Indivisible."""
    check_shapes(spec, action.batch, action.extents, [tuple(output.shape) for output in outputs])
    for tensor, output in zip(spec.outputs, outputs, strict=True):
        found = str(output.dtype).removeprefix("torch.")
        if found != tensor.dtype:
            raise Indivisible(f"output {tensor.name}: the model gives {found}, promised is {tensor.dtype}")


def _own_weights(package: Package, image: Image) -> list[torch.Tensor]:
    """Returns the version's weights in memory of their own: a model under test may write to them."""
    if isinstance(image, HostImage):
        return views(image.data.copy(), package)
    data = np.zeros(package.image_bytes, np.uint8)
    read_image(package, data)
    return views(data, package)


def _short(image: Image) -> bool:
    return image.size <= INLINE_BYTES_MAX and image.place == HOST


def _broken(package: Package, outputs: Sequence[torch.Tensor], rows: int, begin_s: float) -> Done:
    """Returns the outcome of a batch whose outputs are not as promised: no client gets a row of it."""
    end_s = time.monotonic()
    faults = output_faults(package.spec.outputs, outputs, rows)
    changed = code_of(outputs, rows) is PackageCode.ROWS_CHANGED
    code = ActionCode.ROWS_CHANGED if changed else ActionCode.BAD_OUTPUTS
    return Done(begin_s, end_s, end_s - begin_s, code, f"{package.ref}: {'; '.join(faults)}")


def _kind(threads: int) -> str:
    """Returns a name that is equal for CPUs and releases that are expected to take equal times."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"cpu {model}, {threads} threads, torch {torch.__version__}"
