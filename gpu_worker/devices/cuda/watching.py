"""Observes the threads of a device from the loop's thread, which never calls the driver and so never waits for it."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gpu_worker.devices.cuda.threads import DeviceThread
from gpu_worker.devices.cuda.watchdog import PREPARE, HangLimits, ObservedWork, Watchdog


class ThreadObserver:
    """Reports once when the device is given up. Everything but `preparing` is for the loop's thread."""

    def __init__(self, threads: Sequence[DeviceThread], limits: HangLimits, given_up: Callable[[str], None]) -> None:
        self._threads = threads
        self._given_up = given_up
        self._look_s = limits.look_s
        self._watchdog = Watchdog(limits)
        self._bytes_per_s = limits.prepare_bytes_per_s
        self._preparations = itertools.count(1)
        self._preparing: ObservedWork | None = None
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Observation runs until `stop` is called or the device is given up."""
        self._next = asyncio.get_running_loop().call_later(self._look_s, self._tick)

    def stop(self) -> None:
        """Observation has ended."""
        if self._next is not None:
            self._next.cancel()

    @property
    def prepares(self) -> bool:
        """Whether a version is being prepared now."""
        return self._preparing is not None

    @contextmanager
    def preparing(self, ref: str, image_bytes: int) -> Iterator[None]:
        """The calling thread prepares this version during the block; one at a time."""
        expected_s = image_bytes / self._bytes_per_s
        self._preparing = ObservedWork(PREPARE, next(self._preparations), f"PREPARE of {ref}", expected_s)
        try:
            yield
        finally:
            self._preparing = None

    def look(self, now: float) -> bool:
        """Observes once. Returns whether the device is given up; then `given_up` was called."""
        seen = [*(thread.observed() for thread in self._threads), self._preparing]
        works = [work for work in seen if work is not None]
        ended = [thread.name for thread in self._threads if thread.broken]
        why = self._watchdog.look(works, ended=ended, now=now)
        if why:
            self._given_up(why)
        return bool(why)

    def _tick(self) -> None:
        if not self.look(time.monotonic()):
            self.start()
