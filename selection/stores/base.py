"""What a store of selection state can do.

Writes are compare-and-swap on a version, so that several frontends may learn at once and nothing is lost. Every store
is bounded: an application keeps so many contexts, and the one that learned longest ago goes first.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mesh.errors import GearmeshError

TIMEOUT_S = 0.5  # a store that takes longer is down


class StoreDown(GearmeshError):
    """The store cannot be read or written now."""


class Versioned(NamedTuple):
    """One state as the store has it. Version 0: there is none."""

    version: int
    state: bytes


NOTHING = Versioned(0, b"")


class Store(Protocol):
    """Blocking; for one thread. Everything raises StoreDown."""

    def read(self, app: str, context: str) -> Versioned:
        """The state, or NOTHING."""

    def swap(self, app: str, context: str, version: int, state: bytes) -> int:
        """Writes if the stored version is still `version`. Returns the new version; 0 if another one was faster."""

    def drop(self, app: str) -> None:
        """All contexts of the application are gone."""

    def count(self, app: str) -> int:
        """Contexts of the application."""

    def park(self, decisions: Sequence[tuple[str, bytes]]) -> None:
        """Decisions (id, what is known) that another frontend may get the feedback for."""

    def claim(self, decision: str) -> bytes | None:
        """What is known, to the first that asks; empty to any later one; None if it was never parked, or long ago."""

    def close(self) -> None:
        """Lets go of files and connections."""


def next_version(version: int) -> int:
    """Later than `version`, and than any that another life of the same key had."""
    return max(version + 1, time.time_ns())
