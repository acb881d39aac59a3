"""Where selection state lives: an SQLite file, or Redis where frontends run on several hosts.

Writes are compare-and-swap on a version, so that several frontends may learn at once and nothing is lost. Both are
bounded: an application keeps so many contexts, and the one that learned longest ago goes first.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mesh.errors import GearmeshError, SettingsError

SCHEMA_VERSION = 1
TIMEOUT_S = 0.5  # a store that takes longer is down
SWEEP_EVERY = 256  # new rows between two looks at the bounds
PARKED_MAX = 1_000_000  # decisions kept for other frontends in one SQLite file; the oldest leave first
PREFIX = "gearmesh"


class StoreDown(GearmeshError):
    """The store cannot be read or written now."""


class Versioned(NamedTuple):
    """One state as the store has it. Version 0: there is none."""

    version: int
    state: bytes


NOTHING = Versioned(0, b"")


class Store(Protocol):
    """Blocking; for one thread. Everything raises StoreDown."""

    def read(self, app: str, context: str) -> Versioned:
        """The state, or NOTHING."""

    def swap(self, app: str, context: str, version: int, state: bytes) -> int:
        """Writes if the stored version is still `version`. Returns the new version; 0 if another one was faster."""

    def drop(self, app: str) -> None:
        """All contexts of the application are gone."""

    def count(self, app: str) -> int:
        """Contexts of the application."""

    def park(self, decisions: Sequence[tuple[str, bytes]]) -> None:
        """Decisions (id, what is known) that another frontend may get the feedback for."""

    def claim(self, decision: str) -> bytes | None:
        """What is known, to the first that asks; empty to any later one; None if it was never parked, or long ago."""

    def close(self) -> None:
        """Lets go of files and connections."""


def open_store(url: str, data_dir: Path, contexts_max: int, decision_s: float) -> Store:
    """The store at `url` (GEARMESH_STATE_URL), not connected yet; "": SQLite in `data_dir`. Raises: SettingsError."""
    if not url:
        return SqliteStore(data_dir / "selection.sqlite", contexts_max, decision_s)
    if url.startswith("sqlite:///"):
        return SqliteStore(Path(url.removeprefix("sqlite:///")), contexts_max, decision_s)
    if url.startswith(("redis://", "rediss://", "unix://")):
        try:
            return RedisStore(url, contexts_max, decision_s)
        except ValueError as error:
            raise SettingsError([f"GEARMESH_STATE_URL={url!r}: {error}"]) from error
    text = "is redis://HOST:PORT/DB, rediss://, unix://, sqlite:///PATH, or empty for SQLite in GEARMESH_DATA_DIR"
    raise SettingsError([f"GEARMESH_STATE_URL={url!r}: {text}"])


def next_version(version: int) -> int:
    """Later than `version`, and than any that another life of the same key had."""
    return max(version + 1, time.time_ns())


class SqliteStore:
    """One file, shared by the frontends of one host."""

    def __init__(self, file: Path, contexts_max: int, decision_s: float) -> None:
        self.file, self._contexts_max, self._decision_s = file, contexts_max, decision_s
        self._db: sqlite3.Connection | None = None
        self._entered: dict[str, int] = {}  # {application: new contexts since its last sweep}; the first is swept for
        self._parked = 0  # decisions since the start

    def read(self, app: str, context: str) -> Versioned:
        """See Store."""
        with self._open() as db:
            row = db.execute("SELECT version, state FROM states WHERE app=? AND context=?", (app, context)).fetchone()
        return Versioned(*row) if row is not None else NOTHING

    def swap(self, app: str, context: str, version: int, state: bytes) -> int:
        """See Store."""
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
        """See Store."""
        with self._open() as db:
            db.execute("DELETE FROM states WHERE app=?", (app,))
            self._entered.pop(app, None)

    def count(self, app: str) -> int:
        """See Store."""
        with self._open() as db:
            return int(db.execute("SELECT count(*) FROM states WHERE app=?", (app,)).fetchone()[0])

    def park(self, decisions: Sequence[tuple[str, bytes]]) -> None:
        """See Store."""
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
        """See Store."""
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            row = db.execute("SELECT known FROM decisions WHERE id=?", (decision,)).fetchone()
            db.execute("UPDATE decisions SET known=x'' WHERE id=?", (decision,))
            db.execute("COMMIT")
        return bytes(row[0]) if row is not None else None

    def close(self) -> None:
        """See Store."""
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


# One step in Redis, so that nobody comes between comparison and write. KEYS: state, set of contexts by last use.
_SWAP = """
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[4])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[6])
if over > 0 then
  local old = redis.call('ZPOPMIN', KEYS[2], over)
  for i = 1, #old, 2 do redis.call('DEL', ARGV[7] .. old[i]) end
end
return 1
"""
_CLAIM = """
local known = redis.call('GET', KEYS[1])
if known then redis.call('SET', KEYS[1], '', 'KEEPTTL') end
return known
"""


class RedisStore:
    """A Redis server, shared by frontends anywhere. As durable as that server is configured to be."""

    def __init__(self, url: str, contexts_max: int, decision_s: float) -> None:
        self._url, self._contexts_max, self._decision_s = url, contexts_max, decision_s
        self._client: Any = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # the keeper's thread tries again, and holds what is to be learned meanwhile
            decode_responses=False,
        )
        self._swap = self._client.register_script(_SWAP)
        self._claim = self._client.register_script(_CLAIM)

    def read(self, app: str, context: str) -> Versioned:
        """See Store."""
        version, state = self._do(lambda: self._client.hmget(self._key(app, context), "version", "state"))
        return Versioned(int(version), state) if version is not None and state is not None else NOTHING

    def swap(self, app: str, context: str, version: int, state: bytes) -> int:
        """See Store."""
        new = next_version(version)
        keys = [self._key(app, context), self._used(app)]
        values: list[str | bytes | int | float] = [
            version,
            new,
            state,
            context,
            time.time(),
            self._contexts_max,
            self._key(app, ""),
        ]
        done = self._do(lambda: self._swap(keys=keys, args=values))
        return new if done else 0

    def drop(self, app: str) -> None:
        """See Store."""

        def remove() -> None:
            while contexts := self._client.zrange(self._used(app), 0, 999):
                keys = [self._key(app, context.decode()) for context in contexts]
                self._client.delete(*keys)
                self._client.zrem(self._used(app), *contexts)

        self._do(remove)

    def count(self, app: str) -> int:
        """See Store."""
        return int(self._do(lambda: self._client.zcard(self._used(app))))

    def park(self, decisions: Sequence[tuple[str, bytes]]) -> None:
        """See Store."""

        def write() -> None:
            with self._client.pipeline(transaction=False) as pipeline:
                for decision, known in decisions:
                    pipeline.set(f"{PREFIX}:decision:{decision}", known, ex=max(1, round(self._decision_s)), nx=True)
                pipeline.execute()

        self._do(write)

    def claim(self, decision: str) -> bytes | None:
        """See Store."""
        known: bytes | None = self._do(lambda: self._claim(keys=[f"{PREFIX}:decision:{decision}"]))
        return known

    def close(self) -> None:
        """See Store."""
        self._client.close()

    def _key(self, app: str, context: str) -> str:
        return f"{PREFIX}:{{{app}}}:state:{context}"

    def _used(self, app: str) -> str:
        return f"{PREFIX}:{{{app}}}:used"

    def _do(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (redis.RedisError, OSError) as error:
            raise StoreDown(f"the selection state in Redis cannot be reached: {error}") from error
