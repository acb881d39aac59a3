"""Virtual time: planned calls, which happen in the order of their instants. Pure."""

import heapq
import math
from collections.abc import Callable


class VirtualTime:
    """An instant, `now`, and the calls that are planned. Calls planned for one instant happen in the order of planning.

    A call may be planned for an instant that has passed: then it is due at once.
    """

    __slots__ = ("_calls", "_planned", "now")

    def __init__(self, now: float = 0.0) -> None:
        self.now = now  # s; never decreases
        self._calls: list[tuple[float, int, Callable[[], object]]] = []  # heap of (instant, number, call)
        self._planned = 0

    def at(self, time_s: float, call: Callable[[], object]) -> None:
        """`call` will happen at this instant."""
        self._planned += 1
        heapq.heappush(self._calls, (time_s, self._planned, call))

    def next_s(self) -> float:
        """The instant of the next call; infinite if none is planned."""
        return self._calls[0][0] if self._calls else math.inf

    def advance(self, time_s: float) -> None:
        """It is this instant now, or later if it was later already."""
        if time_s > self.now:
            self.now = time_s

    def pop_due(self) -> Callable[[], object] | None:
        """The next call that is due, which counts as done from now on. None if nothing is due."""
        if self._calls and self._calls[0][0] <= self.now:
            return heapq.heappop(self._calls)[2]
        return None
