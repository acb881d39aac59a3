"""The prediction cache: the outputs of a model's version for an input. Pure.

An entry is found by a hash of model, version, build (`ref` names all three) and the whole input. It is used only if the
input's bytes are equal, and its shapes where a model has open dimensions. Bounded in bytes: inputs, outputs and the
entry itself. Eviction is CLOCK: an entry that was used since the hand last passed it stays for another round. Queries
in flight are tracked too, so that identical ones wait for one evaluation.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import xxhash

from frontend.core.output_rules import Shapes

Bytes = bytes | memoryview
Sizes = tuple[int, ...]  # rows and extents of the inputs, where their bytes do not tell them; else ()
ENTRY_BYTES = 512  # size of an entry without its tensors: objects, keys, slots
W = TypeVar("W")


@dataclass(slots=True, eq=False)
class Entry:
    """One prediction."""

    ref: str
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    size: int  # bytes
    used: bool = False  # since the hand last passed
    sizes: Sizes = ()
    shapes: Shapes = ()  # of the outputs


class Flight(Generic[W]):
    """One query that is being evaluated."""

    def __init__(self, key: int, ref: str, inputs: Sequence[Bytes], leader: W, sizes: Sizes = ()) -> None:
        self.key = key
        self.ref = ref
        self.inputs = inputs
        self.leader = leader
        self.sizes = sizes
        self.followers: dict[W, float] = {}  # {query that waits for it: its deadline}
        self._urgency: list[tuple[float, int, W]] = []  # heap of them; may hold some that have left

    def follow(self, waiting: W, deadline_s: float, number: int) -> None:
        """The query waits for the outputs. `number`: ties of deadlines are broken by it."""
        self.followers[waiting] = deadline_s
        heapq.heappush(self._urgency, (deadline_s, number, waiting))

    def leave(self, waiting: W) -> None:
        """The query, which followed, waits no longer."""
        del self.followers[waiting]
        if len(self._urgency) > 64 + 2 * len(self.followers):
            self._urgency = [entry for entry in self._urgency if entry[2] in self.followers]
            heapq.heapify(self._urgency)

    def succeed(self) -> W | None:
        """The most urgent follower leads from now on, and is returned; None if there is no follower."""
        while self._urgency:
            _, _, waiting = heapq.heappop(self._urgency)
            if self.followers.pop(waiting, None) is not None:
                self.leader = waiting
                return waiting
        return None


def digest(ref: str, inputs: Sequence[Bytes]) -> int:
    """Hash of 64 bits over model, version and every byte of the input. Source: XXH3, xxhash.com."""
    state = xxhash.xxh3_64(ref.encode())
    for data in inputs:
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.intdigest()


class PredictionCache(Generic[W]):
    """All predictions that one frontend remembers. `W`: type of a waiting query. `bytes_max` 0 turns the cache off."""

    def __init__(self, bytes_max: int, hash_of: Callable[[str, Sequence[Bytes]], int] = digest) -> None:
        self.bytes_max = bytes_max
        self.hash_of = hash_of
        self.size = 0  # bytes in use
        self.hits = 0
        self.misses = 0
        self.coalesced = 0  # queries that waited for an identical one
        self.evicted = 0
        self.collisions = 0  # lookups with equal hash and different input
        self._ring: OrderedDict[int, Entry] = OrderedDict()  # the hand is at the first entry
        self._flights: dict[int, Flight[W]] = {}

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def on(self) -> bool:
        """Whether the cache is in use."""
        return self.bytes_max > 0

    def key(self, ref: str, inputs: Sequence[Bytes], sizes: Sizes = ()) -> int:
        """The hash of this query."""
        return self.hash_of(f"{ref} {sizes}" if sizes else ref, inputs)

    def find(self, key: int, ref: str, inputs: Sequence[Bytes], sizes: Sizes = ()) -> Entry | None:
        """The prediction for exactly this input; None if it is not cached."""
        entry = self._ring.get(key)
        if entry is None:
            self.misses += 1
            return None
        if entry.ref != ref or entry.sizes != sizes or not _equal(entry.inputs, inputs):
            self.collisions += 1
            self.misses += 1
            return None
        entry.used = True
        self.hits += 1
        return entry

    def flight(self, key: int, ref: str, inputs: Sequence[Bytes], sizes: Sizes = ()) -> Flight[W] | None:
        """The evaluation of exactly this input that is in flight; None if there is none."""
        flight = self._flights.get(key)
        if flight is None or flight.ref != ref or flight.sizes != sizes or not _equal(flight.inputs, inputs):
            return None
        return flight

    def lead(self, key: int, ref: str, inputs: Sequence[Bytes], leader: W, sizes: Sizes = ()) -> Flight[W]:
        """Tracks the evaluation of `leader`; later identical queries may follow it.

        The newest flight is the one followed.
        """
        flight = self._flights[key] = Flight(key, ref, inputs, leader, sizes)
        return flight

    def follow(self, flight: Flight[W], waiting: W, deadline_s: float) -> None:
        """`waiting` gets the outputs of the flight's leader."""
        self.misses -= 1
        self.coalesced += 1
        flight.follow(waiting, deadline_s, self.coalesced)

    def landed(self, flight: Flight[W]) -> list[W]:
        """The evaluation has ended. Returns the queries that followed it. Call once per flight."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        followers = list(flight.followers)
        flight.followers.clear()
        return followers

    def put(self, flight: Flight[W], outputs: Sequence[Bytes], shapes: Shapes = ()) -> None:
        """Stores the prediction if it fits at all; entries that were not used lately are evicted for it."""
        size = ENTRY_BYTES + sum(map(len, flight.inputs)) + sum(map(len, outputs))
        if size > self.bytes_max:
            return
        self._drop(flight.key)
        inputs = tuple(bytes(data) for data in flight.inputs)
        self._make_room(size)
        copied = tuple(bytes(data) for data in outputs)
        self._ring[flight.key] = Entry(flight.ref, inputs, copied, size, sizes=flight.sizes, shapes=shapes)
        self.size += size

    def keep_only(self, refs: Iterable[str]) -> None:
        """Removes the predictions of all other versions."""
        kept = set(refs)
        for key in [key for key, entry in self._ring.items() if entry.ref not in kept]:
            self._drop(key)
        self._flights = {key: flight for key, flight in self._flights.items() if flight.ref in kept}

    def counts(self) -> dict[str, float]:
        """{counter: value} for reports."""
        asked = self.hits + self.misses + self.coalesced
        return {
            "hits": self.hits,
            "misses": self.misses,
            "coalesced": self.coalesced,
            "evicted": self.evicted,
            "entries": len(self._ring),
            "bytes": self.size,
            "bytes_max": self.bytes_max,
            "hit_ratio": self.hits / asked if asked else 0.0,
        }

    def check(self) -> None:
        """Asserts every invariant."""
        assert self.size == sum(entry.size for entry in self._ring.values())
        assert self.size <= self.bytes_max
        assert all(key == flight.key for key, flight in self._flights.items())

    def _make_room(self, size: int) -> None:
        while self.size + size > self.bytes_max:
            key, entry = next(iter(self._ring.items()))
            if entry.used:
                entry.used = False
                self._ring.move_to_end(key)
            else:
                self._drop(key)
                self.evicted += 1

    def _drop(self, key: int) -> None:
        entry = self._ring.pop(key, None)
        if entry is not None:
            self.size -= entry.size


def _equal(one: Sequence[Bytes], other: Sequence[Bytes]) -> bool:
    return len(one) == len(other) and all(mine == theirs for mine, theirs in zip(one, other, strict=True))
