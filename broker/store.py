"""Keeps the catalogue in an SQLite file. A change is written before anybody is told of it."""

import errno
import itertools
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import msgspec

from broker import contents
from broker.contents import Contents, contents_of
from broker.core.catalogue import Catalogue
from mesh.errors import GearmeshError
from mesh.process.files import DISK_FAULTS, disk_fault, not_written

SCHEMA_VERSION = 1
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreError(GearmeshError):
    """The catalogue file cannot be used."""


class _Emptied(Exception):
    """The file is there, but a catalogue was in it, and is not any more."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that was damaged, and what became of it."""

    why: str
    aside: Path  # where it lies now
    copied: bool  # its content was taken from the copy: at most the last changes are lost
    models: int  # records that were kept
    apps: int
    lost: tuple[str, ...]  # names of records that are known to be lost


class CatalogueStore:
    """Shell around one file. Only one process at a time may open it: a second one is refused.

    Where the disk takes no changes (full, read-only, broken), the catalogue is served as it was last written, `fault`
    says so, and each save, and `retry`, tries to write all of it. A disk that fills up later costs only the changes of
    that time: each save tries again. A file that is damaged is set aside, never deleted; `damage` says what was kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.copy = file.with_suffix(".copy")  # of everything, for the day that the file is damaged
        self.fault = ""  # why nothing can be saved; empty: it can, as far as is known
        self.damage: Damage | None = None
        self.copy_due = False  # something has changed since the copy was written
        self._db: sqlite3.Connection | None = None
        self._existed = False  # the file, before it was opened

    def open(self) -> Catalogue:
        """The catalogue as it was last saved, or what can be had of it. Raises: StoreError."""
        db = None
        self._existed = self.file.exists()
        try:
            db = self._opened()
            found = contents.read(db)
            if found == Contents() and not self.fault and self._was_emptied():
                raise _Emptied("it is empty, and was not")
        except (OSError, sqlite3.Error, msgspec.MsgspecError, _Emptied) as error:
            if db is not None:
                db.close()
            if not _is_damage(error):
                raise self._not_opened(error) from error
            db, found = self._mended(error)
        self._db = db
        self.copy_due = True
        return found.catalogue()

    def _opened(self) -> sqlite3.Connection:
        """The file; or, if its disk takes no changes, what it holds, in memory. Raises: OSError, sqlite3.Error."""
        try:
            return self._of_disk()
        except (OSError, sqlite3.Error) as error:
            why = error if isinstance(error, OSError) else disk_fault(self.file.parent) or _told_full(error)
            if why is None or why.errno not in DISK_FAULTS or (isinstance(error, sqlite3.Error) and _is_used(error)):
                raise
            self.fault = f"{not_written(self.file, why)}; it is tried again with every change, and all the while"
        return self._prepared(contents.in_memory(self.file))

    def _of_disk(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        return self._prepared(sqlite3.connect(self.file, isolation_level=None, timeout=2.0))

    def _was_emptied(self) -> bool:
        """Whether the file was there before, held something, and holds nothing: somebody, or a crash, has cut it."""
        before = contents.read_copy(self.copy) if self._existed else None
        return before is not None and bool(before.models or before.apps)

    def _mended(self, error: Exception) -> tuple[sqlite3.Connection, Contents]:
        """The damaged file is set aside, and a new one holds what could be had. Raises: StoreError."""
        copy = contents.read_copy(self.copy)
        found = copy if copy is not None else contents.salvage(self.file)
        try:
            aside = self._set_aside()
            db = self._opened()
            contents.write(db, found)
        except (OSError, sqlite3.Error) as again:
            raise self._not_opened(again) from error
        self.damage = Damage(
            str(error), aside, copy is not None, len(found.models), len(found.apps), tuple(sorted(found.lost))
        )
        return db, found

    def _set_aside(self) -> Path:
        """The file has another name, with its log. Raises: OSError."""
        names = (self.file.with_name(f"{self.file.name}.damaged-{number}") for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        for end in ("", "-wal", "-shm"):
            part = self.file.with_name(self.file.name + end)
            if part.exists():
                part.rename(aside.with_name(aside.name + end))
        return aside

    def _not_opened(self, error: Exception) -> StoreError:
        return StoreError(f"the catalogue {self.file} cannot be opened: {_hint(error)}")

    def _prepared(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """The tables are there, and no other process can open the file. Closes it if that fails."""
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("BEGIN EXCLUSIVE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise StoreError(f"{self.file} was written by another release (schema {version}, not {SCHEMA_VERSION})")
            if version == 0:  # a file that has all of it is not written to: its disk may be full
                db.execute("CREATE TABLE IF NOT EXISTS models (name TEXT PRIMARY KEY, record BLOB NOT NULL)")
                db.execute("CREATE TABLE IF NOT EXISTS apps (name TEXT PRIMARY KEY, record BLOB NOT NULL)")
                db.execute("CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)")
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def reserved(self) -> int:
        """No epoch above this one was given to anybody; 0 if none was reserved yet."""
        assert self._db is not None
        return contents.counter(self._db, "epochs")

    def reserve(self, epoch: int) -> None:
        """Epochs up to this one may be given. Raises: StoreError."""
        assert self._db is not None
        try:
            self._db.execute("INSERT OR REPLACE INTO counters VALUES ('epochs', ?)", (epoch,))
        except sqlite3.Error as error:
            raise self._not_saved(error) from error
        self.copy_due = True
        if self.fault:
            raise StoreError(self.fault)

    def save(self, catalogue: Catalogue) -> None:
        """Writes what changed since the last save. Raises: StoreError; the next save then tries again."""
        assert self._db is not None
        if not catalogue.changed_models and not catalogue.apps.changed:
            return
        if self.fault:
            if not self.retry(catalogue):
                raise StoreError(self.fault)
            return
        try:
            self._write(self._db, catalogue)
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._not_saved(error) from error
        self._is_saved(catalogue)

    def retry(self, catalogue: Catalogue) -> bool:
        """If nothing could be saved, it is tried to write everything. Returns whether it is saved now."""
        assert self._db is not None
        if not self.fault:
            return True
        if self.file.parent.is_dir() and disk_fault(self.file.parent) is not None:
            return False
        try:
            db = self._of_disk()
        except (OSError, sqlite3.Error):
            return False
        try:
            contents.write(db, contents_of(catalogue, self.reserved()))
        except sqlite3.Error:
            db.close()
            return False
        self._db.close()
        self._db, self.fault = db, ""
        self._is_saved(catalogue)
        return True

    def _is_saved(self, catalogue: Catalogue) -> None:
        catalogue.changed_models.clear()
        catalogue.apps.changed.clear()
        self.copy_due = True

    def write_copy(self, catalogue: Catalogue) -> None:
        """The copy holds what is saved, if anything has changed since. Raises: NotWritten."""
        if self.copy_due and not self.fault and not catalogue.changed_models and not catalogue.apps.changed:
            contents.write_copy(self.copy, contents_of(catalogue, self.reserved()))
            self.copy_due = False

    def _not_saved(self, error: sqlite3.Error) -> StoreError:
        why = disk_fault(self.file.parent)
        if why is not None:
            return StoreError(str(not_written(self.file, why)))
        return StoreError(f"the catalogue {self.file} cannot be written: {error}")

    @staticmethod
    def _write(db: sqlite3.Connection, catalogue: Catalogue) -> None:
        db.execute("BEGIN")
        for name in catalogue.changed_models:
            record = msgspec.msgpack.encode(catalogue.models[name])
            db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (name, record))
        for name in catalogue.apps.changed:
            if name in catalogue.apps.records:
                record = msgspec.msgpack.encode(catalogue.apps.records[name])
                db.execute("INSERT OR REPLACE INTO apps VALUES (?, ?)", (name, record))
            else:
                db.execute("DELETE FROM apps WHERE name = ?", (name,))
        if catalogue.apps.changed:
            db.execute("INSERT OR REPLACE INTO counters VALUES ('revisions', ?)", (catalogue.apps.revisions,))
        db.execute("COMMIT")

    def close(self) -> None:
        """The file is closed."""
        if self._db is not None:
            self._db.close()
            self._db = None


def _is_damage(error: BaseException) -> bool:
    """Whether the file itself is broken, rather than the disk, or our right to it."""
    if isinstance(error, sqlite3.Error):
        code: int | None = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in DAMAGE
    return isinstance(error, (msgspec.MsgspecError, _Emptied))


def _told_full(error: sqlite3.Error) -> OSError | None:
    """SQLite has said that the disk is full, though by now there may be room again."""
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else None


def _is_used(error: sqlite3.Error) -> bool:
    """Returns whether another process has the file."""
    code: int | None = getattr(error, "sqlite_errorcode", None)  # without one the error is not SQLite's own
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _hint(error: BaseException) -> str:
    """What is wrong with the file, and how to fix it."""
    if isinstance(error, OSError):
        return f"{error}: mend that, or set GEARMESH_DATA_DIR to another folder"
    if isinstance(error, sqlite3.Error):
        if _is_used(error):
            return "another broker uses it; set GEARMESH_DATA_DIR"
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return f"{error}: give this user the right to write it and its folder, or set GEARMESH_DATA_DIR"
    return f"{error}; if it is damaged, put a copy back, or move it away: what was deployed is then forgotten"
