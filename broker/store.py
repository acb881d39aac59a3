"""Keeps the catalogue in an SQLite file. A change is written before anybody is told of it."""

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import msgspec

from broker.core.applications import ApplicationRecords
from broker.core.catalogue import Catalogue
from broker.core.records import AppRecord, ModelRecord
from mesh.errors import GearmeshError
from mesh.process.files import DISK_FAULTS, disk_fault, not_written

SCHEMA_VERSION = 1


class StoreError(GearmeshError):
    """The catalogue file cannot be used."""


class CatalogueStore:
    """Shell around one file. Only one process at a time may open it: a second one is refused.

    Where the disk takes no changes (full, read-only, broken), the catalogue is served as it was last written, and
    `fault` says so: nothing is saved then until the broker is started again. A disk that fills up later costs only the
    changes of that time: each save tries again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.fault = ""  # why nothing can be saved in this life; empty: it can, as far as is known
        self._db: sqlite3.Connection | None = None

    def open(self) -> Catalogue:
        """The catalogue as it was last saved. Raises: StoreError."""
        db = None
        try:
            db = self._opened()
            decode = msgspec.msgpack.decode
            models = [decode(row[0], type=ModelRecord) for row in db.execute("SELECT record FROM models")]
            apps = [decode(row[0], type=AppRecord) for row in db.execute("SELECT record FROM apps")]
            counted = db.execute("SELECT value FROM counters WHERE name = 'revisions'").fetchone()
        except (OSError, sqlite3.Error, msgspec.MsgspecError) as error:
            if db is not None:
                db.close()
            raise StoreError(f"the catalogue {self.file} cannot be opened: {_hint(error)}") from error
        self._db = db
        revisions = max(counted[0] if counted else 0, *(app.revision for app in apps), 0)
        return Catalogue(
            {model.name: model for model in models},
            ApplicationRecords({app.name: app for app in apps}, revisions),
        )

    def _opened(self) -> sqlite3.Connection:
        """The file; or, if its disk takes no changes, what it holds, in memory. Raises: OSError, sqlite3.Error."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            return self._prepared(sqlite3.connect(self.file, isolation_level=None, timeout=2.0))
        except (OSError, sqlite3.Error) as error:
            why = error if isinstance(error, OSError) else disk_fault(self.file.parent) or _told_full(error)
            if why is None or why.errno not in DISK_FAULTS or (isinstance(error, sqlite3.Error) and _is_used(error)):
                raise
            self.fault = f"{not_written(self.file, why)}; then start the broker again"
        return self._prepared(_copy_of(self.file))

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
        found = self._db.execute("SELECT value FROM counters WHERE name = 'epochs'").fetchone()
        return int(found[0]) if found else 0

    def reserve(self, epoch: int) -> None:
        """Epochs up to this one may be given. Raises: StoreError."""
        assert self._db is not None
        if self.fault:
            raise StoreError(self.fault)
        try:
            self._db.execute("INSERT OR REPLACE INTO counters VALUES ('epochs', ?)", (epoch,))
        except sqlite3.Error as error:
            raise self._not_saved(error) from error

    def save(self, catalogue: Catalogue) -> None:
        """Writes what changed since the last save. Raises: StoreError; the next save then tries again."""
        assert self._db is not None
        if not catalogue.changed_models and not catalogue.apps.changed:
            return
        if self.fault:
            raise StoreError(self.fault)
        try:
            self._write(self._db, catalogue)
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._not_saved(error) from error
        catalogue.changed_models.clear()
        catalogue.apps.changed.clear()

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


def _copy_of(file: Path) -> sqlite3.Connection:
    """Returns what the file holds, in memory. Raises: OSError, sqlite3.Error.

    It is copied with its log, which SQLite would want to write to, to a folder that takes files.
    """
    db = sqlite3.connect(":memory:", isolation_level=None)
    if file.exists():
        with tempfile.TemporaryDirectory(prefix="gearmesh-") as folder:
            copy = Path(folder) / file.name
            for end in ("", "-wal"):
                if file.with_name(file.name + end).exists():
                    shutil.copyfile(file.with_name(file.name + end), copy.with_name(copy.name + end))
            with contextlib.closing(sqlite3.connect(copy)) as found:
                found.backup(db)
    return db


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
