"""Keeps the catalogue in an SQLite file. A change is written before anybody is told of it."""

import sqlite3
from pathlib import Path

import msgspec

from broker.core.applications import ApplicationRecords
from broker.core.catalogue import Catalogue
from broker.core.records import AppRecord, ModelRecord
from mesh.errors import GearmeshError

SCHEMA_VERSION = 1


class StoreError(GearmeshError):
    """The catalogue file cannot be used."""


class CatalogueStore:
    """Shell around one file. Only one process at a time may open it: a second one is refused."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._db: sqlite3.Connection | None = None

    def open(self) -> Catalogue:
        """The catalogue as it was last saved. Raises: StoreError."""
        db = None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.file, isolation_level=None, timeout=2.0)
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("BEGIN EXCLUSIVE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise StoreError(f"{self.file} was written by another release (schema {version}, not {SCHEMA_VERSION})")
            db.execute("CREATE TABLE IF NOT EXISTS models (name TEXT PRIMARY KEY, record BLOB NOT NULL)")
            db.execute("CREATE TABLE IF NOT EXISTS apps (name TEXT PRIMARY KEY, record BLOB NOT NULL)")
            db.execute("CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)")
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            db.execute("COMMIT")
            decode = msgspec.msgpack.decode
            models = [decode(row[0], type=ModelRecord) for row in db.execute("SELECT record FROM models")]
            apps = [decode(row[0], type=AppRecord) for row in db.execute("SELECT record FROM apps")]
            counted = db.execute("SELECT value FROM counters WHERE name = 'revisions'").fetchone()
        except BaseException as error:
            if db is not None:
                db.close()
            if not isinstance(error, (OSError, sqlite3.Error, msgspec.MsgspecError)):
                raise
            raise StoreError(f"the catalogue {self.file} cannot be opened: {_hint(error)}") from error
        self._db = db
        revisions = max(counted[0] if counted else 0, *(app.revision for app in apps), 0)
        return Catalogue(
            {model.name: model for model in models},
            ApplicationRecords({app.name: app for app in apps}, revisions),
        )

    def reserved(self) -> int:
        """No epoch above this one was given to anybody; 0 if none was reserved yet."""
        assert self._db is not None
        found = self._db.execute("SELECT value FROM counters WHERE name = 'epochs'").fetchone()
        return int(found[0]) if found else 0

    def reserve(self, epoch: int) -> None:
        """Epochs up to this one may be given. Raises: StoreError."""
        assert self._db is not None
        try:
            self._db.execute("INSERT OR REPLACE INTO counters VALUES ('epochs', ?)", (epoch,))
        except sqlite3.Error as error:
            raise StoreError(f"the catalogue {self.file} cannot be written: {error}") from error

    def save(self, catalogue: Catalogue) -> None:
        """Writes what changed since the last save. Raises: StoreError; the next save then tries again."""
        assert self._db is not None
        if not catalogue.changed_models and not catalogue.apps.changed:
            return
        try:
            self._write(self._db, catalogue)
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreError(f"the catalogue {self.file} cannot be written: {error}") from error
        catalogue.changed_models.clear()
        catalogue.apps.changed.clear()

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


def _primary(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its extension; None: the error is not SQLite's own."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _hint(error: BaseException) -> str:
    """What is wrong with the file, and how to fix it."""
    if isinstance(error, sqlite3.Error) and _primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another broker uses it; set GEARMESH_DATA_DIR"
    if isinstance(error, OSError):
        return str(error)
    return f"{error}; if it is damaged, put a copy back, or move it away: what was deployed is then forgotten"
