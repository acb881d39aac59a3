"""Who is there, and which controller owns which model and worker: the routing table. Pure."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh import wire


@dataclass(slots=True)
class Routing:
    """Members and ownership. Every change makes the table of the next epoch.

    One controller owns everything; of several, each worker belongs to the one that had fewest when it came, and each
    model to the one that highest random weight picks among those with workers. When a controller leaves, what it owned
    falls to the others: its state was soft, so that is all a takeover needs.
    """

    epoch: int  # of the last table; tables of a later start of the broker have higher ones
    members: dict[str, wire.Member] = field(default_factory=dict)  # {id: member}, in order of registration
    shards: dict[str, int] = field(default_factory=dict)  # {controller id: epoch of its shard}
    workers: dict[str, str] = field(default_factory=dict)  # {worker id: controller id}

    def register(self, member: wire.Member, shard_epoch: int = 0) -> bool:
        """The member is there; a controller keeps the shard epoch it has. False if it was, unchanged."""
        if self.members.get(member.id) == member:
            return False
        self.members[member.id] = member
        self.epoch += 1
        if member.role == "controller":
            self.shards[member.id] = shard_epoch or self.epoch
        self._deal()
        return True

    def leave(self, member: str) -> bool:
        """The member is gone. False if it was not there."""
        if self.members.pop(member, None) is None:
            return False
        self.epoch += 1
        self.shards.pop(member, None)
        self.workers.pop(member, None)
        self._deal()
        return True

    def next_epoch(self) -> int:
        """Something else in the table changed."""
        self.epoch += 1
        return self.epoch

    def owners(self, models: Iterable[str]) -> dict[str, str]:
        """{model: id of its controller}; empty without a controller."""
        devices = {c for w, c in self.workers.items() if w in self.members and self.members[w].offer is None}
        manned = sorted(devices & set(self.shards)) or sorted(self.shards)
        if not manned:
            return {}
        return {model: max(manned, key=lambda controller: _weight(controller, model)) for model in models}

    def _deal(self) -> None:
        """Each worker has a living controller, if there is one; those that had one keep it."""
        for member in self.members.values():
            if member.role != "gpu_worker" or member.offer is not None or self.workers.get(member.id) in self.shards:
                continue
            if not self.shards:
                self.workers.pop(member.id, None)
                continue
            loads = {controller: 0 for controller in self.shards}
            for controller in self.workers.values():
                if controller in loads:
                    loads[controller] += 1
            self.workers[member.id] = min(loads, key=lambda controller: (loads[controller], controller))
        self._deal_containers()

    def _deal_containers(self) -> None:
        """A container belongs to the controller that owns its model."""
        for member in self.members.values():
            if member.offer is None:
                continue
            name, _ = wire.split_ref(member.offer.ref)
            owner = self.owners([name]).get(name)
            if owner is None:
                self.workers.pop(member.id, None)
            else:
                self.workers[member.id] = owner


def _weight(controller: str, model: str) -> bytes:
    """Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998): rendezvous hashing."""
    return hashlib.blake2b(f"{controller}|{model}".encode(), digest_size=8).digest()
