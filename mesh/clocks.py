"""Offset between the clocks of two peers, estimated from the messages that they exchange anyway.

Source: Clockwork (OSDI'20) section 5, "clock_delta". Here the minimum is taken over a span of time, not over a number
of messages, so that an idle link forgets drift as fast as a busy one.
"""

import math
from dataclasses import dataclass

IMPOSSIBLE_S = -0.1  # shortest round trip; clocks that are slewed by 500 ppm differ by 0.01 s in two spans
SPAN_S = 10.0  # a sample counts for one to two spans; clocks drift by under 50 us in that time (5 ppm)


@dataclass(slots=True)
class OffsetFilter:
    """Estimates ``offset_s``: the number to add to a local instant to get the peer's.

    The smallest (receipt - sending) in each direction is the offset (with opposite signs) plus the shortest transfer
    time. Half their difference is the offset, if the shortest transfer takes equally long in both directions.
    """

    smallest_s: float | None = None  # smallest (received here - sent there) of this span and the last
    remote_smallest_s: float | None = None  # the peer's smallest (received there - sent here), from its envelopes
    _current_s: float | None = None  # this span's
    _last_s: float | None = None  # the last span's
    _span_ends_s: float = 0.0

    def heard(self, sent_s: float, remote_delta_s: float | None, now: float) -> None:
        """Takes in one envelope: the instant it was sent by the peer's clock, and the smallest delta that the peer has
        seen.

        Both are finite. What would make the shortest round trip negative is not taken: a peer that misstates one
        instant moves nothing by it. If a clock really jumped, both ways agree again once the older samples have gone.
        """
        delta_s = now - sent_s
        if self.remote_smallest_s is not None and delta_s + self.remote_smallest_s < IMPOSSIBLE_S:
            delta_s = math.inf
        if now >= self._span_ends_s:
            self._last_s = self._current_s if now < self._span_ends_s + SPAN_S else None
            self._current_s = None
            self._span_ends_s = now + SPAN_S
        if delta_s < (math.inf if self._current_s is None else self._current_s):
            self._current_s = delta_s
            last = self._last_s
            self.smallest_s = delta_s if last is None else min(delta_s, last)
        if remote_delta_s is not None and (self.smallest_s or 0.0) + remote_delta_s >= IMPOSSIBLE_S:
            self.remote_smallest_s = remote_delta_s

    @property
    def offset_s(self) -> float:
        """The peer's clock minus ours in seconds; 0 until both directions are known."""
        if self.smallest_s is None or self.remote_smallest_s is None:
            return 0.0
        return (self.remote_smallest_s - self.smallest_s) / 2

    @property
    def round_trip_s(self) -> float:
        """The shortest round trip in seconds; 0 until both directions are known."""
        if self.smallest_s is None or self.remote_smallest_s is None:
            return 0.0
        return self.smallest_s + self.remote_smallest_s

    def age_s(self, sent_s: float, now: float) -> float:
        """Seconds since the peer sent an envelope stamped `sent_s`, by our clock. Never negative."""
        if self.remote_smallest_s is None:
            return max(0.0, now - sent_s - (self.smallest_s or 0.0)) if self.smallest_s is not None else 0.0
        return max(0.0, now - (sent_s - self.offset_s))
