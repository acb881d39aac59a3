"""Selection state in an SQLite file, shared by the frontends of one host."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from selection.stores.base import NOTHING, TIMEOUT_S, StoreDown, Versioned, next_version

SCHEMA_VERSION = 1
SWEEP_EVERY = 256  # new rows between two checks of the bounds
PARKED_MAX = 1_000_000  # decisions kept for other frontends in one SQLite file; the oldest are deleted first


class SqliteStore:
    """One file, shared by the frontends of one host."""

    def __init__(self, file: Path, contexts_max: int, decision_s: float) -> None:
        self.file, self._contexts_max, self._decision_s = file, contexts_max, decision_s
        self._db: sqlite3.Connection | None = None
        self._entered: dict[str, int] = {}  # {application: new contexts since its last sweep}; its first one sweeps
        self._parked = 0  # decisions stored since the start

    def read(self, app: str, context: str) -> Versioned:
        """The state, or NOTHING. Raises: StoreDown."""
        with self._open() as db:
            row = db.execute("SELECT version, state FROM states WHERE app=? AND context=?", (app, context)).fetchone()
        return Versioned(*row) if row is not None else NOTHING

    def swap(self, app: str, context: str, version: int, state: bytes) -> int:
        """Writes if the stored version is still `version`; returns the new version or 0. Raises: StoreDown."""
        new = next_version(version)
        with self._open() as db:
            if version:
                text = "UPDATE states SET version=?, used_s=?, state=? WHERE app=? AND context=? AND version=?"
                done = db.execute(text, (new, time.time(), state, app, context, version))
            else:
                text = "INSERT OR IGNORE INTO states (app, context, version, used_s, state) VALUES (?, ?, ?, ?, ?)"
                done = db.execute(text, (app, context, new, time.time(), state))
            if not version:
                entered = self._entered.get(app, SWEEP_EVERY) + 1
                if entered > SWEEP_EVERY or self._contexts_max < SWEEP_EVERY:
                    self._sweep(db, app)
                    entered = 0
                self._entered[app] = entered
        return new if done.rowcount == 1 else 0

    def drop(self, app: str) -> None:
        """Deletes all contexts of the application. Raises: StoreDown."""
        with self._open() as db:
            db.execute("DELETE FROM states WHERE app=?", (app,))
            self._entered.pop(app, None)

    def count(self, app: str) -> int:
        """The number of contexts of the application. Raises: StoreDown."""
        with self._open() as db:
            return int(db.execute("SELECT count(*) FROM states WHERE app=?", (app,)).fetchone()[0])

    def park(self, decisions: Sequence[tuple[str, bytes]]) -> None:
        """Stores decisions. After every SWEEP_EVERY, deletes those expired or beyond PARKED_MAX. Raises: StoreDown."""
        now = time.time()
        with self._open() as db:
            db.execute("BEGIN")
            rows = [(decision, now, known) for decision, known in decisions]
            db.executemany("INSERT OR IGNORE INTO decisions (id, made_s, known) VALUES (?, ?, ?)", rows)
            self._parked += len(rows)
            if self._parked % SWEEP_EVERY < len(rows):
                db.execute("DELETE FROM decisions WHERE made_s<?", (now - self._decision_s,))
                db.execute("DELETE FROM decisions WHERE rowid<=(SELECT max(rowid) FROM decisions)-?", (PARKED_MAX,))
            db.execute("COMMIT")

    def claim(self, decision: str) -> bytes | None:
        """The decision's record once, b"" afterwards, None if there is none. Raises: StoreDown."""
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            row = db.execute("SELECT known FROM decisions WHERE id=?", (decision,)).fetchone()
            db.execute("UPDATE decisions SET known=x'' WHERE id=?", (decision,))
            db.execute("COMMIT")
        return bytes(row[0]) if row is not None else None

    def close(self) -> None:
        """Closes the file; a later call opens it again."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _sweep(self, db: sqlite3.Connection, app: str) -> None:
        text = (
            "DELETE FROM states WHERE app=? AND context IN (SELECT context FROM states WHERE app=? "
            "ORDER BY used_s DESC LIMIT -1 OFFSET ?)"
        )
        db.execute(text, (app, app, self._contexts_max))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._db is None:
                self._db = self._connect()
            yield self._db
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreDown(f"the selection state in {self.file} cannot be reached: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.file, isolation_level=None, timeout=TIMEOUT_S)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise sqlite3.DatabaseError(f"it was written by another release (schema {version})")
            if version == SCHEMA_VERSION:  # it is not written to: its disk may be full
                return db
            db.execute(
                "CREATE TABLE IF NOT EXISTS states (app TEXT, context TEXT, version INTEGER NOT NULL, used_s REAL NOT "
                "NULL, state BLOB NOT NULL, PRIMARY KEY (app, context)) WITHOUT ROWID"
            )
            db.execute("CREATE INDEX IF NOT EXISTS used ON states (app, used_s)")
            db.execute("CREATE TABLE IF NOT EXISTS decisions (id TEXT PRIMARY KEY, made_s REAL NOT NULL, known BLOB)")
            db.execute("CREATE INDEX IF NOT EXISTS made ON decisions (made_s)")
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except BaseException:
            db.close()
            raise
        return db
