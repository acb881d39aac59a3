"""Selection states in a frontend's memory: the last value read, its age, and which have to be read again. Pure."""

from collections import OrderedDict
from dataclasses import dataclass

from selection.base import State

CONTEXT_BYTES_MAX = 256
FRESH_S = 0.25  # while a context is in use, another frontend's updates are seen at most this much later

Key = tuple[str, str]  # (application, context); the context "" is the application's own


def check_context(context: str) -> str | None:
    """What is wrong with a context key; None if it is valid."""
    size = len(context.encode())
    if size > CONTEXT_BYTES_MAX:
        return f"context must not be longer than {CONTEXT_BYTES_MAX} bytes; got {size}"
    if not context.isprintable():
        return f"context must be printable text; got {context[:40]!r}"
    return None


@dataclass(slots=True)
class CachedState:
    """One state held in memory."""

    state: State | None  # None: the store has none, or could not be reached
    read_s: float
    reading: bool = False


class StateCache:
    """States of the contexts in use, least recently used first."""

    def __init__(self, states_max: int) -> None:
        self._states_max = states_max
        self._held: OrderedDict[Key, CachedState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Key) -> CachedState | None:
        """The state, which becomes the most recently used; None if it was never read or was evicted."""
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
        return held

    def begin_read(self, key: Key, now: float) -> bool:
        """True if the caller has to read the state from the store; then False until `refreshed` or `failed`."""
        held = self._held.get(key)
        if held is None:
            held = self._put(key, CachedState(None, now))
        elif held.reading or now - held.read_s < FRESH_S:
            return False
        held.reading = True
        return True

    def refreshed(self, key: Key, state: State | None, now: float) -> None:
        """The store was read or written: `state` is held as of `now`."""
        self._put(key, CachedState(state, now))

    def failed(self, key: Key, now: float) -> None:
        """The store could not be read: the held state counts as fresh again."""
        held = self._held.get(key)
        if held is not None:
            held.reading, held.read_s = False, now

    def forget(self, app: str) -> None:
        """No state of this application is held any more."""
        for key in [key for key in self._held if key[0] == app]:
            del self._held[key]

    def _put(self, key: Key, held: CachedState) -> CachedState:
        self._held[key] = held
        self._held.move_to_end(key)
        while len(self._held) > self._states_max:
            self._held.popitem(last=False)
        return held
