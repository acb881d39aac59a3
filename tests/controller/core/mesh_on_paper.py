"""Stories of the virtual mesh: chance decides how long everything takes, what goes wrong, and who gives up.

Links keep order and lose nothing, as ZeroMQ's do, until they break; what one turn has for a peer travels together. Each
event is followed by a check of every core's invariants.
"""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from controller.core.policies.registry import make_policy
from controller.core.scheduler import Parameters, Scheduler
from controller.core.state import ShardState
from gearmesh.simulation.mesh import CLIENTS, VirtualMesh
from gearmesh.simulation.timeline import VirtualTime
from gearmesh.simulation.workers import SimWorker
from gpu_worker.core.jobs import Job, Phase, Servable
from gpu_worker.core.pump import Pump
from mesh import wire
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import PAGE_BYTES, line, spec

BEGIN_S = 100.0
BATCH_MAX = 8
RUNS = ((1, 2, ()), (8, 1, ()))  # of a version without a profile: (batch, measuring runs, extents)
WAKES_MAX = 500  # of the controller, in a row, without an event: more is a busy loop
TURNS_MAX = 20_000  # of everybody: 600 to 3,000 are enough for a story; more is a busy loop, too


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
    poison: float = 0.0  # share of requests with which every batch fails
    deadly: float = 0.0  # share of requests with which every worker dies
    kept: float = 0.0  # share of requests whose inputs their frontends keep
    measured: bool = True  # versions come with a profile; False: it is measured first
    clock_error_s: float = 0.2e-3


@dataclass
class Outcomes:
    """What a frontend heard of one request."""

    outputs: int = 0
    refusals: list[str] = field(default_factory=list)  # codes
    attempts: int = 1
    given_up: bool = False


class OrderedNetwork:
    """Between the controller and a worker: in order, and all that one turn sends is one envelope. Others: at once."""

    def __init__(self, rng: random.Random) -> None:
        self.sent = 0  # envelopes so far
        self.drops = 0  # so many of the next ones with results are lost
        self._rng = rng
        self._envelopes: dict[tuple[str, str], tuple[float, float | None]] = {}  # {link: (sent, arrival)} of the last
        self._arrivals: dict[tuple[str, str], float] = {}  # {link: when the last envelope arrives}

    def delay_s(self, sender: str, receiver: str, message: object, now: float) -> float | None:
        """Seconds until the message arrives, the same for all that one turn sends over this link; None: it is lost."""
        if receiver == CLIENTS or isinstance(message, wire.Refused):
            return 0.0
        link = (sender, receiver)
        sent_s, delay_s = self._envelopes.get(link, (-math.inf, None))
        if sent_s != now:
            delay_s = self._envelope(link, message, now)
            self._envelopes[link] = (now, delay_s)
        return delay_s

    def _envelope(self, link: tuple[str, str], message: object, now: float) -> float | None:
        self.sent += 1
        if self.drops and isinstance(message, wire.ActionResult):
            self.drops -= 1
            return None
        behind_s = self._arrivals.get(link, -math.inf) - now + 1e-9
        delay_s = max(behind_s, self._rng.uniform(0.0001, 0.0004))
        self._arrivals[link] = now + delay_s
        return delay_s


class PreparedInTime:
    """Versions that take a while to be prepared, and, without a profile, a few runs to be measured. See SimVersions."""

    def __init__(self, sizes: dict[str, int], profiles: dict[str, wire.Profile], measured: bool) -> None:
        self.later: Callable[[Callable[[], None]], None] = lambda call: call()
        self._sizes = sizes  # {ref: pages}
        self._profiles = profiles
        self._measured = measured
        self._reports: dict[str, wire.Prepared] = {}
        self._left: dict[str, list[tuple[int, int]]] = {}  # {ref: (batch, measuring runs) to be done}

    def attach(self, pump: Pump, tell: Callable[[wire.Prepared], None]) -> None:
        """The worker starts, or starts again, with no version prepared."""
        self._pump, self._tell = pump, tell
        self._reports.clear()
        self._left.clear()

    def reports(self) -> tuple[wire.Prepared, ...]:
        """The last report of each version that is prepared."""
        return tuple(self._reports.values())

    def prepare(self, ref: str, content: str) -> None:
        """The version will be prepared later."""
        self.later(lambda: self._prepared(ref))

    def forget(self, ref: str) -> None:
        """The version is neither prepared nor measured any more."""
        self._reports.pop(ref, None)
        self._left.pop(ref, None)

    def executed(self, action: wire.Load | wire.Infer, duration_s: float) -> None:
        """A measuring run is counted; the last one completes the report."""
        left = self._left.get(action.ref)
        if left is None or isinstance(action, wire.Load) or action.parts:
            return
        if left and left[0][0] == action.batch:
            runs = left[0][1] - 1
            left[0:1] = [(action.batch, runs)] if runs else []
        if not left:
            del self._left[action.ref]
            self._report(action.ref, self._profiles[action.ref], ())

    def _prepared(self, ref: str) -> None:
        self._pump.lanes.prepared(ref, Servable(self._sizes[ref], BATCH_MAX, None, ()))
        if self._measured:
            self._report(ref, self._profiles[ref], ())
        else:
            self._left[ref] = [(batch, runs) for batch, runs, _ in RUNS]
            self._report(ref, None, RUNS)

    def _report(
        self, ref: str, profile: wire.Profile | None, measure: tuple[tuple[int, int, tuple[int, ...]], ...]
    ) -> None:
        pages = self._sizes[ref]
        self._reports[ref] = wire.Prepared(
            ref=ref, ok=True, spec=spec(BATCH_MAX), pages=pages, weights_bytes=pages * PAGE_BYTES, profile=profile,
            measure=measure,
        )  # fmt: skip
        self._tell(self._reports[ref])


class Story:
    """One controller, some workers, two frontends."""

    def __init__(
        self,
        seed: int,
        chances: Chances,
        *,
        workers: int = 2,
        models: int = 5,
        pages: int = 5,
        policy: str = "atc",
        frontend_host: str = "",
    ) -> None:
        self.rng = random.Random(seed)
        self.chances = chances
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
        self.outcomes: dict[tuple[str, int], Outcomes] = {}
        self.poison: set[tuple[str, int]] = set()  # (frontend, number) of requests that fail
        self.deadly: set[tuple[str, int]] = set()  # ... that end their worker
        self.deaths = 0  # of workers, because of those
        self.executed: list[tuple[str, int]] = []  # (model, rows) of every batch that ran for clients
        self.turns = 0
        self._policy = policy
        self._names = itertools.count(1)
        self._requests: dict[tuple[str, int], wire.Submit] = {}
        self._deadlines: dict[tuple[str, int], float] = {}
        self._network = OrderedNetwork(self.rng)
        self.mesh = VirtualMesh(
            self._scheduler, self._network, self, now=BEGIN_S, page_bytes=PAGE_BYTES, clock_error_s=self._clock_error_s,
            checked=True,
        )  # fmt: skip
        self.mesh.begin(self.refs, "fg")
        for frontend in "fg":
            self.mesh.scheduler.frontend_joined(frontend, frontend_host)
        for _ in range(workers):
            self._join()

    def _scheduler(self, now: float) -> Scheduler:
        state = ShardState()
        return Scheduler(make_policy(self._policy, state), state, Parameters())

    def _clock_error_s(self) -> float:
        return self.rng.uniform(-1.0, 1.0) * self.chances.clock_error_s

    # -- time ---------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The controller's clock."""
        return self.mesh.now

    @property
    def timeline(self) -> VirtualTime:
        """What is planned."""
        return self.mesh.timeline

    def later(self, delay_s: float, call: Callable[[], object]) -> None:
        """`call` happens so much later."""
        self.timeline.at(self.now + delay_s, call)

    def run(self, until_s: float) -> None:
        """All that is due by then happens."""
        while self.timeline.next_s() <= until_s:
            self.timeline.advance(self.timeline.next_s())
            self.mesh.run_due()
            self.turns += 1
            assert self.turns < TURNS_MAX, "everybody talks without end"
            assert self.mesh.wakes < WAKES_MAX, "the controller is woken without end"
        self.timeline.advance(until_s)

    def run_out(self) -> None:
        """Nothing new comes; everything that is under way ends: for a second nobody had anything to say."""
        for _ in range(60):
            sent = self._network.sent
            self.run(self.now + 1.0)
            if sent == self._network.sent and not self.mesh.scheduler.open_requests and not self.ordered():
                return

    def ordered(self) -> int:
        """Actions whose results the controller waits for."""
        return sum(len(device.actions) for device in self.mesh.scheduler.state.devices.values())

    # -- frontends ----------------------------------------------------------------------------------------------------

    def arrive(self, requests: int, for_s: float) -> None:
        """So many requests come in, at random instants; some are given up again."""
        for number in range(1, requests + 1):
            self.later(self.rng.uniform(0.0, for_s), lambda n=number: self._submit(n))

    def _submit(self, number: int) -> None:
        rng = self.rng
        key = (rng.choice("fg"), number)
        budget_s = rng.choice((0.01, 0.03, 0.1, 0.3, 1.0)) * rng.uniform(0.5, 1.5)
        self._deadlines[key] = self.now + budget_s
        self._requests[key] = wire.Submit(
            request=number, attempt=0, ref=rng.choice(self.refs), rows=rng.choice((1, 1, 1, 1, 2, 5)),
            budget_s=budget_s, weight=rng.choice((1.0, 1.0, 2.0)), client=number % 9,
        )  # fmt: skip
        if self.chances.kept and rng.random() < self.chances.kept:
            asked = self._requests[key]
            slot = rng.choice((None, wire.Slot(segment="1.2.ab", offset=0, generation=1)))
            self._requests[key] = msgspec.structs.replace(asked, kept=wire.Kept(sizes=(4 * asked.rows,), slot=slot))
        if self.chances.poison and rng.random() < self.chances.poison:
            self.poison.add(key)
        elif self.chances.deadly and rng.random() < self.chances.deadly:
            self.deadly.add(key)
        self.outcomes[key] = Outcomes()
        self._send(key)
        if rng.random() < self.chances.cancels:
            self.later(rng.uniform(0.0, budget_s), lambda: self._cancel(key))

    def _send(self, key: tuple[str, int]) -> None:
        self.mesh.submit(self._requests[key], key[0], age_s=self.rng.uniform(0.0001, 0.0005))

    def _cancel(self, key: tuple[str, int]) -> None:
        self.outcomes[key].given_up = True
        self.mesh.cancel(*key)

    def lose_frontend(self, frontend: str) -> None:
        """Its link breaks; it is there again at once, and submits again what it has no answer to."""
        self.mesh.frontend_lost(frontend)
        self.mesh.check()
        self.mesh.frontend_joined(frontend)
        for key, heard in self.outcomes.items():
            left_s = self._deadlines[key] - self.now
            heard.given_up = heard.given_up or (key[0] == frontend and left_s <= 0)  # answered by its own clock
            if key[0] == frontend and not heard.outputs and not heard.refusals and not heard.given_up and left_s > 0:
                old = self._requests[key]
                heard.attempts += 1
                self._requests[key] = msgspec.structs.replace(old, attempt=old.attempt + 1, budget_s=left_s)
                self._send(key)

    def answered(self, action: wire.Infer) -> None:
        """The batch is noted, and that its requests got outputs."""
        self.executed.append((action.ref, action.batch))
        for part in action.parts:
            self.outcomes[part.frontend, part.request].outputs += 1

    def refused(self, frontend: str, refused: wire.Refused) -> None:
        """The code of the refusal is noted."""
        self.outcomes[frontend, refused.request].refusals.append(refused.code)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        versions = PreparedInTime(self.sizes, self.profiles, self.chances.measured)
        versions.later = lambda call: self.later(self.rng.uniform(0.001, 0.05), call)
        name, offset_s = f"w{next(self._names)}", self.rng.uniform(-50.0, 1e4)
        worker = SimWorker(name, self.timeline, self.pages, versions, self._duration_s, offset_s=offset_s, checked=True)
        worker.fault = lambda action: self._fault(worker, action)
        self.mesh.join(worker)

    def _fault(self, worker: SimWorker, action: wire.Infer) -> ActionCode:
        keys = {(part.frontend, part.request) for part in action.parts}
        if keys & self.deadly:
            self.deaths += 1
            self.later(0.0, lambda: self._died(worker))
            worker.linked = False  # its last result is not sent
            return ActionCode.DEVICE_ERROR
        return ActionCode.DEVICE_ERROR if keys & self.poison else ActionCode.OK

    def _died(self, worker: SimWorker) -> None:
        if self.mesh.workers.pop(worker.name, None) is not None:
            self.mesh.kill(worker)
            self.later(self.rng.uniform(0.0, 0.2), self._join)

    def _duration_s(self, phase: Phase, job: Job) -> float:
        action = job.action
        profile = self.profiles[action.ref]
        duration_s = profile.load_s if isinstance(action, wire.Load) else _exec_s(profile, action.batch)
        duration_s *= math.exp(self.rng.gauss(0.0, self.chances.noise))
        return duration_s * 10.0 if self.rng.random() < self.chances.outlier else duration_s

    def kill(self) -> None:
        """A worker dies; another one comes in its place a little later."""
        if not self.mesh.workers:
            return
        worker = self.rng.choice(list(self.mesh.workers.values()))
        del self.mesh.workers[worker.name]
        self.mesh.kill(worker)
        self.later(self.rng.uniform(0.0, 0.2), self._join)

    def relink(self, back_s_max: float = 0.01) -> None:
        """A worker's link breaks, with all that is on it; it is there again soon. The worker goes on meanwhile."""
        if not self.mesh.workers:
            return
        worker = self.rng.choice(list(self.mesh.workers.values()))
        self.mesh.unlink(worker)
        self.later(
            self.rng.uniform(0.0, back_s_max), lambda: worker.name in self.mesh.workers and self.mesh.link(worker)
        )

    def drop(self) -> None:
        """The next envelope with a result, from whichever worker, is lost."""
        self._network.drops += 1


def _exec_s(profile: wire.Profile, batch: int) -> float:
    """Seconds of an EXEC; the profiles here are lines."""
    return profile.exec_s[1] + (profile.exec_s[8] - profile.exec_s[1]) * (batch - 1) / 7
