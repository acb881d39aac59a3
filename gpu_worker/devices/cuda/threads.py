"""Threads of one device beside the one that issues: one per stream waits in C, and one does the rest."""

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from gpu_worker.devices.cuda.driver import Event, Work
from gpu_worker.devices.cuda.watchdog import ObservedWork

FOREVER_S = 3600.0
STOP_S = 5.0  # a thread that has not ended by then is stuck in the driver


class DeviceThread(Protocol):
    """What all threads of a device have in common."""

    name: str

    def observed(self) -> ObservedWork | None:
        """Returns what the thread waits for or does, if a device can delay that; else None."""

    @property
    def broken(self) -> bool:
        """Whether the thread has ended by itself."""

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has done what it was given and has ended. Returns False if it has not within `within_s`."""


Reached = Callable[[Exception | None], None]


class EventWatcher:
    """One thread that waits for events in the order in which they were recorded, and reports each one reached."""

    def __init__(self, name: str, enter: Work) -> None:
        self._enter = enter
        self.name = f"watch {name}"
        self._what = name.upper()
        self._given: queue.SimpleQueue[tuple[Event, Reached, str, float] | None] = queue.SimpleQueue()
        self._waiting: tuple[int, str, float] | None = None  # (turn, ref, seconds expected)
        self._turn = 0  # number of events so far
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def watch(self, event: Event, reached: Reached, ref: str = "", expected_s: float = 0.0) -> None:
        """`reached` is called on this thread with the failure, or None. It must not raise.

        `ref`: whose event it is; `expected_s`: how long the work before it is expected to take.
        """
        self._given.put((event, reached, ref, expected_s))

    def observed(self) -> ObservedWork | None:
        """Returns what the thread waits for: the oldest event that it watches; None if it watches none."""
        waiting = self._waiting
        if waiting is None:
            return None
        turn, ref, expected_s = waiting
        return ObservedWork(self.name, turn, f"{self._what} of {ref}", expected_s)

    @property
    def broken(self) -> bool:
        """Whether the thread has ended by itself."""
        return has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended after the events that it watches. Returns False if it has not within `within_s`."""
        return stop_thread(self._thread, self._given, within_s)

    def _run(self) -> None:
        self._enter()
        while self._step():
            pass

    def _step(self) -> bool:
        """Waits for one event, in a call of its own so that no reference stays while the next is waited for."""
        given = self._given.get()
        if given is None:
            return False
        event, reached, ref, expected_s = given
        self._turn += 1
        self._waiting = self._turn, ref, expected_s
        error = None
        try:
            event.synchronize()
        except RuntimeError as fault:
            error = fault
        self._waiting = None
        reached(error)
        return True


class Helper:
    """One thread for what need not be prompt: filling in large inputs, freeing, and a regular task."""

    def __init__(self, name: str) -> None:
        self._tick: Work | None = None
        self._tick_s = FOREVER_S
        self._next_s = 0.0
        self._given: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.name = name
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def every(self, tick_s: float, tick: Work) -> None:
        """`tick` runs every `tick_s` once the thread runs. It must not raise."""
        self._tick, self._tick_s = tick, tick_s

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def do(self, work: Work) -> None:
        """`work` runs after what was given before. It must not raise."""
        self._given.put(work)

    def drop(self, thing: object) -> None:
        """The caller's reference to `thing` will be dropped on this thread."""
        self._given.put(partial(_let_go, thing))

    def observed(self) -> ObservedWork | None:
        """Returns None always: a disk may delay this thread, and freeing takes its time."""

    @property
    def broken(self) -> bool:
        """Whether the thread has ended by itself."""
        return has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended after what it was given. Returns False if it has not within `within_s`."""
        return stop_thread(self._thread, self._given, within_s)

    def _run(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        now = time.monotonic()
        if self._tick is not None and now >= self._next_s:
            self._next_s = now + self._tick_s
            self._tick()
        try:
            work = self._given.get(timeout=self._tick_s)
        except queue.Empty:
            return True
        if work is None:
            return False
        work()
        return True


def _let_go(thing: object) -> None:
    """Does nothing; its argument held the thing until now."""


def has_ended(thread: threading.Thread) -> bool:
    """Returns whether the thread was started and runs no more."""
    return thread.ident is not None and not thread.is_alive()


def stop_thread(thread: threading.Thread, given: queue.SimpleQueue[Any], within_s: float) -> bool:
    """The thread is told to end. Returns whether it has ended within `within_s`, or was never started."""
    if thread.is_alive():
        given.put(None)
        thread.join(within_s)
    return not thread.is_alive()
