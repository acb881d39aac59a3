"""Nobody starves. Pure.

A model that has lost requests and was not served for PATIENCE_S is served next, ahead of everything, as soon as it has
a batch that can be in time. If it is on no device, it is loaded next, whichever models have to make room. All devices
together give at most SHARE of their time away like this. So a model that has a request in time whenever its turn comes
is served at least once in

    max(PATIENCE_S, (sum over starving models of the time of their LOAD and batch) / (SHARE x devices)) + one of each.

Source: docs/design/policy.md, "Fairness".
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush

PATIENCE_S = 1.0
SHARE = 0.1  # of device time that starving models may take
CREDIT_S_MAX = 0.05  # credit does not grow further while nobody starves
GONE_MAX = 64  # and as many as there are: models that are gone, and of which something is known


@dataclass(slots=True)
class Fairness:
    """Knows which models were served when, and how much time may be given away."""

    credit_s: float = CREDIT_S_MAX
    _served_s: dict[str, float] = field(default_factory=dict)  # {ref: when it was last served, or first lost a request}
    _starving: dict[str, None] = field(default_factory=dict)  # refs that lost requests since they were last served
    _due: dict[str, None] = field(default_factory=dict)  # those of them that were found to have no patience left
    _patient: list[tuple[float, str]] = field(default_factory=list)  # heap of (served_s, ref): the others, and some
    # that were served since, which leave it when their time has come
    _at_s: float = 0.0  # when the credit was last brought up to date

    def __len__(self) -> int:
        """Models of which something is known."""
        return len(self._served_s)

    def forget_others(self, models: Collection[str]) -> None:
        """Of models that are gone, not many are known. `models`: those that are there."""
        if len(self._served_s) <= 2 * len(models) + GONE_MAX:
            return
        for ref in [ref for ref in self._served_s if ref not in models]:
            del self._served_s[ref]
            self._starving.pop(ref, None)
            self._due.pop(ref, None)

    def served(self, ref: str, now: float) -> None:
        """A batch of the model was sent."""
        self._starving.pop(ref, None)
        self._due.pop(ref, None)
        self._served_s[ref] = now

    def lost(self, ref: str, now: float) -> None:
        """A request of the model was lost."""
        served_s = self._served_s.setdefault(ref, now)
        if ref not in self._starving:
            self._starving[ref] = None
            heappush(self._patient, (served_s, ref))

    def accrue(self, now: float, devices: int) -> None:
        """Time has passed on so many devices: the credit grows."""
        self.credit_s = min(CREDIT_S_MAX, self.credit_s + (now - self._at_s) * SHARE * devices)
        self._at_s = now

    def first(self, waiting: dict[str, None], now: float) -> list[str]:
        """Models among the waiting whose patience is at its end, the longest unserved first; none without credit."""
        while self._patient and now - self._patient[0][0] > PATIENCE_S:
            served_s, ref = heappop(self._patient)
            if ref in self._starving and self._served_s[ref] == served_s:
                self._due[ref] = None
        if self.credit_s <= 0 or not self._due:
            return []
        few, many = (self._due, waiting) if len(self._due) < len(waiting) else (waiting, self._due)
        return sorted([ref for ref in few if ref in many], key=lambda ref: (self._served_s[ref], ref))

    def spend(self, seconds: float) -> None:
        """A starving model was served. The credit may become negative; the next starving model then waits for it."""
        self.credit_s -= seconds
