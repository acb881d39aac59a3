"""Threads of one device: one issues everything at its time, one per stream waits in C, and one does the rest."""

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

# a work due within this time is waited for without sleeping. Source: a sleeping thread is 50 us late or more
SPIN_S = 0.0001
DEAF_S = 0.00002  # in this last part nothing else is begun: issuing one thing takes about as long
FOREVER_S = 3600.0
STOP_S = 5.0  # a thread that has not ended by then is stuck in the driver


class DeviceThread(Protocol):
    """What all threads of a device have in common."""

    name: str

    def wait(self) -> Wait | None:
        """Returns what the thread waits for or does, if a device can delay that; else None."""

    @property
    def broken(self) -> bool:
        """Whether the thread has ended by itself."""

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has done what it was given and has ended. Returns False if it has not within `within_s`."""


@dataclass(slots=True)
class Agenda:
    """Works with a due time, earliest first; of equal times, the one added first. Pure."""

    _heap: list[tuple[float, int, Work]] = field(default_factory=list)
    _count: int = 0

    def add(self, due_s: float, work: Work) -> None:
        """`work` is due at `due_s`."""
        self._count += 1
        heapq.heappush(self._heap, (due_s, self._count, work))

    @property
    def due_s(self) -> float | None:
        """The time at which the next work is due; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> Work | None:
        """Returns the next work if it is due by `now`, else None."""
        return heapq.heappop(self._heap)[2] if self._heap and self._heap[0][0] <= now else None


class Issuer:
    """One thread.

    Works run in the order given, those with a time at their time; `idle` runs after each `idle_s` idle.
    """

    def __init__(self, enter: Work, idle: Work, idle_s: float | None, clock: Callable[[], float]) -> None:
        self._enter, self._idle, self._idle_s, self._clock = enter, idle, idle_s, clock
        self._given: queue.SimpleQueue[tuple[float | None, Work] | None] = queue.SimpleQueue()
        self._agenda = Agenda()
        self._take_priority: Work | None = None
        self._turn = 0  # number of works issued so far
        self._at_work = False
        self.name = "issue"
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """The thread runs, with the priority of the calling thread."""
        self._take_priority = inherit_priority()
        self._thread.start()

    def now(self, work: Work) -> None:
        """`work` runs as soon as what was given before is issued. It must neither raise nor block."""
        self._given.put((None, work))

    def at(self, due_s: float, work: Work) -> None:
        """`work` runs at `due_s`, or at once if that is past."""
        self._given.put((due_s, work))

    def wait(self) -> Wait | None:
        """Returns what the thread is issuing; None if nothing."""
        return Wait(self.name, self._turn, "issuing what was ordered") if self._at_work else None

    @property
    def broken(self) -> bool:
        """Whether the thread has ended by itself."""
        return _has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended; works not yet due are dropped. Returns False if it has not ended within `within_s`."""
        return _stop(self._thread, self._given, within_s)

    def _run(self) -> None:
        if self._take_priority is not None:
            self._take_priority()
        self._enter()
        while self._step():
            pass

    def _step(self) -> bool:
        """Does one thing, in a call of its own so that no reference stays while the next is waited for.

        False at the end.
        """
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
        """Waits without sleeping until the next work is due, then issues it. Returns False if the thread must end."""
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

    def wait(self) -> Wait | None:
        """Returns what the thread waits for: the oldest event that it watches; None if it watches none."""
        waiting = self._waiting
        if waiting is None:
            return None
        turn, ref, expected_s = waiting
        return Wait(self.name, turn, f"{self._what} of {ref}", expected_s)

    @property
    def broken(self) -> bool:
        """Whether the thread has ended by itself."""
        return _has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended after the events that it watches. Returns False if it has not within `within_s`."""
        return _stop(self._thread, self._given, within_s)

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

    def wait(self) -> Wait | None:
        """Returns None always: a disk may delay this thread, and freeing takes its time."""

    @property
    def broken(self) -> bool:
        """Whether the thread has ended by itself."""
        return _has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended after what it was given. Returns False if it has not within `within_s`."""
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
    """Does nothing; its argument held the thing until now."""


def _has_ended(thread: threading.Thread) -> bool:
    """Returns whether the thread was started and runs no more."""
    return thread.ident is not None and not thread.is_alive()


def _stop(thread: threading.Thread, given: queue.SimpleQueue[Any], within_s: float) -> bool:
    """The thread is told to end. Returns whether it has ended within `within_s`, or was never started."""
    if thread.is_alive():
        given.put(None)
        thread.join(within_s)
    return not thread.is_alive()


class EventPool:
    """Events that are recorded again and again; all are made at the start. Any thread may take and give."""

    def __init__(self, make: Callable[[], Event], count: int) -> None:
        self._free: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.count = count
        for _ in range(count):
            self._free.put(make())

    @property
    def free(self) -> int:
        """The number of events that nobody has."""
        return self._free.qsize()

    def take(self) -> Event:
        """Returns an event. Raises: queue.Empty if all are in use, which the depths of the lanes rule out."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            raise queue.Empty(f"all {self.count} events are in use") from None

    def lend(self, count: int) -> "Lent":
        """Returns a context with `count` events, which go back to the pool if the block raises.

        Otherwise the user gives them back.

        An event that was recorded may be recorded again at once: a stream that waits for it waits for the earlier
        record. Raises: queue.Empty.
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
        """The events are free: nobody looks at them any more."""
        for event in events:
            self._free.put(event)


class Lent:
    """The context that EventPool.lend returns: the events go back to the pool if the block raises."""

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
