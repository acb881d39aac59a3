"""Threads of one device: one that issues everything, at its time; one per stream that waits in C; one for the rest."""

import heapq
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gpu_worker.devices.cuda.driver import Event, Work
from gpu_worker.tuning import inherit_priority

SPIN_S = 0.0001  # before its time comes a work is waited for awake; Source: a sleeping thread is 50 us late or more
DEAF_S = 0.00002  # and in the end nothing else is begun: issuing one thing takes about as long
FOREVER_S = 3600.0


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
        self._thread = threading.Thread(target=self._run, name="issue", daemon=True)

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

    def stop(self) -> None:
        """The thread has ended; what has not come due by then is not done."""
        if self._thread.is_alive():
            self._given.put(None)
            self._thread.join(timeout=5.0)

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
                self._idle()
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
            work()
        return True

    def _take(self, given: tuple[float | None, Work]) -> None:
        due_s, work = given
        if due_s is None:
            work()
        else:
            self._agenda.add(due_s, work)


Reached = Callable[[Exception | None], None]


class Watcher:
    """One thread that waits for events in the order they were recorded, and tells when each was reached."""

    def __init__(self, name: str, enter: Work) -> None:
        self._enter = enter
        self._given: queue.SimpleQueue[tuple[Event, Reached] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"watch {name}", daemon=True)

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def watch(self, event: Event, reached: Reached) -> None:
        """`reached` is called on this thread, with what failed, if something did. It must not raise."""
        self._given.put((event, reached))

    def stop(self) -> None:
        """The thread has ended, after what it watches."""
        if self._thread.is_alive():
            self._given.put(None)
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        self._enter()
        while self._step():
            pass

    def _step(self) -> bool:
        """One event: a call of its own, so that nothing of it is kept while the next is waited for."""
        given = self._given.get()
        if given is None:
            return False
        event, reached = given
        error = None
        try:
            event.synchronize()
        except RuntimeError as fault:
            error = fault
        reached(error)
        return True


class Helper:
    """One thread for what may take its time: filling in large inputs, freeing, and something to be done regularly."""

    def __init__(self, name: str) -> None:
        self._tick: Work | None = None
        self._tick_s = FOREVER_S
        self._next_s = 0.0
        self._given: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
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

    def stop(self) -> None:
        """The thread has ended, after what it was given."""
        if self._thread.is_alive():
            self._given.put(None)
            self._thread.join(timeout=5.0)

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
        return self._free.get_nowait()

    def give(self, *events: Event) -> None:
        """Nobody looks at them any more."""
        for event in events:
            self._free.put(event)
