"""The members of the mesh, and which controller owns which model and worker: the routing table. Pure."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh import wire

EPOCH_MAX = 1 << 62  # a member that claims to have seen a higher one is not believed: no catalogue could keep it


@dataclass(slots=True)
class Routing:
    """Members and ownership. Every change starts the table of the next epoch.

    A single controller owns everything. Of several, a new worker goes to the controller with the fewest workers, and a
    model to the one that highest-random-weight hashing picks among those with workers. When a controller leaves, the
    others take over what it owned; they need nothing from it, since its state was soft.

    Epochs never go back, for members ignore tables older than the last, and workers orders of older shards. So a broker
    starts above all that it has reserved, and goes on above whatever a member has seen. No controller has an older
    shard than one that any of its workers has obeyed, and no two controllers have equal ones.
    """

    epoch: int  # of the last table, and at least that of every shard
    members: dict[str, wire.Member] = field(default_factory=dict)  # {id: member}, in order of registration
    shards: dict[str, int] = field(default_factory=dict)  # {controller id: epoch of its shard}
    workers: dict[str, str] = field(default_factory=dict)  # {worker id: controller id}
    obeyed: dict[str, int] = field(default_factory=dict)  # {worker id: newest shard that it may have obeyed}

    def register(self, member: wire.Member, shard_epoch: int = 0, seen: int = 0) -> bool:
        """Adds or updates the member. Returns False if nothing changed.

        `shard_epoch`: a controller's own, which it keeps, or the newest that a worker has obeyed. `seen`: the highest
        epoch that the member has seen; later ones are above it.
        """
        shard_epoch = shard_epoch if shard_epoch <= EPOCH_MAX else 0
        learned = self._learn(max(shard_epoch, seen if seen <= EPOCH_MAX else 0))
        behind = member.role == "gpu_worker" and shard_epoch > self.obeyed.get(member.id, 0)
        changed = self.members.get(member.id) != member
        if changed:
            self.members[member.id] = member
            self.epoch += 1
        if changed and member.role == "controller":
            self.shards[member.id] = max(shard_epoch, self.shards.get(member.id, 0)) or self.epoch
        if behind:
            self.obeyed[member.id] = shard_epoch
        if changed or behind:
            self._assign_workers()
        return changed or behind or learned

    def replaced_by(self, member: wire.Member) -> list[str]:
        """Controllers that are gone, since this new one listens at their address: two processes cannot."""
        if member.role != "controller":
            return []
        return [
            other.id
            for other in self.members.values()
            if other.role == member.role and other.id != member.id and _share_address(other, member)
        ]

    def _learn(self, epoch: int) -> bool:
        """The epochs that follow are above this one. Returns whether it was news."""
        news = epoch > self.epoch
        self.epoch = max(self.epoch, epoch)
        return news

    def leave(self, member: str) -> bool:
        """Removes the member. Returns False if it was not there."""
        if self.members.pop(member, None) is None:
            return False
        self.epoch += 1
        self.shards.pop(member, None)
        self.workers.pop(member, None)
        self.obeyed.pop(member, None)
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
        self._outrank()

    def _outrank(self) -> None:
        """A controller whose worker has obeyed a newer shard gets the newest: the worker would refuse its orders."""
        for worker, controller in self.workers.items():
            if self.shards[controller] < self.obeyed.get(worker, 0):
                self.epoch += 1
                self.shards[controller] = self.epoch
        for worker, controller in self.workers.items():
            self.obeyed[worker] = self.shards[controller]

    def check(self) -> None:
        """Asserts every invariant."""
        assert len(set(self.shards.values())) == len(self.shards)
        assert all(epoch <= self.epoch for epoch in (*self.shards.values(), *self.obeyed.values()))
        assert self.obeyed.keys() <= self.members.keys()
        for worker, controller in self.workers.items():
            assert self.obeyed[worker] == self.shards[controller]


def _share_address(one: wire.Member, other: wire.Member) -> bool:
    """Whether both listen at one address, on one host: loopback addresses of two hosts are equal and not the same."""
    mine, others = one.endpoints.get("control", ()), other.endpoints.get("control", ())
    return one.host == other.host and bool(set(mine) & set(others))


def _weight(controller: str, model: str) -> bytes:
    """The controller's weight for the model; the highest one wins.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998): rendezvous hashing.
    """
    return hashlib.blake2b(f"{controller}|{model}".encode(), digest_size=8).digest()
