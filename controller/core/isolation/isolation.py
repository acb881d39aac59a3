"""What follows when a batch fails, or ends its process: who is tried apart, who is told, who is kept apart. Pure.

A batch of several that failed is tried again in halves, down to single requests. Only a request that failed alone is
told its error. Requests of a batch during which a process died are tried once more, each alone. What is known of a
version afterwards is its `Watch`; a version of which nothing failed lately has none, and costs nothing here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.isolation.budget import DEATH_S, Budget
from controller.core.isolation.rows import RowDigest
from controller.core.isolation.strangers import CALM_S
from controller.core.isolation.suspects import DOUBT_S, SUSPECT_S, Doubt, Suspect, Watch
from controller.core.orders import Order
from controller.core.queues import Client, Group, Request
from controller.core.requests import OpenRequests
from controller.core.state import ShardState
from controller.core.versions.reasons import Reason
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode

FAILED = AnswerStatus.FAILED
WATCHES_MAX = 256  # versions; the one that failed first is forgotten for another
WORKS_S = 60.0  # a version that worked within so long is not what ends its processes
FORGET_EVERY_S = 1.0
FEW = 4  # clients that gave up requests of one batch: where more did, it says little of each
NOTICES_MAX = 64  # not taken yet; more are not given
LOST_TEXT = "its worker was lost, and no other can serve it"
SUSPECTED, QUARANTINED, STRANGERS = "suspect_client", "quarantined_client", "quarantined_strangers"


@dataclass(frozen=True, slots=True)
class Notice:
    """What an operator should know of a client: a line of the log."""

    event: str  # SUSPECTED | QUARANTINED | STRANGERS
    ref: str
    frontend: str
    client: int  # the frontend's number of it; 0: of strangers
    code: str  # what became of its request
    pause_s: float = 0.0  # of a quarantine


@dataclass(slots=True)
class Isolation:
    """Knows of which versions batches failed lately, and because of whom."""

    state: ShardState
    requests: OpenRequests
    watched: dict[str, Watch] = field(default_factory=dict)  # {ref: what is known}, in the order of first failures
    tried_apart: int = 0  # requests so far; so below
    tried_alone: int = 0  # after a death
    quarantines: int = 0
    failed_s: float = 0.0  # device time of what failed while it was tried apart
    _notices: list[Notice] = field(default_factory=list)
    _forget_s: float = -math.inf  # no look for what is over before

    # -- results ------------------------------------------------------------------------------------------------------

    def failed(
        self, device: RemoteDevice, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        """The batch failed, and would again: one that was alone is told so, several are tried apart."""
        watch, requests, group = self._watch(action.ref, now), action.requests, action.requests[0].group
        began_s = action.expected_end_s - action.expected_s
        self._pay(watch, action, max(0.0, now - began_s), now)
        for request in requests:
            request.tries += 1
        if len(requests) > 1:
            self._escaped(watch, requests, result.code, SUSPECT_S, now)
            self._try_apart(action, [request for request in requests if not request.closed], orders, now)
            return
        (request,) = requests
        doubt = Doubt(request.asker, RowDigest.of(request), result.code, device.worker, now + DOUBT_S)
        since_s = group.since_s if group is not None and group.owner is None else action.sent_s
        if device.worked.get(action.ref, -math.inf) >= since_s:
            self._failed_alone(watch, doubt, now)
        else:
            watch.doubt(doubt)
        if not request.closed:
            orders.append(self.requests.refuse(request, FAILED, result.code, result.message, now, alone=True))

    def died(self, action: Action, code: str, message: str, orders: list[Order], now: float) -> None:
        """The process that executed the batch died: its requests are tried once more, alone, or have failed.

        If a client had its outputs already, the batch was over: it is not what the process died of.
        """
        if any(request.answered is not None for request in action.requests):
            self.requests.retry(action, code, message, orders, now)
            return
        watch = self._watch(action.ref, now)
        self._pay(watch, action, DEATH_S, now)
        for request in action.requests:
            request.tries += 1
        if len(action.requests) == 1:
            self._died_alone(watch, action, code, message, orders, now)
            return
        owner = self._owner(watch, action)
        blames = self._blames(watch, now)
        if self._escaped(watch, action.requests, code, CALM_S if blames else 0.0, now) and blames and owner is not None:
            self._strike(watch, owner, action.requests[0], code, now, known=owner.strikes > 0)
        for request in action.requests:
            if request.closed:
                continue
            if self._try_alone(request, action.sent_s, now):
                request.apart += 1
            else:
                orders.append(self.requests.refuse(request, FAILED, ErrorCode.WORKER_LOST, LOST_TEXT, now))

    def lost_idle(self, device: RemoteDevice, now: float) -> None:
        """A worker was lost that executed nothing: for a while deaths of what it can serve may be no request's."""
        if not device.blamed:
            for ref in device.curves:
                self.state.models[ref].lost_idle_s = now
                if ref in self.watched:
                    self.watched[ref].lost_idle_s = now

    def served(self, device: RemoteDevice, action: Action, now: float) -> None:
        """A batch of a version ended well while some version is watched."""
        watch = self.watched.get(action.ref)
        if watch is None:
            return
        for doubt in watch.take_doubts(device.worker, now):
            self._failed_alone(watch, doubt, now)
        if watch.strangers:
            watch.strangers.served(request.asker for request in action.requests)
        suspect = self._owner(watch, action)
        model = self.state.models.get(action.ref)
        if suspect is not None and model is not None:
            suspect.worked(model.spec.batch_max)

    # -- arrivals -----------------------------------------------------------------------------------------------------

    def refusal(self, request: Request, now: float) -> Reason | None:
        """Why the request is refused for what it, or its client, has done; None: it is not."""
        watch = self.watched.get(request.ref)
        if watch is None:
            return None
        suspect = watch.suspect_of(request)
        if suspect is not None and now < suspect.refused_until_s:
            text = "requests of this client have ended the process that executed them; it is refused for a while"
            return Reason(ErrorCode.QUARANTINED, text, suspect.refused_until_s - now)
        if watch.strangers.refuses(request.asker, now):
            text = "clients that were new have ended the process that executed them; further new ones wait for a while"
            return Reason(ErrorCode.QUARANTINED, text, watch.strangers.refused_until_s - now)
        row = watch.rows.find(request, now) if watch.rows.deadly else None
        if row is not None and row.ends_process:
            text = "this input has ended the process that executed it; it is refused for a while, whoever sends it"
            return Reason(ErrorCode.QUARANTINED, text, row.until_s - now)
        return None

    def place(self, watch: Watch, request: Request, now: float) -> Group | None:
        """The group in which the waiting request is to be executed; None: with anybody."""
        if request.group is not None:
            return request.group
        suspect = watch.active(request, now)
        if suspect is not None:
            return suspect.pool
        if watch.rows.find(request, now) is not None:
            return Group(request.ref, owner=request.asker)
        return None

    # -- notices ------------------------------------------------------------------------------------------------------

    def take_notices(self) -> list[Notice]:
        """What operators should know, oldest first, once."""
        notices = self._notices
        if notices:
            self._notices = []
        return notices

    def _tell(self, event: str, watch: Watch, suspect: Suspect, code: str, now: float, pause_s: float = 0.0) -> None:
        if len(self._notices) < NOTICES_MAX and suspect.is_due(event, now):
            self._notices.append(Notice(event, watch.ref, *suspect.client, code, pause_s))

    def _tell_of_strangers(self, watch: Watch, code: str, now: float) -> None:
        if len(self._notices) < NOTICES_MAX:
            pause_s = watch.strangers.refused_until_s - now
            self._notices.append(Notice(STRANGERS, watch.ref, "", 0, code, pause_s))

    # -- who is tried apart -------------------------------------------------------------------------------------------

    def _try_apart(self, action: Action, requests: list[Request], orders: list[Order], now: float) -> None:
        """A suspect's requests go back to its pool, of which smaller batches are made now; others are halved."""
        model, group = self.state.models.get(action.ref), action.requests[0].group
        if model is None or not model.ready:
            orders.extend(self.requests.untried(request, now) for request in requests)
            return
        self.tried_apart += len(requests)
        middle = (len(requests) + 1) // 2
        since_s = group.since_s if group is not None else action.sent_s
        for half in (requests[:middle], requests[middle:]):
            into = group if group is not None and group.owner is not None else Group(model.ref, since_s=since_s)
            for request in half:
                request.apart += 1
                self.state.set_apart(model, into, request)

    def _try_alone(self, request: Request, since_s: float, now: float) -> bool:
        """The request is tried once more, alone. False if nobody can serve it, nor may soon."""
        model = self.state.models.get(request.ref)
        if model is None or not (model.ready or self.requests.comes_back(request.ref)):
            return False
        self.tried_alone += 1
        request.killed = True
        group = Group(request.ref, trial=True, since_s=since_s)
        if model.hosts:
            self.state.set_apart(model, group, request)
        else:
            request.group = group
            self.requests.wait(model, request, now)
        return True

    def _died_alone(
        self, watch: Watch, action: Action, code: str, message: str, orders: list[Order], now: float
    ) -> None:
        (request,) = action.requests
        model, suspect = self.state.models.get(request.ref), watch.suspect_of(request)
        known = request.killed or (suspect is not None and suspect.strikes > 0)
        able = model is not None and model.ready
        if not known and able and not request.closed and self._try_alone(request, action.sent_s, now):
            return
        suspect = self._suspect(watch, request.asker, code, now)
        self._strike(watch, suspect, request, code, now, known=known)
        if not request.closed:
            orders.append(self.requests.refuse(request, FAILED, code, message, now, alone=True))

    # -- who is to blame ----------------------------------------------------------------------------------------------

    def _failed_alone(self, watch: Watch, doubt: Doubt, now: float) -> None:
        """The request failed alone though its version works: its client, and its inputs, are kept apart."""
        watch.rows.add(doubt.row, now + SUSPECT_S, ends_process=False)
        suspect = self._suspect(watch, doubt.client, doubt.code, now)
        if suspect is not None:
            suspect.proven = True

    def _escaped(self, watch: Watch, requests: Sequence[Request], code: str, for_s: float, now: float) -> bool:
        """Who gave up a request of the batch before it could be tried apart is a suspect. False: nobody did.

        `for_s`: so long it is held against a client that has done so before; 0: that is not counted.
        """
        clients = {request.asker for request in requests if request.closed}
        for client in sorted(clients):
            suspect = self._suspect(watch, client, code, now)
            if suspect is not None and for_s and len(clients) <= FEW:
                suspect.escaped(now, for_s)
        return bool(clients)

    def _strike(
        self, watch: Watch, suspect: Suspect | None, request: Request, code: str, now: float, *, known: bool
    ) -> None:
        """A process died of a request of this client. `known`: not for the first time."""
        if suspect is not None:
            suspect.strike(now)
        if not self._blames(watch, now):
            return
        if known:
            self._quarantine(watch, suspect, request, code, now)
        if watch.strangers.struck(request.asker, now, surely=known):
            self._tell_of_strangers(watch, code, now)

    def _blames(self, watch: Watch, now: float) -> bool:
        """Whether a process that dies of a request says anything of its client.

        The version works, and its workers do not go without any request as well: killed, or of themselves.
        """
        return now - watch.worked_s <= WORKS_S and now - watch.lost_idle_s > CALM_S

    def _suspect(self, watch: Watch, client: Client, code: str, now: float) -> Suspect | None:
        model = self.state.models.get(watch.ref)
        suspect = watch.name(client, model.spec.batch_max // 2 if model is not None else 1, now)
        if suspect is not None:
            self._tell(SUSPECTED, watch, suspect, code, now)
        return suspect

    def _quarantine(self, watch: Watch, suspect: Suspect | None, request: Request, code: str, now: float) -> None:
        until_s = now + SUSPECT_S
        self.quarantines += 1
        if suspect is not None:
            until_s = suspect.quarantine(now)
            self._tell(QUARANTINED, watch, suspect, code, now, until_s - now)
        watch.rows.add(RowDigest.of(request), until_s, ends_process=True)

    def _pay(self, watch: Watch, action: Action, cost_s: float, now: float) -> None:
        """A failure of what was tried apart is paid for; the first failure of a batch is nobody's yet."""
        if action.requests[0].group is None:
            return
        watch.budget.spend(cost_s, now)
        self.failed_s += cost_s
        suspect = self._owner(watch, action)
        if suspect is not None:
            suspect.failed(cost_s)

    def _owner(self, watch: Watch, action: Action) -> Suspect | None:
        group = action.requests[0].group if action.requests else None
        return watch.suspects.get(group.owner) if group is not None and group.owner is not None else None

    def _watch(self, ref: str, now: float) -> Watch:
        watch = self.watched.get(ref)
        if watch is None:
            if len(self.watched) >= WATCHES_MAX:
                del self.watched[next(iter(self.watched))]
            watch = self.watched[ref] = Watch(ref, Budget(at_s=now))
        model = self.state.models.get(ref)
        if model is not None:  # it may be another one after each death of its only replica
            watch.worked_s = max(watch.worked_s, model.worked_s)
            watch.lost_idle_s = max(watch.lost_idle_s, model.lost_idle_s)
        watch.until_s = max(watch.until_s, now + SUSPECT_S)
        return watch

    def forget(self, now: float) -> None:
        """What is over is not remembered. It looks now and again; a version with marked requests stays watched."""
        if now < self._forget_s:
            return
        self._forget_s = now + FORGET_EVERY_S
        over = []
        for ref, watch in self.watched.items():
            watch.forget(now)
            if watch.is_over(now):
                over.append(ref)
        if over:
            marked = {request.ref for request in self.requests.open.values() if request.group is not None}
            for ref in set(over) - marked:
                del self.watched[ref]

    def check(self) -> None:
        """Every invariant holds."""
        marked = {request.ref for request in self.requests.open.values() if request.group is not None}
        assert len(self.watched) == WATCHES_MAX or marked <= self.watched.keys(), "a marked request is not watched"
        for watch in self.watched.values():
            for client, suspect in watch.suspects.items():
                assert suspect.client == client == suspect.pool.owner
                assert suspect.limit >= 1
