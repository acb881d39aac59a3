"""A GPU through torch.cuda: see driver.py. Unproven until scripts/bench_gpu.py has run on one.

Source of the choices: the CUDA programming guide on graphs and asynchronous copies, and torch's notes on CUDA graphs.
"""

import contextlib
import mmap
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cuda.driver import Event, Pinned, Stream, Work

WARM_SIDE = 1024  # of the matrices that keep the clock up: some 10 us of work
WARM_PRODUCTS = 2
CONVOLUTIONS, ALL, NONE = "convolutions", "all", "none"


def device_count() -> int:
    """GPUs that torch can use here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_index(name: str, index: int) -> None:
    """Raises: DeviceError, if there is no such GPU."""
    count = device_count()
    if count == 0:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise DeviceError(f"GEARMESH_DEVICE={name!r}: torch {torch.__version__} ({built}) finds no GPU here; use cpu")
    if not 0 <= index < count:
        there = ", ".join(f"cuda:{i}" for i in range(count))
        raise DeviceError(f"GEARMESH_DEVICE={name!r}: there is no such GPU; there is {there}")


def set_tf32(what: str) -> None:
    """What of float32 is multiplied in TF32 (10 bits of mantissa instead of 23) in this process, from now on.

    CONVOLUTIONS is what torch does by itself; said all the same, so that no variable of the environment changes it.
    """
    with warnings.catch_warnings():  # deprecated in some releases, but nothing else sets both the old and the new flags
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision("high" if what == ALL else "highest")
        torch.backends.cudnn.allow_tf32 = what != NONE


class NvidiaStream:
    """See Stream."""

    def __init__(self, raw: torch.cuda.Stream) -> None:
        self.raw = raw

    def run(self, work: Work) -> None:
        """See Stream."""
        torch.cuda.set_stream(self.raw)
        work()

    def record(self, event: Event) -> None:
        """See Stream."""
        assert isinstance(event, torch.cuda.Event)
        event.record(self.raw)

    def wait(self, event: Event) -> None:
        """See Stream."""
        assert isinstance(event, torch.cuda.Event)
        self.raw.wait_event(event)


class NvidiaPinned:
    """See Pinned. Pages of our own, registered: torch's own pinned memory is rounded up to a power of two."""

    def __init__(self, size: int, later: Callable[[Work], None]) -> None:
        try:
            mapping = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no {size} bytes of host memory: {error.strerror}") from error
        mapping.madvise(mmap.MADV_DONTFORK)  # else writing to it after a fork would move it away from under the device
        with contextlib.suppress(OSError):  # a system without huge pages does without
            mapping.madvise(mmap.MADV_HUGEPAGE)
        self.tensor = torch.frombuffer(mapping, dtype=torch.uint8)[:size]
        self.tensor.zero_()  # touched: registering then need not do it
        address = self.tensor.data_ptr() if size else 0
        if not size:
            return
        try:
            torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(address, size, 0)))
        except RuntimeError as error:
            raise MemoryError(f"cannot pin {size} bytes of host memory: {error} (see ulimit -l)") from error
        tensor = self.tensor  # the mapping lives until it is unregistered
        weakref.finalize(self, later, lambda: _unregister(address, tensor)).atexit = False


def _unregister(address: int, keep: torch.Tensor) -> None:
    """The memory is the system's again; on a device that has failed for good it stays pinned until the process ends."""
    torch.cuda.cudart().cudaHostUnregister(address)


class NvidiaDriver:
    """See Driver. Raises: DeviceError."""

    def __init__(self, index: int, later: Callable[[Work], None], tf32: str = CONVOLUTIONS) -> None:
        """`later`: runs work that may block, soon, on a thread where that hurts nobody; `tf32`: see `set_tf32`."""
        check_index(f"cuda:{index}", index)
        self.name = f"cuda:{index}"
        self.place = torch.device("cuda", index)
        self._later = later
        self._asked: Counter[str] = Counter()
        self._spoilt: list[torch.cuda.CUDAGraph] = []  # captures that failed: see `_abandon`
        set_tf32(tf32)
        try:
            torch.cuda.set_device(self.place)
            torch.cuda.init()
            self._side, self._capture_side = torch.cuda.Stream(self.place), torch.cuda.Stream(self.place)
            self._pool: Any = None  # of all captures, once there is one
            self._open_pool()
            self._gather = _gather_of(self.place)
            properties = torch.cuda.get_device_properties(self.place)
        except RuntimeError as error:
            raise DeviceError(f"{self.name}: cannot be opened: {error}") from error
        self.uuid = str(getattr(properties, "uuid", index))
        self._clock = _Clock(self.uuid)
        self.kind = f"cuda {properties.name}, torch {torch.__version__}, driver {self._clock.driver}"
        self.kind += "" if tf32 == CONVOLUTIONS else f", tf32 {tf32}"
        torch.backends.cudnn.benchmark = True  # the captured graph keeps what the warm-up chose
        # by itself torch trims after each choice, of each convolution and size, and all streams wait for that
        torch._C._cudnn_set_conv_benchmark_empty_cache(False)

    def _open_pool(self) -> None:
        """There is a pool, and a graph that stays in it: torch takes none into a pool whose last graph has gone."""
        nothing = self.allocate(1)

        def clear() -> None:
            nothing.zero_()

        self.warm_up(clear)
        self._pool = torch.cuda.graph_pool_handle()
        self._anchor = self.capture(clear)

    def enter(self) -> None:
        """See Driver."""
        torch.cuda.set_device(self.place)
        torch.set_grad_enabled(False)

    def memory(self) -> tuple[int, int]:
        """See Driver."""
        free, total = torch.cuda.mem_get_info(self.place)
        return free, total

    def allocate(self, size: int) -> torch.Tensor:
        """See Driver."""
        self._asked["device"] += 1
        made = torch.zeros(size, dtype=torch.uint8, device=self.place)
        torch.cuda.current_stream(self.place).synchronize()  # the other streams do not wait for this one
        return made

    def pin(self, size: int) -> Pinned:
        """See Driver."""
        self._asked["pinned"] += 1
        try:
            return NvidiaPinned(size, self._later)
        except MemoryError:
            self._forget_error()
            raise

    def _forget_error(self) -> None:
        """The runtime remembers a call that failed, and blames the next kernel of the thread for it: this one."""
        try:
            torch.ones(1, device=self.place)
        except RuntimeError:
            return

    def stream(self, name: str) -> Stream:
        """See Driver."""
        return NvidiaStream(torch.cuda.Stream(self.place))

    def event(self, *, sleeps: bool) -> Event:
        """See Driver."""
        self._asked["event"] += 1
        event = torch.cuda.Event(enable_timing=True, blocking=sleeps)
        event.record(self._side)  # made on its first record
        return event

    def seconds(self, begin: Event, end: Event) -> float:
        """See Driver."""
        assert isinstance(begin, torch.cuda.Event)
        assert isinstance(end, torch.cuda.Event)
        return float(begin.elapsed_time(end)) / 1e3

    def warm_up(self, work: Work) -> None:
        """See Driver."""
        with torch.cuda.stream(self._side):
            work()
        self._side.synchronize()

    def capture(self, work: Work) -> Work:
        """See Driver. On a stream that runs nothing else: the workspaces of its libraries belong to graphs alone.

        `torch.cuda.graph` is not used: it waits for the whole device and gives all cached memory back, while serving.
        """
        if self._pool is None:
            self._open_pool()
        self._asked["capture"] += 1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._capture_side):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
                graph.capture_end()
            except BaseException:
                self._abandon(graph)
                raise
        return partial(_replay, graph, work)

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """The stream captures no more, and what is captured next is not hindered by what failed.

        Where the failure was the device's (a synchronisation inside a capture), torch ends the capture, but not its
        hold on the pool: any other capture into it would be refused. So the pool is given up for another one; and the
        graph is kept, as the allocator goes on asking it whether a stream is its own.
        Source: CUDAGraph::capture_end and beginAllocateToPool of torch 2.11.
        """
        try:
            graph.capture_end()
        except RuntimeError:  # it says less than what came before
            self._spoilt.append(graph)
            with contextlib.suppress(RuntimeError):  # the hold was let go of after all
                torch._C._cuda_endAllocateToPool(self.place.index, self._pool)
            self._pool = None

    def trim(self) -> None:
        """See Driver."""
        torch.cuda.empty_cache()

    def gather(self, arena: torch.Tensor, window: torch.Tensor, pages: torch.Tensor) -> None:
        """See Driver."""
        self._gather(arena, window, pages)

    def clock_mhz(self) -> float:
        """See Driver."""
        return self._clock.read()

    def keep_warm(self) -> Work | None:
        """See Driver."""
        size = WARM_SIDE * WARM_SIDE * torch.float16.itemsize
        left, out = (self.allocate(size).view(torch.float16).view(WARM_SIDE, WARM_SIDE) for _ in range(2))

        def multiply() -> None:
            for _ in range(WARM_PRODUCTS):
                torch.mm(left, left, out=out)

        self.warm_up(multiply)
        return self.capture(multiply)

    def allocations(self) -> dict[str, int]:
        """See Driver. What torch's own allocators counted, too."""
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
        """See Driver. Asks a stream: what has ended the context is the answer to every call."""
        try:
            self._side.query()
        except RuntimeError as error:
            return str(error).partition("\n")[0]
        return ""

    def close(self) -> None:
        """See Driver."""
        with contextlib.suppress(RuntimeError):  # a device that is lost has nothing more to say
            torch.cuda.synchronize(self.place)
        self._clock.close()


def _replay(graph: torch.cuda.CUDAGraph, captured: Work) -> None:
    """The graph runs; what was captured is kept with it, as it holds the tensors whose addresses the graph has."""
    graph.replay()


def _gather_of(place: torch.device) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]:
    """The kernel where Triton works on this device, else torch's own."""
    arena = torch.arange(4 * 8192, device=place).view(4, 8192)
    window, pages = torch.zeros(2, 8192, dtype=torch.int64, device=place), torch.tensor([3, 1], device=place)
    try:
        from gpu_worker.devices.cuda.gather_kernel import gather

        gather(arena, window, pages)
        if torch.equal(window, arena[pages]):
            return gather
    except Exception:  # no Triton, no compiler for it, a device it does not know: the other way works
        torch.cuda.synchronize(place)
    index_gather(arena, window, pages)  # loads its kernel: while serving that would take its time
    return index_gather


def index_gather(arena: torch.Tensor, window: torch.Tensor, pages: torch.Tensor) -> None:
    """See Driver.gather."""
    torch.index_select(arena, 0, pages, out=window[: len(pages)])


class _Clock:
    """SM clock through NVML, where it is installed and allowed; else 0."""

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
        except Exception:  # not installed, not allowed, not known there: durations are then not scaled by the clock
            return

    def read(self) -> float:
        """MHz; 0 if it is not told, at the moment or ever."""
        if self._nvml is None:
            return 0.0
        try:
            return float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
        except self._nvml.NVMLError:
            return 0.0

    def close(self) -> None:
        """NVML is let go."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):  # of a GPU that is lost, this fails too
                self._nvml.nvmlShutdown()
            self._nvml = None
