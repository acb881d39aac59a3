"""Operators that follow what happens: each has a bounded store of facts, which it empties by asking. Pure.

Nothing is kept while nobody follows. An operator that stops asking is forgotten: it costs no more than its store.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh import wire
from mesh.facts import Fact

STORE_MAX = 50_000  # facts that wait for one operator
REPLY_MAX = 250  # facts in one reply: the loop is held for a fraction of a millisecond
LEASE_S = 3.0  # an operator that has not asked for so long is taken for gone
FOLLOWERS_MAX = 8


@dataclass(slots=True)
class Follower:
    """One operator that follows."""

    until_s: float  # it is taken for gone then
    facts: deque[Fact] = field(default_factory=deque)  # not fetched yet, oldest first, at most STORE_MAX
    dropped: int = 0  # facts without room since the last reply


@dataclass(slots=True)
class Followers:
    """All operators that follow."""

    _followers: dict[str, Follower] = field(default_factory=dict)  # {operator: its store}, at most FOLLOWERS_MAX

    def __len__(self) -> int:
        return len(self._followers)

    def asked(self, operator: str, message: wire.AskFacts, now: float) -> wire.FactsReply:
        """The reply to an operator. With its first question it begins to follow, and hears what happens from then."""
        if message.stop:
            return self._reply(message.call, self._followers.pop(operator, None), now)
        follower = self._followers.get(operator)
        if follower is None:
            if len(self._followers) >= FOLLOWERS_MAX:
                del self._followers[next(iter(self._followers))]  # the oldest; it begins anew if it still asks
            follower = self._followers[operator] = Follower(now + LEASE_S)
        follower.until_s = now + LEASE_S
        return self._reply(message.call, follower, now)

    def add(self, facts: Sequence[Fact], now: float) -> None:
        """The facts are kept for everybody who follows."""
        for operator, follower in list(self._followers.items()):
            if now > follower.until_s:
                del self._followers[operator]
                continue
            room = STORE_MAX - len(follower.facts)
            follower.facts.extend(facts[:room])
            follower.dropped += max(0, len(facts) - room)

    def forget(self, operator: str) -> None:
        """The operator is gone."""
        self._followers.pop(operator, None)

    def _reply(self, call: int, follower: Follower | None, now: float) -> wire.FactsReply:
        if follower is None:
            return wire.FactsReply(call=call, now_s=now, facts=())
        store = follower.facts
        facts = tuple(store.popleft() for _ in range(min(REPLY_MAX, len(store))))
        dropped, follower.dropped = follower.dropped, 0
        return wire.FactsReply(call=call, now_s=now, facts=facts, dropped=dropped, more=bool(store))
