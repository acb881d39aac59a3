"""One model version's waiting requests, in order of deadline. Pure."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.codes import RequestOutcome
from mesh.sizes import Extents

Client = tuple[str, int]  # (frontend, its number of the client)
COMPACT_AT = 256  # requests taken from the head before the lists are cut


@dataclass(slots=True, eq=False)
class Request:
    """One request that waits for its batch, or is bound to one. Instants in the controller's clock."""

    frontend: str
    number: int  # the frontend's
    attempt: int
    ref: str
    rows: int
    arrived_s: float
    deadline_s: float  # for the end of OUTPUT; the return allowance is already taken off
    weight: float
    tensors: Sequence[Any] = ()  # not looked at: on their way from frontend to worker
    large: bool = False  # the tensors travel as frames of their own
    client: int = 0  # the frontend's number of who asks; 0: unknown
    asked_id: str = ""  # its client's id, for the log
    call: int = 0  # number of the first part of what its client asked; 0: it is that
    predicted_s: float = 0.0  # latency from arrival, as admission predicted it
    tries: int = 0  # actions that took it up and failed
    apart: int = 0  # of these, actions after which it was tried apart
    group: "Group | None" = None  # it is executed with requests of this group only; None: with any
    killed: bool = False  # it was in a batch during which its process died
    cold: bool = False  # its model was on no device when it arrived
    admitted: bool = False  # it waited once, or still does
    waiting: bool = False  # in its model's queue
    answered: RequestOutcome | None = None  # what its client saw, where outputs came before their result did
    closed: bool = False  # answered, refused or cancelled: whoever still holds it must not plan it
    extents: Extents = ()  # of its inputs, in the model's open dimensions; so below: set while it waits

    @property
    def asker(self) -> Client:
        """The client that sent it."""
        return self.frontend, self.client


@dataclass(slots=True, eq=False)
class Group:
    """Requests of one version that may be executed together, and with nobody else."""

    ref: str
    requests: list[Request] = field(default_factory=list)  # that wait apart, earliest deadline first
    owner: Client | None = None  # whose requests they are; None: of several, whose batch failed
    trial: bool = False  # one at a time, and nothing behind it: it may end its process
    since_s: float = 0.0  # when the batch was sent of which it is a part

    def add(self, request: Request) -> None:
        """The request belongs to the group, and waits apart."""
        request.group = self
        insort(self.requests, request, key=_deadline)


def _deadline(request: Request) -> float:
    return request.deadline_s


@dataclass(slots=True)
class ModelQueue:
    """Waiting requests, earliest deadline first, ties in order of arrival.

    `deadlines[i]` belongs to `requests[i]`. Both start at `head`; what lies before it has been taken.
    """

    deadlines: list[float] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    head: int = 0
    rows: int = 0  # of all waiting requests
    many: int = 0  # waiting requests with more than one row
    weighted: int = 0  # waiting requests whose weight is not 1

    def __len__(self) -> int:
        return len(self.requests) - self.head

    def push(self, request: Request) -> None:
        """The request waits, behind all whose deadline is not later."""
        if self.deadlines and self.deadlines[-1] > request.deadline_s:
            at = bisect_right(self.deadlines, request.deadline_s, self.head)
            self.deadlines.insert(at, request.deadline_s)
            self.requests.insert(at, request)
        else:
            self.deadlines.append(request.deadline_s)
            self.requests.append(request)
        self._count(request, 1)

    def first(self) -> Request:
        """The request with the earliest deadline. Raises: IndexError."""
        return self.requests[self.head]

    def before(self, deadline_s: float) -> int:
        """How many of the waiting requests have an earlier deadline than this."""
        return bisect_left(self.deadlines, deadline_s, self.head) - self.head

    def take(self, count: int) -> list[Request]:
        """The first `count` requests, which wait no longer."""
        end = self.head + count
        taken = self.requests[self.head : end]
        self.head = end
        for request in taken:
            self._count(request, -1)
        if self.head == len(self.requests):
            self._clear()
        elif self.head >= COMPACT_AT:
            del self.requests[: self.head]
            del self.deadlines[: self.head]
            self.head = 0
        return taken

    def _clear(self) -> None:
        """Nobody waits; those that were taken are not kept."""
        self.requests.clear()
        self.deadlines.clear()
        self.head = 0

    def remove(self, request: Request) -> bool:
        """The request waits no longer. False if it did not."""
        at = bisect_left(self.deadlines, request.deadline_s, self.head)
        while at < len(self.requests) and self.deadlines[at] == request.deadline_s:
            if self.requests[at] is request:
                del self.requests[at]
                del self.deadlines[at]
                self._count(request, -1)
                if self.head == len(self.requests):
                    self._clear()
                return True
            at += 1
        return False

    def count_for(self, rows: int, skip: int = 0) -> int:
        """How many requests fit into a batch of so many rows, from the head on, after `skip` of them."""
        if not self.many:
            return min(len(self) - skip, rows)
        count = 0
        for request in self.requests[self.head + skip :]:
            rows -= request.rows
            if rows < 0:
                break
            count += 1
        return count

    def rows_of(self, count: int, skip: int = 0) -> int:
        """Rows of `count` requests from the head on, after `skip` of them."""
        if not self.many:
            return count
        start = self.head + skip
        return sum(request.rows for request in self.requests[start : start + count])

    def weight_of(self, count: int, skip: int = 0) -> float:
        """Sum of the weights of `count` requests from the head on, after `skip` of them."""
        if not self.weighted:
            return float(count)
        start = self.head + skip
        return sum(request.weight for request in self.requests[start : start + count])

    def _count(self, request: Request, sign: int) -> None:
        request.waiting = sign > 0
        request.admitted = True
        self.rows += sign * request.rows
        if request.rows > 1:
            self.many += sign
        if request.weight != 1.0:
            self.weighted += sign

    def check(self) -> None:
        """Every invariant holds."""
        waiting = self.requests[self.head :]
        assert waiting or not self.requests, "an empty queue keeps requests"
        assert self.deadlines[self.head :] == [request.deadline_s for request in waiting]
        assert self.deadlines[self.head :] == sorted(self.deadlines[self.head :])
        assert self.rows == sum(request.rows for request in waiting)
        assert self.many == sum(request.rows > 1 for request in waiting)
        assert self.weighted == sum(request.weight != 1.0 for request in waiting)
        assert not any(request.closed for request in waiting)
        assert all(request.waiting for request in waiting)
