"""One model version's waiting requests, in order of deadline. Pure."""

import heapq
import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field

from mesh.codes import RequestOutcome
from mesh.sizes import Extents
from mesh.wire import Kept

Client = tuple[str, int]  # (frontend, its number of the client)
COMPACT_AT = 256  # requests taken from the head before the lists are cut
RANK_STEP = math.log(1.05)  # of shares, in log units: requests of one rank cost about the same


class Request:
    """One request that waits for its batch, or is bound to one. Instants in the controller's clock."""

    __slots__ = (
        "admitted", "answered", "apart", "arrived_s", "asked_id", "attempt", "call", "client", "closed", "cold",
        "deadline_s", "extents", "frontend", "group", "host", "inline", "kept", "kept_bytes", "killed", "latest_s",
        "number", "predicted_s", "rank", "ref", "rows", "share_s", "tries", "waiting", "weight",
    )  # fmt: skip

    def __init__(
        self,
        frontend: str,
        number: int,
        attempt: int,
        ref: str,
        rows: int,
        arrived_s: float,
        deadline_s: float,
        weight: float,
        extents: Extents = (),
        client: int = 0,
        asked_id: str = "",
        call: int = 0,
        inline: tuple[memoryview, ...] = (),
        kept: Kept | None = None,
        host: str = "",
    ) -> None:
        self.frontend = frontend
        self.number = number  # the frontend's
        self.attempt = attempt
        self.ref = ref
        self.rows = rows
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s  # for the end of OUTPUT; the return allowance is already taken off
        self.weight = weight
        self.extents = extents  # of its inputs, in the model's open dimensions
        self.client = client  # the frontend's number of who asks; 0: unknown
        self.asked_id = asked_id  # its client's id, for the log
        self.call = call  # number of the first part of what its client asked; 0: it is that
        self.inline = inline  # its inputs, on their way from frontend to worker
        self.kept = kept  # or: its frontend keeps them
        self.kept_bytes = 0 if kept is None else sum(kept.sizes)  # of inputs that its frontend keeps
        self.host = host  # of its frontend, if that keeps its inputs; empty: unknown
        self.predicted_s = 0.0  # latency from arrival, as admission predicted it
        self.tries = 0  # actions that took it up and failed
        self.apart = 0  # of these, actions after which it was tried apart
        self.group: Group | None = None  # it is executed with requests of this group only; None: with any
        self.killed = False  # it was in a batch during which its process died
        self.cold = False  # its model was on no device when it arrived
        self.admitted = False  # it waited once, or still does
        self.waiting = False  # in its model's queue
        self.answered: RequestOutcome | None = None  # what its client saw, where outputs came before their result did
        self.closed = False  # answered, refused or cancelled: whoever still holds it must not plan it
        self.share_s = 0.0  # while it waits, with extents: EXEC time of its rows in the cheapest batches, at scale 1
        self.rank = 0  # likewise: of the share of one row by its weight: of a lower rank is what earns more per second
        self.latest_s = math.inf  # likewise: EXEC has to start by then to end in time if it is alone

    @property
    def asker(self) -> Client:
        """The client that sent it."""
        return self.frontend, self.client

    @property
    def near(self) -> str:
        """The host whose workers read its inputs from memory that they share; empty: all have to fetch them."""
        return self.host if self.kept is not None and self.kept.slot is not None else ""

    def let_go(self) -> None:
        """It has ended: whoever still holds it does not keep its inputs."""
        self.inline, self.kept = (), None


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
class Rank:
    """Waiting requests of one rank, earliest deadline first: one entry of each list for each request."""

    deadlines: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # their share_s
    share_s: float = 0.0  # the sum of these

    def add(self, request: Request) -> None:
        """The request is one of them."""
        at = bisect_right(self.deadlines, request.deadline_s)
        self.deadlines.insert(at, request.deadline_s)
        self.shares.insert(at, request.share_s)
        self.share_s += request.share_s

    def remove(self, request: Request) -> None:
        """The request, which is one of them, is none any more."""
        at = self.shares.index(request.share_s, bisect_left(self.deadlines, request.deadline_s))
        del self.deadlines[at], self.shares[at]
        self.share_s = max(0.0, self.share_s - request.share_s) if self.shares else 0.0

    def until(self, deadline_s: float) -> float:
        """Sum of the shares of those whose deadline is not later."""
        count = bisect_right(self.deadlines, deadline_s)
        return self.share_s if count == len(self.shares) else sum(self.shares[:count], 0.0)


@dataclass(slots=True)
class ModelQueue:
    """Waiting requests, earliest deadline first, ties in order of arrival.

    Of requests with extents it also knows what they cost, and whose start is due first, which need not be the first.
    `deadlines[i]` belongs to `requests[i]`. Both start at `head`; what lies before it has been taken.
    """

    deadlines: list[float] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    head: int = 0
    rows: int = 0  # of all waiting requests
    many: int = 0  # waiting requests with more than one row
    weighted: int = 0  # waiting requests whose weight is not 1
    kept: int = 0  # waiting requests whose frontends keep their inputs
    kept_bytes: dict[str, int] = field(default_factory=dict)  # {host of their frontends: bytes of these inputs}
    near_bytes: dict[str, int] = field(default_factory=dict)  # {host: of these, what workers there read where it lies}
    share_s: float = 0.0  # of all waiting requests with extents; so below
    ranks: dict[int, Rank] = field(default_factory=dict)
    _starts: list[tuple[float, int, Request]] = field(default_factory=list)  # heap of (latest_s, order, request), and
    # of some that were taken
    _order: int = 0  # of the last that was pushed there

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
        if self._starts:
            self._starts.clear()
            self.ranks.clear()
            self.share_s = 0.0

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
        return sum([request.weight for request in self.requests[start : start + count]], 0.0)

    def _count(self, request: Request, sign: int) -> None:
        request.waiting = sign > 0
        request.admitted = True
        self.rows += sign * request.rows
        if request.rows > 1:
            self.many += sign
        if request.weight != 1.0:
            self.weighted += sign
        if request.kept_bytes:
            self._count_kept(request, sign)
        if request.extents:
            self._count_cost(request, sign)

    def _count_kept(self, request: Request, sign: int) -> None:
        self.kept += sign
        _add(self.kept_bytes, request.host, sign * request.kept_bytes)
        if request.near:
            _add(self.near_bytes, request.near, sign * request.kept_bytes)

    # -- requests with extents ----------------------------------------------------------------------------------------

    def _count_cost(self, request: Request, sign: int) -> None:
        share_s = sign * request.share_s
        self.share_s = max(0.0, self.share_s + share_s)
        if sign > 0:
            self.ranks.setdefault(request.rank, Rank()).add(request)
            self._note_start(request)
        else:
            rank = self.ranks[request.rank]
            rank.remove(request)
            if not rank.shares:
                del self.ranks[request.rank]

    def _note_start(self, request: Request) -> None:
        if len(self._starts) > 2 * len(self) + COMPACT_AT:
            self._starts = [entry for entry in self._starts if _is_current(entry)]
            heapq.heapify(self._starts)
        self._order += 1
        heapq.heappush(self._starts, (request.latest_s, self._order, request))

    def share_before(self, rank: int, deadline_s: float) -> float:
        """Sum of the shares of who waits: of lower ranks, and of this one those whose deadline is not later."""
        own = self.ranks.get(rank)
        own_s = own.until(deadline_s) if own is not None else 0.0
        return own_s + sum([other.share_s for known, other in self.ranks.items() if known < rank], 0.0)

    def first_start_s(self) -> float:
        """The earliest `latest_s` of waiting requests with extents; infinity if there are none."""
        starts = self._starts
        while starts and not _is_current(starts[0]):
            heapq.heappop(starts)
        return starts[0][0] if starts else math.inf

    def starts_before(self, at_s: float) -> list[Request]:
        """Waiting requests that had to start before; each has to be taken now, or told its new `latest_s` by `starts`.

        The one that has to start first comes first.
        """
        found: dict[int, Request] = {}
        while self.first_start_s() < at_s:
            request = heapq.heappop(self._starts)[2]
            found[id(request)] = request  # it may be there twice, if it was taken and came back
        return list(found.values())

    def starts(self, request: Request, latest_s: float) -> None:
        """The request, which waits, has to start by then."""
        request.latest_s = latest_s
        self._note_start(request)

    def check(self) -> None:
        """Every invariant holds."""
        waiting = self.requests[self.head :]
        assert waiting or not self.requests, "an empty queue keeps requests"
        assert self.deadlines[self.head :] == [request.deadline_s for request in waiting]
        assert self.deadlines[self.head :] == sorted(self.deadlines[self.head :])
        assert self.rows == sum(request.rows for request in waiting)
        assert self.many == sum(request.rows > 1 for request in waiting)
        assert self.weighted == sum(request.weight != 1.0 for request in waiting)
        assert self.kept == sum(request.kept_bytes > 0 for request in waiting)
        assert self.kept_bytes == _kept_bytes(waiting, [request.host for request in waiting])
        assert self.near_bytes == _kept_bytes([r for r in waiting if r.near], [r.near for r in waiting if r.near])
        assert not any(request.closed for request in waiting)
        self._check_costs([request for request in waiting if request.extents])
        assert all(request.waiting for request in waiting)

    def _check_costs(self, waiting: list[Request]) -> None:
        total_s = sum((request.share_s for request in waiting), 0.0)
        assert abs(self.share_s - total_s) <= 1e-9 + 1e-6 * total_s
        assert abs(sum((rank.share_s for rank in self.ranks.values()), 0.0) - total_s) <= 1e-9 + 1e-6 * total_s
        for number, rank in self.ranks.items():
            known = sorted((request.deadline_s, request.share_s) for request in waiting if request.rank == number)
            assert known == sorted(zip(rank.deadlines, rank.shares, strict=True))
            assert rank.deadlines == sorted(rank.deadlines)
        assert {id(request) for request in waiting} <= {id(entry[2]) for entry in self._starts if _is_current(entry)}


def _add(sizes: dict[str, int], host: str, size: int) -> None:
    """So much more, or less, is of this host; nothing is noted of hosts of which nothing is."""
    left = sizes.get(host, 0) + size
    if left:
        sizes[host] = left
    else:
        sizes.pop(host, None)


def _kept_bytes(requests: list[Request], hosts: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for request, host in zip(requests, hosts, strict=True):
        if request.kept_bytes:
            found[host] = found.get(host, 0) + request.kept_bytes
    return found


def _is_current(entry: tuple[float, int, Request]) -> bool:
    """Whether the entry is of a request that waits, and says by when it has to start."""
    return entry[2].waiting and entry[0] == entry[2].latest_s


def rank_of(share_s: float) -> int:
    """The rank of a row with this share."""
    return math.floor(math.log(max(share_s, 1e-9)) / RANK_STEP)
