"""Which models are on one device, in how many pages, and whom to evict. Pure.

The controller counts pages; the worker picks them. Never evicted: a model with waiting or running work.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

DECAY_S = 15.0  # time constant of popularity; Source: gpu_and_literature 2.4, "LFU with 10-20 s decay"


@dataclass(slots=True)
class Popularity:
    """Decayed count of one model's requests: about its rate x DECAY_S."""

    count: float = 0.0
    at_s: float = 0.0
    decay_s: float = DECAY_S

    def add(self, now: float, requests: int = 1) -> None:
        """Requests arrived."""
        self.count = self.value(now) + requests
        self.at_s = now

    def value(self, now: float) -> float:
        """The count, decayed to now."""
        return self.count * math.exp((self.at_s - now) / self.decay_s) if self.count else 0.0

    def rate(self, now: float) -> float:
        """Requests per second, about."""
        return self.value(now) / self.decay_s


@dataclass(slots=True)
class Resident:
    """One model's place on the device."""

    pages: int
    loading: int | None  # the LOAD action on its way; None: the weights are there
    ready_s: float  # when they are, or are expected to be
    used_s: float  # when a batch was last sent
    bound: int = 0  # batches sent and not ended


@dataclass(slots=True)
class Residency:
    """All models on one device. `free` is what the worker will have when all that was sent is done."""

    total: int
    free: int
    models: dict[str, Resident] = field(default_factory=dict)  # {ref: its place}, least recently used first

    def loading(self, ref: str, pages: int, action: int, ready_s: float, now: float) -> None:
        """A LOAD is sent."""
        assert ref not in self.models, f"{ref} is resident already"
        assert pages <= self.free, f"{ref} needs {pages} pages, {self.free} are free"
        self.models[ref] = Resident(pages, action, ready_s, now)
        self.free -= pages

    def loaded(self, ref: str, action: int, end_s: float) -> bool:
        """The LOAD has ended well. False if it is not the one we wait for."""
        place = self.models.get(ref)
        if place is None or place.loading != action:
            return False
        place.loading = None
        place.ready_s = end_s
        return True

    def used(self, ref: str, now: float) -> Resident:
        """A batch of the model is sent. Returns the place that it is bound to."""
        place = self.models[ref] = self.models.pop(ref)
        place.bound += 1
        place.used_s = now
        return place

    def gone(self, ref: str) -> None:
        """The model is not there: unloaded, or its LOAD failed."""
        place = self.models.pop(ref, None)
        if place is not None:
            self.free += place.pages

    def victims(self, pages: int, protected: Callable[[str], bool], worth: Callable[[str], float]) -> list[str] | None:
        """Whom to evict so that `pages` are free, least worth first; ties: least recently used, then name.

        Empty if there is room already; None if not even evicting all that may go makes enough.
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
