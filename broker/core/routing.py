"""The members of the mesh, and which controller owns which model and worker: the routing table. Pure."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh import wire


@dataclass(slots=True)
class Routing:
    """Members and ownership. Every change starts the table of the next epoch.

    A single controller owns everything. Of several, a new worker goes to the controller with the fewest workers, and a
    model to the one that highest-random-weight hashing picks among those with workers. When a controller leaves, the
    others take over what it owned; they need nothing from it, since its state was soft.
    """

    epoch: int  # of the last table; a later start of the broker gives higher ones
    members: dict[str, wire.Member] = field(default_factory=dict)  # {id: member}, in order of registration
    shards: dict[str, int] = field(default_factory=dict)  # {controller id: epoch of its shard}
    workers: dict[str, str] = field(default_factory=dict)  # {worker id: controller id}

    def register(self, member: wire.Member, shard_epoch: int = 0) -> bool:
        """Adds or updates the member; a controller keeps the shard epoch it has. Returns False if nothing changed."""
        if self.members.get(member.id) == member:
            return False
        self.members[member.id] = member
        self.epoch += 1
        if member.role == "controller":
            self.shards[member.id] = shard_epoch or self.epoch
        self._assign_workers()
        return True

    def leave(self, member: str) -> bool:
        """Removes the member. Returns False if it was not there."""
        if self.members.pop(member, None) is None:
            return False
        self.epoch += 1
        self.shards.pop(member, None)
        self.workers.pop(member, None)
        self._assign_workers()
        return True

    def next_epoch(self) -> int:
        """Starts a new epoch because some other part of the table changed."""
        self.epoch += 1
        return self.epoch

    def owners(self, models: Iterable[str]) -> dict[str, str]:
        """{model: id of its controller}; empty if there is no controller."""
        devices = {c for w, c in self.workers.items() if w in self.members and self.members[w].offer is None}
        manned = sorted(devices & set(self.shards)) or sorted(self.shards)
        if not manned:
            return {}
        return {model: max(manned, key=lambda controller: _weight(controller, model)) for model in models}

    def _assign_workers(self) -> None:
        """Assigns each worker to a live controller, if there is one; a worker whose controller lives keeps it."""
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
        self._assign_containers()

    def _assign_containers(self) -> None:
        """Assigns each container to the controller that owns its model."""
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
    """The controller's weight for the model; the highest one wins.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998): rendezvous hashing.
    """
    return hashlib.blake2b(f"{controller}|{model}".encode(), digest_size=8).digest()
