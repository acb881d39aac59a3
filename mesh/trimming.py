"""When memory that was freed is given back to the system. Pure."""

from dataclasses import dataclass, field

from mesh.doubling import Doubling

GROWN_BYTES = 32 << 20  # less than this is not worth the walk through the heap
QUIET_S = 1.0  # so long nothing but heartbeats has to have passed
AGAIN_S, AGAIN_S_MAX = 2.0, 600.0  # pause before the next try, while it stays quiet: the first, and the longest


@dataclass(slots=True)
class Trimming:
    """The C library keeps freed memory for later: after a flood, hundreds of MiB that nothing needs.

    Whether a process that has grown needs what it has cannot be seen from its size. So it is tried, while it is quiet,
    after pauses that double: what closing connections free somewhat later is given back, too.
    """

    least_bytes: int  # resident: the least so far
    _tried_s: float | None = None  # when memory was given back last, since it was last busy
    _pauses: Doubling = field(default_factory=lambda: Doubling(AGAIN_S, AGAIN_S_MAX))
    _pause_s: float = 0.0

    def due(self, resident_bytes: int, quiet_s: float, now: float) -> bool:
        """Whether to give back now. `quiet_s`: for how long nothing but heartbeats has passed."""
        if resident_bytes < self.least_bytes:
            self.least_bytes = resident_bytes
        if quiet_s < QUIET_S or resident_bytes - self.least_bytes < GROWN_BYTES:
            return False
        if self._tried_s is None or self._tried_s < now - quiet_s:  # it was busy since
            self._pauses.reset()
        elif now - self._tried_s < self._pause_s:
            return False
        self._tried_s, self._pause_s = now, self._pauses.next()
        return True
