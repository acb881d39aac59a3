"""Operators that follow what happens: each has a bounded store of facts, which it empties by asking. Pure.

Nothing is kept while nobody watches, and an operator that stops asking is forgotten: it costs no more than its store.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh import wire
from mesh.facts import Fact

STORE_MAX = 50_000  # facts that wait for one operator
REPLY_MAX = 250  # facts in one reply: the loop is held for a fraction of a millisecond
LEASE_S = 3.0  # without a word from it an operator is taken for gone
WATCHERS_MAX = 8


@dataclass(slots=True)
class Watcher:
    """One operator that follows."""

    until_s: float  # it is taken for gone then
    facts: deque[Fact] = field(default_factory=deque)  # not fetched yet, oldest first, at most STORE_MAX
    dropped: int = 0  # since the last reply


@dataclass(slots=True)
class Watchers:
    """All of them."""

    _watchers: dict[str, Watcher] = field(default_factory=dict)  # {operator: its store}, at most WATCHERS_MAX

    def __len__(self) -> int:
        return len(self._watchers)

    def asked(self, operator: str, message: wire.AskFacts, now: float) -> wire.FactsReply:
        """The reply to an operator that follows; the first time, from now on."""
        if message.stop:
            return self._reply(message.call, self._watchers.pop(operator, None), now)
        watcher = self._watchers.get(operator)
        if watcher is None:
            if len(self._watchers) >= WATCHERS_MAX:
                del self._watchers[next(iter(self._watchers))]  # the oldest; it begins anew if it still asks
            watcher = self._watchers[operator] = Watcher(now + LEASE_S)
        watcher.until_s = now + LEASE_S
        return self._reply(message.call, watcher, now)

    def told(self, facts: Sequence[Fact], now: float) -> None:
        """These have come to pass."""
        for operator, watcher in list(self._watchers.items()):
            if now > watcher.until_s:
                del self._watchers[operator]
                continue
            room = STORE_MAX - len(watcher.facts)
            watcher.facts.extend(facts[:room])
            watcher.dropped += max(0, len(facts) - room)

    def forget(self, operator: str) -> None:
        """The operator is gone."""
        self._watchers.pop(operator, None)

    def _reply(self, call: int, watcher: Watcher | None, now: float) -> wire.FactsReply:
        if watcher is None:
            return wire.FactsReply(call=call, now_s=now, facts=())
        store = watcher.facts
        facts = tuple(store.popleft() for _ in range(min(REPLY_MAX, len(store))))
        dropped, watcher.dropped = watcher.dropped, 0
        return wire.FactsReply(call=call, now_s=now, facts=facts, dropped=dropped, more=bool(store))
