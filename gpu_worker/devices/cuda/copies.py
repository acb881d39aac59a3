"""The pieces of LOADs: which bytes go where, and which piece is read or copied next. Pure. Sizes are bytes."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

IN_FLIGHT_MAX = 2  # pieces of LOADs in flight: the next one is always queued, and an INPUT waits for two at most
BUFFERS = IN_FLIGHT_MAX + 1  # for pieces from disk: one is read into while the others are copied
T = TypeVar("T")


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
class CopyQueue(Generic[T]):
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

    @property
    def idle(self) -> bool:
        """Every LOAD is over."""
        return not self._queue

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
