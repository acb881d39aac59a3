"""Messages of clients that were read, and wait for their turn, because the frontend is behind. Pure.

The frontend processes messages as it reads them, as long as it keeps up. Once it does not, it reads on, which is cheap,
and keeps what it reads here with the instant of its arrival. So the time that a message waits is known, and what has
waited too long is refused at once, before its tensors are decoded.

Clients take turns, one message each; the messages of one client keep their order. A message may always wait for
TARGET_S. In a burst it may wait for half of its budget. When something has waited at every instant of the last BURST_S,
or of the last tenth of its budget, this is no burst. Source: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue
10(5), 2012; for servers: Maurer, "Fail at Scale", ACM Queue 13(8), 2015.

What waits is bounded in number and bytes, of which one client has a share (shares.py). While there is no burst, the
number is what can be processed in TARGET_S, by the pace of late: then what comes beyond is refused before it waits.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from frontend.core.shares import fits

TARGET_S = 0.008  # every message may wait so long
BURST_S, BURST_BUDGETS = 0.1, 0.1  # what lasts longer, in seconds and in budgets, is no burst
BURST_WAIT_BUDGETS = 0.5  # how long a message may wait in a burst
COUNT_MIN = 16  # so many may always wait
PACE_WEIGHT = 0.1  # of the latest in the mean time between two messages that are processed
MESSAGE_BYTES = 500  # size of a message in memory, without its header and frames
C = TypeVar("C", bound=Hashable)


def may_wait(waited_s: float, budget_s: float, behind_s: float) -> bool:
    """Whether a message is still processed that has waited so long, where something has waited for `behind_s`."""
    if waited_s <= TARGET_S:
        return True
    return behind_s <= max(BURST_S, BURST_BUDGETS * budget_s) and waited_s <= BURST_WAIT_BUDGETS * budget_s


class WaitingMessage(NamedTuple):
    """A message that was read."""

    header: bytes
    frames: list[Any]
    arrived_s: float  # not before that
    size: int  # bytes in memory


@dataclass(slots=True)
class ClientQueue:
    """Messages of one client, oldest first."""

    messages: deque[WaitingMessage] = field(default_factory=deque)
    bytes: int = 0


class Intake(Generic[C]):
    """All messages that wait."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max, self._bytes_max = count_max, bytes_max
        self._queues: dict[C, ClientQueue] = {}  # without empty ones
        self._turns: deque[C] = deque()  # the same clients, the next one first
        self._count = self._bytes = 0
        self._pace_s = 0.0  # mean time that one message of those that wait takes, of late
        self._behind_s: float | None = None  # since when something has waited all the time; None: nothing does

    def __len__(self) -> int:
        return self._count

    @property
    def bytes_held(self) -> int:
        """Bytes of all that waits."""
        return self._bytes

    def put(self, client: C, header: bytes, frames: list[Any], arrived_s: float, now: float) -> bool:
        """The message waits behind its client's earlier ones. False: it does not, as there is no room for it."""
        size = MESSAGE_BYTES + len(header)
        if frames:
            size += sum(map(len, frames))
        queue = self._queues.get(client)
        count, held = (len(queue.messages), queue.bytes) if queue is not None else (0, 0)
        if not fits(count, 1, self._count, self._room(now)) or not fits(held, size, self._bytes, self._bytes_max):
            return False
        if queue is None:
            queue = self._queues[client] = ClientQueue()
            self._turns.append(client)
        if self._behind_s is None:
            self._behind_s = now
        queue.messages.append(WaitingMessage(header, frames, arrived_s, size))
        queue.bytes += size
        self._count += 1
        self._bytes += size
        return True

    def behind_s(self, now: float) -> float:
        """For how long something has waited at every instant."""
        return 0.0 if self._behind_s is None else now - self._behind_s

    def processed(self, count: int, took_s: float) -> None:
        """So many messages that waited were processed, in so long, all that went on between them included."""
        self._pace_s += PACE_WEIGHT * (took_s / count - self._pace_s)

    def _room(self, now: float) -> int:
        """How many messages may wait."""
        if self._behind_s is None or now - self._behind_s <= BURST_S or not self._pace_s:
            return self._count_max
        return min(self._count_max, max(COUNT_MIN, int(TARGET_S / self._pace_s)))

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
        if not self._count:
            self._behind_s = None

    def check(self) -> None:
        """Asserts every invariant."""
        assert sorted(map(hash, self._turns)) == sorted(map(hash, self._queues))
        assert all(queue.messages for queue in self._queues.values())
        for queue in self._queues.values():
            assert queue.bytes == sum(message.size for message in queue.messages)
        assert self._count == sum(len(queue.messages) for queue in self._queues.values()) <= self._count_max
        assert self._bytes == sum(queue.bytes for queue in self._queues.values()) <= self._bytes_max
        assert (self._behind_s is None) == (not self._count)
