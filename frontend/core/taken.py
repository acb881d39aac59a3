"""Which outputs of workers are new: each is taken once, in order, and confirmed. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from mesh import wire

CONFIRM_BYTES = 4 << 20  # so many bytes of frames and slots are confirmed at once; fewer with the next heartbeat
CONFIRM_MESSAGES = 512  # likewise


class Arrival(Enum):
    """What is to be done with outputs that have arrived."""

    TAKE = "take"
    DOUBLE = "double"  # they were taken before
    GAP = "gap"  # others have to come first: the worker is asked for them
    WAIT = "wait"  # likewise, and it was asked already
    OTHERS = "others"  # they are for another frontend


@dataclass(slots=True)
class TakenSoFar:
    """How far the outputs of one worker came."""

    through: int = 0  # all up to this number were taken, or given up by the worker
    unsaid: int = 0  # messages taken since that was confirmed last
    unsaid_bytes: int = 0
    asked: bool = False  # it was asked for those that are missing
    resent: int = 0  # messages that were taken from a later link than that on which they had been sent first
    slots: bool = True  # slots of its memory can be read here, as far as is known


@dataclass(slots=True)
class TakenOutputs:
    """What workers have sent to one frontend."""

    frontend: str
    resent: int = 0
    doubles: int = 0
    misaddressed: int = 0  # messages for another frontend
    gaps: int = 0
    _workers: dict[str, TakenSoFar] = field(default_factory=dict)  # those of the last table, and those with a link

    def arrived(self, worker: str, message: wire.Outputs, size: int) -> Arrival:
        """What to do with this message. `size`: bytes of its frames and slots."""
        if message.frontend and message.frontend != self.frontend:
            self.misaddressed += 1
            return Arrival.OTHERS
        if message.number <= 0:
            return Arrival.TAKE
        progress = self._of(worker)
        if message.number <= progress.through:
            self.doubles += 1
            return Arrival.DOUBLE
        progress.through = max(progress.through, min(message.oldest, message.number) - 1)
        if message.number > progress.through + 1:
            return self._gap(progress)
        progress.through = message.number
        progress.asked = False
        progress.unsaid += 1
        progress.unsaid_bytes += size
        if message.again:
            progress.resent += 1
            self.resent += 1
        return Arrival.TAKE

    def _gap(self, progress: TakenSoFar) -> Arrival:
        if progress.asked:
            return Arrival.WAIT
        progress.asked = True
        self.gaps += 1
        return Arrival.GAP

    def met(self, worker: str) -> None:
        """The worker has a new link: what was asked for on an older one may be asked for again."""
        progress = self._of(worker)
        progress.asked = False
        progress.slots = True

    def unreadable(self, worker: str) -> wire.Taken | None:
        """Slots of the worker's memory cannot be read here: it sends their contents from now on, as long as this link
        lasts. Returns what to tell it; None: it was told.

        The outputs that name them are not taken, nor to be told to `arrived`: they come again.
        """
        progress = self._of(worker)
        if not progress.slots:
            return None
        progress.slots = False
        progress.asked = True  # by the answer
        return self.confirm(worker)

    def due(self, worker: str) -> bool:
        """Whether to confirm now, ahead of the next heartbeat."""
        progress = self._of(worker)
        return progress.unsaid >= CONFIRM_MESSAGES or progress.unsaid_bytes >= CONFIRM_BYTES

    def confirm(self, worker: str) -> wire.Taken:
        """How far the worker's outputs have been taken, to be sent to it now."""
        progress = self._of(worker)
        progress.unsaid = progress.unsaid_bytes = 0
        return wire.Taken(number=progress.through, slots=progress.slots)

    def resent_by(self, worker: str) -> int:
        """Messages of this worker that were taken from a later link than their first."""
        progress = self._workers.get(worker)
        return 0 if progress is None else progress.resent

    def keep_only(self, workers: Iterable[str]) -> None:
        """All other workers are forgotten."""
        keep = set(workers)
        self._workers = {worker: progress for worker, progress in self._workers.items() if worker in keep}

    def _of(self, worker: str) -> TakenSoFar:
        progress = self._workers.get(worker)
        if progress is None:
            progress = self._workers[worker] = TakenSoFar()
        return progress
