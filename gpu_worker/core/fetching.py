"""Which inputs are asked of which frontend, and when: in the order in which they are wanted, within a limit. Pure.

    want        the parts of an INFER that no slot could be read of   ->  what to ask for
    came        a frontend has sent them, or says that the request has ended
    opened      a link to a frontend replaces one that was lost       ->  what to ask for again
    gone        a frontend will not answer
    release     the INFER has ended, or has its inputs                ->  what to ask for in their place

How long to wait is decided by who needs them (`lanes.py`): what is released in the meantime is not waited for.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from gpu_worker.core.incoming import Incoming
from mesh import wire
from mesh.wire import Buffer

BYTES_MAX = 256 << 20  # asked for, or come and not yet in a device; one INFER alone may exceed it
Key = tuple[str, int, int]  # frontend, request, attempt


class FetchOrder(NamedTuple):
    """A frontend has to be asked for the inputs of a request."""

    frontend: str
    message: wire.Fetch


class Wanted:
    """The inputs of one part."""

    __slots__ = ("incoming", "key", "part", "size", "sizes")

    def __init__(self, incoming: Incoming, part: int) -> None:
        asked = incoming.action.parts[part]
        assert asked.kept is not None
        self.incoming = incoming
        self.part = part
        self.key: Key = (asked.frontend, asked.request, asked.attempt)
        self.sizes = asked.kept.sizes
        self.size = sum(asked.kept.sizes)

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.part not in self.incoming.awaited


class Fetching:
    """What one worker fetches."""

    __slots__ = ("_asked", "_bytes_max", "_waiting", "held_bytes", "wrong")

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._waiting: deque[Wanted] = deque()  # not asked for yet, in order
        self._asked: dict[Key, list[Wanted]] = {}  # {whose: who wants it}, without an answer so far
        self.held_bytes = 0  # of all that was asked for and not released
        self.wrong = 0  # answers that had not the bytes that were promised

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way or waits for its turn."""
        return not (self._waiting or self._asked)

    def want(self, incoming: Incoming, now: float) -> list[FetchOrder]:
        """The awaited inputs of this INFER are to be fetched. Returns what is to be asked for at once."""
        self._waiting.extend(Wanted(incoming, part) for part in sorted(incoming.awaited))
        return self._next(now)

    def came(self, frontend: str, message: wire.Fetched, frames: Sequence[Buffer], now: float) -> bool:
        """A frontend has answered. Returns whether somebody waited for that."""
        known = self._asked.pop((frontend, message.request, message.attempt), ())
        useful = False
        for wanted in known:
            if wanted.over:
                continue
            useful = True
            if not message.frames:
                wanted.incoming.end(wanted.part)
            elif tuple(map(len, frames)) == wanted.sizes:
                wanted.incoming.arrived(wanted.part, frames, now)
            else:
                self.wrong += 1
                wanted.incoming.miss((wanted.part,))
        return useful

    def opened(self, frontend: str) -> list[FetchOrder]:
        """A link to the frontend replaces one that was lost. Returns what has to be asked for again."""
        return [
            FetchOrder(frontend, wire.Fetch(request=key[1], attempt=key[2]))
            for key, known in self._asked.items()
            if key[0] == frontend and not all(wanted.over for wanted in known)
        ]

    def gone(self, frontend: str) -> bool:
        """The frontend does not answer any more. Returns whether something was wanted of it."""
        useful = False
        for key in [key for key in self._asked if key[0] == frontend]:
            for wanted in self._asked.pop(key):
                if not wanted.over:
                    wanted.incoming.miss((wanted.part,))
                    useful = True
        return useful

    def release(self, incoming: Incoming, now: float) -> list[FetchOrder]:
        """The INFER does not need its inputs any more. Returns what is to be asked for, now that there is room."""
        if incoming.closed:
            return []
        incoming.close()
        self.held_bytes -= incoming.held_bytes
        incoming.held_bytes = 0
        for part in incoming.action.parts:
            key = (part.frontend, part.request, part.attempt)
            known = self._asked.get(key)
            if known is None:
                continue
            known = [wanted for wanted in known if wanted.incoming is not incoming]
            if known:
                self._asked[key] = known
            else:
                del self._asked[key]
        return self._next(now)

    def _next(self, now: float) -> list[FetchOrder]:
        asks = []
        while self._waiting:
            wanted = self._waiting[0]
            incoming = wanted.incoming
            if not wanted.over:
                others = self.held_bytes - incoming.held_bytes
                # alone an INFER always goes on: it would wait in vain for room that only its own end makes
                if others and self.held_bytes + wanted.size > self._bytes_max:
                    break
                incoming.held_bytes += wanted.size
                self.held_bytes += wanted.size
                if incoming.asked_s is None:
                    incoming.asked_s = now
                known = self._asked.setdefault(wanted.key, [])
                known.append(wanted)
                if len(known) == 1:
                    frontend, request, attempt = wanted.key
                    asks.append(FetchOrder(frontend, wire.Fetch(request=request, attempt=attempt)))
            self._waiting.popleft()
        return asks

    def check(self) -> None:
        """Every invariant holds."""
        asked = [wanted for known in self._asked.values() for wanted in known]
        assert all(self._asked.values())
        assert all(not wanted.incoming.closed for wanted in asked)
        incomings = {id(wanted.incoming): wanted.incoming for wanted in (*asked, *self._waiting)}.values()
        assert sum(incoming.held_bytes for incoming in incomings) <= self.held_bytes
        held = [incoming for incoming in incomings if incoming.held_bytes]
        assert self.held_bytes <= self._bytes_max or len(held) <= 1
