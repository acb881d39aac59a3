"""When memory that was freed is given back to the system. Pure."""

from dataclasses import dataclass

GROWN_BYTES = 64 << 20  # less than this is not worth the walk through the heap
QUIET_S = 1.0  # so long nothing but heartbeats has to have passed


@dataclass(slots=True)
class Trimming:
    """The C library keeps freed memory for later: after a flood, hundreds of MiB that nothing needs."""

    least_bytes: int | None = None  # resident: the least since memory was last given back

    def due(self, resident_bytes: int, quiet_s: float) -> bool:
        """Whether to give back now. `quiet_s`: for how long nothing but heartbeats has passed."""
        if self.least_bytes is None or resident_bytes < self.least_bytes:
            self.least_bytes = resident_bytes
        return quiet_s >= QUIET_S and resident_bytes - self.least_bytes >= GROWN_BYTES

    def done(self, resident_bytes: int) -> None:
        """Memory was given back; what is still resident is in use."""
        self.least_bytes = resident_bytes
