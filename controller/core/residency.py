"""Which models are on one device, in how many pages, and which ones may leave for another. Pure.

The controller counts pages; the worker picks them. A model with waiting or running work is never evicted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

DECAY_S = 15.0  # time constant of popularity; Source: docs/design/policy.md (eviction by decayed frequency)


@dataclass(slots=True)
class Popularity:
    """Decayed count of one model's requests: about its rate x DECAY_S."""

    count: float = 0.0
    at_s: float = 0.0  # when `count` was right
    decay_s: float = DECAY_S

    def add(self, now: float, requests: int = 1) -> None:
        """So many requests have arrived."""
        self.count = self.value(now) + requests
        self.at_s = now

    def value(self, now: float) -> float:
        """The count, decayed to now."""
        if now == self.at_s:  # as of all requests that came in one message
            return self.count
        return self.count * math.exp((self.at_s - now) / self.decay_s) if self.count else 0.0

    def rate(self, now: float) -> float:
        """Requests per second, about."""
        return self.value(now) / self.decay_s


@dataclass(slots=True)
class Resident:
    """One model's place on the device."""

    pages: int
    loading: int | None  # id of the LOAD on its way; None: the weights are there
    ready_s: float  # when the weights are there, or are expected to be
    used_s: float  # when a batch was last sent
    bound: int = 0  # batches sent and not ended


@dataclass(slots=True)
class Residency:
    """All models on one device. `free` counts the pages that are free once all that was sent is done."""

    total: int
    free: int
    models: dict[str, Resident] = field(default_factory=dict)  # {ref: its place}, least recently used first

    def loading(self, ref: str, pages: int, action: int, ready_s: float, now: float) -> None:
        """A LOAD is sent."""
        self._put(ref, Resident(pages, action, ready_s, now))

    def place(self, ref: str, pages: int, since_s: float) -> None:
        """The model is there without a LOAD of ours, since then."""
        self._put(ref, Resident(pages, None, since_s, since_s))

    def _put(self, ref: str, place: Resident) -> None:
        assert ref not in self.models, f"{ref} is resident already"
        assert place.pages <= self.free, f"{ref} needs {place.pages} pages, {self.free} are free"
        self.models[ref] = place
        self.free -= place.pages

    def loaded(self, ref: str, action: int, end_s: float) -> bool:
        """The LOAD has ended well. False if it is not the one that we wait for."""
        place = self.models.get(ref)
        if place is None or place.loading != action:
            return False
        place.loading = None
        place.ready_s = end_s
        return True

    def used(self, ref: str, now: float) -> Resident:
        """A batch of the model is sent. Returns the place that the batch is bound to."""
        place = self.models[ref] = self.models.pop(ref)
        place.bound += 1
        place.used_s = now
        return place

    def gone(self, ref: str) -> None:
        """The model is not there: it was unloaded, or its LOAD failed."""
        place = self.models.pop(ref, None)
        if place is not None:
            self.free += place.pages

    def victims(self, pages: int, protected: Callable[[str], bool], worth: Callable[[str], float]) -> list[str] | None:
        """The models to evict so that `pages` are free, least worth first; ties: least recently used, then by name.

        Empty if there is room already; None if even evicting all that may go does not make enough.
        """
        missing = pages - self.free
        if missing <= 0:
            return []
        candidates = [
            (worth(ref), place.used_s, ref)
            for ref, place in self.models.items()
            if place.loading is None and not place.bound and not protected(ref)
        ]
        chosen = []
        for _, _, ref in sorted(candidates):
            if missing <= 0:
                break
            chosen.append(ref)
            missing -= self.models[ref].pages
        return chosen if missing <= 0 else None

    def check(self) -> None:
        """Every invariant holds."""
        assert self.free + sum(place.pages for place in self.models.values()) == self.total
        assert self.free >= 0
        assert all(place.bound >= 0 for place in self.models.values())
