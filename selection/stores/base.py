"""What a store of selection state can do.

Writes are compare-and-swap on a version, so that several frontends may learn at once and nothing is lost. Every store
is bounded: an application keeps so many contexts, and the one that learned longest ago goes first.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mesh.errors import GearmeshError

TIMEOUT_S = 0.5  # a store that takes longer counts as down


class StoreDown(GearmeshError):
    """The store cannot be read or written at present."""


class Versioned(NamedTuple):
    """One state as stored. Version 0: there is none."""

    version: int
    state: bytes


NOTHING = Versioned(0, b"")


class Store(Protocol):
    """A blocking store, used from one thread. Every method raises StoreDown."""

    def read(self, app: str, context: str) -> Versioned:
        """The state, or NOTHING."""

    def swap(self, app: str, context: str, version: int, state: bytes) -> int:
        """Writes if the stored version is still `version`. Returns the new version; 0 if another writer came first."""

    def drop(self, app: str) -> None:
        """Deletes all contexts of the application."""

    def count(self, app: str) -> int:
        """The number of contexts of the application."""

    def park(self, decisions: Sequence[tuple[str, bytes]]) -> None:
        """Stores decisions (id, encoded record), so that any frontend can take feedback for them."""

    def claim(self, decision: str) -> bytes | None:
        """The record, for the first caller; b"" for any later one; None if it was never stored, or has expired."""

    def close(self) -> None:
        """Closes files and connections."""


def next_version(version: int) -> int:
    """A version later than `version`, and than any that the same key had before it was deleted."""
    return max(version + 1, time.time_ns())
