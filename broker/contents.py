"""What a catalogue holds, in an SQLite database, and in the copy beside it for the day that the database is damaged.

The copy is one file: a digest, then everything. It is replaced as a whole, some time after each change.
"""

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import xxhash

from broker.core.applications import ApplicationRecords
from broker.core.catalogue import Catalogue
from broker.core.records import AppRecord, ModelRecord
from mesh.process.files import write_whole

DIGEST_BYTES = 16
Record = TypeVar("Record", ModelRecord, AppRecord)


class Contents(msgspec.Struct):
    """Everything that is saved. The Catalogue made of it has the same records."""

    models: list[ModelRecord] = []
    apps: list[AppRecord] = []
    revisions: int = 0
    epochs: int = 0  # no epoch above this one was given to anybody
    lost: list[str] = []  # names of records that could not be read; never in a copy

    def catalogue(self) -> Catalogue:
        """The catalogue, with nothing to save."""
        revisions = max(self.revisions, *(app.revision for app in self.apps), 0)
        return Catalogue(
            {model.name: model for model in self.models},
            ApplicationRecords({app.name: app for app in self.apps}, revisions),
        )


def contents_of(catalogue: Catalogue, epochs: int) -> Contents:
    """What is saved of the catalogue."""
    apps = catalogue.apps
    return Contents(list(catalogue.models.values()), list(apps.records.values()), apps.revisions, epochs)


def read(db: sqlite3.Connection) -> Contents:
    """What the database holds. Raises: sqlite3.Error, msgspec.MsgspecError."""
    decode = msgspec.msgpack.decode
    return Contents(
        [decode(row[0], type=ModelRecord) for row in db.execute("SELECT record FROM models")],
        [decode(row[0], type=AppRecord) for row in db.execute("SELECT record FROM apps")],
        counter(db, "revisions"),
        counter(db, "epochs"),
    )


def counter(db: sqlite3.Connection, name: str) -> int:
    """The counter; 0 if there is none. Raises: sqlite3.Error."""
    found = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else 0


def write(db: sqlite3.Connection, contents: Contents) -> None:
    """The database holds this and nothing else. Raises: sqlite3.Error; then it is as it was."""
    encode = msgspec.msgpack.encode
    try:
        db.execute("BEGIN")
        for table in ("models", "apps", "counters"):
            db.execute(f"DELETE FROM {table}")
        db.executemany("INSERT INTO models VALUES (?, ?)", [(model.name, encode(model)) for model in contents.models])
        db.executemany("INSERT INTO apps VALUES (?, ?)", [(app.name, encode(app)) for app in contents.apps])
        counters = [("revisions", contents.revisions), ("epochs", contents.epochs)]
        db.executemany("INSERT INTO counters VALUES (?, ?)", counters)
        db.execute("COMMIT")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def in_memory(file: Path) -> sqlite3.Connection:
    """Returns what the database file holds, in memory. Raises: OSError, sqlite3.Error.

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


def salvage(file: Path) -> Contents:
    """Whatever can still be read of a damaged database: each record that is whole. `lost` names the others."""
    kept = Contents()
    with contextlib.suppress(OSError, sqlite3.Error), contextlib.closing(in_memory(file)) as db:
        kept.models = list(_whole(db, "models", ModelRecord, kept.lost))
        kept.apps = list(_whole(db, "apps", AppRecord, kept.lost))
        with contextlib.suppress(sqlite3.Error, ValueError, TypeError):
            kept.revisions, kept.epochs = counter(db, "revisions"), counter(db, "epochs")
    return kept


def _whole(db: sqlite3.Connection, table: str, kind: type[Record], lost: list[str]) -> Iterator[Record]:
    with contextlib.suppress(sqlite3.Error):
        for name, stored in db.execute(f"SELECT name, record FROM {table}"):
            try:
                yield msgspec.msgpack.decode(stored, type=kind)
            except (msgspec.MsgspecError, TypeError):
                lost.append(str(name))


def write_copy(file: Path, contents: Contents) -> None:
    """The copy holds this. Raises: NotWritten; then it is as it was."""
    encoded = msgspec.msgpack.encode(contents)
    write_whole(file, xxhash.xxh3_128_digest(encoded) + encoded)


def read_copy(file: Path) -> Contents | None:
    """What the copy holds; None if there is none, or it is not whole."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    digest, encoded = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    if digest != xxhash.xxh3_128_digest(encoded):
        return None
    try:
        return msgspec.msgpack.decode(encoded, type=Contents)
    except msgspec.MsgspecError:
        return None
