"""A device made of this process's memory and threads: a stream is a thread, an event an instant, a graph a closure.

It is as asynchronous as a GPU: nothing has happened when an issuing call returns, streams overtake each other unless
they wait, and the next event reports a failure. So the device above it can be tested without a GPU.
"""

import queue
import threading
import time
from collections import Counter
from functools import partial

import torch

from gpu_worker.devices.cuda.driver import Enough, Event, MemoryFull, Pinned, Stream, Timed, Work

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
    """An Event that a HostStream reaches."""

    def __init__(self) -> None:
        self.mark = _Mark()

    def synchronize(self) -> None:
        """The last record is reached. Raises: RuntimeError if work before it failed."""
        self.mark.reached.wait()
        if self.mark.error is not None:
            raise RuntimeError(f"{type(self.mark.error).__name__}: {self.mark.error}") from self.mark.error


class HostStream:
    """A Stream that runs its work on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._error: Exception | None = None  # reported by the next mark, and then forgotten
        self._thread = threading.Thread(target=self._run, name=f"stream {name}", daemon=True)
        self._thread.start()

    def run(self, work: Work) -> None:
        """`work` runs after what was issued before."""
        self._works.put(work)

    def record(self, event: Event) -> None:
        """The event is reached after everything that was issued so far."""
        assert isinstance(event, HostEvent)
        mark = event.mark = _Mark()
        self._works.put(lambda: self._reach(mark))

    def wait(self, event: Event) -> None:
        """Everything issued from now on runs after the event's last record."""
        assert isinstance(event, HostEvent)
        mark = event.mark
        self._works.put(partial(_await, mark))

    def close(self) -> None:
        """Everything that was issued has run, and the thread has ended."""
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
            except Exception as error:  # a GPU continues too, and reports the error to whoever waits
                self._error = error


class HostPinned:
    """Ordinary memory that stands for pinned memory."""

    def __init__(self, size: int) -> None:
        self.tensor = torch.zeros(size, dtype=torch.uint8)


class HostDriver:
    """A Driver on this process's memory and threads."""

    def __init__(self, name: str = "host:0", memory_bytes: int = MEMORY_BYTES) -> None:
        self.name = name
        self.kind = f"host, torch {torch.__version__}"
        self.place = torch.device("cpu")
        self.memory_bytes = memory_bytes  # lowered to `used_bytes`, it is full
        self.used_bytes = 0
        self._asked: Counter[str] = Counter()
        self._streams: list[HostStream] = []

    def enter(self) -> None:
        """Gradients are off on the calling thread."""
        torch.set_grad_enabled(False)

    def memory(self) -> tuple[int, int]:
        """Returns (free, total) bytes. What was allocated is never freed: devices keep what they allocate."""
        return self.memory_bytes - self.used_bytes, self.memory_bytes

    def allocate(self, size: int) -> torch.Tensor:
        """Returns zeros, uint8 `[size]`. Raises: MemoryFull."""
        self._asked["device"] += 1
        if size > self.memory_bytes - self.used_bytes:
            raise MemoryFull(f"tried to allocate {size} bytes; {self.memory_bytes - self.used_bytes} are free")
        self.used_bytes += size
        return torch.zeros(size, dtype=torch.uint8)

    def pin(self, size: int) -> Pinned:
        """Returns host memory."""
        self._asked["pinned"] += 1
        return HostPinned(size)

    def stream(self, name: str) -> Stream:
        """Returns a new stream, which `close` will end."""
        stream = HostStream(name)
        self._streams.append(stream)
        return stream

    def event(self, *, sleeps: bool) -> Event:
        """Returns an event."""
        self._asked["event"] += 1
        return HostEvent()

    def seconds(self, begin: Event, end: Event) -> float:
        """Returns the seconds between two reached events."""
        assert isinstance(begin, HostEvent)
        assert isinstance(end, HostEvent)
        return end.mark.at_s - begin.mark.at_s

    def warm_up(self, work: Work) -> None:
        """`work` has run, on the calling thread."""
        work()

    def capture(self, work: Work) -> Work:
        """Returns `work` itself: here operations cannot be separated from the code that calls them."""
        self._asked["capture"] += 1
        return work

    def timer(self) -> Timed:
        """Returns a function that runs works on the calling thread."""
        return self._timed

    def _timed(self, work: Work, enough: Enough) -> list[float]:
        found: list[float] = []
        while not found or not enough(found):
            begin_s = time.perf_counter()
            self.warm_up(work)
            found.append(time.perf_counter() - begin_s)
        return found

    def trim(self) -> None:
        """Does nothing: no memory is kept back here."""

    def gather(self, arena: torch.Tensor, buffer: torch.Tensor, pages: torch.Tensor) -> None:
        """Copies buffer[i] = arena[pages[i]]."""
        torch.index_select(arena, 0, pages, out=buffer[: len(pages)])

    def clock_mhz(self) -> float:
        """Returns 0: the clock is unknown."""
        return 0.0

    def keep_warm(self) -> Work | None:
        """Returns None: there is no clock to keep up."""
        return None

    def allocations(self) -> dict[str, int]:
        """Returns {kind: number of allocations so far}."""
        return dict(self._asked)

    def lost(self) -> str:
        """Returns "": this device is never lost."""
        return ""

    def close(self) -> None:
        """All streams have run what was issued and have ended."""
        for stream in self._streams:
            stream.close()
