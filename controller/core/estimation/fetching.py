"""How long a worker takes to fetch inputs that a frontend keeps on another host. Pure.

A fetch begins when the worker receives the INFER that names the inputs, and is over when the last of them is there. Its
duration is taken for a line over the bytes, fitted to recent fetches, and made longer by a margin that follows a high
quantile of what fetches took beyond the line. Until fetches have shown how long they take, a slow network is assumed.

What frontends on the worker's own host send it, where its memory cannot be read or has no room, does not pass the
network, and has an estimate of its own.

A fetch that was given up counts as one that took as long. As nothing is fetched that would be late, and so nothing be
learned any more, what such fetches have taught is forgotten after a pause, which doubles until one succeeds.
Source of the constants: docs/design/policy.md, "Inputs that are fetched".
"""

import math
from copy import copy
from dataclasses import dataclass, field
from typing import Final

from controller.core.estimation.estimates import Margin
from controller.core.estimation.lines import DurationLine

FarBytes = tuple[int, int]  # to be fetched: from frontends on the worker's host, and from others
NOTHING: Final = (0, 0)

MEGABYTE: Final = 1e6
FIRST_S: Final = 0.002  # assumed of a fetch, whatever its bytes, before any was seen
FIRST_MEGABYTE_S: Final = 0.01  # assumed of each megabyte: most of what 1 Gbit/s can carry
FIRST_MEGABYTES: Final = (0.03, 3.0)  # fetches of so many megabytes stand for what is assumed, until others are seen
MARGIN: Final = 0.25  # relative; by how much a fetch exceeds the line now and then, before any has shown it
MARGIN_MAX: Final = 4.0
PAUSE_S: Final = 1.0  # after a fetch that was given up, until the ones before it alone count again
PAUSE_S_MAX: Final = 30.0
OUTLIER: Final = 4.0  # a fetch that took more than this many times what was expected counts as that long


def _first_line() -> DurationLine:
    line = DurationLine()
    for megabytes in FIRST_MEGABYTES:
        line.add(megabytes, FIRST_S + FIRST_MEGABYTE_S * megabytes)
    return line


@dataclass(slots=True)
class FetchEstimate:
    """Fetches of one worker, from frontends that are all on its host, or all elsewhere."""

    batch_s: float = FIRST_S  # of a fetch, whatever its bytes; the margin is not in it
    megabyte_s: float = FIRST_MEGABYTE_S  # of each megabyte; likewise
    margin: Margin = field(default_factory=lambda: Margin(MARGIN, quantile=0.95, step_s=0.01, limit_s=MARGIN_MAX))
    _line: DurationLine = field(default_factory=_first_line)  # over megabytes
    _before: tuple[DurationLine, float] | None = None  # line and margin before the last fetches, which were given up
    _pause_s: float = PAUSE_S  # after the next one that is given up
    _again_s: float = math.inf  # when `_before` counts again

    def expected_s(self, size: int) -> float:
        """A fetch of so many bytes takes so long at most, but for a few in a hundred; 0 if nothing is fetched."""
        if not size:
            return 0.0
        return self._usual_s(size) * (1 + self.margin.value_s)

    def learn(self, size: int, duration_s: float) -> None:
        """A fetch of so many bytes took so long."""
        if size <= 0:
            return
        self._before, self._pause_s, self._again_s = None, PAUSE_S, math.inf
        self._add(size, duration_s)

    def _add(self, size: int, duration_s: float) -> None:
        usual_s = self._usual_s(size)
        self.margin.learn(max(0.0, duration_s / usual_s - 1))
        self._line.add(size / MEGABYTE, min(max(duration_s, 1e-6), OUTLIER * usual_s))
        self.batch_s, self.megabyte_s = self._line.fit()

    def missed(self, size: int, waited_s: float, now: float) -> None:
        """A fetch of so many bytes was not over after so long, when it was given up."""
        if size <= 0:
            return
        if self._before is None:
            self._before = copy(self._line), self.margin.value_s
        self._again_s = now + self._pause_s
        self._add(size, max(waited_s, self.expected_s(size)))

    def wake(self, now: float) -> None:
        """Fetches that were given up count no more once the pause is over. Calling early is harmless."""
        if now < self._again_s or self._before is None:
            return
        self._line, self.margin.value_s = self._before
        self.batch_s, self.megabyte_s = self._line.fit()
        self._before, self._again_s = None, math.inf
        self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)

    def _usual_s(self, size: int) -> float:
        return max(1e-6, self.batch_s + self.megabyte_s * size / MEGABYTE)


@dataclass(slots=True)
class FetchEstimates:
    """All fetches of one worker. What is on its way from its own host and from others comes at the same time."""

    here: FetchEstimate = field(default_factory=FetchEstimate)  # from frontends on its host
    elsewhere: FetchEstimate = field(default_factory=FetchEstimate)

    def expected_s(self, size: FarBytes) -> float:
        """A fetch of so many bytes takes so long at most, but for a few in a hundred; 0 if nothing is fetched."""
        return max(self.here.expected_s(size[0]), self.elsewhere.expected_s(size[1]))

    def queued_s(self, size: FarBytes) -> float:
        """So many bytes, which others wait for, take so long at least, in however many fetches."""
        return max(self.here.megabyte_s * size[0], self.elsewhere.megabyte_s * size[1]) / MEGABYTE

    def learn(self, size: FarBytes, duration_s: float) -> None:
        """A fetch of so many bytes took so long: what came from elsewhere did, if anything."""
        if size[1] > 0:
            self.elsewhere.learn(size[1], duration_s)
        else:
            self.here.learn(size[0], duration_s)

    def missed(self, size: FarBytes, missing: FarBytes, waited_s: float, now: float) -> None:
        """A fetch of so many bytes was given up after so long, when so many of them had not come."""
        if missing[1] > 0:
            self.elsewhere.missed(size[1], waited_s, now)
        elif missing[0] > 0:
            self.here.missed(size[0], waited_s, now)

    def wake(self, now: float) -> None:
        """Fetches that were given up count no more once the pause is over. Calling early is harmless."""
        self.here.wake(now)
        self.elsewhere.wake(now)
