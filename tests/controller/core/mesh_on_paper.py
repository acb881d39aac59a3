"""A controller's scheduler and the lanes of its workers on a virtual clock: chance decides how long everything takes.

Links keep order and lose nothing, as ZeroMQ's do, until they break; what one turn has for a peer travels together. Each
event is followed by a check of every core's invariants.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.core.orders import Order, ToBroker, ToFrontend
from controller.core.policies.registry import make_policy
from controller.core.scheduler import Parameters, Scheduler
from controller.core.state import State
from gpu_worker.core.lanes import Done, Effect, Job, Lanes, Phase, Prepared, Report
from gpu_worker.core.pages import PageTable
from mesh import wire
from tests.controller.core.controller_builders import PAGE_BYTES, line, spec

BEGIN_S = 100.0
BATCH_MAX = 8
DEPTH = {Phase.LOAD: 2, Phase.INPUT: 4, Phase.EXEC: 2, Phase.OUTPUT: 4}
WAKES_MAX = 500  # of the controller, in a row, without an event: more is a busy loop
TURNS_MAX = 20_000  # of everybody: some 3,000 are enough for a story; more is a busy loop, too


@dataclass(frozen=True)
class Chances:
    """What may go wrong, and how often."""

    noise: float = 0.1  # of durations, in log units
    outlier: float = 0.01  # share of actions that take ten times as long
    kills: int = 0  # workers that die for good; each is replaced
    relinks: int = 0  # links that break and are there again
    drops: int = 0  # envelopes of a worker that are lost though its link lives
    lost_frontends: int = 0  # that come back with the same name and submit again what is open
    churn: int = 0  # versions that are let go and wanted again
    cancels: float = 0.0  # share of requests that are given up
    measured: bool = True  # versions come with a profile; False: it is measured first
    clock_error_s: float = 0.2e-3


@dataclass
class Outcomes:
    """What a frontend heard of one request."""

    outputs: int = 0
    refusals: list[str] = field(default_factory=list)  # codes
    attempts: int = 1
    given_up: bool = False


@dataclass
class Worker:
    """One worker: the real lanes, and a device that is made of chance."""

    id: str
    lanes: Lanes
    offset_s: float  # its clock minus the controller's
    content: list[str]  # of each page of its arena: the ref whose weights lie there
    prepared: dict[str, wire.Prepared] = field(default_factory=dict)
    left: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # {ref: measuring runs to be done}
    free_s: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, -math.inf))
    outbox: list[wire.ActionResult | wire.Prepared] = field(default_factory=list)
    alive: bool = True
    link: int = 0  # messages of an older link are lost
    told_s: float = 0.0  # arrival of the last envelope there
    heard_s: float = 0.0  # arrival of the last envelope from there


class Mesh:
    """One controller, some workers, two frontends."""

    def __init__(
        self, seed: int, chances: Chances, *, workers: int = 2, models: int = 5, pages: int = 5, policy: str = "atc"
    ) -> None:
        self.rng = random.Random(seed)
        self.chances = chances
        self.now = BEGIN_S
        self.state = State()
        self.scheduler = Scheduler(make_policy(policy, self.state), self.state, Parameters())
        self.pages = pages
        self.refs = [f"m{i}:1" for i in range(models)]
        self.sizes = {ref: self.rng.choice((1, 1, 2, 3)) for ref in self.refs}
        self.profiles = {
            ref: line(
                self.rng.uniform(0.001, 0.01),
                self.rng.uniform(0.0002, 0.003),
                load_s=self.sizes[ref] * self.rng.uniform(0.002, 0.01),
            )
            for ref in self.refs
        }
        self.workers: dict[str, Worker] = {}
        self.outcomes: dict[tuple[str, int], Outcomes] = {}
        self.executed: list[tuple[str, int]] = []  # (model, rows) of every batch that ran for clients
        self.turns = 0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._names = itertools.count(1)
        self._wakes = 0
        self._drops = 0
        self._requests: dict[tuple[str, int], wire.Submit] = {}
        self._deadlines: dict[tuple[str, int], float] = {}
        for frontend in ("f", "g"):
            self._decide(self.scheduler.frontend_joined(frontend))
        self._decide(self.scheduler.want(self.refs, now=self.now))
        for _ in range(workers):
            self._join()

    # -- time ---------------------------------------------------------------------------------------------------------

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        """`call` happens then."""
        heapq.heappush(self._calls, (max(when_s, self.now), next(self._order), call))

    def run(self, until_s: float) -> None:
        """All that is due by then happens."""
        while True:
            alarms = [(self.scheduler.wake_at(), self._wake)]
            for worker in self.workers.values():
                due_s = worker.lanes.wake_at()
                alarms.append((None if due_s is None else due_s - worker.offset_s, lambda w=worker: self._ring(w)))
            due = [(max(at, self.now), call) for at, call in alarms if at is not None]
            first_s, first = min(due, key=lambda alarm: alarm[0], default=(math.inf, self._wake))
            planned_s = self._calls[0][0] if self._calls else math.inf
            if min(first_s, planned_s) > until_s:
                self.now = until_s
                return
            if planned_s <= first_s:
                first_s, _, first = heapq.heappop(self._calls)
                self._wakes = 0
            self.now = first_s
            self.turns += 1
            assert self.turns < TURNS_MAX, "everybody talks without end"
            first()
            self.check()

    def run_out(self) -> None:
        """Nothing new comes; everything that is under way ends."""
        for _ in range(60):
            self.run(self.now + 1.0)
            if (
                not self._calls
                and not self.scheduler.open_requests
                and not any(device.actions for device in self.state.devices.values())
            ):
                return

    def check(self) -> None:
        """Every invariant of every core holds."""
        self.scheduler.check()
        for worker in self.workers.values():
            worker.lanes.check()

    def _wake(self) -> None:
        self._wakes += 1
        assert self._wakes < WAKES_MAX, "the controller is woken without end"
        self._decide([])

    # -- frontends ----------------------------------------------------------------------------------------------------

    def arrive(self, requests: int, for_s: float) -> None:
        """So many requests come in, at random instants; some are given up again."""
        for number in range(1, requests + 1):
            self.at(self.now + self.rng.uniform(0.0, for_s), lambda n=number: self._submit(n))

    def _submit(self, number: int) -> None:
        rng = self.rng
        key = (rng.choice("fg"), number)
        budget_s = rng.choice((0.01, 0.03, 0.1, 0.3, 1.0)) * rng.uniform(0.5, 1.5)
        self._deadlines[key] = self.now + budget_s
        self._requests[key] = wire.Submit(
            request=number, attempt=0, ref=rng.choice(self.refs), rows=rng.choice((1, 1, 1, 1, 2, 5)),
            budget_s=budget_s, weight=rng.choice((1.0, 1.0, 2.0)),
        )  # fmt: skip
        self.outcomes[key] = Outcomes()
        self._send(key)
        if rng.random() < self.chances.cancels:
            self.at(self.now + rng.uniform(0.0, budget_s), lambda: self._cancel(key))

    def _send(self, key: tuple[str, int]) -> None:
        age_s = self.rng.uniform(0.0001, 0.0005)
        self._decide(self.scheduler.submit(self._requests[key], key[0], (), age_s=age_s, now=self.now))

    def _cancel(self, key: tuple[str, int]) -> None:
        self.outcomes[key].given_up = True
        self.scheduler.cancel(*key, now=self.now)
        self._decide([])

    def lose_frontend(self, frontend: str) -> None:
        """Its link breaks; it is there again at once, and submits again what it has no answer to."""
        self.scheduler.frontend_lost(frontend, now=self.now)
        self.check()
        self._decide(self.scheduler.frontend_joined(frontend))
        for key, heard in self.outcomes.items():
            left_s = self._deadlines[key] - self.now
            heard.given_up = heard.given_up or (key[0] == frontend and left_s <= 0)  # answered by its own clock
            if key[0] == frontend and not heard.outputs and not heard.refusals and not heard.given_up and left_s > 0:
                old = self._requests[key]
                heard.attempts += 1
                self._requests[key] = wire.Submit(
                    request=old.request, attempt=old.attempt + 1, ref=old.ref, rows=old.rows, budget_s=left_s,
                    weight=old.weight,
                )  # fmt: skip
                self._send(key)

    # -- controller ---------------------------------------------------------------------------------------------------

    def want(self, refs: list[str]) -> None:
        """The routing table names these versions."""
        self._decide(self.scheduler.want(refs, now=self.now))

    def _decide(self, orders: list[Order]) -> None:
        """One turn of the controller: what was ordered at once, and what it decides then."""
        self.scheduler.check()
        orders = [*orders, *self.scheduler.wake(now=self.now)]
        mail: dict[str, list[Order]] = {}
        for order in orders:
            if isinstance(order, ToFrontend):
                if isinstance(order.message, wire.Refused):
                    heard = self.outcomes[order.frontend, order.message.request]
                    heard.refusals.append(order.message.code)
            elif not isinstance(order, ToBroker):
                mail.setdefault(order.worker, []).append(order)
        for name, letter in mail.items():
            worker = self.workers.get(name)
            if worker is not None:
                worker.told_s = max(worker.told_s, self.now + self.rng.uniform(0.0001, 0.0004))
                self.at(worker.told_s, lambda w=worker, link=worker.link, mail=letter: self._told(w, link, mail))

    def _heard(self, worker: Worker, link: int, letter: list[wire.ActionResult | wire.Prepared]) -> None:
        if not worker.alive or link != worker.link:
            return
        error_s = self.rng.uniform(-1.0, 1.0) * self.chances.clock_error_s
        self.scheduler.clock(worker.id, worker.offset_s + error_s)
        orders: list[Order] = []
        for message in letter:
            if isinstance(message, wire.Prepared):
                orders += self.scheduler.prepared(worker.id, message, now=self.now)
            else:
                orders += self.scheduler.result(worker.id, message, now=self.now)
            self.scheduler.check()
        self._decide(orders)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        name = f"w{next(self._names)}"
        worker = Worker(
            name, Lanes(PageTable(self.pages), DEPTH), self.rng.uniform(-50.0, 1e4), ["nothing"] * self.pages
        )
        self.workers[name] = worker
        self._hello(worker)

    def _hello(self, worker: Worker) -> None:
        worker.lanes.welcome(1)
        info = wire.DeviceInfo(
            name=f"paper:{worker.id}", kind="paper", pages=self.pages, page_bytes=PAGE_BYTES, any_batch=True
        )
        words = wire.WorkerHello(
            member=worker.id, host="h", device=info, free_pages=worker.lanes.table.free,
            resident=worker.lanes.table.resident(), prepared=tuple(worker.prepared.values()),
        )  # fmt: skip
        worker.told_s = worker.heard_s = self.now
        orders = self.scheduler.worker_joined(words, now=self.now)
        self.scheduler.clock(worker.id, worker.offset_s)
        self._decide(orders)

    def kill(self) -> None:
        """A worker dies; another one comes in its place a little later."""
        if not self.workers:
            return
        worker = self.rng.choice(list(self.workers.values()))
        worker.alive = False
        del self.workers[worker.id]
        self._decide(self.scheduler.worker_lost(worker.id, now=self.now))
        self.at(self.now + self.rng.uniform(0.0, 0.2), self._join)

    def relink(self, back_s_max: float = 0.01) -> None:
        """A worker's link breaks, with all that is on it; it is there again soon. The worker goes on meanwhile."""
        if not self.workers:
            return
        worker = self.rng.choice(list(self.workers.values()))
        worker.link += 1
        self._decide(self.scheduler.worker_lost(worker.id, now=self.now))
        self.at(self.now + self.rng.uniform(0.0, back_s_max), lambda: worker.alive and self._hello(worker))

    def drop(self) -> None:
        """The next envelope of some worker is lost."""
        self._drops += 1

    def _told(self, worker: Worker, link: int, letter: list[Order]) -> None:
        if not worker.alive or link != worker.link:
            return
        now = self.now + worker.offset_s
        for order in letter:
            message = order.message
            if isinstance(message, wire.Infer):
                self._apply(worker, worker.lanes.infer(message, 1, now=now))
            elif isinstance(message, wire.Load):
                self._apply(worker, worker.lanes.load(message, 1, now=now))
            elif isinstance(message, wire.Unload):
                self._apply(worker, worker.lanes.unload(message, 1, now=now))
            elif isinstance(message, wire.Prepare):
                self.at(
                    self.now + self.rng.uniform(0.001, 0.05),
                    lambda ref=message.ref: worker.alive and self._prepared(worker, ref),
                )
            elif isinstance(message, wire.Forget):
                worker.prepared.pop(message.ref, None)
                worker.left.pop(message.ref, None)
                self._apply(worker, worker.lanes.forgotten(message.ref, now=now))
            worker.lanes.check()
        self._post(worker)

    def _prepared(self, worker: Worker, ref: str) -> None:
        profile = self.profiles[ref]
        worker.lanes.prepared(ref, Prepared(self.sizes[ref], BATCH_MAX, None, ()))
        if not self.chances.measured:
            worker.left[ref] = [(1, 2), (8, 1)]
        self._report(worker, ref, profile if self.chances.measured else None)
        self._post(worker)

    def _report(self, worker: Worker, ref: str, profile: wire.Profile | None) -> None:
        worker.prepared[ref] = report = wire.Prepared(
            ref=ref, ok=True, spec=spec(BATCH_MAX), pages=self.sizes[ref], weights_bytes=self.sizes[ref] * PAGE_BYTES,
            profile=profile, measure=() if profile else tuple(worker.left[ref]),
        )  # fmt: skip
        worker.outbox.append(report)

    def _ring(self, worker: Worker) -> None:
        self._apply(worker, worker.lanes.wake(now=self.now + worker.offset_s))
        self._post(worker)

    def _apply(self, worker: Worker, effects: list[Effect]) -> None:
        waiting = list(effects)
        now = self.now + worker.offset_s
        while waiting:
            effect = waiting.pop(0)
            if isinstance(effect, Report):
                self._reported(worker, effect)
                continue
            done = self._begin(worker, effect.phase, effect.job)
            if done is not None:
                waiting += worker.lanes.finished(effect.phase, effect.job, done, now=now)

    def _begin(self, worker: Worker, phase: Phase, job: Job) -> Done | None:
        now = self.now + worker.offset_s
        action = job.action
        if phase in (Phase.INPUT, Phase.OUTPUT):
            return Done(now, now, 0.0)
        assert action.earliest_s <= now <= action.latest_s, f"{phase} of {action} was started at {now}"
        begin_s = max(now, worker.free_s[phase])
        if begin_s > action.latest_s:
            return Done(now, now, 0.0, "late")
        profile = self.profiles[action.ref]
        duration_s = profile.load_s if isinstance(action, wire.Load) else self._exec_s(profile, action.batch)
        duration_s *= math.exp(self.rng.gauss(0.0, self.chances.noise))
        if self.rng.random() < self.chances.outlier:
            duration_s *= 10.0
        worker.free_s[phase] = begin_s + duration_s
        if phase is Phase.LOAD:
            for page in job.pages:
                worker.content[page] = f"half of {action.ref}"
        else:
            self._reads(worker, job)
        done = Done(begin_s, begin_s + duration_s, duration_s)
        self.at(done.end_s - worker.offset_s, lambda: self._ended(worker, phase, job, done))
        return None

    def _exec_s(self, profile: wire.Profile, batch: int) -> float:
        """The profiles are lines."""
        return profile.exec_s[1] + (profile.exec_s[8] - profile.exec_s[1]) * (batch - 1) / 7

    def _reads(self, worker: Worker, job: Job) -> None:
        assert [worker.content[page] for page in job.pages] == [job.action.ref] * self.sizes[job.action.ref]

    def _ended(self, worker: Worker, phase: Phase, job: Job, done: Done) -> None:
        if not worker.alive:
            return
        if phase is Phase.LOAD:
            for page in job.pages:
                worker.content[page] = job.action.ref
        else:
            self._reads(worker, job)
        self._apply(worker, worker.lanes.finished(phase, job, done, now=self.now + worker.offset_s))
        self._post(worker)

    def _reported(self, worker: Worker, report: Report) -> None:
        result, job = report.result, report.job
        worker.outbox.append(result)
        if job is None or result.code != "ok" or isinstance(job.action, wire.Load):
            return
        for part in job.action.parts:
            self.outcomes[part.frontend, part.request].outputs += 1
        if job.action.parts:
            self.executed.append((job.action.ref, job.action.batch))
        elif job.action.ref in worker.left:
            self._measured(worker, job.action.ref, job.action.batch)

    def _measured(self, worker: Worker, ref: str, batch: int) -> None:
        left = worker.left[ref]
        if left and left[0][0] == batch:
            runs = left[0][1] - 1
            left[0:1] = [(batch, runs)] if runs else []
        if not left:
            del worker.left[ref]
            self._report(worker, ref, self.profiles[ref])

    def _post(self, worker: Worker) -> None:
        """One turn of the worker is over: what it has to say leaves."""
        letter, worker.outbox = worker.outbox, []
        if not letter:
            return
        if self._drops and any(isinstance(message, wire.ActionResult) for message in letter):
            self._drops -= 1
            return
        worker.heard_s = max(worker.heard_s, self.now + self.rng.uniform(0.0001, 0.0004))
        self.at(worker.heard_s, lambda link=worker.link: self._heard(worker, link, letter))
