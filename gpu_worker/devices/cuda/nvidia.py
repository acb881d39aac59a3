"""A Driver for a GPU, through torch.cuda. Unproven until scripts/bench_gpu.py has run on one.

Source of the choices: the CUDA programming guide on graphs and asynchronous copies, and torch's notes on CUDA graphs.
"""

import contextlib
import mmap
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cuda.driver import Enough, Event, Pinned, Stream, Timed, Work

WARM_SIDE = 1024  # size of the square matrices that keep the clock up: some 10 us of work
WARM_PRODUCTS = 2
CONVOLUTIONS, ALL, NONE = "convolutions", "all", "none"


def device_count() -> int:
    """Returns the number of GPUs that torch can use here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_index(name: str, index: int) -> None:
    """The GPU exists. Raises: DeviceError if it does not."""
    count = device_count()
    if count == 0:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise DeviceError(f"GEARMESH_DEVICE={name!r}: torch {torch.__version__} ({built}) finds no GPU here; use cpu")
    if not 0 <= index < count:
        there = ", ".join(f"cuda:{i}" for i in range(count))
        raise DeviceError(f"GEARMESH_DEVICE={name!r}: there is no such GPU; there is {there}")


def set_tf32(what: str) -> None:
    """From now on the float32 operations named by `what` run in TF32: 10 bits of mantissa instead of 23.

    It holds for the whole process. CONVOLUTIONS is torch's default; it is set explicitly, so that no environment
    variable changes it.
    """
    with warnings.catch_warnings():  # deprecated in some releases, but nothing else sets both the old and the new flags
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision("high" if what == ALL else "highest")
        torch.backends.cudnn.allow_tf32 = what != NONE


class NvidiaStream:
    """A Stream on torch.cuda.Stream."""

    def __init__(self, raw: torch.cuda.Stream) -> None:
        self.raw = raw

    def run(self, work: Work) -> None:
        """The tensor operations that `work` calls are issued to this stream."""
        torch.cuda.set_stream(self.raw)
        work()

    def record(self, event: Event) -> None:
        """The event comes after everything that was issued so far."""
        assert isinstance(event, torch.cuda.Event)
        event.record(self.raw)

    def wait(self, event: Event) -> None:
        """Everything issued from now on runs after the event's last record."""
        assert isinstance(event, torch.cuda.Event)
        self.raw.wait_event(event)


class NvidiaPinned:
    """Pinned memory from registered pages of this process: torch rounds its own up to a power of two."""

    def __init__(self, size: int, later: Callable[[Work], None]) -> None:
        try:
            mapping = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no {size} bytes of host memory: {error.strerror}") from error
        mapping.madvise(mmap.MADV_DONTFORK)  # otherwise a write after a fork would move the page away from the device
        with contextlib.suppress(OSError):  # works without huge pages too
            mapping.madvise(mmap.MADV_HUGEPAGE)
        self.tensor = torch.frombuffer(mapping, dtype=torch.uint8)[:size]
        self.tensor.zero_()  # touches the pages, so that registering need not
        address = self.tensor.data_ptr() if size else 0
        if not size:
            return
        try:
            torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(address, size, 0)))
        except RuntimeError as error:
            raise MemoryError(f"cannot pin {size} bytes of host memory: {error} (see ulimit -l)") from error
        tensor = self.tensor  # keeps the mapping alive until it is unregistered
        weakref.finalize(self, later, lambda: _unregister(address, tensor)).atexit = False


def _unregister(address: int, keep: torch.Tensor) -> None:
    """The memory is pageable again; on a device that has failed for good it stays pinned until the process ends."""
    torch.cuda.cudart().cudaHostUnregister(address)


@dataclass(slots=True)
class _Pool:
    """Memory of captures, and a graph that stays: torch captures nothing into a pool whose last graph is gone."""

    handle: Any = None  # None: it is yet to be opened
    anchor: Work | None = None


class NvidiaDriver:
    """A Driver for one GPU. Raises: DeviceError."""

    def __init__(self, index: int, later: Callable[[Work], None], tf32: str = CONVOLUTIONS) -> None:
        """`later`: runs work that may block, soon, on a thread that nobody waits for; `tf32`: passed to `set_tf32`."""
        check_index(f"cuda:{index}", index)
        self.name = f"cuda:{index}"
        self.place = torch.device("cuda", index)
        self._later = later
        self._asked: Counter[str] = Counter()
        self._spoilt: list[torch.cuda.CUDAGraph] = []  # graphs of failed captures, kept for the reason in `_abandon`
        set_tf32(tf32)
        try:
            torch.cuda.set_device(self.place)
            torch.cuda.init()
            self._side, self._capture_side = torch.cuda.Stream(self.place), torch.cuda.Stream(self.place)
            self._pool = _Pool()  # of all captures that stay
            self._open(self._pool)
            self._gather = _gather_of(self.place)
            properties = torch.cuda.get_device_properties(self.place)
        except RuntimeError as error:
            raise DeviceError(f"{self.name}: cannot be opened: {error}") from error
        self.uuid = str(getattr(properties, "uuid", index))
        self._clock = _Clock(self.uuid)
        self.kind = f"cuda {properties.name}, torch {torch.__version__}, driver {self._clock.driver}"
        self.kind += "" if tf32 == CONVOLUTIONS else f", tf32 {tf32}"
        torch.backends.cudnn.benchmark = True  # the captured graph keeps the algorithm that the warm-up chose
        # by default torch frees its cache after each choice, for each convolution and size, and all streams wait for
        # that
        torch._C._cudnn_set_conv_benchmark_empty_cache(False)

    def _open(self, pool: "_Pool") -> None:
        """Works can be captured into the pool."""
        nothing = self.allocate(1)

        def clear() -> None:
            nothing.zero_()

        self.warm_up(clear)
        pool.handle = torch.cuda.graph_pool_handle()
        pool.anchor = self._captured(clear, pool)

    def enter(self) -> None:
        """The calling thread uses this GPU, without gradients."""
        torch.cuda.set_device(self.place)
        torch.set_grad_enabled(False)

    def memory(self) -> tuple[int, int]:
        """Returns (free, total) bytes of the GPU."""
        free, total = torch.cuda.mem_get_info(self.place)
        return free, total

    def allocate(self, size: int) -> torch.Tensor:
        """Returns zeros, uint8 `[size]`. Raises: MemoryFull."""
        self._asked["device"] += 1
        made = torch.zeros(size, dtype=torch.uint8, device=self.place)
        torch.cuda.current_stream(self.place).synchronize()  # because the other streams do not wait for this one
        return made

    def pin(self, size: int) -> Pinned:
        """Returns pinned host memory. Raises: MemoryError."""
        self._asked["pinned"] += 1
        try:
            return NvidiaPinned(size, self._later)
        except MemoryError:
            self._forget_error()
            raise

    def _forget_error(self) -> None:
        """Clears a failed call's error by a small kernel: the runtime blames the thread's next kernel for it."""
        try:
            torch.ones(1, device=self.place)
        except RuntimeError:
            return

    def stream(self, name: str) -> Stream:
        """Returns a new stream."""
        return NvidiaStream(torch.cuda.Stream(self.place))

    def event(self, *, sleeps: bool) -> Event:
        """Returns an event; it blocks instead of spinning if it `sleeps`."""
        self._asked["event"] += 1
        event = torch.cuda.Event(enable_timing=True, blocking=sleeps)
        event.record(self._side)  # CUDA creates it at its first record
        return event

    def seconds(self, begin: Event, end: Event) -> float:
        """Returns the seconds between two events, by the device's clock."""
        assert isinstance(begin, torch.cuda.Event)
        assert isinstance(end, torch.cuda.Event)
        return float(begin.elapsed_time(end)) / 1e3

    def warm_up(self, work: Work) -> None:
        """`work` has run, on the side stream."""
        with torch.cuda.stream(self._side):
            work()
        self._side.synchronize()

    def capture(self, work: Work) -> Work:
        """Returns a function that replays the operations of `work`."""
        return self._captured(work, self._pool)

    def timer(self) -> Timed:
        """Returns a function that times replays, whose captures have a pool of their own."""
        return partial(self._timed, _Pool())

    def _timed(self, pool: "_Pool", work: Work, enough: Enough) -> list[float]:
        replay = self._captured(work, pool)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        found: list[float] = []
        while not found or not enough(found):
            with torch.cuda.stream(self._side):
                begin.record(self._side)
                replay()
                end.record(self._side)
            end.synchronize()
            found.append(self.seconds(begin, end))
        return found

    def _captured(self, work: Work, pool: "_Pool") -> Work:
        """Returns a function that replays the operations of `work`; what they take belongs to the pool.

        The capture uses a stream that runs nothing else, so the libraries' workspaces belong to graphs alone.
        `torch.cuda.graph` is not used: while serving it would wait for the whole device and free all cached memory.
        """
        if pool.handle is None:
            self._open(pool)
        self._asked["capture"] += 1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._capture_side):
            graph.capture_begin(pool=pool.handle, capture_error_mode="thread_local")
            try:
                work()
                graph.capture_end()
            except BaseException:
                self._abandon(graph, pool)
                raise
        return partial(_replay, graph, work)

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: "_Pool") -> None:
        """The stream captures no more, and the next capture is not affected by the failed one.

        If the failure was the device's (a synchronisation inside a capture), torch ends the capture but not its hold on
        the pool: any other capture into the pool would be refused. So the pool is replaced. The graph is kept, because
        the allocator still asks it whether a stream is its own. Source: CUDAGraph::capture_end and beginAllocateToPool
        of torch 2.11.
        """
        try:
            graph.capture_end()
        except RuntimeError:  # this error says less than the first one
            self._spoilt.append(graph)
            with contextlib.suppress(RuntimeError):  # torch had released the hold after all
                torch._C._cuda_endAllocateToPool(self.place.index, pool.handle)
            pool.handle = None

    def trim(self) -> None:
        """Memory that torch's allocator caches is free."""
        torch.cuda.empty_cache()

    def gather(self, arena: torch.Tensor, buffer: torch.Tensor, pages: torch.Tensor) -> None:
        """Copies buffer[i] = arena[pages[i]], by Triton's kernel or torch's."""
        self._gather(arena, buffer, pages)

    def clock_mhz(self) -> float:
        """Returns the SM clock in MHz; 0 if unknown."""
        return self._clock.read()

    def keep_warm(self) -> Work | None:
        """Returns captured products of small matrices that keep the clock up."""
        size = WARM_SIDE * WARM_SIDE * torch.float16.itemsize
        left, out = (self.allocate(size).view(torch.float16).view(WARM_SIDE, WARM_SIDE) for _ in range(2))

        def multiply() -> None:
            for _ in range(WARM_PRODUCTS):
                torch.mm(left, left, out=out)

        self.warm_up(multiply)
        return self.capture(multiply)

    def allocations(self) -> dict[str, int]:
        """Returns {kind: number of allocations}, including what torch's own allocators counted."""
        counts = {f"asked_{kind}": count for kind, count in self._asked.items()}
        for place, found in (
            ("device", torch.cuda.memory_stats(self.place)),
            ("host", torch.cuda.host_memory_stats()),
        ):
            for key, count in found.items():
                if key.endswith(".allocated") or key.startswith("num_"):
                    counts[f"{place}_{key}"] = int(count)
        return counts

    def lost(self) -> str:
        """Returns the error that ended the context, or "". It asks a stream: every call returns that error."""
        try:
            self._side.query()
        except RuntimeError as error:
            return str(error).partition("\n")[0]
        return ""

    def close(self) -> None:
        """Nothing runs any more, and NVML is closed."""
        with contextlib.suppress(RuntimeError):  # a lost device cannot be synchronised
            torch.cuda.synchronize(self.place)
        self._clock.close()


def _replay(graph: torch.cuda.CUDAGraph, captured: Work) -> None:
    """The graph runs. `captured` is kept with it, because it holds the tensors whose addresses the graph uses."""
    graph.replay()


def _gather_of(place: torch.device) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]:
    """Returns the Triton kernel if it works on this device, else torch's own."""
    arena = torch.arange(4 * 8192, device=place).view(4, 8192)
    buffer, pages = torch.zeros(2, 8192, dtype=torch.int64, device=place), torch.tensor([3, 1], device=place)
    try:
        from gpu_worker.devices.cuda.transfer.gather_kernel import gather

        gather(arena, buffer, pages)
        if torch.equal(buffer, arena[pages]):
            return gather
    except Exception:  # no Triton, no compiler for it, or an unknown device: torch's kernel works
        torch.cuda.synchronize(place)
    index_gather(arena, buffer, pages)  # loads the kernel now, because loading it while serving would take time
    return index_gather


def index_gather(arena: torch.Tensor, buffer: torch.Tensor, pages: torch.Tensor) -> None:
    """Copies buffer[i] = arena[pages[i]], with torch.index_select."""
    torch.index_select(arena, 0, pages, out=buffer[: len(pages)])


class _Clock:
    """Reads the SM clock through NVML if that is installed and allowed; else it is 0."""

    def __init__(self, uuid: str) -> None:
        self.driver = "unknown"
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)
            self.driver = str(pynvml.nvmlSystemGetDriverVersion())
            self._nvml = pynvml
        except Exception:  # not installed, not allowed or unknown there: then durations are not scaled by the clock
            return

    def read(self) -> float:
        """Returns the clock in MHz; 0 if it cannot be read, now or ever."""
        if self._nvml is None:
            return 0.0
        try:
            return float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
        except self._nvml.NVMLError:
            return 0.0

    def close(self) -> None:
        """NVML is closed."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):  # it fails for a lost GPU too
                self._nvml.nvmlShutdown()
            self._nvml = None
