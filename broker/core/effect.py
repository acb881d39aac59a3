"""Replies to operators that wait until frontends have the table that the reply speaks of. Pure.

A reply "it is current" that overtakes the table would let its reader ask a frontend that does not know yet.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mesh import wire

HELD_S = 0.5  # a reply waits no longer: a frontend that stands still holds up no operator


@dataclass(slots=True)
class HeldReply:
    """One reply that waits."""

    peer: str
    reply: wire.CallReply
    until_s: float
    missing: set[str]  # frontends that have not said that they have the table


@dataclass(slots=True)
class HeldReplies:
    """Replies whose change is in the next table, or in one that is on its way."""

    _next: list[tuple[str, wire.CallReply]] = field(default_factory=list)  # for the next table
    _held: dict[int, list[HeldReply]] = field(default_factory=dict)  # {epoch of their table: they}, none is empty

    def hold(self, peer: str, reply: wire.CallReply) -> None:
        """The reply is for the peer, once frontends have the next table."""
        self._next.append((peer, reply))

    def pushed(self, epoch: int, frontends: Iterable[str], now: float) -> list[tuple[str, wire.CallReply]]:
        """The table of this epoch is on its way to these. Returns what waits for nobody."""
        waiting, self._next = self._next, []
        missing = set(frontends)
        if not missing:
            return waiting
        if waiting:
            self._held[epoch] = [HeldReply(peer, reply, now + HELD_S, set(missing)) for peer, reply in waiting]
        return []

    def taken(self, member: str, epoch: int) -> list[tuple[str, wire.CallReply]]:
        """The member has the table of this epoch. Returns the replies that waited for nobody else."""
        for known in self._held:
            for held in self._held[known] if known <= epoch else ():
                held.missing.discard(member)
        return self._release(lambda held: not held.missing)

    def left(self, member: str) -> list[tuple[str, wire.CallReply]]:
        """The member is gone, and nobody waits for it."""
        return self.taken(member, max(self._held, default=0))

    def due(self, now: float) -> list[tuple[str, wire.CallReply]]:
        """Replies that have waited long enough."""
        return self._release(lambda held: now >= held.until_s)

    def due_at(self) -> float | None:
        """When `due` next returns something; None: never."""
        return min((held.until_s for of in self._held.values() for held in of), default=None)

    def rest(self) -> list[tuple[str, wire.CallReply]]:
        """All that wait: the broker is being stopped."""
        waiting, self._next = self._next, []
        return [*waiting, *self._release(lambda held: True)]

    def _release(self, is_over: Callable[[HeldReply], bool]) -> list[tuple[str, wire.CallReply]]:
        over = []
        for epoch, waiting in list(self._held.items()):
            over += [(held.peer, held.reply) for held in waiting if is_over(held)]
            self._held[epoch] = [held for held in waiting if not is_over(held)]
            if not self._held[epoch]:
                del self._held[epoch]
        return over
