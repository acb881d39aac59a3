"""Clients that come back: how many of a batch's requests are followed by another, and how soon. Pure.

In a closed loop whoever was answered asks again after a short while. If batching pays, it pays to wait for them. What
returns is counted in a window after each completion; in open loops that is next to nothing, and nobody waits.
"""

from dataclasses import dataclass

WINDOW_S = 0.006  # after a completion: arrivals in it count as returns
WEIGHT = 0.3  # of the last window in what is learned; Source: policy_study section 6
LATER, SOONER = 0.5, 0.05  # weights of a last return that was later or sooner than learned: nearly all of them count


@dataclass(slots=True)
class Echo:
    """One model's returns."""

    share: float = 0.0  # returns per answered request, learned
    return_s: float = 0.0  # when the last of the returns is there, nearly always; learned
    _answered: int = 0  # requests of the completion that opened the window
    _opened_s: float = -1.0
    _arrivals: list[float] | None = None  # instants of arrivals in the open window; None: no window

    def completed(self, requests: int, now: float) -> None:
        """A batch of so many requests was answered."""
        self._close(now)
        self._answered, self._opened_s, self._arrivals = requests, now, []

    def arrived(self, now: float) -> None:
        """A request arrived."""
        if self._arrivals is not None:
            if now - self._opened_s <= WINDOW_S:
                self._arrivals.append(now - self._opened_s)
            else:
                self._close(now)

    def missing(self, now: float) -> tuple[float, float]:
        """(requests that are still expected to return, seconds until they have), of the open window; (0, 0) if none."""
        if self._arrivals is None:
            return 0.0, 0.0
        left_s = self.return_s - (now - self._opened_s)
        count = self.share * self._answered - len(self._arrivals)
        return (count, left_s) if left_s > 0 and count >= 0.5 else (0.0, 0.0)

    def of_running(self, requests: int) -> tuple[float, float]:
        """(requests that are expected to return, seconds they take) after a batch that still runs."""
        return self.share * requests, self.return_s

    def _close(self, now: float) -> None:
        """The window is over: what it showed is learned."""
        if self._arrivals is None or not self._answered:
            return
        counted = [offset for offset in self._arrivals if offset <= WINDOW_S]
        seen = min(1.0, len(counted) / self._answered)
        self.share += WEIGHT * (seen - self.share)
        if counted:
            last_s = counted[-1]
            weight = 1.0 if not self.return_s else LATER if last_s > self.return_s else SOONER
            self.return_s += weight * (last_s - self.return_s)
        self._arrivals = None
