"""LOADs that are held up, as a test tells: on their way to the pages, or at the disk."""

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gpu_worker.devices.cuda.driver import Event, Stream, Work
from gpu_worker.devices.cuda.host import HostDriver
from tests.loops import LIMIT_S


class GatedDriver(HostDriver):
    """Copies of LOADs begin when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.came = threading.Event()  # a copy is at the gate
        self.issued = 0  # works that came to the gate
        self.copied = 0  # of those, went through it: pieces, and the lists of pages behind them

    def stream(self, name: str) -> Stream:
        """A stream; that of LOADs goes through the gate."""
        stream = super().stream(name)
        return GatedStream(stream, self) if name == "load" else stream

    def pass_through(self, work: Work) -> None:
        """`work` has run, once the gate was open."""
        self.came.set()
        self.gate.wait()
        work()
        self.copied += 1


class GatedStream:
    """A stream whose works run when the gate of the driver is open."""

    def __init__(self, stream: Stream, driver: GatedDriver) -> None:
        self._stream, self._driver = stream, driver

    def run(self, work: Work) -> None:
        """`work` runs once the gate is open, in its turn."""
        self._driver.issued += 1
        self._stream.run(partial(self._driver.pass_through, work))

    def record(self, event: Event) -> None:
        """The event is behind what was issued so far."""
        self._stream.record(event)

    def wait(self, event: Event) -> None:
        """What is issued from now on runs after the event."""
        self._stream.wait(event)


class SlowDisk:
    """The system's reads at a place in a file, each of which is answered when a test allows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looked_at: Callable[[], None] = lambda: None) -> None:
        """`looked_at` is called, on the thread that reads, after each read."""
        self.bytes_read = 0
        self._asked, self._answered, self._allowed = (threading.Semaphore(0) for _ in range(3))
        self._looked_at = looked_at
        self._read: Callable[..., int] = os.preadv
        monkeypatch.setattr(os, "preadv", self._preadv)

    def answer(self, reads: int = 1_000_000) -> None:
        """So many more reads are answered."""
        self._allowed.release(reads)

    def wait_for_ask(self) -> None:
        """One more read has come."""
        assert self._asked.acquire(timeout=LIMIT_S)

    def wait_for_answer(self) -> None:
        """One more read has been answered."""
        assert self._answered.acquire(timeout=LIMIT_S)

    def _preadv(self, *arguments: Any) -> int:
        self._asked.release()
        assert self._allowed.acquire(timeout=LIMIT_S)
        count = self._read(*arguments)
        self.bytes_read += count
        self._looked_at()
        self._answered.release()
        return count
