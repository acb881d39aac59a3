"""Lines that repeat: the first of each kind are written, the rest is counted, and told in one line. Pure.

In each period of an event a number of its lines passes, and fewer of those from one and the same peer, so that no peer
takes what belongs to the others, and no event what belongs to another one. What does not pass is folded: at the end of
the period one line stands for all of it. While a flood lasts, later periods pass a sixteenth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

PERIOD_S = 10.0
FLOOD_SHARE = 16  # after a period in which lines were folded, one in so many passes
TOLD_MAX = 8  # folded lines of one event and period that are told by peer; the rest is told together
EVENTS_MAX = 256  # events with a budget of their own; further ones share one

Line = TypeVar("Line")


@dataclass(frozen=True, slots=True)
class LineBudget:
    """How many lines of one event pass in a period: in all, and of one peer."""

    lines: int = 256
    of_one: int = 16

    def in_flood(self) -> "LineBudget":
        """What is left of it while a flood lasts."""
        return LineBudget(max(1, self.lines // FLOOD_SHARE), max(1, self.of_one // FLOOD_SHARE))


@dataclass(frozen=True)  # mypyc takes no slots beside Generic, and has its own
class LoggedLine(Generic[Line]):
    """A line to be written."""

    line: Line
    folded: int = 0  # lines that it stands for, itself among them; 0: it stands for itself
    over_s: float = 0.0  # the time in which they came
    several: bool = False  # they are of several peers, and `line` is the last one's


@dataclass
class Share(Generic[Line]):
    """The lines of one peer, of one event, in one period."""

    passed: int = 0
    folded: int = 0
    last: Line | None = None  # of the folded ones

    def fold(self, line: Line) -> None:
        """The line is counted, and kept until another one is."""
        self.folded += 1
        self.last = line


@dataclass
class Period(Generic[Line]):
    """The current period of one event. The peers in `shares` are no more than the lines that passed."""

    began_s: float
    budget: LineBudget
    passed: int = 0
    shares: dict[str, Share[Line]] = field(default_factory=dict)  # {peer: its lines}, oldest first
    others: Share[Line] = field(default_factory=Share)  # of peers that came when the budget was spent

    def take(self, peer: str, line: Line) -> bool:
        """Whether the line passes; if not, it is folded."""
        room = self.passed < self.budget.lines
        share = self.shares.get(peer)
        if share is None:
            if not room:
                self.others.fold(line)
                return False
            share = self.shares[peer] = Share()
        if not room or share.passed >= self.budget.of_one:
            share.fold(line)
            return False
        share.passed += 1
        self.passed += 1
        return True

    @property
    def folds(self) -> bool:
        """Whether a line was folded."""
        return self.others.folded > 0 or any(share.folded for share in self.shares.values())

    def told(self, now: float) -> list[LoggedLine[Line]]:
        """A line for each of the TOLD_MAX peers with the most folded lines, and one for all others."""
        over_s = now - self.began_s
        folded = sorted((share for share in self.shares.values() if share.folded), key=lambda share: -share.folded)
        told = [LoggedLine(share.last, share.folded, over_s) for share in folded[:TOLD_MAX] if share.last is not None]
        rest = [*folded[TOLD_MAX:], self.others]
        last = next((share.last for share in reversed(rest) if share.last is not None), None)
        if last is not None:
            told.append(LoggedLine(last, sum(share.folded for share in rest), over_s, several=True))
        return told


class Repeats(Generic[Line]):
    """Decides of every line whether it is written. Says what has to be written, and when it has more to say."""

    def __init__(self, budgets: Mapping[str, LineBudget] | None = None) -> None:
        """`budgets`: of events that have another one than `LineBudget()`."""
        self._budgets = dict(budgets or {})
        self._periods: dict[str, Period[Line]] = {}  # {event: its current, or last, period}; at most EVENTS_MAX + 1
        self._folding: dict[str, None] = {}  # events with folded lines, in the order in which they will be told
        self.folded = 0  # lines so far that were not written

    def said(self, event: str, peer: str, line: Line, *, now: float) -> list[LoggedLine[Line]]:
        """The lines to be written now: what was folded in the event's last period, and this one if it passes."""
        key = event if event in self._periods or len(self._periods) < EVENTS_MAX or self._forget(now) else ""
        period = self._periods.get(key)
        told: list[LoggedLine[Line]] = []
        if period is None:
            period = self._periods[key] = Period(now, self._budget(key))
        elif now - period.began_s >= PERIOD_S:
            told = self._end(key, period, now)
            period = self._periods[key]
        if period.take(peer, line):
            told.append(LoggedLine(line))
        else:
            self.folded += 1
            self._folding[key] = None
        return told

    def wake(self, *, now: float) -> list[LoggedLine[Line]]:
        """What was folded in periods that are over."""
        told: list[LoggedLine[Line]] = []
        for event in [key for key in self._folding if now - self._periods[key].began_s >= PERIOD_S]:
            told += self._end(event, self._periods[event], now)
        return told

    def wake_at(self) -> float | None:
        """When `wake` next has something to say; None: never."""
        return min((self._periods[event].began_s + PERIOD_S for event in self._folding), default=None)

    def close(self, *, now: float) -> list[LoggedLine[Line]]:
        """All that is folded by now."""
        return [told for event in list(self._folding) for told in self._end(event, self._periods[event], now)]

    def _end(self, event: str, period: Period[Line], now: float) -> list[LoggedLine[Line]]:
        """The period is over, and another one begins. Returns what was folded."""
        budget = self._budget(event)
        lasts = period.folds and now - period.began_s < 2 * PERIOD_S
        self._periods[event] = Period(now, budget.in_flood() if lasts else budget)
        self._folding.pop(event, None)
        return period.told(now)

    def _budget(self, event: str) -> LineBudget:
        return self._budgets.get(event, LineBudget())

    def _forget(self, now: float) -> bool:
        """Periods that are over, and have nothing to tell, are forgotten. Returns whether there is room then."""
        over = [
            key
            for key, period in self._periods.items()
            if key not in self._folding and now - period.began_s >= PERIOD_S
        ]
        for key in over:
            del self._periods[key]
        return len(self._periods) < EVENTS_MAX

    def check(self) -> None:
        """Raises: AssertionError, if an invariant does not hold."""
        assert len(self._periods) <= EVENTS_MAX + 1
        for event, period in self._periods.items():
            assert period.folds == (event in self._folding), event
            assert period.passed == sum(share.passed for share in period.shares.values())
            assert len(period.shares) <= period.passed <= period.budget.lines
