"""Keeps the catalogue saved: each change at once, its copy soon after; on a disk that took nothing, later."""

import asyncio

import structlog

from broker.core.catalogue import Catalogue
from broker.store import CatalogueStore, Damage, StoreError
from mesh.errors import NotWritten

COPY_S = 1.0  # from a change until the copy of the catalogue has it, too
DISK_S = 10.0  # between two tries to write to a disk that took nothing
EPOCHS_RESERVED = 1 << 20  # at a time: a write for so many tables
EPOCHS_UNWRITTEN = 1 << 10  # given before it is tried again to write a reservation that could not be written
log = structlog.get_logger("broker")


class CatalogueKeeper:
    """The store, and when to write. `open` comes first, `close` last."""

    def __init__(self, store: CatalogueStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._loop = store, loop
        self._catalogue = Catalogue()
        self._reserved = 0  # epochs below this one are given without another write
        self._copying: asyncio.TimerHandle | None = None
        self._mending: asyncio.TimerHandle | None = None  # the next try on a disk that took nothing
        self._copy_told = False  # that the copy cannot be written

    def open(self) -> Catalogue:
        """The catalogue as it was saved, or what can be had of it; what is wrong is logged. Raises: StoreError."""
        self._catalogue = self._store.open()
        if self._store.damage is not None:
            _tell_damage(self._store.damage)
        if self._store.fault:
            advice = "what is deployed is served; changes hold until the broker ends, or the disk takes them"
            log.error("catalogue_not_writable", error=self._store.fault, advice=advice)
            self._mending = self._loop.call_later(DISK_S, self._try_disk)
        return self._catalogue

    def reserved(self) -> int:
        """No epoch above this one was given to anybody; 0 if none was reserved yet."""
        return self._store.reserved()

    def reserve(self, epoch: int) -> None:
        """The epoch is on disk as given, with those that follow: a broker started again goes on above them."""
        if epoch < self._reserved:
            return
        try:
            self._store.reserve(epoch + EPOCHS_RESERVED)
            self._reserved = epoch + EPOCHS_RESERVED
        except StoreError as error:
            self._reserved = epoch + EPOCHS_UNWRITTEN
            advice = "a broker that is started again learns from the members which epochs were given"
            log.error("not_saved", error=str(error), advice=advice)

    def save(self) -> str:
        """Writes all changes to disk.

        Returns "" or the reason it failed: the changes still hold, and the next save retries.
        """
        failed = bool(self._store.fault)
        try:
            self._store.save(self._catalogue)
        except StoreError as error:
            log.error("not_saved", error=str(error))
            return str(error)
        if failed and not self._store.fault:
            self._is_writable()
        self._copy_soon()
        return ""

    def close(self) -> None:
        """All is saved, as far as the disk takes it, and the file is closed."""
        for timer in (self._copying, self._mending):
            if timer is not None:
                timer.cancel()
        self.save()
        for timer in (self._copying, self._mending):
            if timer is not None:
                timer.cancel()
        self._copy()
        self._store.close()

    def _try_disk(self) -> None:
        """The disk has taken everything, or is tried again later."""
        if self._store.retry(self._catalogue):
            self._is_writable()
        else:
            self._mending = self._loop.call_later(DISK_S, self._try_disk)

    def _is_writable(self) -> None:
        log.info("catalogue_writable", file=str(self._store.file))
        if self._mending is not None:
            self._mending.cancel()
            self._mending = None
        self._copy_soon()

    def _copy_soon(self) -> None:
        if self._store.copy_due and self._copying is None:
            self._copying = self._loop.call_later(COPY_S, self._copy)

    def _copy(self) -> None:
        self._copying = None
        try:
            self._store.write_copy(self._catalogue)
        except NotWritten as error:
            if not self._copy_told:
                self._copy_told = True
                log.warning("catalogue_not_copied", error=str(error), advice="it is tried again with the next change")


def _tell_damage(damage: Damage) -> None:
    advice = (
        "there was no copy: packages that are not known any more are deployed in their newest version, and lost "
        "applications have to be created again (gearmesh models, gearmesh apps)"
    )
    if damage.copied:
        advice = "its copy was taken: at most the last changes are lost (gearmesh models, gearmesh apps)"
    log.error(
        "catalogue_damaged",
        error=damage.why,
        set_aside=str(damage.aside),
        copied=damage.copied,
        models=damage.models,
        apps=damage.apps,
        lost=list(damage.lost),
        advice=advice,
    )
