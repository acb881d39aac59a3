"""Looks at the threads of a device, on the loop's thread: that one never calls the driver, so it never waits for it."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gpu_worker.devices.cuda.issuer import DeviceThread
from gpu_worker.devices.cuda.watchdog import PREPARE, Patience, Wait, Watchdog


class Watching:
    """Tells when the device is given up, once. Everything but `preparing` is for the loop's thread."""

    def __init__(self, threads: Sequence[DeviceThread], patience: Patience, given_up: Callable[[str], None]) -> None:
        self._threads = threads
        self._given_up = given_up
        self._look_s = patience.look_s
        self._watchdog = Watchdog(patience)
        self._bytes_per_s = patience.prepare_bytes_per_s
        self._preparations = itertools.count(1)
        self._preparing: Wait | None = None
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """It looks, until it is stopped or has seen enough."""
        self._next = asyncio.get_running_loop().call_later(self._look_s, self._tick)

    def stop(self) -> None:
        """It does not look any more."""
        if self._next is not None:
            self._next.cancel()

    @property
    def prepares(self) -> bool:
        """A version is being prepared now."""
        return self._preparing is not None

    @contextmanager
    def preparing(self, ref: str, image_bytes: int) -> Iterator[None]:
        """The calling thread prepares this version, one at a time."""
        expected_s = image_bytes / self._bytes_per_s
        self._preparing = Wait(PREPARE, next(self._preparations), f"PREPARE of {ref}", expected_s)
        try:
            yield
        finally:
            self._preparing = None

    def look(self, now: float) -> bool:
        """One look. Returns whether the device is given up, and has been told so."""
        seen = [*(thread.wait() for thread in self._threads), self._preparing]
        waits = [wait for wait in seen if wait is not None]
        ended = [thread.name for thread in self._threads if thread.broken]
        why = self._watchdog.look(waits, ended=ended, now=now)
        if why:
            self._given_up(why)
        return bool(why)

    def _tick(self) -> None:
        if not self.look(time.monotonic()):
            self.start()
