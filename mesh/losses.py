"""How often links to whom were lost, when last and why: what `status` tells. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

PEERS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of the links to one peer so far."""

    count: int
    at_s: float  # of the last one
    why: str


@dataclass(slots=True)
class Losses:
    """Links that were lost, by peer."""

    total: int = 0
    _peers: dict[str, Loss] = field(default_factory=dict)  # the one lost longest ago first; at most PEERS_MAX

    def lost(self, peer: str, why: str, now: float) -> None:
        """A link to `peer` was lost."""
        self.total += 1
        before = self._peers.pop(peer, None)
        if len(self._peers) >= PEERS_MAX:
            del self._peers[next(iter(self._peers))]
        self._peers[peer] = Loss(1 if before is None else before.count + 1, now, why)

    def of(self, peer: str) -> Loss | None:
        """What is known of `peer`; None: no link to it was ever lost."""
        return self._peers.get(peer)

    def keep_only(self, peers: Iterable[str]) -> None:
        """All other peers are forgotten."""
        keep = set(peers)
        self._peers = {peer: loss for peer, loss in self._peers.items() if peer in keep}
