"""Buffers for the inputs of one batch each; a larger pool takes the place of a smaller one as a whole."""

from collections import deque

import numpy as np

from gpu_worker.devices.arena import Bytes

KEPT_BYTES_MAX = 64 << 20  # of all free buffers that have grown: what they hold beyond is given back to the system


class SlotPool:
    """Slots that are taken and given back on the loop's thread.

    Its size never changes, but a batch that takes more may make a slot grow. So a thread that prepares a larger version
    makes another pool, and lets it take this one's place by one assignment: whoever reads which pool it is, once, never
    sees slots of one pool counted as of another.
    """

    __slots__ = ("_free", "_grown_bytes", "slot_bytes")

    def __init__(self, slot_bytes: int, count: int) -> None:
        self.slot_bytes = slot_bytes
        self._free = deque(InputBuffer(self, np.zeros(slot_bytes, np.uint8)) for _ in range(count))
        self._grown_bytes = 0  # of free slots, beyond `slot_bytes` of each

    def take(self, size: int = 0) -> "InputBuffer | None":
        """Returns a slot of at least so many bytes; None if all are in use. Raises: MemoryError."""
        if not self._free:
            return None
        if size <= self.slot_bytes and not self._grown_bytes:
            return self._free.popleft()
        at = next((i for i, slot in enumerate(self._free) if len(slot.data) >= size), 0)
        slot = self._free[at]
        data = slot.data if len(slot.data) >= size else np.empty(size, np.uint8)
        self._grown_bytes -= len(slot.data) - self.slot_bytes
        slot.data = data
        del self._free[at]
        return slot

    def give(self, slot: "InputBuffer") -> None:
        """The slot is free again; one of another pool, which this one has replaced, is dropped."""
        if slot.pool is not self:
            return
        grown = len(slot.data) - self.slot_bytes
        if grown and self._grown_bytes + grown > KEPT_BYTES_MAX:
            slot.data = np.zeros(self.slot_bytes, np.uint8)
            grown = 0
        self._grown_bytes += grown
        self._free.append(slot)


class InputBuffer:
    """Room for the inputs of one batch."""

    __slots__ = ("data", "pool")

    def __init__(self, pool: SlotPool, data: Bytes) -> None:
        self.pool, self.data = pool, data
