"""One worker's device as the controller sees it: the interface, and what all makes of devices have in common. Pure.

There are two makes. A *paged device* keeps many models in pages of its memory and is measured before it serves
(`paged.py`). A *black box* is a container: it holds the one version that it was started with, and what it can do is
learned from clients' own batches (`black_box.py`). A make answers five questions: what the device may hold, how long
work takes there, how large a batch it is given, when its silence means that it hangs, and what a result teaches.
Nobody else asks which make a device is.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from controller.core.devices.action import Action, LoadFault
from controller.core.devices.batch_delay import BatchDelay
from controller.core.estimation.estimates import Curve, LoadEstimate, Margin, Pace, Term
from controller.core.estimation.fetching import NOTHING, FarBytes, FetchEstimates
from controller.core.estimation.forecast import LaneForecast
from controller.core.failures import DOUBLINGS_MAX
from controller.core.queues import ModelQueue, Request
from controller.core.residency import Residency
from mesh import wire
from mesh.codes import ActionCode, ActionKind

INFER = ActionKind.INFER
LOAD_RETRY_S = 0.01  # pause after a LOAD that failed; it doubles with each further failure
LOAD_RETRY_S_MAX = 1.0
LOAD_LATE_S = 1.0  # a LOAD may start this late: it stays useful
LOAD_LOOK_EVERY_S = 0.005  # between two searches for a LOAD that no unplaced request asks for
FEWER_PAGES_S = 0.5  # longer than a batch reads pages that were freed, or a FORGET is on its way
EARLY_S = 0.001  # windows open this much before now, because clock offsets are known no better
NOISE = 0.05  # relative; how much longer than estimated EXEC now and then takes, before the device has shown it
DISPATCH_S = 0.3e-3  # from sending an INFER until its EXEC starts on a free device; Source: docs/design/policy.md
DISPATCH_KNOWN = 1.5  # x the dispatch margin: a start planned for later was delayed by more than the way


class Served(Protocol):
    """One version as a device sees it: what waits for it, and on which devices it is resident."""

    queue: ModelQueue
    hosts: dict[str, "RemoteDevice"]

    def batch_delay(self, wait_s: float, now: float) -> BatchDelay:
        """How long its batches wait for more requests, where they may wait for `wait_s`."""
        ...


@dataclass(slots=True, eq=False)
class RemoteDevice:  # not an ABC: mypyc takes no dataclass beside it; mypy knows it as abstract all the same
    """One worker's device. Its fields are for everybody to read; only its own methods and `ShardState` change them.

    Instants are in the controller's clock.
    """

    worker: str  # member id
    info: wire.DeviceInfo
    residency: Residency
    exec: LaneForecast = field(default_factory=LaneForecast)
    load: LaneForecast = field(default_factory=LaneForecast)
    actions: dict[int, Action] = field(default_factory=dict)  # {id: action}, sent and not ended, oldest first
    curves: dict[str, Curve] = field(default_factory=dict)  # {ref: EXEC durations}, exactly the versions ready here
    loads: dict[str, LoadEstimate] = field(default_factory=dict)  # {ref: LOAD duration}, the same keys
    worked: dict[str, float] = field(default_factory=dict)  # {ref: when a batch of it last ended well here}, of these
    pages: dict[str, int] = field(default_factory=dict)  # {ref: pages it needs}, versions prepared here
    waiting: dict[str, None] = field(default_factory=dict)  # refs resident (or loading) here with waiting requests
    noise: Margin = field(default_factory=lambda: Margin(NOISE, limit_s=0.5, step_s=0.001))  # relative, of EXEC
    exec_term: Term = field(default_factory=Term)
    load_term: Term = field(default_factory=Term)
    pace: Pace = field(default_factory=Pace)
    dispatch: Margin = field(default_factory=lambda: Margin(DISPATCH_S))
    host: str = ""  # where it is; empty: unknown
    reads_slots: bool = True  # of frontends on its host; False: the last it got from there it had to fetch
    fetch: FetchEstimates = field(default_factory=FetchEstimates)  # of inputs that it cannot read where they lie
    ahead_s: float = 0.0  # its next batch goes out so much earlier: as of the last one, its inputs have to be fetched
    fetching_until_s: float = 0.0  # when the inputs of the last such batch are expected to be there
    offset_s: float = 0.0  # the worker's clock minus ours
    heard_s: float = math.inf  # when something last arrived from the worker; infinity: nobody says so
    apart: dict[str, None] = field(default_factory=dict)  # refs resident here with requests that wait apart
    died: bool = False  # while it executed a batch: whatever else it had did not end it
    blamed: bool = False  # a batch that it had executed may be what ends it
    backlog_s: float = 0.0  # its share of the EXEC time of all that waits for models resident here
    busy_until_s: float = 0.0  # when the last client's batch sent here was expected to end
    overdue_s: float = math.inf  # no action is overdue before
    held_until_s: float = math.inf  # its next batch is held back until then; infinity: none is
    load_faults: dict[str, LoadFault] = field(default_factory=dict)  # {ref: ...}, versions whose last LOAD failed here
    load_look_s: float = 0.0  # before this no LOAD is searched that no unplaced request asks for
    leaving: bool = False  # it said goodbye and gets nothing new
    fewer_pages_s: float = math.inf  # since when its worker has said that it has fewer free pages than we count
    room_for_more: bool = True  # another model may fit; False: a search found none, and nothing has changed since
    changes: int = 0  # how often a version became ready here or left its memory: what fits, fits until the next one
    quiet_until_s: float = -math.inf  # the scheduler need not look at it before, unless it is touched; -inf: it must
    quiet_wake_s: float = math.inf  # while it is quiet: when time alone gives the scheduler something to do there

    # -- what the makes differ in -------------------------------------------------------------------------------------

    @abstractmethod
    def may_hold(self, ref: str, *, contained: bool) -> bool:
        """Whether the device is to have this wanted version. `contained`: containers serve the version."""

    @abstractmethod
    def keeps_unwanted(self) -> bool:
        """Whether a new worker keeps prepared versions that nobody wants now; otherwise it is told to forget them."""

    @abstractmethod
    def found_resident(self, hello: wire.WorkerHello) -> Sequence[str]:
        """The versions in the new worker's memory that have to be given a place, or unloaded."""

    @abstractmethod
    def is_whole(self, report: wire.Prepared) -> bool:
        """Whether the report has all that is needed to plan with the version, besides its spec."""

    @abstractmethod
    def fault_of(self, report: wire.Prepared) -> str:
        """Why the version cannot be planned with, whatever is measured yet, in a sentence; empty if it can."""

    @abstractmethod
    def add(self, report: wire.Prepared, spec: wire.ModelSpec, others: Iterable["RemoteDevice"]) -> None:
        """The version is ready here: `curves` and `loads` know it. `others`: the devices where it is ready already."""

    @abstractmethod
    def failed(self, ref: str) -> bool:
        """The version cannot be served from here; call it before `remove`.

        True if the device has to prepare it anew to serve it again; False if it comes back of itself.
        """

    @abstractmethod
    def holds_back(self, models: Mapping[str, Served], now: float) -> bool:
        """Whether the device is better not given its next batch now. Sets `held_until_s` if time alone changes that."""

    @abstractmethod
    def next_batch_at(self, at_s: float, now: float) -> float:
        """When to ask again for the device's next batch, which is due at `at_s`; infinity: not before something ends.

        The last time that anybody asked was `now`.
        """

    @abstractmethod
    def latest_s(self, start_s: float, latest_s: float, hosts: int) -> float:
        """The end of a batch's window: it is planned to start at `start_s` and of use if it starts by `latest_s`."""

    @abstractmethod
    def doubt(self, request: Request, now: float) -> bool:
        """The estimate by which the request would miss its deadline is lowered, if it may be out of date.

        Returns whether it was. Otherwise an estimate that is too long would stand for ever: nobody is let in to show
        that it is.
        """

    @abstractmethod
    def set_overdue(self, action: Action) -> None:
        """Sets by when the INFER has to end, or else it, or the code that runs it, is taken for lost."""

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def infers(self) -> int:
        """INFERs sent and not ended."""
        return len(self.exec)

    @property
    def margin(self) -> float:
        """What EXEC may take over its estimate, as a share; 0 if idle: only what is let in then corrects estimates."""
        return self.noise.value_s if len(self.exec) else 0.0

    def may_load(self, ref: str, now: float) -> bool:
        """Whether the version is ready here but not resident, and no failed LOAD bars it for now."""
        return ref in self.curves and ref not in self.residency.models and not self.load_barred(ref, now)

    def load_barred(self, ref: str, now: float) -> bool:
        """Whether a LOAD failed so recently that the next attempt is not due."""
        fault = self.load_faults.get(ref) if self.load_faults else None
        return fault is not None and now < fault.retry_s

    def ready_s(self, ref: str, now: float) -> float:
        """When the weights of a version that is resident or loading here are there, or are expected to be."""
        place = self.residency.models[ref]
        if place.loading is None or place.ready_s > now:
            return place.ready_s
        return self.load.end_of(place.loading, now)

    def start_s(self, ref: str, now: float) -> float:
        """When EXEC of a batch sent now would start; the version is resident or loading here."""
        start_s, there_s = self.exec.free_at(now), now + self.dispatch.value_s
        ready_s = self.residency.models[ref].ready_s
        if there_s > start_s:
            start_s = there_s
        return ready_s if ready_s > start_s else start_s

    def far_bytes(self, requests: Iterable[Request]) -> FarBytes:
        """Bytes of the requests' inputs that the worker would have to fetch from frontends."""
        here = elsewhere = 0
        for request in requests:
            if request.kept_bytes:
                if not self.host or request.host != self.host:
                    elsewhere += request.kept_bytes
                elif not (self.reads_slots and request.near):
                    here += request.kept_bytes
        return here, elsewhere

    def far_waiting(self, queue: ModelQueue) -> FarBytes:
        """The same of all that waits in the queue."""
        if not queue.kept:
            return NOTHING
        total = sum(queue.kept_bytes.values())
        here = queue.kept_bytes.get(self.host, 0) if self.host else 0
        near = queue.near_bytes.get(self.host, 0) if here and self.reads_slots else 0
        return here - near, total - here

    def fetched_s(self, size: FarBytes, now: float) -> float:
        """When the worker will have fetched so many bytes for an INFER, behind what it fetches already."""
        self.fetch.wake(now)
        return max(now, self.fetching_until_s) + self.dispatch.value_s + self.fetch.expected_s(size)

    # -- whether the scheduler has to look at it ----------------------------------------------------------------------

    def touch(self) -> None:
        """Something has changed for which the scheduler has to look at the device."""
        self.quiet_until_s = -math.inf

    def rest(self, again_s: float) -> None:
        """The scheduler has done all that there is to do now. `again_s`: when versions are to be prepared again."""
        if self.waiting or self.apart or (self.room_for_more and not self.leaving):
            self.quiet_until_s = -math.inf
            return
        wake_s = self.overdue_s if self.actions else math.inf
        until_s = self.overdue_s
        if not self.leaving:
            wake_s = min(wake_s, again_s)
            until_s = min(until_s, again_s)
            if len(self.residency.models) < len(self.curves):
                until_s = min(until_s, self.load_look_s)
        self.quiet_until_s, self.quiet_wake_s = until_s, wake_s

    # -- the worker ---------------------------------------------------------------------------------------------------

    def heard(self, offset_s: float, heard_s: float) -> None:
        """The worker was heard then; its clock is ahead of ours by so much."""
        self.offset_s = offset_s
        self.heard_s = heard_s

    def leave(self) -> None:
        """The worker has said goodbye: it finishes what it has and gets nothing new."""
        self.leaving = True
        self.touch()

    # -- versions -----------------------------------------------------------------------------------------------------

    def prepared(self, ref: str, pages: int) -> None:
        """The worker has prepared the version, which needs so many pages."""
        self.pages[ref] = pages

    def remove(self, ref: str) -> None:
        """The version is not ready here any more."""
        self.curves.pop(ref, None)
        self.loads.pop(ref, None)
        self.worked.pop(ref, None)
        self.touch()

    def forget(self, ref: str) -> None:
        """The worker has forgotten the version: it is neither prepared nor resident."""
        self.not_resident(ref)
        self.pages.pop(ref, None)
        self.load_faults.pop(ref, None)

    def changed(self) -> None:
        """A version has become ready here, or has left its memory: another model may fit."""
        self.changes += 1
        self.room_for_more = True
        self.touch()

    def not_resident(self, ref: str) -> None:
        """The version is not in the device's memory."""
        self.residency.gone(ref)
        self.changed()

    # -- actions ------------------------------------------------------------------------------------------------------

    def infer_sent(self, action: Action, start_s: float, latest_s: float | None, now: float) -> None:
        """An INFER is sent whose EXEC is planned to start at `start_s`. It may start until `latest_s`, or overdue.

        It starts no earlier than its inputs are expected to be there, and may start then.
        """
        opens_s = self._opens_s(action, now) if action.requests else 0.0
        if opens_s > start_s:
            start_s = opens_s
        action.expected_end_s = self.exec.add(action.id, action.expected_s, start_s, now, opens_s)
        self.set_overdue(action)
        action.place = self.residency.used(action.ref, now)
        action.latest_s = action.overdue_s if latest_s is None else max(latest_s, opens_s)
        if action.requests:
            self.busy_until_s = action.expected_end_s if opens_s else self.exec.free_at(now)
        self._sent(action, opens_s or now - EARLY_S)

    def _opens_s(self, action: Action, now: float) -> float:
        """When the inputs of the INFER, which is sent now, will have been fetched; 0: there is nothing to fetch."""
        here, elsewhere = self.far_bytes(action.requests)
        if not (here or elsewhere):
            if now >= self.fetching_until_s:  # otherwise it passes one that is fetched, after which more may be
                self.ahead_s = 0.0
            return 0.0
        action.far_bytes = size = here, elsewhere
        self.ahead_s = self.fetch.expected_s(size)
        self.fetching_until_s = self.fetched_s(size, now)
        return self.fetching_until_s

    def load_sent(self, action: Action, now: float) -> None:
        """A LOAD is sent, for which there is room."""
        action.expected_end_s = self.load.add(action.id, action.expected_s, now + self.dispatch.value_s, now)
        action.overdue_s = action.usual_overdue_s
        action.latest_s = action.expected_end_s + LOAD_LATE_S
        self.residency.loading(action.ref, self.pages[action.ref], action.id, action.expected_end_s, now)
        self._sent(action, now - EARLY_S)

    def unload_sent(self, action: Action) -> None:
        """An UNLOAD is sent. Its pages count as free from now on, because whatever needs them is ordered behind it."""
        action.expected_end_s = action.latest_s = action.sent_s
        action.overdue_s = action.usual_overdue_s
        self.not_resident(action.ref)
        self._sent(action, action.sent_s - EARLY_S)

    def _sent(self, action: Action, earliest_s: float) -> None:
        action.earliest_s = earliest_s
        self.actions[action.id] = action
        self.overdue_s = min(self.overdue_s, action.overdue_s)
        self.touch()

    def is_overdue(self, now: float) -> bool:
        """Whether an action is overdue; `overdue_s`, which may be that of one that has ended, is right afterwards."""
        if now < self.overdue_s:
            return False
        self.found_overdue()
        return now >= self.overdue_s

    def found_overdue(self) -> None:
        """All that was overdue has ended, or been taken for lost."""
        self.overdue_s = min((action.overdue_s for action in self.actions.values()), default=math.inf)

    # -- results ------------------------------------------------------------------------------------------------------

    def end(self, result: wire.ActionResult) -> Action | None:
        """The action that has ended with this result and is under way no more; None if we do not wait for it."""
        action = self.actions.get(result.action)
        if action is None or action.kind != result.kind:
            return None  # of an earlier life of this controller, or taken for lost
        del self.actions[action.id]
        self.touch()
        return action

    def misses_pages(self, result: wire.ActionResult, now: float) -> bool:
        """Whether the worker has said for long that fewer pages are free than we count, with no LOAD or UNLOAD sent.

        It holds weights then of which we do not know, as where the result of a LOAD was lost.
        """
        if (
            result.code == ActionCode.LOST
            or result.free_pages >= self.residency.free
            or any(action.kind is not INFER for action in self.actions.values())
        ):
            self.fewer_pages_s = math.inf
            return False
        self.fewer_pages_s = min(self.fewer_pages_s, now)
        if now < self.fewer_pages_s + FEWER_PAGES_S:
            return False
        self.fewer_pages_s = math.inf
        return True

    def executed(self) -> Action | None:
        """The INFER that the device executes now, as far as is known: the first to open, if its weights are there."""
        first: Action | None = None
        for action in self.actions.values():
            if action.kind is INFER and (first is None or action.earliest_s < first.earliest_s):
                first = action
        if first is not None and first.place is not None and first.place.loading is not None:
            return None
        return first

    def end_s(self, result: wire.ActionResult, now: float) -> float:
        """When the action ended; now, if it does not say."""
        return now if result.end_s is None else min(now, result.end_s - self.offset_s)

    def infer_ended(self, action: Action, end_s: float) -> None:
        """An INFER has ended."""
        self.exec.ended(action.id, end_s)
        if action.far_bytes and not self.exec.fetched:
            self.fetching_until_s = 0.0
        if action.place is not None:
            action.place.bound -= 1

    def learn(self, action: Action, result: wire.ActionResult, duration_s: float, now: float) -> None:
        """A client's batch ran for so long: the estimate of its duration follows, and that of the way to the device."""
        curve = self.curves.get(action.ref)
        if curve is not None:
            self.pace.seen(result.clock_mhz)
            error = curve.learn(action.batch, duration_s, action.extents)
            curve.learned_s = now
            self.worked[action.ref] = now
            self.noise.learn(max(0.0, error))
        if result.begin_s is not None:
            planned_s = action.expected_end_s - action.expected_s - action.sent_s
            if planned_s <= self.dispatch.value_s * DISPATCH_KNOWN and not action.far_bytes:  # only the way delayed it
                self.dispatch.learn(max(0.0, result.begin_s - self.offset_s - action.sent_s))

    def learn_fetch(self, action: Action, result: wire.ActionResult) -> None:
        """An INFER has ended whose inputs were fetched: the estimate of that follows.

        Who fetches what a frontend on its host has put into shared memory cannot read it, as another user, or in
        another container.
        """
        here, elsewhere = action.far_bytes or NOTHING
        fetched, planned = result.fetched_bytes, here + elsewhere
        if fetched > planned:
            self.reads_slots = False
        elif fetched < planned and result.code == ActionCode.OK and not (result.missing or result.ended):
            self.reads_slots = True  # it had all, and did not fetch all
        if result.fetch_s is not None:
            came = min(fetched, elsewhere)
            self.fetch.learn((fetched - came, came), result.fetch_s)

    def missed_fetch(self, action: Action, missing: Iterable[Request], now: float) -> None:
        """Inputs of these requests of the INFER, for which somebody still waits, did not come in time."""
        if action.far_bytes is not None:
            self.fetch.missed(action.far_bytes, self.far_bytes(missing), now - action.sent_s, now)

    def did_not_fit(self, action: Action) -> None:
        """A client's batch did not fit in the device's memory: the next ones are smaller, if that can be known."""
        curve = self.curves.get(action.ref)
        if curve is not None:
            curve.does_not_fit(action.batch, action.extents)

    def load_ended(self, action: Action, end_s: float) -> None:
        """A LOAD has ended, well or not."""
        self.load.ended(action.id, end_s)
        self.room_for_more = True
        self.touch()

    def loaded(self, action: Action, end_s: float, duration_s: float | None) -> None:
        """A LOAD has ended well: the weights are there, and the estimate of LOADs follows."""
        self.load_faults.pop(action.ref, None)
        estimate = self.loads.get(action.ref)
        if self.residency.loaded(action.ref, action.id, end_s) and estimate is not None and duration_s is not None:
            estimate.learn(duration_s)

    def load_failed(self, ref: str, now: float, *, final: bool) -> int:
        """A LOAD failed: the next one waits, longer with each failure. `final`: another attempt would fail as well.

        Returns how many of the failures in a row were final.
        """
        fault = self.load_faults.setdefault(ref, LoadFault())
        fault.retry_s = now + min(LOAD_RETRY_S_MAX, LOAD_RETRY_S * 2.0 ** min(fault.count, DOUBLINGS_MAX))
        fault.count += 1
        fault.final += final
        return fault.final

    # -- searches for a LOAD ------------------------------------------------------------------------------------------

    def looks_for_load(self, now: float) -> bool:
        """Whether it is time to search for a LOAD though no unplaced request asks for one. Notes that it was done."""
        if now < self.load_look_s or len(self.residency.models) >= len(self.curves):
            return False
        self.load_look_s = now + LOAD_LOOK_EVERY_S
        return True

    def no_load_found(self) -> None:
        """A search found no LOAD. While one is under way the answer may change, and the next search is not skipped."""
        self.room_for_more = self.room_for_more and len(self.load) > 0

    def check_rest(self, complete: bool, again_s: float) -> None:
        """If the device is quiet, there is nothing to do. `complete`: no PREPARE or measuring run is to be sent."""
        if self.quiet_until_s == -math.inf:
            return
        assert not self.waiting, self.worker
        assert not self.apart, self.worker
        assert complete, self.worker
        assert self.quiet_until_s <= self.overdue_s
        assert self.quiet_wake_s == min(
            self.overdue_s if self.actions else math.inf, math.inf if self.leaving else again_s
        )
        if not self.leaving:
            assert not self.room_for_more, self.worker
            assert self.quiet_until_s <= again_s
            assert len(self.residency.models) >= len(self.curves) or self.quiet_until_s <= self.load_look_s

    def check(self) -> None:
        """Every invariant holds."""
        self.residency.check()
        assert self.curves.keys() == self.loads.keys()
        assert self.worked.keys() <= self.curves.keys()
        assert all(self.overdue_s <= action.overdue_s for action in self.actions.values())
        for ref, place in self.residency.models.items():
            assert place.bound == sum(action.place is place for action in self.actions.values()), ref
