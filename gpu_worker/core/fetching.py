"""Which inputs are asked of which frontend, and when: in the order in which they are wanted, within limits. Pure.

    want        the parts of an INFER that no slot could be read of   ->  what to ask for
    came        a frontend has sent them, or says that it has ended   ->  what to ask for in their place
    opened      a link to a frontend replaces one that was lost       ->  what to ask for again
    gone        a frontend will not answer
    release     the INFER has ended, or has its inputs                ->  what to ask for in their place

How long to wait is decided by who needs them (`lanes.py`): what is released in the meantime is not waited for.

Inputs take room in memory from when they are asked for, or wait for the answers to others, until the INFER has them.
Of one frontend little is asked for at a time, however much room there is: what it sends cannot be called back, and all
that is wanted sooner, or said otherwise on that link, comes behind it.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from gpu_worker.core.incoming import Incoming
from mesh import wire
from mesh.wire import Buffer

BYTES_MAX = 256 << 20  # asked for, or come and not yet in a device; one INFER alone may exceed it
ON_WAY_BYTES = 16 << 20  # asked of one frontend and not answered; once it is so much, nothing more is asked
UNWANTED_S = 5.0  # an answer that nobody waits for any more is taken to be on its way for so long
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


class Way:
    """What one frontend is asked for."""

    __slots__ = ("on_way", "queue", "size")

    def __init__(self) -> None:
        self.queue: deque[Key] = deque()  # to be asked for, in order, among what is wanted no more, or on its way
        self.on_way: dict[Key, tuple[int, float]] = {}  # {whose: (bytes, when it was asked for)}, oldest first
        self.size = 0  # bytes of all that is on its way

    def asked(self, key: Key, size: int, now: float) -> None:
        """The frontend is asked for this."""
        self.on_way[key] = size, now
        self.size += size

    def over(self, key: Key) -> None:
        """This is on its way no more."""
        size, _ = self.on_way.pop(key, (0, 0.0))
        self.size -= size

    def begin_anew(self) -> None:
        """On a new link nothing is on its way; that comes first."""
        self.queue.extendleft(reversed(self.on_way))
        self.on_way.clear()
        self.size = 0


class Fetching:
    """What one worker fetches."""

    __slots__ = ("_bytes_max", "_on_way_bytes", "_waiting", "_wanted", "_ways", "held_bytes", "wrong")

    def __init__(self, bytes_max: int = BYTES_MAX, on_way_bytes: int = ON_WAY_BYTES) -> None:
        self._bytes_max = bytes_max
        self._on_way_bytes = on_way_bytes
        self._waiting: deque[Wanted] = deque()  # for room, in order
        self._wanted: dict[Key, list[Wanted]] = {}  # {whose: who wants it}, that have room and no answer so far
        self._ways: dict[str, Way] = {}  # {frontend: what is asked for there}, if there is something
        self.held_bytes = 0  # of all that was asked for and not released
        self.wrong = 0  # answers that had not the bytes that were promised

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way or waits for its turn."""
        return not (self._waiting or self._wanted or self._ways)

    def want(self, incoming: Incoming, now: float) -> list[FetchOrder]:
        """The awaited inputs of this INFER are to be fetched. Returns what is to be asked for at once."""
        self._waiting.extend(Wanted(incoming, part) for part in sorted(incoming.awaited))
        return self._next(now)

    def came(
        self, frontend: str, message: wire.Fetched, frames: Sequence[Buffer], now: float
    ) -> tuple[bool, list[FetchOrder]]:
        """A frontend has answered. Returns whether somebody waited for that, and what is to be asked for now."""
        key = (frontend, message.request, message.attempt)
        way = self._ways.get(frontend)
        if way is not None:
            way.over(key)
        known = self._wanted.pop(key, ())
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
        return useful, self._ask(frontend, now)

    def opened(self, frontend: str, now: float) -> list[FetchOrder]:
        """A link to the frontend replaces one that was lost. Returns what is to be asked for there, or once more."""
        way = self._ways.get(frontend)
        if way is None:
            return []
        way.begin_anew()
        return self._ask(frontend, now)

    def gone(self, frontend: str) -> bool:
        """The frontend does not answer any more. Returns whether something was wanted of it."""
        useful = False
        self._ways.pop(frontend, None)
        for key in [key for key in self._wanted if key[0] == frontend]:
            for wanted in self._wanted.pop(key):
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
            known = self._wanted.get(key)
            if known is None:
                continue
            known = [wanted for wanted in known if wanted.incoming is not incoming]
            if known:
                self._wanted[key] = known
            else:
                del self._wanted[key]
        return self._next(now)

    def _next(self, now: float) -> list[FetchOrder]:
        """Room is given to those who wait for it; returns what is to be asked for of all frontends."""
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
                self._wanted.setdefault(wanted.key, []).append(wanted)
                self._ways.setdefault(wanted.key[0], Way()).queue.append(wanted.key)
            self._waiting.popleft()
        asks = []
        for frontend in tuple(self._ways):
            asks += self._ask(frontend, now)
        return asks

    def _ask(self, frontend: str, now: float) -> list[FetchOrder]:
        """What is to be asked for of this frontend: what is wanted, as long as little is on its way."""
        way = self._ways.get(frontend)
        if way is None:
            return []
        self._forget_unwanted(way, now)
        asks = []
        while way.queue:
            key = way.queue[0]
            sizes = [wanted.size for wanted in self._wanted.get(key, []) if not wanted.over]
            if sizes and key not in way.on_way:
                if way.size >= self._on_way_bytes:
                    break
                way.asked(key, max(sizes), now)
                asks.append(FetchOrder(frontend, wire.Fetch(request=key[1], attempt=key[2])))
            way.queue.popleft()
        if not way.queue and not way.on_way:
            del self._ways[frontend]
        return asks

    def _forget_unwanted(self, way: Way, now: float) -> None:
        """Answers that do not come, and that nobody waits for, do not stand in the way of others for long."""
        old = []
        for key, (_, asked_s) in way.on_way.items():
            if now - asked_s < UNWANTED_S:
                break
            if key not in self._wanted:
                old.append(key)
        for key in old:
            way.over(key)

    def check(self) -> None:
        """Every invariant holds."""
        asked = [wanted for known in self._wanted.values() for wanted in known]
        assert all(self._wanted.values())
        assert all(not wanted.incoming.closed for wanted in asked)
        for way in self._ways.values():
            assert way.queue or way.on_way
            assert way.size == sum(size for size, _ in way.on_way.values())
            assert not way.queue or way.size >= self._on_way_bytes
        for wanted in asked:
            if not wanted.over:
                way = self._ways[wanted.key[0]]
                assert wanted.key in way.on_way or wanted.key in way.queue
        incomings = {id(wanted.incoming): wanted.incoming for wanted in (*asked, *self._waiting)}.values()
        assert sum(incoming.held_bytes for incoming in incomings) <= self.held_bytes
        held = [incoming for incoming in incomings if incoming.held_bytes]
        assert self.held_bytes <= self._bytes_max or len(held) <= 1
