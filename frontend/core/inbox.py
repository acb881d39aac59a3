"""Messages of clients that were read, and wait for their turn, because the frontend is behind. Pure.

The frontend processes messages as it reads them, as long as it keeps up. Once it does not, it reads on, which is cheap,
and keeps what it reads here with the instant of its arrival. So the time that a message waits is known, and what has
waited too long is refused at once, before its tensors are decoded.

Clients take turns, one message each; the messages of one client keep their order. So it is known how long a message
will wait, by the pace of late: one that would wait for more than WAIT_BUDGETS of its budget is refused before it does.
One that has waited for OVERDUE_BUDGETS all the same is refused when its turn comes. A message may always wait for
TARGET_S. Like CoDel it is the time that decides, as what a number of messages means differs with the load. Source:
Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012; for servers: Maurer, "Fail at Scale", ACM Queue
13(8), 2015; clients in turns: Nagle, RFC 970.

What waits is bounded in number and bytes, of which one client has a share (shares.py).
"""

from collections import deque
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from frontend.core.shares import fits

TARGET_S = 0.005
WAIT_BUDGETS = 0.125
OVERDUE_BUDGETS = 0.5
ROUND = 2.5  # as much time as these messages take, the reading of others takes, and half as much all else
PACE_S = 50e-6  # of one message, until it was measured
PACE_S_MAX = 500e-6  # more is none: the process was stopped meanwhile
PACE_MESSAGES = 200  # of which it is the mean, about
MESSAGE_BYTES = 500  # size of a message in memory, without its header and frames
C = TypeVar("C", bound=Hashable)


def may_wait(waited_s: float, more_s: float, budget_s: float) -> bool:
    """Whether a message of this budget that has waited so long, and would wait for so much longer, is worth it."""
    return waited_s + more_s <= TARGET_S or (
        more_s <= WAIT_BUDGETS * budget_s and waited_s <= OVERDUE_BUDGETS * budget_s
    )


class WaitingMessage:
    """A message that was read."""

    __slots__ = ("arrived_s", "frames", "header", "size")

    def __init__(self, header: bytes | memoryview, frames: list[Any], arrived_s: float, size: int) -> None:
        self.header = header
        self.frames = frames
        self.arrived_s = arrived_s  # not before that
        self.size = size  # bytes in memory


class ClientQueue:
    """Messages of one client, oldest first."""

    __slots__ = ("bytes", "messages")

    def __init__(self) -> None:
        self.messages: deque[WaitingMessage] = deque()
        self.bytes = 0


class Inbox(Generic[C]):
    """All messages that wait."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max, self._bytes_max = count_max, bytes_max
        self._queues: dict[C, ClientQueue] = {}  # without empty ones
        self._turns: deque[C] = deque()  # the same clients, the next one first
        self._count = self._bytes = 0
        self._pace_s = PACE_S  # mean time that one message takes, of late, with its part of all else

    def __len__(self) -> int:
        return self._count

    @property
    def bytes_held(self) -> int:
        """Bytes of all that waits."""
        return self._bytes

    def wait_s(self, client: C) -> float:
        """How long one more message of this client will wait."""
        queue = self._queues.get(client)
        if queue is None:
            return self._pace_s * (len(self._queues) + 1)
        return self._pace_s * (len(queue.messages) + 1) * len(self._queues)

    def put(self, client: C, header: bytes | memoryview, frames: list[Any], arrived_s: float) -> bool:
        """The message waits behind its client's earlier ones. False: it does not, as there is no room for it."""
        size = MESSAGE_BYTES + len(header)
        if frames:
            size += sum(map(len, frames))
        queue = self._queues.get(client)
        count, held = (len(queue.messages), queue.bytes) if queue is not None else (0, 0)
        if not fits(count, 1, self._count, self._count_max) or not fits(held, size, self._bytes, self._bytes_max):
            return False
        if queue is None:
            queue = self._queues[client] = ClientQueue()
            self._turns.append(client)
        queue.messages.append(WaitingMessage(header, frames, arrived_s, size))
        queue.bytes += size
        self._count += 1
        self._bytes += size
        return True

    def processed(self, count: int, took_s: float) -> None:
        """So many messages were processed, one after the other, in so long."""
        kept = PACE_MESSAGES / (PACE_MESSAGES + count)
        self._pace_s = min(PACE_S_MAX, kept * self._pace_s + (1 - kept) * ROUND * took_s / count)

    def take(self) -> tuple[C, WaitingMessage] | None:
        """The next client's oldest message, which waits no more; None if nothing waits."""
        if not self._turns:
            return None
        client = self._turns.popleft()
        queue = self._queues[client]
        message = queue.messages.popleft()
        self._took(queue, message)
        if queue.messages:
            self._turns.append(client)
        else:
            del self._queues[client]
        return client, message

    def drop(self, client: C) -> int:
        """Nothing of this client waits any more. Returns how many messages did."""
        queue = self._queues.pop(client, None)
        if queue is None:
            return 0
        self._turns.remove(client)
        count = len(queue.messages)
        for message in list(queue.messages):
            self._took(queue, message)
        return count

    def _took(self, queue: ClientQueue, message: WaitingMessage) -> None:
        queue.bytes -= message.size
        self._bytes -= message.size
        self._count -= 1

    def check(self) -> None:
        """Asserts every invariant."""
        assert sorted(map(hash, self._turns)) == sorted(map(hash, self._queues))
        assert all(queue.messages for queue in self._queues.values())
        for queue in self._queues.values():
            assert queue.bytes == sum(message.size for message in queue.messages)
        assert self._count == sum(len(queue.messages) for queue in self._queues.values()) <= self._count_max
        assert self._bytes == sum(queue.bytes for queue in self._queues.values()) <= self._bytes_max
