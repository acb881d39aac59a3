"""What waits on a line, as the envelopes in which it will leave. Pure.

All messages of a turn share an envelope, unless they have large tensors: a peer sees nothing of an envelope, nor hears
anything, before the last byte of it is there. So once the tensors of an envelope have a megabyte, the next one begins.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from mesh.wire import Buffer

ENVELOPE_BYTES: Final = 1 << 20  # of tensors: the message with which an envelope has so many is its last


class Held:
    """An envelope that is about to leave, or for which the peer had no room: encoded once, sent when there is room."""

    __slots__ = ("body", "frames", "messages")

    def __init__(self, body: bytes, frames: list[Buffer], messages: int) -> None:
        self.body = body
        self.frames = frames
        self.messages = messages


class Unsent:
    """Messages of one line, and their frames, in order."""

    __slots__ = ("_frames", "_frames_bytes", "_full", "_messages", "held")

    def __init__(self) -> None:
        self.held: Held | None = None  # ahead of all others
        self._full: deque[tuple[list[Any], list[Buffer]]] = deque()  # (messages, their frames) of full envelopes
        self._messages: list[Any] = []  # of the last envelope, which has room for more
        self._frames: list[Buffer] = []  # of these messages
        self._frames_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._messages or self._full or self.held is not None)

    def __len__(self) -> int:
        count = len(self._messages) + (0 if self.held is None else self.held.messages)
        for messages, _ in self._full:
            count += len(messages)
        return count

    @property
    def size(self) -> int:
        """Bytes of tensors, and of what was encoded."""
        size = self._frames_bytes
        if self.held is not None:
            size += len(self.held.body) + sum(map(len, self.held.frames))
        for _, frames in self._full:
            size += sum(map(len, frames))
        return size

    def add(self, message: object, frames: Sequence[Buffer]) -> None:
        """A message with its frames leaves behind all others."""
        self._messages.append(message)
        if frames:
            self._frames.extend(frames)
            self._frames_bytes += sum(map(len, frames))
            if self._frames_bytes >= ENVELOPE_BYTES:
                self._full.append(self._take())

    def next(self) -> tuple[list[Any], list[Buffer]]:
        """The messages of the next envelope, and their frames: they wait no more."""
        return self._full.popleft() if self._full else self._take()

    def all(self) -> tuple[list[Any], list[Buffer]]:
        """All messages, and their frames, for a peer in this process: they wait no more."""
        messages, frames = self.next()
        while self._full or self._messages:
            more, their_frames = self.next()
            messages += more
            frames += their_frames
        return messages, frames

    def clear(self) -> None:
        """Nothing waits any more."""
        self.held = None
        self._full.clear()
        self._take()

    def _take(self) -> tuple[list[Any], list[Buffer]]:
        taken = self._messages, self._frames
        self._messages, self._frames, self._frames_bytes = [], [], 0
        return taken
