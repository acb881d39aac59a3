"""Connections that send what cannot be read. Pure.

Each such message is answered with what is wrong with it. A connection may send JUNK_MAX of them at once, and
JUNK_PER_S on and on; half as many as it sends good ones are forgiven. One that sends more is told so, and closed.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

JUNK_MAX = 200
JUNK_PER_S = 20.0
GOOD_PER_JUNK = 2  # so many good messages make one bad message good


@dataclass(slots=True)
class JunkCount:
    """What one client has sent too much."""

    count: float  # of bad messages that are not forgiven yet
    at_s: float  # when that was so
    good: int = 0  # messages since


@dataclass(slots=True)
class Junk:
    """Those that sent some, and are there."""

    _counts: dict[Hashable, JunkCount] = field(default_factory=dict)

    def __contains__(self, client: Hashable) -> bool:
        return client in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def bad(self, client: Hashable, now: float) -> bool:
        """The client has sent one more that cannot be read. Returns whether it is to be closed, and forgets it then."""
        known = self._counts.get(client)
        if known is None:
            self._counts[client] = JunkCount(1.0, now)
            return False
        known.count = max(0.0, self._left(known, now)) + 1.0
        known.at_s, known.good = now, 0
        if known.count <= JUNK_MAX:
            return False
        del self._counts[client]
        return True

    def good(self, client: Hashable) -> None:
        """The client, which is among those that sent some, has sent a message that could be read."""
        self._counts[client].good += 1

    def forget(self, client: Hashable) -> None:
        """The client is gone."""
        self._counts.pop(client, None)

    def _left(self, known: JunkCount, now: float) -> float:
        return known.count - JUNK_PER_S * (now - known.at_s) - known.good / GOOD_PER_JUNK
