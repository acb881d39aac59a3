"""LOADs of one device: from pinned memory, or from disk through a few pinned buffers, in pieces into pages.

    from pinned memory   image -> pages, at most two pieces in flight                            stream load
    from disk            file -> buffer, on a thread of its own, while the previous piece is copied; buffer -> pages

The last piece also carries the list of the pages into the page table on the device. Instants are the host's. The
duration of a copy is the device's; that of a LOAD from disk is the host's, from its first read to its last copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from gpu_worker.core.jobs import Done, Job
from gpu_worker.devices.cuda.copies import CopyQueue, Piece, Transfer, pieces
from gpu_worker.devices.cuda.driver import Driver, Event
from gpu_worker.devices.cuda.events import EventPool
from gpu_worker.devices.cuda.issuer import Issuer
from gpu_worker.devices.cuda.memory import Memory, Staging
from gpu_worker.devices.cuda.plans import MIB
from gpu_worker.devices.cuda.records import Loading, PinnedImage, done_of, message_of
from gpu_worker.devices.cuda.threads import EventWatcher, Helper
from gpu_worker.devices.images import DISK, DiskImage, WeightsChanged
from mesh.codes import ActionCode

# 0.15 ms of PCIe 5: an INPUT waits 0.3 ms for it at most. Unproven; bench_gpu.py measures other sizes
PIECE_BYTES = 8 * MIB
EVENTS = 96  # for LOADs, whose ends may be noticed later than others
OK = ActionCode.OK


class Loader:
    """Runs LOADs one after the other; each begins within its action's window or not at all.

    Methods run on the issuing thread unless they say otherwise.
    """

    def __init__(
        self,
        driver: Driver,
        memory: Memory,
        issuer: Issuer,
        tell: Callable[[Job, Done], None],
        suspect: Callable[[], None],
    ) -> None:
        """`tell`: reports the outcome of a LOAD. `suspect`: called if something failed, maybe by the device's fault."""
        self._driver, self._memory, self._issuer = driver, memory, issuer
        self._tell, self._suspect = tell, suspect
        self._events = EventPool(partial(driver.event, sleeps=True), EVENTS)
        self._stream = driver.stream("load")
        self._watcher = EventWatcher("load", driver.enter)
        self._disk = Helper("disk")
        self._staging: Staging | None = None
        self._copies: CopyQueue[Loading] = CopyQueue()

    def start(self) -> None:
        """The threads run. On the loop's thread."""
        self._watcher.start()
        self._disk.start()

    @property
    def threads(self) -> tuple[Helper, EventWatcher]:
        """The threads, in the order in which to stop them once nothing is issued any more."""
        return self._disk, self._watcher

    def check(self) -> None:
        """Every invariant holds while no LOAD is on its way: nothing of those that are over is kept. On any thread."""
        assert self._copies.idle
        self._copies.check()
        assert self._events.free == self._events.count

    def prepare_disk(self) -> None:
        """Images can be loaded from disk. On the thread that prepares, before the first one. Raises: MemoryError."""
        if self._staging is None:
            self._staging = Staging(self._driver, PIECE_BYTES)

    def order(self, loading: Loading) -> None:
        """A LOAD is ordered: it begins when those before it have begun."""
        version, pages = loading.version, loading.job.pages
        loading.row = self._memory.row(pages)
        wanted = pieces(version.package.image_bytes, pages, self._memory.room.page_bytes, PIECE_BYTES)
        self._copies.add(loading, wanted, from_disk=version.image.place == DISK)
        self._advance()

    def _advance(self) -> None:
        now = time.monotonic()
        while True:
            due = self._copies.due()
            if due is not None and now > due.job.action.latest_s:
                self._copies.drop()
                self._tell(due.job, Done(now, now, 0.0, ActionCode.LATE))
                continue
            wanted = self._copies.to_read()
            if wanted is not None:
                loading = wanted[0].load
                loading.read_s = now if loading.read_s is None else loading.read_s
                self._disk.do(partial(self._read, *wanted))
                continue
            found = self._copies.next()
            if found is None:
                return
            transfer, piece = found
            try:
                self._start(transfer.load, piece, last=transfer.started)
            except Exception as error:  # the outcome of this LOAD; it does not delay the next one
                self._failed(transfer.load, self._copies.failed(transfer), error)

    def _start(self, loading: Loading, piece: Piece, *, last: bool) -> None:
        if loading.begin is None:
            loading.begin = self._events.take()
            self._stream.record(loading.begin)
        target = self._memory.arena[piece.target : piece.target + piece.size]
        self._stream.run(partial(_copy, target, self._source(loading, piece)))
        if last:
            assert loading.row is not None
            self._stream.run(partial(_copy, *loading.row))
        with self._events.lend(1) as (end,):
            self._stream.record(end)
            self._watcher.watch(end, partial(self._reached, loading, end), loading.job.action.ref)

    def _source(self, loading: Loading, piece: Piece) -> torch.Tensor:
        image = loading.version.image
        if isinstance(image, PinnedImage):
            return image.pinned.tensor[piece.source : piece.source + piece.size]
        assert self._staging is not None
        assert piece.buffer is not None
        return self._staging.buffers[piece.buffer][: piece.size]

    def _failed(self, loading: Loading, over: Loading | None, error: Exception) -> None:
        """A piece of the LOAD could not be read or started; `over`: the LOAD, if no piece of it is in flight."""
        loading.error = loading.error or error
        if over is not None:
            self._over(over, None, time.monotonic())

    def _was_read(self, transfer: Transfer[Loading], error: Exception | None) -> None:
        if error is not None:
            self._failed(transfer.load, self._copies.unreadable(transfer), error)
        elif (over := self._copies.read(transfer)) is not None:  # it had failed meanwhile
            self._over(over, None, time.monotonic())
        self._advance()

    def _ended(self, loading: Loading, end: Event, end_s: float, error: Exception | None) -> None:
        loading.error = loading.error or error
        over = self._copies.ended()
        self._advance()
        if over is None:
            self._events.give(end)
        else:
            self._over(over, end, end_s)

    def _over(self, loading: Loading, end: Event | None, end_s: float) -> None:
        """Reports a LOAD of which nothing is in flight.

        `end`: the event after a piece that arrived just now, if any.
        """
        begin = loading.begin
        if loading.error is not None:
            changed = isinstance(loading.error, WeightsChanged)
            code = ActionCode.CONTENT_CHANGED if changed else ActionCode.DEVICE_ERROR
            done = Done(end_s, end_s, 0.0, code, message_of(loading.error))
        else:
            assert begin is not None
            assert end is not None
            done, loading.error = done_of(self._driver, begin, end, end_s, None)
            if done.code == OK and loading.read_s is not None:
                done = Done(loading.read_s, end_s, end_s - loading.read_s)
        self._events.give(*(event for event in (begin, end) if event is not None))
        if loading.error is not None and not isinstance(loading.error, WeightsChanged):
            self._suspect()
        self._tell(loading.job, done)

    # -- on the disk's thread -----------------------------------------------------------------------------------------

    def _read(self, transfer: Transfer[Loading], piece: Piece) -> None:
        image, error = transfer.load.version.image, None
        assert isinstance(image, DiskImage)
        assert self._staging is not None
        assert piece.buffer is not None
        try:
            image.read(self._staging.bytes[piece.buffer][: piece.size], piece.source)
        # the file is gone or cut short: the outcome of this LOAD, which must not end the thread
        except Exception as fault:
            error = fault
        self._issuer.now(partial(self._was_read, transfer, error))

    # -- on the thread that waits -------------------------------------------------------------------------------------

    def _reached(self, loading: Loading, end: Event, error: Exception | None) -> None:
        self._issuer.now(partial(self._ended, loading, end, time.monotonic(), error))


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)
