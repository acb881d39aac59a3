"""Threads of one device: one that issues everything, at its time; one per stream that waits in C; one for the rest."""

import heapq
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from gpu_worker.devices.cuda.driver import Event, Work
from gpu_worker.devices.cuda.watchdog import Wait
from gpu_worker.tuning import inherit_priority

SPIN_S = 0.0001  # before its time comes a work is waited for awake; Source: a sleeping thread is 50 us late or more
DEAF_S = 0.00002  # and in the end nothing else is begun: issuing one thing takes about as long
FOREVER_S = 3600.0
STOP_S = 5.0  # a thread that has not ended by then is stuck in the driver


class DeviceThread(Protocol):
    """What all threads of a device have."""

    name: str

    def wait(self) -> Wait | None:
        """What it is at, if that is something that a device can hold up."""

    @property
    def broken(self) -> bool:
        """It has ended by itself."""

    def stop(self, within_s: float = STOP_S) -> bool:
        """It has ended, after what it was given. False: it has not, in that time."""


@dataclass(slots=True)
class Agenda:
    """Works that have their time, earliest first; of equal times, the one that came first. Pure."""

    _heap: list[tuple[float, int, Work]] = field(default_factory=list)
    _count: int = 0

    def add(self, due_s: float, work: Work) -> None:
        """`work` is due then."""
        self._count += 1
        heapq.heappush(self._heap, (due_s, self._count, work))

    @property
    def due_s(self) -> float | None:
        """When the next is due."""
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> Work | None:
        """The next, if it is due by now."""
        return heapq.heappop(self._heap)[2] if self._heap and self._heap[0][0] <= now else None


class Issuer:
    """One thread. Works run in the order given, those with a time at their time, `idle` each `idle_s` of nothing."""

    def __init__(self, enter: Work, idle: Work, idle_s: float | None, clock: Callable[[], float]) -> None:
        self._enter, self._idle, self._idle_s, self._clock = enter, idle, idle_s, clock
        self._given: queue.SimpleQueue[tuple[float | None, Work] | None] = queue.SimpleQueue()
        self._agenda = Agenda()
        self._take_priority: Work | None = None
        self._turn = 0  # counts what is issued
        self._at_work = False
        self.name = "issue"
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """The thread runs, with the priority of the calling one."""
        self._take_priority = inherit_priority()
        self._thread.start()

    def now(self, work: Work) -> None:
        """`work` runs as soon as what was given before is issued. It must not raise, nor block."""
        self._given.put((None, work))

    def at(self, due_s: float, work: Work) -> None:
        """`work` runs then, or at once if that is past."""
        self._given.put((due_s, work))

    def wait(self) -> Wait | None:
        """What the thread is issuing, if it is."""
        return Wait(self.name, self._turn, "issuing what was ordered") if self._at_work else None

    @property
    def broken(self) -> bool:
        """The thread has ended by itself."""
        return _has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended; what has not come due by then is not done. False: it has not, in that time."""
        return _stop(self._thread, self._given, within_s)

    def _run(self) -> None:
        if self._take_priority is not None:
            self._take_priority()
        self._enter()
        while self._step():
            pass

    def _step(self) -> bool:
        """One thing: a call of its own, so that nothing of it is kept while the next is waited for."""
        due_s = self._agenda.due_s
        now = self._clock()
        if due_s is not None and due_s - now <= SPIN_S:
            return self._await(due_s)
        waits_s = FOREVER_S if due_s is None else due_s - now - SPIN_S / 2
        idle = self._idle_s is not None and self._idle_s < waits_s
        try:
            given = self._given.get(timeout=self._idle_s if idle else waits_s)
        except queue.Empty:
            if idle:
                self._do(self._idle)
            return True
        if given is not None:
            self._take(given)
        return given is not None

    def _await(self, due_s: float) -> bool:
        """Awake until it is due, then issues it. False: the end was ordered meanwhile."""
        while (now := self._clock()) < due_s:
            if due_s - now > DEAF_S:
                time.sleep(0)
                if not self._given.empty():
                    given = self._given.get()
                    if given is None:
                        return False
                    self._take(given)
        work = self._agenda.pop(max(self._clock(), due_s))
        if work is not None:
            self._do(work)
        return True

    def _take(self, given: tuple[float | None, Work]) -> None:
        due_s, work = given
        if due_s is None:
            self._do(work)
        else:
            self._agenda.add(due_s, work)

    def _do(self, work: Work) -> None:
        self._turn += 1
        self._at_work = True
        work()
        self._at_work = False


Reached = Callable[[Exception | None], None]


class Watcher:
    """One thread that waits for events in the order they were recorded, and tells when each was reached."""

    def __init__(self, name: str, enter: Work) -> None:
        self._enter = enter
        self.name = f"watch {name}"
        self._what = name.upper()
        self._given: queue.SimpleQueue[tuple[Event, Reached, str, float] | None] = queue.SimpleQueue()
        self._waiting: tuple[int, str, float] | None = None  # (turn, ref, seconds expected)
        self._turn = 0  # counts events
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def watch(self, event: Event, reached: Reached, ref: str = "", expected_s: float = 0.0) -> None:
        """`reached` is called on this thread, with what failed, if something did. It must not raise.

        `ref`: whose event it is; `expected_s`: how long what is before it was expected to take.
        """
        self._given.put((event, reached, ref, expected_s))

    def wait(self) -> Wait | None:
        """What the thread waits for, if it does: the oldest event that it watches."""
        waiting = self._waiting
        if waiting is None:
            return None
        turn, ref, expected_s = waiting
        return Wait(self.name, turn, f"{self._what} of {ref}", expected_s)

    @property
    def broken(self) -> bool:
        """The thread has ended by itself."""
        return _has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended, after what it watches. False: it has not, in that time."""
        return _stop(self._thread, self._given, within_s)

    def _run(self) -> None:
        self._enter()
        while self._step():
            pass

    def _step(self) -> bool:
        """One event: a call of its own, so that nothing of it is kept while the next is waited for."""
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
    """One thread for what may take its time: filling in large inputs, freeing, and something to be done regularly."""

    def __init__(self, name: str) -> None:
        self._tick: Work | None = None
        self._tick_s = FOREVER_S
        self._next_s = 0.0
        self._given: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.name = name
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def every(self, tick_s: float, tick: Work) -> None:
        """`tick` runs so often, once the thread does. It must not raise."""
        self._tick, self._tick_s = tick, tick_s

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def do(self, work: Work) -> None:
        """`work` runs after what was given before. It must not raise."""
        self._given.put(work)

    def drop(self, thing: object) -> None:
        """The caller's reference to it is let go on the thread."""
        self._given.put(partial(_let_go, thing))

    def wait(self) -> Wait | None:
        """Nothing, ever: it may be a disk that holds it up, and whatever it frees takes its time."""

    @property
    def broken(self) -> bool:
        """The thread has ended by itself."""
        return _has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended, after what it was given. False: it has not, in that time."""
        return _stop(self._thread, self._given, within_s)

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
    """Nothing: whoever calls this held the thing until now."""


def _has_ended(thread: threading.Thread) -> bool:
    """The thread was started, and runs no more."""
    return thread.ident is not None and not thread.is_alive()


def _stop(thread: threading.Thread, given: queue.SimpleQueue[Any], within_s: float) -> bool:
    """The thread was told to end. Returns whether it has, or was never started, in that time."""
    if thread.is_alive():
        given.put(None)
        thread.join(within_s)
    return not thread.is_alive()


class EventPool:
    """Events that are recorded again and again; all are made at start. Any thread may take and give."""

    def __init__(self, make: Callable[[], Event], count: int) -> None:
        self._free: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.count = count
        for _ in range(count):
            self._free.put(make())

    @property
    def free(self) -> int:
        """Events that nobody has."""
        return self._free.qsize()

    def take(self) -> Event:
        """An event. Raises: queue.Empty, if more are in use than lanes are deep."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            raise queue.Empty(f"all {self.count} events are in use") from None

    def lend(self, count: int) -> "Lent":
        """So many events for a block, at whose end somebody has them who gives them back; if it raises, nobody has.

        One that was recorded may be recorded again at once: a stream that waits for it waits for what it was then.
        Raises: queue.Empty.
        """
        events: list[Event] = []
        try:
            for _ in range(count):
                events.append(self.take())
        except queue.Empty:
            self.give(*events)
            raise
        return Lent(self, events)

    def give(self, *events: Event) -> None:
        """Nobody looks at them any more."""
        for event in events:
            self._free.put(event)


class Lent:
    """See EventPool.lend."""

    __slots__ = ("_events", "_pool")

    def __init__(self, pool: EventPool, events: list[Event]) -> None:
        self._pool, self._events = pool, events

    def __enter__(self) -> list[Event]:
        return self._events

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._pool.give(*self._events)
