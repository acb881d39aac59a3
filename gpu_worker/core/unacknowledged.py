"""Outputs that a frontend has not confirmed: kept for the link that replaces a lost one. Pure."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from mesh import wire
from mesh.wire import Buffer

BYTES_MAX = 64 << 20  # for one frontend; its confirmations come every 4 MiB, or with its heartbeats
AGE_S_MAX = 60.0  # nobody is without a link for so long but who is gone


class Sent(NamedTuple):
    """One message, and the frames that belong to it."""

    message: wire.Outputs
    frames: Sequence[Buffer]
    size: int  # bytes that stay in memory for it
    at_s: float
    slots: int  # of shared memory that its answers name


Copies = Callable[[wire.Kept], Sequence[Buffer] | None]  # of outputs that are kept; None: they are kept no longer


@dataclass(slots=True)
class Unacknowledged:
    """What one frontend was sent.

    What is kept is always the latest, without a gap: where there is no room, the oldest are given up. They were sent,
    and most likely came; if their link was lost, the frontend's own deadline answers. What came may still have to be
    read: so slots that are named by those given up stay until they are confirmed, too.
    """

    number: int = 0  # of the last message; at first one below the first. Two of these for one frontend do not overlap
    given_up: int = 0  # messages that are kept no longer though they were not confirmed
    size: int = 0  # bytes of those kept
    _kept: deque[Sent] = field(default_factory=deque)  # in order of their numbers, without a gap
    _lingering: deque[tuple[int, Sent]] = field(default_factory=deque)  # (number, message with slots), given up
    _lingering_bytes: int = 0
    _free: list[wire.Slot] = field(default_factory=list)  # that nobody will look for any more

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, message: wire.Outputs, frames: Sequence[Buffer], size: int, now: float) -> wire.Outputs:
        """The message with its number, as it is to be sent; it is kept until it is confirmed, or given up."""
        self.number += 1
        self._kept.append(Sent(message, frames, size, now, sum(answer.kept is not None for answer in message.answers)))
        self.size += size
        while self._kept and (self.size > BYTES_MAX or now - self._kept[0].at_s > AGE_S_MAX):
            self._give_up()
        while self._lingering and now - self._lingering[0][1].at_s > AGE_S_MAX:
            self._forget()
        return self._numbered(message, self.number, again=False)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more can be kept without giving anything up: only then may outputs lie in slots."""
        return self.size + self._lingering_bytes + size <= BYTES_MAX

    def pass_by(self, message: wire.Outputs) -> wire.Outputs:
        """The message with its number, of a link on which nothing is lost: nothing is kept."""
        self.number += 1
        return self._numbered(message, self.number, again=False)

    def confirmed(self, number: int) -> None:
        """The frontend has all messages up to this number."""
        while self._lingering and self._lingering[0][0] <= number:
            self._forget()
        kept = self._kept
        oldest = self.oldest
        while kept and oldest <= number:
            self._drop()
            oldest += 1

    def clear(self) -> None:
        """The frontend is gone: nothing is kept."""
        self.given_up += len(self._kept)
        while self._kept:
            self._drop()
        while self._lingering:
            self._forget()

    def freed(self) -> list[wire.Slot]:
        """Slots that are needed no more, since the last call."""
        free = self._free
        if free:
            self._free = []
        return free

    def unshare(self, copies: Copies) -> None:
        """Outputs that are kept in slots are frames from now on, as the frontend cannot read slots.

        Those of which there is no copy any more are given up, with all that is older.
        """
        while self._lingering:
            self._forget()
        kept, self._kept = self._kept, deque()
        for sent in kept:
            self._kept.append(sent)
            if not sent.slots:
                continue
            whole = _in_frames(sent, copies)
            if whole is None:
                self.given_up += len(self._kept)
                while self._kept:
                    self._drop()
                continue
            self._free.extend(_slots(sent.message))
            self._kept[-1] = whole

    def again(self) -> list[tuple[wire.Outputs, Sequence[Buffer]]]:
        """All messages that are not confirmed, in order, as they are to be sent again."""
        oldest = self.oldest
        return [
            (self._numbered(sent.message, oldest + i, again=True), sent.frames) for i, sent in enumerate(self._kept)
        ]

    @property
    def oldest(self) -> int:
        """The least number that may be sent again; the next one's, if nothing is kept."""
        return self.number + 1 - len(self._kept)

    def _give_up(self) -> None:
        """The oldest message is kept no longer. It was sent, and names slots until the frontend says that it has it."""
        number, sent = self.oldest, self._kept.popleft()
        self.size -= sent.size
        self.given_up += 1
        if sent.slots:
            self._lingering.append((number, sent._replace(frames=())))
            self._lingering_bytes += sent.size

    def _forget(self) -> None:
        _, sent = self._lingering.popleft()
        self._lingering_bytes -= sent.size
        self._free.extend(_slots(sent.message))

    def _drop(self) -> None:
        sent = self._kept.popleft()
        self.size -= sent.size
        if sent.slots:
            self._free.extend(_slots(sent.message))

    def _numbered(self, message: wire.Outputs, number: int, *, again: bool) -> wire.Outputs:
        oldest = min(number, self.oldest)
        return msgspec.structs.replace(message, number=number, oldest=oldest, again=again)

    def check(self) -> None:
        """Asserts every invariant."""
        assert self.size == sum(sent.size for sent in self._kept)
        assert self.size <= BYTES_MAX
        assert len(self._kept) <= self.number
        assert self._kept == deque(sorted(self._kept, key=lambda sent: sent.at_s))
        slots = [slot for sent in self._kept for slot in _slots(sent.message)]
        assert len(slots) == sum(sent.slots for sent in self._kept)
        assert self._lingering_bytes == sum(sent.size for _, sent in self._lingering)
        assert all(number < self.oldest for number, _ in self._lingering)
        slots += [slot for _, sent in self._lingering for slot in _slots(sent.message)]
        assert not set(slots) & set(self._free)


def _slots(message: wire.Outputs) -> list[wire.Slot]:
    kept = [answer.kept for answer in message.answers if answer.kept is not None]
    return [each.slot for each in kept if each.slot is not None]


def _in_frames(sent: Sent, copies: Copies) -> Sent | None:
    """The same, with frames in place of slots; None: outputs in a slot are kept no longer."""
    frames = list(sent.frames)
    at, answers = 0, []
    for answer in sent.message.answers:
        found: Sequence[Buffer] | None = None
        if answer.kept is not None:
            found = copies(answer.kept)
            if found is None:
                return None
            frames[at:at] = found
            answer = msgspec.structs.replace(answer, kept=None, frames=len(found))
        at += answer.frames
        answers.append(answer)
    message = msgspec.structs.replace(sent.message, answers=tuple(answers))
    return Sent(message, frames, sent.size, sent.at_s, 0)
