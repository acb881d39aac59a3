"""Answers for which a client's connection has no room at the moment. Pure."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from mesh.wire import Buffer

BYTES_EACH = 200  # that an answer takes here beside its frames
C = TypeVar("C")


class Answer(NamedTuple):
    """What is to be sent."""

    header: bytes
    frames: Sequence[Buffer]

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return BYTES_EACH + len(self.header) + sum(len(frame) for frame in self.frames)


class Backlog(Generic[C]):
    """Waiting answers of each client, oldest first: so many bytes for one client, so many in all."""

    def __init__(self, client_bytes_max: int, bytes_max: int) -> None:
        self._client_bytes_max = client_bytes_max
        self._bytes_max = bytes_max
        self._waiting: dict[C, deque[Answer]] = {}  # no client without an answer
        self._bytes: dict[C, int] = {}  # of the same clients
        self._bytes_all = 0
        self.count = 0  # answers

    def __contains__(self, client: C) -> bool:
        return client in self._waiting

    def put(self, client: C, answer: Answer) -> bool:
        """The answer waits behind those before it; False: there is no room, and it does not."""
        size = answer.size
        held = self._bytes.get(client, 0)
        if held + size > self._client_bytes_max or self._bytes_all + size > self._bytes_max:
            return False
        self._waiting.setdefault(client, deque()).append(answer)
        self._bytes[client] = held + size
        self._bytes_all += size
        self.count += 1
        return True

    def flush(self, send: Callable[[C, Answer], bool], most: int) -> int:
        """Sends each client's answers until `send` says that there is no room, `most` in all; returns how many."""
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
                self._waiting[client] = self._waiting.pop(client)  # next time, it is another client's turn first
        return sent

    def check(self) -> None:
        """Raises: AssertionError if the counts are not those of what waits."""
        assert self._waiting.keys() == self._bytes.keys()
        assert all(self._waiting.values())
        assert self.count == sum(len(answers) for answers in self._waiting.values())
        for client, answers in self._waiting.items():
            assert self._bytes[client] == sum(answer.size for answer in answers) <= self._client_bytes_max
        assert self._bytes_all == sum(self._bytes.values()) <= self._bytes_max
