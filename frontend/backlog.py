"""Answers that wait because a client's connection has no room for them. Pure."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from mesh.wire import Buffer

BYTES_EACH = 200  # size of an answer in memory, without its frames
C = TypeVar("C")


class QueuedAnswer(NamedTuple):
    """One answer to be sent."""

    header: bytes
    frames: Sequence[Buffer]

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        return BYTES_EACH + len(self.header) + sum(len(frame) for frame in self.frames)


class Backlog(Generic[C]):
    """Waiting answers of each client, oldest first; bounded in bytes for one client and for all together."""

    def __init__(self, client_bytes_max: int, bytes_max: int) -> None:
        self._client_bytes_max = client_bytes_max
        self._bytes_max = bytes_max
        self._waiting: dict[C, deque[QueuedAnswer]] = {}  # {client: answers}, without empty ones
        self._bytes: dict[C, int] = {}  # {client: bytes of its answers}
        self._bytes_all = 0
        self.count = 0  # answers of all clients

    def __contains__(self, client: C) -> bool:
        return client in self._waiting

    def put(self, client: C, answer: QueuedAnswer) -> bool:
        """Queues the answer behind the client's earlier ones. Returns False, and drops it, if there is no room."""
        size = answer.size
        held = self._bytes.get(client, 0)
        if held + size > self._client_bytes_max or self._bytes_all + size > self._bytes_max:
            return False
        self._waiting.setdefault(client, deque()).append(answer)
        self._bytes[client] = held + size
        self._bytes_all += size
        self.count += 1
        return True

    def flush(self, send: Callable[[C, QueuedAnswer], bool], most: int) -> int:
        """Sends each client's answers until `send` returns False, at most `most` in all. Returns how many were sent."""
        sent = 0
        for client, answers in list(self._waiting.items()):
            before = sent
            while answers and sent < most and send(client, answers[0]):
                size = answers.popleft().size
                self._bytes[client] -= size
                self._bytes_all -= size
                self.count -= 1
                sent += 1
            if not answers:
                del self._waiting[client], self._bytes[client]
            elif sent > before:
                self._waiting[client] = self._waiting.pop(client)  # the next flush begins with another client
        return sent

    def check(self) -> None:
        """Asserts that the counts match what waits."""
        assert self._waiting.keys() == self._bytes.keys()
        assert all(self._waiting.values())
        assert self.count == sum(len(answers) for answers in self._waiting.values())
        for client, answers in self._waiting.items():
            assert self._bytes[client] == sum(answer.size for answer in answers) <= self._client_bytes_max
        assert self._bytes_all == sum(self._bytes.values()) <= self._bytes_max
