"""Which places of a piece of memory are taken: slabs, each with slots of one size. Pure.

The memory is counted in granules. A slab has SLAB_GRANULES of them, and is cut into slots of one width, which may
change whenever none of its slots is taken. Of the slabs of one width the first with room is used, so that those behind
it fall empty after a burst. A slot that was given back rests until some more were: then the one that has rested for
longest is used again, so that few slots are used in turn, which stay in the processor's cache. Taking and giving back
take constant time.

Source: Bonwick, "The Slab Allocator: An Object-Caching Kernel Memory Allocator", USENIX Summer 1994; four widths per
doubling waste at most a fifth of a slot.
"""

from collections import deque
from typing import Final

GRANULE_BYTES: Final = 16 << 10
SLAB_GRANULES: Final = 1024
SLAB_BYTES: Final = GRANULE_BYTES * SLAB_GRANULES
RESTING: Final = 4  # slots of a slab that were given back and are not used again while there are others
WIDER_MAX: Final = 4  # widths that are tried beyond the fitting one, if no slab is free for that


def _widths() -> tuple[int, ...]:
    """Granules of a slot, ascending."""
    widths = [1, 2, 3, 4]
    while widths[-1] < SLAB_GRANULES:
        step = widths[-1] // 4
        widths += [widths[-1] + step * each for each in (1, 2, 3, 4)]
    return tuple(widths)


def _narrowest(widths: tuple[int, ...]) -> tuple[int, ...]:
    """For each number of granules the place in `widths` of the least width that has as many."""
    return tuple(
        next(place for place, width in enumerate(widths) if width >= granules) for granules in range(SLAB_GRANULES + 1)
    )


WIDTHS: Final = _widths()
FITTING: Final = _narrowest(WIDTHS)
NO_WIDTH: Final = -1


class Slab:
    """One slab: its slots of one width."""

    __slots__ = ("free", "fresh", "kind", "start", "touched", "used")

    def __init__(self, start: int) -> None:
        self.start = start  # its first granule
        self.kind = NO_WIDTH  # place of its width in WIDTHS
        self.used = 0  # slots that are taken
        self.fresh = 0  # slots that were taken once, and so are behind all that were not
        self.free: deque[int] = deque()  # slots that were given back, longest ago first
        self.touched = False  # a slot was taken since the last `trim`


class Slabs:
    """All slabs of one piece of memory."""

    __slots__ = ("_empty", "_new", "_room", "_slabs", "_taken", "granules_used")

    def __init__(self, count: int) -> None:
        self.granules_used = 0
        self._slabs = [Slab(place * SLAB_GRANULES) for place in range(count)]
        self._new = (1 << count) - 1  # bits: slabs without a width
        self._empty = 0  # bits: slabs that have a width, and no slot that is taken
        self._room = [0] * len(WIDTHS)  # bits, for each width: slabs of it with room
        self._taken = bytearray(count * SLAB_GRANULES)  # 1: a slot begins at this granule, and is taken

    @property
    def granules(self) -> int:
        """All there are."""
        return len(self._taken)

    def take(self, size: int) -> int:
        """Takes a slot of so many bytes or more, and returns its first granule; -1: there is no room."""
        if size > SLAB_BYTES or size < 0:
            return -1
        kind = FITTING[max(1, -(-size // GRANULE_BYTES))]
        room = self._room[kind] or self._open(kind)
        if not room:
            for wider in range(kind + 1, min(kind + 1 + WIDER_MAX, len(WIDTHS))):
                room = self._room[wider]
                if room:
                    kind = wider
                    break
            else:
                return -1
        bit = room & -room
        slab = self._slabs[bit.bit_length() - 1]
        width = WIDTHS[kind]
        slots = SLAB_GRANULES // width
        if slab.fresh == slots or len(slab.free) > RESTING:
            slot = slab.free.popleft()
        else:
            slot = slab.fresh
            slab.fresh += 1
        slab.used += 1
        slab.touched = True
        self._empty &= ~bit
        if slab.used == slots:
            self._room[kind] &= ~bit
        self.granules_used += width
        granule = slab.start + slot * width
        self._taken[granule] = 1
        return granule

    def _open(self, kind: int) -> int:
        """A slab without taken slots has slots of this width from now on. Returns its bit; 0: there is none."""
        bits = self._new or self._empty
        if not bits:
            return 0
        bit = bits & -bits
        slab = self._slabs[bit.bit_length() - 1]
        if slab.kind != NO_WIDTH:
            self._room[slab.kind] &= ~bit
        slab.kind = kind
        slab.fresh = 0
        slab.free.clear()
        self._new &= ~bit
        self._empty |= bit
        self._room[kind] |= bit
        return bit

    def is_taken(self, granule: int) -> bool:
        """Whether a slot begins there, and is taken."""
        return 0 <= granule < len(self._taken) and self._taken[granule] == 1

    def width(self, granule: int) -> int:
        """Granules of the taken slot that begins there."""
        assert self.is_taken(granule)
        return WIDTHS[self._slabs[granule // SLAB_GRANULES].kind]

    def give(self, granule: int) -> None:
        """Gives back the taken slot that begins there."""
        assert self.is_taken(granule)
        slab = self._slabs[granule // SLAB_GRANULES]
        width = WIDTHS[slab.kind]
        bit = 1 << (granule // SLAB_GRANULES)
        self._taken[granule] = 0
        slab.free.append((granule - slab.start) // width)
        slab.used -= 1
        self._room[slab.kind] |= bit
        if not slab.used:
            self._empty |= bit
        self.granules_used -= width

    def trim(self) -> list[int]:
        """Slabs of which no slot was taken since the last call lose their width, all but one, and are returned.

        The memory behind them is needed no more. To be called now and then.
        """
        idle = []
        kept = False
        for place, slab in enumerate(self._slabs):
            if slab.kind == NO_WIDTH:
                continue
            if slab.used or slab.touched or not kept:
                kept = True
            else:
                bit = 1 << place
                self._room[slab.kind] &= ~bit
                self._empty &= ~bit
                self._new |= bit
                slab.kind = NO_WIDTH
                idle.append(place)
            slab.touched = False
        return idle

    def check(self) -> None:
        """Asserts every invariant."""
        assert self.granules_used == sum(slab.used * WIDTHS[slab.kind] for slab in self._slabs if slab.used)
        for place, slab in enumerate(self._slabs):
            bit = 1 << place
            assert bool(self._new & bit) == (slab.kind == NO_WIDTH)
            assert bool(self._empty & bit) == (slab.kind != NO_WIDTH and not slab.used)
            slots = 0 if slab.kind == NO_WIDTH else SLAB_GRANULES // WIDTHS[slab.kind]
            for kind, room in enumerate(self._room):
                assert bool(room & bit) == (kind == slab.kind and slab.used < slots)
            taken = [at for at in range(slab.start, slab.start + SLAB_GRANULES) if self._taken[at]]
            assert len(taken) == slab.used
            if slab.kind != NO_WIDTH:
                width = WIDTHS[slab.kind]
                assert all((at - slab.start) % width == 0 for at in taken)
                assert len(slab.free) == slab.fresh - slab.used
                assert not {(at - slab.start) // width for at in taken} & set(slab.free)
