"""Clients whose requests failed alone, or ended a process: for a while their requests are executed apart. Pure.

A client is *proven* bad by a request that failed alone while the version worked for others. One whose request was in a
batch that failed, and that gave up before it could be tried apart, is only *suspected*: its first batch that ends well
clears it, but not a second time. A request that ended its process alone is a *strike*, and so is a suspect's own batch
that did, of which it had given up a request; a client with two is refused for pauses that grow.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from controller.core.failures import DOUBLINGS_MAX
from controller.core.isolation.budget import Budget
from controller.core.isolation.rows import KnownRows, RowDigest
from controller.core.isolation.strangers import CALM_S, PAUSE_S, PAUSE_S_MAX, Strangers
from controller.core.queues import Client, Group, Request

SUSPECT_S = 10.0  # after its last failure a client's requests are executed apart for so long; CALM_S after a pause
DOUBT_S = 1.0  # a failure counts if the version works for somebody within so long
TOLD_EVERY_S = 60.0  # between two notices about one client
SUSPECTS_MAX = 1024  # remembered for one version; the one that was named first is forgotten for another
DOUBTS_MAX = 64  # failures of one version that may yet count


@dataclass(slots=True, eq=False)
class Suspect:
    """What is known of one client that asked one version."""

    client: Client
    pool: Group  # of its requests that wait apart
    limit: int  # rows of its largest batch: half after each failure, twice after each success
    until_s: float  # then its requests are executed with others'
    remembered_s: float = 0.0  # strikes and pauses are forgotten then
    proven: bool = False
    failed_s: float = 0.0  # device time that its failures have cost
    strikes: int = 0
    escapes: int = 0  # batches that failed, and of which it had given up a request before
    pauses: int = 0
    refused_until_s: float = 0.0
    told_s: dict[str, float] = field(default_factory=dict)  # {notice: when it was last given}

    def failed(self, cost_s: float) -> None:
        """A batch of its requests has failed, at this cost."""
        self.failed_s += cost_s
        self.limit = max(1, self.limit // 2)

    def worked(self, limit_max: int) -> None:
        """A batch of its requests ended well."""
        self.limit = min(limit_max, self.limit * 2)
        if not self.proven:
            self.until_s = 0.0

    def escaped(self, now: float, for_s: float) -> None:
        """It had given up a request before its batch failed. A second time, that is no chance: nothing clears it."""
        self.escapes += 1
        self.remembered_s = max(self.remembered_s, now + for_s)
        if self.escapes > 1:
            self.proven = True
            self.until_s = max(self.until_s, now + for_s)

    def strike(self, now: float) -> None:
        """A request of it ended a process, with no other client's: its requests are tried one at a time."""
        self.strikes += 1
        self.limit = 1
        self.proven = self.pool.trial = True
        self.remembered_s = now + CALM_S

    def quarantine(self, now: float) -> float:
        """It is refused for a while. Returns until when."""
        self.refused_until_s = now + min(PAUSE_S_MAX, PAUSE_S * 2.0 ** min(self.pauses, DOUBLINGS_MAX))
        self.pauses = min(self.pauses + 1, 16)
        self.until_s = self.remembered_s
        return self.refused_until_s

    def is_due(self, notice: str, now: float) -> bool:
        """Whether operators are told now; it notes that they are."""
        if now < self.told_s.get(notice, -TOLD_EVERY_S) + TOLD_EVERY_S:
            return False
        self.told_s[notice] = now
        return True

    def is_forgotten(self, now: float) -> bool:
        """Whether nothing of it need be remembered."""
        told_s = max(self.told_s.values(), default=-TOLD_EVERY_S)
        return now >= max(self.until_s, self.remembered_s, told_s + TOLD_EVERY_S) and not self.pool.requests


@dataclass(frozen=True, slots=True)
class Doubt:
    """A request that failed alone, on a device where its version has not worked since its batch was sent."""

    client: Client
    row: RowDigest | None  # its inputs, which are not kept
    code: str
    worker: str
    until_s: float  # then it was the version, or that device, that failed


@dataclass(slots=True)
class Watch:
    """One version of which a batch failed lately."""

    ref: str
    budget: Budget
    suspects: OrderedDict[Client, Suspect] = field(default_factory=OrderedDict)  # as they were named
    rows: KnownRows = field(default_factory=KnownRows)
    strangers: Strangers = field(default_factory=Strangers)
    doubts: list[Doubt] = field(default_factory=list)  # oldest first
    worked_s: float = -math.inf  # when a batch of it last ended well: its Model may be gone by now, with what it knew
    lost_idle_s: float = -math.inf  # likewise, when a worker that can serve it was last lost while it executed nothing
    until_s: float = 0.0  # nothing of it need be remembered then, if there are no suspects and rows

    def suspect_of(self, request: Request) -> Suspect | None:
        """What is known of the request's client."""
        return self.suspects.get(request.asker) if self.suspects else None

    def active(self, request: Request, now: float) -> Suspect | None:
        """The same, while its requests are to be executed apart."""
        suspect = self.suspect_of(request)
        return suspect if suspect is not None and now < suspect.until_s else None

    def name(self, client: Client, limit: int, now: float) -> Suspect | None:
        """The client is a suspect from now on; None if it is not known who it is."""
        if not client[1]:
            return None
        suspect = self.suspects.get(client)
        if suspect is None:
            pool = Group(self.ref, owner=client)
            suspect = self.suspects[client] = Suspect(client, pool, max(1, limit), now)
            if len(self.suspects) > SUSPECTS_MAX:
                self.suspects.popitem(last=False)
        elif now >= suspect.until_s:
            suspect.limit, suspect.failed_s = max(1, limit), 0.0
            suspect.proven = suspect.pool.trial = False
        suspect.until_s = max(suspect.until_s, now + SUSPECT_S)
        return suspect

    def doubt(self, doubt: Doubt) -> None:
        """The failure counts if the version works for somebody soon."""
        self.doubts.append(doubt)
        del self.doubts[:-DOUBTS_MAX]

    def take_doubts(self, worker: str, now: float) -> list[Doubt]:
        """The version works there: failures there that count from now on."""
        if not self.doubts:
            return []
        found = [doubt for doubt in self.doubts if doubt.worker == worker and now < doubt.until_s]
        self.doubts = [doubt for doubt in self.doubts if doubt.worker != worker]
        return found

    def forget(self, now: float) -> None:
        """All whose time is over is gone."""
        self.rows.forget(now)
        self.strangers.forget(now)
        self.doubts = [doubt for doubt in self.doubts if now < doubt.until_s]
        for client in [client for client, suspect in self.suspects.items() if suspect.is_forgotten(now)]:
            del self.suspects[client]

    def is_over(self, now: float) -> bool:
        """Whether nothing is left to remember."""
        return now >= self.until_s and not self.suspects and not len(self.rows) and not self.strangers
