"""Opens the store that a URL names."""

from pathlib import Path

from mesh.errors import SettingsError
from mesh.process.extras import advice
from selection.stores.base import Store
from selection.stores.sqlite import SqliteStore


def open_store(url: str, data_dir: Path, contexts_max: int, decision_s: float) -> Store:
    """The store at `url` (GEARMESH_STATE_URL), not connected yet; "": SQLite in `data_dir`. Raises: SettingsError."""
    if not url:
        return SqliteStore(data_dir / "selection.sqlite", contexts_max, decision_s)
    if url.startswith("sqlite:///"):
        return SqliteStore(Path(url.removeprefix("sqlite:///")), contexts_max, decision_s)
    if url.startswith(("redis://", "rediss://", "unix://")):
        try:
            from selection.stores.redis_server import RedisStore

            return RedisStore(url, contexts_max, decision_s)
        except ModuleNotFoundError as error:
            raise SettingsError([f"GEARMESH_STATE_URL={url!r}: {advice(error) or error}"]) from error
        except ValueError as error:
            raise SettingsError([f"GEARMESH_STATE_URL={url!r}: {error}"]) from error
    text = "is redis://HOST:PORT/DB, rediss://, unix://, sqlite:///PATH, or empty for SQLite in GEARMESH_DATA_DIR"
    raise SettingsError([f"GEARMESH_STATE_URL={url!r}: {text}"])
