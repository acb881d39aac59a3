"""Whether a batch that is not full should wait for requests that are expected (delayed batching). Pure.

This is for black boxes, where an operator allows it. It is learned from arrivals while other requests were open: a
client that asks, waits for its answer and asks again is never followed by anybody, and so waits for nobody.
"""

import math
from dataclasses import dataclass

ARRIVALS_DECAY_S = 0.25  # time constant of the memory of arrivals, in time with requests open
PEAK_DECAY_S = 1.0  # time constant of the memory of how many were open at once
EXPECTED_MIN = 1.0  # arrivals expected within the wait; with fewer no batch waits


@dataclass(slots=True)
class BatchDelay:
    """One version's requests: are others coming while some wait?"""

    wait_s: float  # how long a batch may wait
    open: int = 0  # requests admitted and not ended
    _peak: float = 0.0  # most that were open at once, decayed
    _waits: bool = False  # a batch is being held back
    _others: float = 0.0  # arrivals while others were open, decayed
    _exposed_s: float = 0.0  # time with requests open, decayed likewise
    _at_s: float = 0.0  # when the decayed values were last brought up to date

    def arrived(self, now: float) -> None:
        """A request waits."""
        self._pass(now)
        if self.open:
            self._others += 1
        self.open += 1
        self._peak = max(self._peak, self.open)

    def ended(self, now: float) -> None:
        """A request has ended."""
        self._pass(now)
        self.open = max(0, self.open - 1)

    def until(self, rows: int, limit: int, first_arrived_s: float, now: float) -> float | None:
        """The instant until which a batch of so many rows should wait; None: it should go now.

        `limit`: rows of a full batch; `first_arrived_s`: when the first of its requests arrived.
        """
        self._pass(now)
        ends_s = first_arrived_s + self.wait_s
        waited, self._waits = self._waits, False
        if waited and ends_s <= now:
            self._peak = float(self.open)  # whoever did not come in all that time is not expected any more
        if rows >= limit or ends_s <= now or self.open >= self._peak - 0.5 or self._exposed_s <= 0:
            return None
        self._waits = self._others / self._exposed_s * self.wait_s >= EXPECTED_MIN
        return ends_s if self._waits else None

    def _pass(self, now: float) -> None:
        """Time has passed: the decayed values follow."""
        passed_s = max(0.0, now - self._at_s)
        self._at_s = now
        self._peak = max(float(self.open), self._peak * math.exp(-passed_s / PEAK_DECAY_S))
        if self.open:
            kept = math.exp(-passed_s / ARRIVALS_DECAY_S)
            self._others *= kept
            self._exposed_s = self._exposed_s * kept + passed_s


def new_delay(wait_s: float, waiting: int, now: float) -> BatchDelay:
    """A delay of which nothing is known but how many requests wait."""
    return BatchDelay(wait_s, waiting, _at_s=now)
