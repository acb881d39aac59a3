"""Tallies of models, or of applications, by name: bounded however many there are, and never a sum that shrinks. Pure.

The first names that are deployed have a label: a tally of their own for as long as the process lives, so that what is
drawn from it neither ends nor jumps. Everything else is counted together.
"""

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, Self, TypeVar

LABELS_MAX = 200  # names that are told apart in the metrics of one process
OTHER = "other"  # what all others are called there together; a model of this name is one of them


class Mergeable(Protocol):
    """Counts that can be added."""

    def merge(self, other: Self) -> None:
        """The other's counts are added to these."""


T = TypeVar("T", bound=Mergeable)


class NamedTallies(Generic[T]):
    """One tally for each name with a label, and one for the rest."""

    def __init__(self, make: Callable[[], T], labels_max: int = LABELS_MAX) -> None:
        self.make = make
        self.labels_max = labels_max
        self.labels: dict[str, T] = {}  # {name: its tally}, at most labels_max; others only read
        self.rest = make()  # of all names without a label; others only read
        self._deployed: set[str] = set()

    def deploy(self, names: Iterable[str]) -> None:
        """These names, and no others, are deployed. New ones get labels in their order, while there are any."""
        self._deployed = set()
        for name in names:
            self._deployed.add(name)
            if name not in self.labels and len(self.labels) < self.labels_max and name != OTHER:
                self.labels[name] = self.make()

    def deployed(self, name: str) -> bool:
        """Whether the name is deployed, with a label or without."""
        return name in self._deployed

    def of(self, name: str) -> T:
        """The tally that counts for this name: its own, or that of the rest."""
        return self.labels.get(name) or self.rest

    def total(self) -> T:
        """A new tally: everything."""
        found = self.make()
        found.merge(self.rest)
        for tally in self.labels.values():
            found.merge(tally)
        return found
