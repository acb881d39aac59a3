"""A device made of this process's memory and threads: a stream is a thread, an event a moment in it, a graph a closure.

It is as asynchronous as a GPU is: nothing has happened when an issuing call returns, streams overtake each other unless
they wait, and what fails is told by the event behind it. So the device above it can be tested where there is no GPU.
"""

import queue
import threading
import time
from collections import Counter
from functools import partial

import torch

from gpu_worker.devices.cuda.driver import Event, MemoryFull, Pinned, Stream, Work

MEMORY_BYTES = 1 << 30


class _Mark:
    """One record of an event."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.at_s = 0.0
        self.error: Exception | None = None


def _await(mark: _Mark) -> None:
    mark.reached.wait()


class HostEvent:
    """See Event."""

    def __init__(self) -> None:
        self.mark = _Mark()

    def synchronize(self) -> None:
        """See Event."""
        self.mark.reached.wait()
        if self.mark.error is not None:
            raise RuntimeError(f"{type(self.mark.error).__name__}: {self.mark.error}") from self.mark.error


class HostStream:
    """See Stream."""

    def __init__(self, name: str) -> None:
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._error: Exception | None = None  # told by the next mark, and forgotten then
        self._thread = threading.Thread(target=self._run, name=f"stream {name}", daemon=True)
        self._thread.start()

    def run(self, work: Work) -> None:
        """See Stream."""
        self._works.put(work)

    def record(self, event: Event) -> None:
        """See Stream."""
        assert isinstance(event, HostEvent)
        mark = event.mark = _Mark()
        self._works.put(lambda: self._reach(mark))

    def wait(self, event: Event) -> None:
        """See Stream."""
        assert isinstance(event, HostEvent)
        mark = event.mark
        self._works.put(partial(_await, mark))

    def close(self) -> None:
        """What was issued has run."""
        self._works.put(None)
        self._thread.join()

    def _reach(self, mark: _Mark) -> None:
        mark.error, self._error = self._error, None
        mark.at_s = time.perf_counter()
        mark.reached.set()

    def _run(self) -> None:
        torch.set_grad_enabled(False)
        while (work := self._works.get()) is not None:
            try:
                work()
            except Exception as error:  # a GPU goes on, too, and tells whoever waits
                self._error = error


class HostPinned:
    """See Pinned."""

    def __init__(self, size: int) -> None:
        self.tensor = torch.zeros(size, dtype=torch.uint8)


class HostDriver:
    """See Driver."""

    def __init__(self, name: str = "host:0", memory_bytes: int = MEMORY_BYTES) -> None:
        self.name = name
        self.kind = f"host, torch {torch.__version__}"
        self.place = torch.device("cpu")
        self.memory_bytes = memory_bytes  # lowered to `used_bytes`, it is full
        self.used_bytes = 0
        self._asked: Counter[str] = Counter()
        self._streams: list[HostStream] = []

    def enter(self) -> None:
        """See Driver."""
        torch.set_grad_enabled(False)

    def memory(self) -> tuple[int, int]:
        """See Driver. What was allocated counts for ever: devices allocate what they keep."""
        return self.memory_bytes - self.used_bytes, self.memory_bytes

    def allocate(self, size: int) -> torch.Tensor:
        """See Driver."""
        self._asked["device"] += 1
        if size > self.memory_bytes - self.used_bytes:
            raise MemoryFull(f"tried to allocate {size} bytes; {self.memory_bytes - self.used_bytes} are free")
        self.used_bytes += size
        return torch.zeros(size, dtype=torch.uint8)

    def pin(self, size: int) -> Pinned:
        """See Driver."""
        self._asked["pinned"] += 1
        return HostPinned(size)

    def stream(self, name: str) -> Stream:
        """See Driver."""
        stream = HostStream(name)
        self._streams.append(stream)
        return stream

    def event(self, *, sleeps: bool) -> Event:
        """See Driver."""
        self._asked["event"] += 1
        return HostEvent()

    def seconds(self, begin: Event, end: Event) -> float:
        """See Driver."""
        assert isinstance(begin, HostEvent)
        assert isinstance(end, HostEvent)
        return end.mark.at_s - begin.mark.at_s

    def warm_up(self, work: Work) -> None:
        """See Driver."""
        work()

    def capture(self, work: Work) -> Work:
        """See Driver. Here operations cannot be kept apart from what calls them."""
        self._asked["capture"] += 1
        return work

    def trim(self) -> None:
        """See Driver. Nothing is kept here."""

    def gather(self, arena: torch.Tensor, window: torch.Tensor, pages: torch.Tensor) -> None:
        """See Driver."""
        torch.index_select(arena, 0, pages, out=window[: len(pages)])

    def clock_mhz(self) -> float:
        """See Driver."""
        return 0.0

    def keep_warm(self) -> Work | None:
        """See Driver."""
        return None

    def allocations(self) -> dict[str, int]:
        """See Driver."""
        return dict(self._asked)

    def lost(self) -> str:
        """See Driver."""
        return ""

    def close(self) -> None:
        """See Driver."""
        for stream in self._streams:
            stream.close()
