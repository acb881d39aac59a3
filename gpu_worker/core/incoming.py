"""Inputs of one INFER that its order does not carry: read from slots of shared memory, or fetched from frontends. Pure.

A part whose inputs do not come, or cannot be trusted any more, is left out: the batch goes without it.
"""

from collections.abc import Sequence

import msgspec

from mesh import wire
from mesh.wire import Buffer


class Incoming:
    """The inputs of one INFER, of which at least one part's are kept by its frontend.

    Each part is there, awaited, or left out; it is known by its place in the order, as the controller knows it.
    """

    __slots__ = (
        "action",
        "asked_s",
        "awaited",
        "came_s",
        "closed",
        "ended",
        "fetched_bytes",
        "held_bytes",
        "missing",
        "shrinks",
        "slots",
        "tensors",
    )

    def __init__(self, action: wire.Infer, tensors: Sequence[Sequence[Buffer] | None]) -> None:
        """`tensors`: of each part, in the order of the model's spec; None: they are on their way."""
        self.action = action  # as it was ordered
        self.tensors: list[Sequence[Buffer] | None] = list(tensors)
        self.slots: dict[int, wire.Slot] = {}  # {part: where its inputs lie}, of those that are read from there
        self.awaited = {i for i, part in enumerate(tensors) if part is None}
        self.missing: set[int] = set()  # parts that were not there in time: others may try again
        self.ended: set[int] = set()  # parts whose requests have ended, as their frontends say
        self.shrinks = False  # a batch without some of its parts has fewer rows; False: rows of padding instead
        self.closed = False  # the inputs are in the device, or not wanted any more
        self.held_bytes = 0  # that were asked for, and of these came
        self.fetched_bytes = 0  # that came
        self.asked_s: float | None = None  # when the first of them was asked for, or was to be
        self.came_s: float | None = None  # when the last of them came

    def arrived(self, part: int, tensors: Sequence[Buffer], now: float) -> None:
        """The inputs of a part have been fetched."""
        self.awaited.discard(part)
        self.tensors[part] = tensors
        self.fetched_bytes += sum(map(len, tensors))
        self.came_s = now

    def miss(self, parts: Sequence[int]) -> None:
        """These parts are left out: their inputs do not come in time, or lie no longer where they were read."""
        self.awaited.difference_update(parts)
        self.missing.update(parts)

    def end(self, part: int) -> None:
        """This part is left out: its request has ended."""
        self.awaited.discard(part)
        self.ended.add(part)

    def give_up(self) -> None:
        """What has not come by now is left out."""
        self.miss(tuple(self.awaited))

    @property
    def empty(self) -> bool:
        """Whether all parts are left out."""
        return len(self.missing) + len(self.ended) == len(self.tensors)

    def batch(self) -> tuple[wire.Infer, list[Sequence[Buffer]]]:
        """What is executed, and the inputs of its parts: of all that are not left out. None is awaited any more."""
        action, tensors, left_out = self.action, self.tensors, self.missing | self.ended
        there = [part for i, part in enumerate(tensors) if part is not None and i not in left_out]
        if not left_out:
            return action, there
        parts = tuple(part for i, part in enumerate(action.parts) if i not in left_out)
        rows = sum(part.rows for part in parts) if self.shrinks else action.batch
        return msgspec.structs.replace(action, parts=parts, batch=rows), there

    @property
    def read_from(self) -> list[tuple[int, wire.Slot]]:
        """(part, slot) of the parts that are read from slots and are not left out."""
        return [(part, slot) for part, slot in self.slots.items() if part not in self.missing]

    @property
    def fetch_s(self) -> float | None:
        """Seconds from asking for the first inputs to the arrival of the last; None: none came."""
        if self.asked_s is None or self.came_s is None:
            return None
        return max(0.0, self.came_s - self.asked_s)

    def close(self) -> None:
        """The inputs are not needed any more: nothing holds their memory."""
        self.closed = True
        self.awaited.clear()
        self.tensors = [()] * len(self.tensors)
