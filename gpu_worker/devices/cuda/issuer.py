"""The one thread that issues all work of a device, each work at its time."""

import heapq
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gpu_worker.devices.cuda.driver import Work
from gpu_worker.devices.cuda.threads import FOREVER_S, STOP_S, has_ended, stop_thread
from gpu_worker.devices.cuda.threads import Helper as Helper  # tools outside this repository find it here
from gpu_worker.devices.cuda.watchdog import ObservedWork
from gpu_worker.tuning import inherit_priority

# a work due within this time is waited for without sleeping. Source: a sleeping thread is 50 us late or more
SPIN_S = 0.0001
EXCLUSIVE_S = 0.00002  # in this last part nothing else is begun: issuing one thing takes about as long


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

    def observed(self) -> ObservedWork | None:
        """Returns what the thread is issuing; None if nothing."""
        return ObservedWork(self.name, self._turn, "issuing what was ordered") if self._at_work else None

    @property
    def broken(self) -> bool:
        """Whether the thread has ended by itself."""
        return has_ended(self._thread)

    def stop(self, within_s: float = STOP_S) -> bool:
        """The thread has ended; works not yet due are dropped. Returns False if it has not ended within `within_s`."""
        return stop_thread(self._thread, self._given, within_s)

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
            if due_s - now > EXCLUSIVE_S:
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
