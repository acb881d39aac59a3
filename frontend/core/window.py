"""How many calls may be open while the services behind the frontend are behind. Pure.

A controller, a worker or a frontend that gets more than it can take in answers everything late, and does all of the
work for it. What shows that is how much later answers come than admission predicted, as it does not know how long mail
waits between processes. If all answers of INTERVAL_S came later by more than LAG_BUDGETS of the mean budget, and LAG_S,
or mail waited for as long at a controller, fewer calls may be open: SHRINK times those that were. If not, more, until
there is no limit but GEARMESH_IN_FLIGHT_MAX. A call that ends in a time-out came later by its budget. The mean is the
geometric one: a few long budgets among short ones change little, and where all are long nobody is refused for a wait
that harms none.

Source: Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", Computer Networks
17, 1989; the least wait of an interval: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012.
"""

import math

LAG_S, LAG_BUDGETS = 0.02, 0.2
BUDGET_S, BUDGET_CALLS = 0.1, 20  # the mean before any call, which weighs like so many
BUDGET_WEIGHT = 0.01  # least weight of the latest call in it
BUDGET_S_MIN = 1e-3  # a shorter one counts as that
INTERVAL_S = 0.05
SHRINK, GROW, GROW_CALLS = 0.7, 1.2, 8
INFINITE = float("inf")
CALLS_MIN = 32  # open calls that are let in, however long mail waits


class Window:
    """The present limit."""

    def __init__(self, calls_max: int) -> None:
        self.calls_max = calls_max
        self.limit = calls_max
        # with fewer open calls than this nobody has more than a share: infinite, if there is no limit at present
        self.room = INFINITE
        self._log_budget = math.log(BUDGET_S)  # the mean of the latest calls
        self._weight = 1.0 / BUDGET_CALLS  # of the call before
        self._least_s = INFINITE  # by which an answer came later than predicted, in this interval
        self._most = 0  # open calls in this interval
        self._told_s = 0.0  # wait of our mail at a controller, when it last told
        self._ends_s = 0.0  # of this interval

    @property
    def budget_s(self) -> float:
        """The geometric mean of the latest calls' budgets."""
        return math.exp(self._log_budget)

    def opened(self, budget_s: float) -> None:
        """One more call is open."""
        if self._weight > BUDGET_WEIGHT:
            self._weight = max(BUDGET_WEIGHT, self._weight / (1.0 + self._weight))
        self._log_budget += self._weight * (math.log(max(budget_s, BUDGET_S_MIN)) - self._log_budget)

    def told(self, lag_s: float) -> None:
        """A controller says how long our mail waits there. It tells while that is long, and once after."""
        self._told_s = lag_s

    def heard(self, lag_s: float) -> None:
        """An answer came so much later than predicted."""
        if lag_s < self._least_s:
            self._least_s = lag_s

    def turn(self, calls: int, now: float) -> None:
        """So many calls are open: once an interval is over, it is decided how many may be in the next one."""
        if calls > self._most:
            self._most = calls
        if now < self._ends_s:
            return
        heard_s = self._least_s if self._least_s < INFINITE else 0.0
        if max(heard_s, self._told_s) > max(LAG_S, LAG_BUDGETS * self.budget_s):
            self.limit = max(min(CALLS_MIN, self.calls_max), int(SHRINK * min(self.limit, self._most)))
        elif self.limit < self.calls_max:
            self.limit = min(self.calls_max, int(GROW * self.limit) + GROW_CALLS)
        self.room = INFINITE if self.limit >= self.calls_max else self.limit / 2
        self._least_s, self._most, self._ends_s = INFINITE, calls, now + INTERVAL_S
