"""The inputs that orders do not carry: read from slots of shared memory, or fetched from the frontends that keep them.

What is asked of whom, and when, is decided in `core/fetching.py`; what is waited for, in `core/lanes.py`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import structlog

from gpu_worker.core.fetching import Fetching, FetchOrder
from gpu_worker.core.incoming import Incoming
from mesh import wire
from mesh.folding import Folding
from mesh.process.segments import SegmentReader
from mesh.wire import Buffer

log = structlog.get_logger("worker")


class FetchLinks(Protocol):
    """Who sends to frontends."""

    def ask(self, frontend: str, message: wire.Fetch) -> bool:
        """The frontend is asked, as soon as there is a link. Returns False if it is gone."""


class KeptInputs:
    """Whence one worker has the inputs that its orders do not carry."""

    def __init__(
        self, links: FetchLinks, soon: Callable[[], None], reader: SegmentReader, fetching: Fetching | None = None
    ) -> None:
        """`soon` is called when `give_up_gone` has something to do."""
        self._links = links
        self._soon = soon
        self._reader = reader
        self._fetching = fetching if fetching is not None else Fetching()
        self._gone: set[str] = set()  # frontends that could not be asked
        self._wrong = Folding()

    def incoming(self, action: wire.Infer) -> Incoming:
        """The inputs of this order: those that lie in slots are there; all others are on their way."""
        tensors: list[Sequence[Buffer] | None] = []
        slots = {}
        for i, part in enumerate(action.parts):
            kept = part.kept
            found: Sequence[Buffer] | None = part.inline
            if kept is not None:
                found = self._reader.read(kept.slot, kept.sizes) if kept.slot is not None else None
                if found is not None and kept.slot is not None:
                    slots[i] = kept.slot
            tensors.append(found)
        incoming = Incoming(action, tensors)
        incoming.slots = slots
        return incoming

    def fetch(self, incoming: Incoming, now: float) -> None:
        """What no slot could be read of is asked for."""
        if incoming.awaited:
            self._ask(self._fetching.want(incoming, now))

    def came(self, frontend: str, message: wire.Fetched, frames: Iterator[Buffer], now: float) -> bool:
        """A frontend has answered; its inputs are the next of the frames. Returns whether somebody waited for that."""
        wrong = self._fetching.wrong
        useful, asks = self._fetching.came(frontend, message, list(islice(frames, message.frames)), now)
        self._ask(asks)
        if self._fetching.wrong > wrong:
            times = self._wrong.happened(frontend, now)
            if times:
                log.warning("inputs_wrong", frontend=frontend, request=message.request, times=times)
        return useful

    def opened(self, frontend: str) -> None:
        """A link to the frontend replaces one that was lost: what it did not answer is asked for again."""
        self._ask(self._fetching.opened(frontend, time.monotonic()))

    def lost(self, frontend: str) -> bool:
        """The frontend is gone. Returns whether something was wanted of it."""
        return self._fetching.gone(frontend)

    def give_up_gone(self) -> bool:
        """What was to be asked of frontends that are gone does not come. Returns whether there is such."""
        gone, self._gone = self._gone, set()
        return any([self._fetching.gone(frontend) for frontend in gone])

    # -- for the pump -------------------------------------------------------------------------------------------------

    def stale(self, incoming: Incoming) -> Sequence[int]:
        """The parts whose slots have been used anew, as their requests have ended."""
        return [part for part, slot in incoming.read_from if not self._reader.holds(slot)]

    def release(self, incoming: Incoming) -> None:
        """The inputs are in the device, or not wanted any more. Others have their turn."""
        self._ask(self._fetching.release(incoming, time.monotonic()))

    def tidy(self) -> None:
        """Memory of frontends that have ended is free. To be called now and then."""
        self._reader.sweep()

    def close(self) -> None:
        """No slot is read any more."""
        self._reader.close()

    def _ask(self, asks: Iterable[FetchOrder]) -> None:
        for ask in asks:
            if not self._links.ask(ask.frontend, ask.message) and ask.frontend not in self._gone:
                self._gone.add(ask.frontend)
                self._soon()
