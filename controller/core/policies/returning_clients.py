"""Clients that come back: how many of a batch's requests are followed by another, and how soon. Pure.

In a closed loop, whoever was answered asks again after a short while. If batching pays, it pays to wait for them. The
arrivals shortly after a batch was answered are counted as returns. In an open loop they are next to none, and nobody
waits. Source: docs/design/policy.md, "Returning clients".
"""

from dataclasses import dataclass

COUNTED_S = 0.006  # arrivals so soon after a batch was answered count as returns
WEIGHT = 0.3  # of the last batch in what is learned
LATER, SOONER = 0.5, 0.05  # weights of a last return that was later or sooner than learned: nearly all returns count


@dataclass(slots=True)
class ReturningClients:
    """The clients of one model."""

    share: float = 0.0  # returns per answered request; learned
    return_s: float = 0.0  # time after which the last of the returns is there, nearly always; learned
    _answered: int = 0  # requests of the batch whose returns are being counted
    _opened_s: float = -1.0  # when it was answered
    _arrivals: list[float] | None = None  # seconds from then to each arrival; None: nothing is being counted

    def completed(self, requests: int, now: float) -> None:
        """A batch of so many requests was answered: the returns to it are counted from now on."""
        self._close(now)
        self._answered, self._opened_s, self._arrivals = requests, now, []

    def arrived(self, now: float) -> None:
        """A request arrived."""
        if self._arrivals is not None:
            if now - self._opened_s <= COUNTED_S:
                self._arrivals.append(now - self._opened_s)
            else:
                self._close(now)

    def missing(self, now: float) -> tuple[float, float]:
        """(clients of the last batch that are still expected to return, seconds until they have); (0, 0) if none."""
        if self._arrivals is None:
            return 0.0, 0.0
        left_s = self.return_s - (now - self._opened_s)
        count = self.share * self._answered - len(self._arrivals)
        return (count, left_s) if left_s > 0 and count >= 0.5 else (0.0, 0.0)

    def of_running(self, requests: int) -> tuple[float, float]:
        """(clients that are expected to return, seconds it takes them) after a batch of `requests` that still runs."""
        return self.share * requests, self.return_s

    def _close(self, now: float) -> None:
        """The time for returns is over, and what it showed is learned."""
        if self._arrivals is None or not self._answered:
            return
        counted = [offset for offset in self._arrivals if offset <= COUNTED_S]
        seen = min(1.0, len(counted) / self._answered)
        self.share += WEIGHT * (seen - self.share)
        if counted:
            last_s = counted[-1]
            weight = 1.0 if not self.return_s else LATER if last_s > self.return_s else SOONER
            self.return_s += weight * (last_s - self.return_s)
        self._arrivals = None
