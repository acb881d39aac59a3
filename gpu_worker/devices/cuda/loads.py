"""LOADs of one device: from pinned memory, or from disk through a few pinned buffers, in pieces into pages.

    from pinned memory   image -> pages, two pieces on their way at most                        stream load
    from disk            file -> buffer, on a thread of its own, while the piece before is copied; buffer -> pages

The last piece takes the list of the pages with it, into the page table on the device. Instants are the host's. A copy's
duration is the device's; that of a LOAD from disk is the host's, from its first read to its last copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from gpu_worker.core.lanes import Done, Job
from gpu_worker.devices.cuda.driver import Driver, Event
from gpu_worker.devices.cuda.issuer import EventPool, Helper, Issuer, Watcher
from gpu_worker.devices.cuda.memory import Memory, Staging
from gpu_worker.devices.cuda.plans import MIB, Copies, Piece, Transfer, pieces
from gpu_worker.devices.cuda.records import Loading, PinnedImage, done_of, said
from gpu_worker.devices.images import DISK, DiskImage, WeightsChanged
from mesh.versions import CHANGED

PIECE_BYTES = 8 * MIB  # 0.15 ms of PCIe 5: an INPUT waits 0.3 ms for it at most. Unproven; bench_gpu.py measures others
EVENTS = 96  # for LOADs: they may be noticed later than others


class Loader:
    """One after the other, each begun in its window or not at all. On the issuing thread, if not said otherwise."""

    def __init__(
        self,
        driver: Driver,
        memory: Memory,
        issuer: Issuer,
        tell: Callable[[Job, Done], None],
        suspect: Callable[[], None],
    ) -> None:
        """`tell`: how a LOAD went; `suspect`: something failed, and it may be the device."""
        self._driver, self._memory, self._issuer = driver, memory, issuer
        self._tell, self._suspect = tell, suspect
        self._events = EventPool(partial(driver.event, sleeps=True), EVENTS)
        self._stream = driver.stream("load")
        self._watcher = Watcher("load", driver.enter)
        self._disk = Helper("disk")
        self._staging: Staging | None = None
        self._copies: Copies[Loading] = Copies()

    def start(self) -> None:
        """The threads run. On the loop's thread."""
        self._watcher.start()
        self._disk.start()

    @property
    def threads(self) -> tuple[Helper, Watcher]:
        """In the order in which they are to be stopped, once nothing is issued any more."""
        return self._disk, self._watcher

    def check(self) -> None:
        """Every invariant holds while no LOAD is on its way: nothing of those that are over is kept. On any thread."""
        assert self._copies.idle
        self._copies.check()
        assert self._events.free == self._events.count

    def prepare_disk(self) -> None:
        """Images can be loaded from disk. On the thread that prepares, before the first. Raises: MemoryError."""
        if self._staging is None:
            self._staging = Staging(self._driver, PIECE_BYTES)

    def order(self, loading: Loading) -> None:
        """A LOAD was ordered: it begins when those before it have."""
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
                self._tell(due.job, Done(now, now, 0.0, "late"))
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
            except Exception as error:  # that LOAD's outcome, and the next one is not held up by it
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
        """A piece of it could not be read, or not be started; `over`: nothing of it is on its way."""
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
        """Nothing of it is on its way any more; `end`: behind the piece that arrived last, if one did just now."""
        begin = loading.begin
        if loading.error is not None:
            code = CHANGED if isinstance(loading.error, WeightsChanged) else "device_error"
            done = Done(end_s, end_s, 0.0, code, said(loading.error))
        else:
            assert begin is not None
            assert end is not None
            done, loading.error = done_of(self._driver, begin, end, end_s, None)
            if done.code == "ok" and loading.read_s is not None:
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
        except Exception as fault:  # the file is gone, or cut short: that LOAD's outcome, not the thread's end
            error = fault
        self._issuer.now(partial(self._was_read, transfer, error))

    # -- on the thread that waits -------------------------------------------------------------------------------------

    def _reached(self, loading: Loading, end: Event, error: Exception | None) -> None:
        self._issuer.now(partial(self._ended, loading, end, time.monotonic(), error))


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)
