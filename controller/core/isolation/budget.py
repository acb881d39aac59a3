"""What failures may cost while requests of one version are tried apart. Pure.

Only failures are paid for: what ends well would have had to be executed anyway. So a version that fails for everybody
costs, beside its batches, at most SHARE of one device. Source of the constants: docs/design/isolation.md.
"""

from dataclasses import dataclass

SHARE = 0.25  # of one device's time
SAVED_S = 1.0  # most that is saved up
KEPT_S = 0.5  # of it, kept for requests of which nothing bad is known
DEATH_S = 0.25  # a process that dies costs as much as so long an EXEC


@dataclass(slots=True)
class Budget:
    """Seconds of device time."""

    left_s: float = SAVED_S  # at `at_s`; negative: what was sent before was dearer than what was left
    at_s: float = 0.0

    def spend(self, seconds: float, now: float) -> None:
        """A failure has cost so much."""
        self.left_s = self._left(now) - seconds
        self.at_s = now

    def allows(self, now: float, *, suspect: bool) -> bool:
        """Whether a batch that may fail can be sent. `suspect`: its client's requests have failed lately."""
        return self._left(now) > (KEPT_S if suspect else 0.0)

    def allows_at(self, *, suspect: bool) -> float:
        """From when on it allows that, if nothing is spent until then."""
        missing_s = (KEPT_S if suspect else 0.0) - self.left_s
        return self.at_s + max(0.0, missing_s) / SHARE + 1e-6

    def _left(self, now: float) -> float:
        return min(SAVED_S, self.left_s + SHARE * max(0.0, now - self.at_s))
