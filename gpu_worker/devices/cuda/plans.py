"""What goes where and when: batch sizes, places in buffers, pieces of a LOAD, contents of the weight buffer. Pure.

Sizes are bytes and instants are seconds of one clock, unless a name says otherwise.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from gpu_worker.core.measuring import LADDER
from gpu_worker.devices.base import DeviceError
from mesh import wire
from mesh.tensors import byte_count

ALIGNMENT = 256  # bytes. Source: what CUDA guarantees of its own allocations
IN_FLIGHT_MAX = 2  # pieces of LOADs in flight: the next one is always queued, and an INPUT waits for two at most
BUFFERS = IN_FLIGHT_MAX + 1  # for pieces from disk: one is read into while the others are copied
MIB = 1 << 20
T = TypeVar("T")


def ladder(batch_max: int) -> tuple[int, ...]:
    """Returns the sizes to capture, ascending: the profiled sizes below the maximum, and the maximum."""
    return (*(size for size in LADDER if size < batch_max), batch_max)


def padded(batch: int, sizes: Sequence[int]) -> int:
    """Returns the smallest of the ascending sizes that holds `batch`. Raises: ValueError if none does."""
    at = bisect_left(sizes, batch)
    if batch < 1 or at == len(sizes):
        raise ValueError(f"a batch of {batch} has no graph: sizes are {', '.join(map(str, sizes))}")
    return sizes[at]


# -- inputs and outputs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor inside a buffer."""

    at: int
    row_bytes: int
    rows: int
    dtype: str
    shape: tuple[int, ...]  # including the rows

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.row_bytes * self.rows


@dataclass(frozen=True, slots=True)
class Layout:
    """Inputs, then outputs, of one batch size, each at an aligned place of one buffer."""

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    inputs_end: int
    end: int

    @property
    def outputs_at(self) -> int:
        """Offset of the first output."""
        return self.outputs[0].at


def lay_out(spec: wire.ModelSpec, size: int) -> Layout:
    """Returns the places for a batch of this size."""
    inputs, end = _places(spec.inputs, size, 0)
    outputs, last = _places(spec.outputs, size, end)
    return Layout(inputs, outputs, end, last)


def _places(specs: Sequence[wire.TensorSpec], size: int, at: int) -> tuple[tuple[Place, ...], int]:
    places = []
    for spec in specs:
        place = Place(at, byte_count(spec.dtype, spec.shape[1:]), size, spec.dtype, (size, *spec.shape[1:]))
        places.append(place)
        at += -(-place.size // ALIGNMENT) * ALIGNMENT
    return tuple(places), at


# -- LOAD -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """One copy: `size` bytes from offset `source` of the image to offset `target` of the arena."""

    source: int
    target: int
    size: int
    buffer: int | None = None  # the staging buffer that it passes through, if it comes from disk


def pieces(image_bytes: int, pages: Sequence[int], page_bytes: int, piece_bytes: int) -> list[Piece]:
    """Returns the copies that bring an image into these pages, in order; none exceeds `piece_bytes` or crosses a page.

    There is at least one, of size 0 for an empty image.
    """
    if not image_bytes:
        return [Piece(0, pages[0] * page_bytes, 0)]
    found = []
    for i, page in enumerate(pages):
        first, end = i * page_bytes, min((i + 1) * page_bytes, image_bytes)
        for source in range(first, end, piece_bytes):
            found.append(Piece(source, page * page_bytes + source - first, min(piece_bytes, end - source)))
    return found


@dataclass(slots=True, eq=False)
class Transfer(Generic[T]):
    """One LOAD in progress.

    Its pieces pass through these queues, oldest first; the first two are for pieces from disk.
    """

    load: T
    unread: deque[Piece] = field(default_factory=deque)
    reading: deque[Piece] = field(default_factory=deque)
    waiting: deque[Piece] = field(default_factory=deque)  # ready to be copied
    in_flight: deque[Piece] = field(default_factory=deque)
    begun: bool = False
    broken: bool = False  # a piece has failed: no other is begun

    @property
    def started(self) -> bool:
        """Whether all of its pieces are in flight or have arrived."""
        return not (self.unread or self.reading or self.waiting)


@dataclass(slots=True)
class Copies(Generic[T]):
    """LOADs one after the other, in pieces: start what `next` returns, and call `ended` when the oldest piece arrives.

    Pieces from disk are first read into one of a few buffers: read what `to_read` returns, and call `read` when that is
    done. A LOAD is over when none of its pieces is being read or copied any more, whether it went well or not.
    """

    in_flight_max: int = IN_FLIGHT_MAX
    _buffers: deque[int] = field(default_factory=lambda: deque(range(BUFFERS)))  # free ones
    _queue: deque[Transfer[T]] = field(default_factory=deque)  # not over, oldest first
    _in_flight: int = 0  # pieces of all LOADs that were started and have not ended

    def add(self, load: T, wanted: Sequence[Piece], *, from_disk: bool = False) -> None:
        """A LOAD of at least one piece is ordered."""
        assert wanted
        transfer = Transfer(load)
        (transfer.unread if from_disk else transfer.waiting).extend(wanted)
        self._queue.append(transfer)

    def to_read(self) -> tuple[Transfer[T], Piece] | None:
        """Returns a piece to read into its buffer now, after earlier ones; None if no buffer is free or no piece is
        left.

        Only the first LOAD in turn reads: otherwise its duration would include the LOADs before it.
        """
        transfer = self._first()
        if transfer is None or not transfer.unread or not self._buffers:
            return None
        transfer.begun = True
        piece = replace(transfer.unread.popleft(), buffer=self._buffers.popleft())
        transfer.reading.append(piece)
        return transfer, piece

    def read(self, transfer: Transfer[T]) -> T | None:
        """The transfer's oldest piece to read is in its buffer. Returns the load if it had failed and is over."""
        piece = transfer.reading.popleft()
        if transfer.broken:
            self._free(piece)
        else:
            transfer.waiting.append(piece)
        return self._over(transfer)

    def unreadable(self, transfer: Transfer[T]) -> T | None:
        """The transfer's oldest piece to read could not be read. Returns the load if it is over now."""
        self._free(transfer.reading.popleft())
        return self._broken(transfer)

    def next(self) -> tuple[Transfer[T], Piece] | None:
        """Returns a piece to start now, with its transfer; None if enough are in flight or none is ready."""
        transfer = self._first()
        if transfer is None or not transfer.waiting or self._in_flight == self.in_flight_max:
            return None
        transfer.begun = True
        piece = transfer.waiting.popleft()
        transfer.in_flight.append(piece)
        self._in_flight += 1
        return transfer, piece

    def due(self) -> T | None:
        """Returns the load that `next` or `to_read` would begin now with its first piece; it can still be dropped."""
        transfer = self._first()
        if transfer is None or transfer.begun:
            return None
        ready = self._buffers if transfer.unread else self._in_flight < self.in_flight_max
        return transfer.load if ready else None

    def drop(self) -> T:
        """The load that is `due` is dropped. Returns it."""
        transfer = self._first()
        assert transfer is not None
        assert not transfer.begun
        self._queue.remove(transfer)
        return transfer.load

    def ended(self) -> T | None:
        """The oldest piece in flight has arrived. Returns its load if it is over now."""
        transfer = self._queue[0]
        self._free(transfer.in_flight.popleft())
        self._in_flight -= 1
        return self._over(transfer)

    def failed(self, transfer: Transfer[T]) -> T | None:
        """The last piece that `next` returned for the transfer could not be started.

        Returns the load if it is over now.
        """
        self._free(transfer.in_flight.pop())
        self._in_flight -= 1
        return self._broken(transfer)

    def check(self) -> None:
        """Asserts every invariant."""
        assert self._in_flight == sum(len(transfer.in_flight) for transfer in self._queue) <= self.in_flight_max
        held = [
            piece.buffer
            for transfer in self._queue
            for piece in (*transfer.reading, *transfer.waiting, *transfer.in_flight)
            if piece.buffer is not None
        ]
        assert sorted([*held, *self._buffers]) == list(range(BUFFERS))
        assert not any(transfer.broken and (transfer.unread or transfer.waiting) for transfer in self._queue)

    def _broken(self, transfer: Transfer[T]) -> T | None:
        transfer.broken = True
        transfer.unread.clear()
        while transfer.waiting:
            self._free(transfer.waiting.popleft())
        return self._over(transfer)

    def _over(self, transfer: Transfer[T]) -> T | None:
        if not transfer.started or transfer.in_flight:
            return None
        self._queue.remove(transfer)
        return transfer.load

    def _free(self, piece: Piece) -> None:
        if piece.buffer is not None:
            self._buffers.append(piece.buffer)

    def _first(self) -> Transfer[T] | None:
        return next((transfer for transfer in self._queue if not transfer.started), None)


# -- EXEC -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Window:
    """Whose weights the weight buffer holds, after everything issued so far.

    The weights of a version never change once it is prepared, so the number of its preparation identifies them: the
    buffer may still hold a model whose pages were given to others long ago.
    """

    holds: int | None = None  # number of a preparation

    def bring(self, preparation: int) -> bool:
        """The buffer holds these weights once what is issued now has run.

        Returns True if they must be gathered first.
        """
        gather = self.holds != preparation
        self.holds = preparation
        return gather

    def leave(self, preparation: int) -> None:
        """These weights must be gathered again, if the buffer holds them."""
        if self.holds == preparation:
            self.holds = None

    def spoil(self) -> None:
        """The contents of the buffer are unknown from now on."""
        self.holds = None


@dataclass(slots=True)
class Lane:
    """Predicts when a stream will be free: what was issued runs one after the other."""

    _free_s: float = 0.0
    _running: int = 0

    @property
    def busy(self) -> bool:
        """Whether something runs."""
        return self._running > 0

    def start_s(self, now: float) -> float:
        """Returns when something issued now would start."""
        return max(now, self._free_s) if self._running else now

    def issued(self, now: float, expected_s: float) -> None:
        """Something was issued that is expected to take `expected_s`."""
        self._free_s = self.start_s(now) + expected_s
        self._running += 1

    def ended(self, now: float) -> None:
        """The oldest work has ended, early or late: the start of the others shifts accordingly."""
        self._running -= 1
        if not self._running:
            self._free_s = now
        else:
            self._free_s = max(self._free_s, now)


# -- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Room:
    """Sizes of what is allocated at the start."""

    page_bytes: int
    pages: int  # of the arena
    window_pages: int  # of the weight buffer

    @property
    def arena_bytes(self) -> int:
        """Bytes of the arena."""
        return self.pages * self.page_bytes

    @property
    def window_bytes(self) -> int:
        """Bytes of the weight buffer."""
        return self.window_pages * self.page_bytes


RESERVE_BYTES = 3 << 30  # graphs, activations, buffers, modules. Source: sum of their estimates, unproven
RESERVE_SHARE = 0.06


def make_room(name: str, *, free: int, total: int, page_bytes: int, arena_bytes: int, window_bytes: int) -> Room:
    """Returns what to allocate on a device with so much free memory; `arena_bytes` 0: everything that is left.

    Room for a second weight buffer stays free: preparing a model needs its weights on the device once more. Raises:
    DeviceError.
    """
    window_pages = -(-window_bytes // page_bytes)
    rest = 2 * window_pages * page_bytes + max(RESERVE_BYTES, int(total * RESERVE_SHARE))
    pages = arena_bytes // page_bytes if arena_bytes else (free - rest) // page_bytes
    wanted = max(pages, 1) * page_bytes + window_pages * page_bytes
    if pages < 1 and arena_bytes:
        raise DeviceError(
            f"{name}: an arena of {arena_bytes // MIB} MiB holds no page of {page_bytes // MIB} MiB: raise "
            "GEARMESH_ARENA_MB or lower GEARMESH_PAGE_MB"
        )
    if pages < 1 or wanted > free:
        raise DeviceError(
            f"{name}: {free // MIB} of {total // MIB} MiB are free; arena and window take {wanted // MIB} MiB"
            + ("" if arena_bytes else f", and {(rest - window_pages * page_bytes) // MIB} MiB are kept for the rest")
            + ": lower GEARMESH_ARENA_MB or GEARMESH_WINDOW_MB, or end what else uses the device"
        )
    return Room(page_bytes, pages, window_pages)
