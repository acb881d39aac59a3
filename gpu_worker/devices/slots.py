"""Buffers for the inputs of one batch each, of one size; a larger pool takes the place of a smaller one as a whole."""

from collections import deque

import numpy as np

from gpu_worker.devices.arena import Bytes


class SlotPool:
    """Slots that are taken and given back on the loop's thread.

    Its size never changes. So a thread that prepares a larger version makes another pool, and lets it take this one's
    place by one assignment: whoever reads which pool it is, once, never sees slots of one size counted as of another.
    """

    __slots__ = ("_free", "slot_bytes")

    def __init__(self, slot_bytes: int, count: int) -> None:
        self.slot_bytes = slot_bytes
        self._free = deque(np.zeros(slot_bytes, np.uint8) for _ in range(count))

    def take(self) -> Bytes | None:
        """Returns a slot; None if all are in use."""
        return self._free.popleft() if self._free else None

    def give(self, slot: Bytes) -> None:
        """The slot is free again; one of another size, from a pool that was replaced, is dropped."""
        if len(slot) == self.slot_bytes:
            self._free.append(slot)
