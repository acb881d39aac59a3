"""Events of a device, made once and recorded again and again."""

import queue
from collections.abc import Callable
from types import TracebackType

from gpu_worker.devices.cuda.driver import Event


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
