"""A virtual mesh that serves one version, for which some requests are poison: they fail, or end their process."""

from collections.abc import Callable, Iterable

from controller.core.policies.registry import make_policy
from controller.core.scheduler import Scheduler
from controller.core.state import ShardState
from gearmesh.simulation.mesh import VirtualMesh
from gearmesh.simulation.workers import SimWorker
from gpu_worker.core.jobs import Job, Phase, Servable
from gpu_worker.core.pump import Pump
from mesh import wire
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import line, prepared, spec

REF = "m:1"
BASE_S, ROW_S, LOAD_S, WAY_S = 0.004, 0.0001, 0.005, 0.0002
RESTART_S = 0.3  # of a container's code that died
OK = ActionCode.OK
FRONTEND = "f"


class SteadyNetwork:
    """Every message takes as long."""

    def delay_s(self, sender: str, receiver: str, message: object, now: float) -> float | None:
        """Seconds until the message arrives."""
        return WAY_S


class OneVersion:
    """What a worker serves. A container's version is resident from the start, and gone while its code is started."""

    def __init__(self, batch_max: int, *, contained: bool) -> None:
        self.contained = contained
        self.batch_max = batch_max
        self.ok = True

    def attach(self, pump: Pump, tell: Callable[[wire.Prepared], None]) -> None:
        """The worker starts."""
        self._tell = tell
        pump.lanes.prepared(REF, Servable(1, self.batch_max, None, ()))
        if self.contained:
            pump.lanes.table.take(REF, 1)
            pump.lanes.table.loaded(REF)

    def reports(self) -> tuple[wire.Prepared, ...]:
        """The report of the version."""
        if not self.contained:
            sizes = (1, self.batch_max)
            return (prepared(REF, line(BASE_S, ROW_S, sizes=sizes, load_s=LOAD_S), pages=1, batch_max=self.batch_max),)
        batching = wire.Batching(method="fixed", size=self.batch_max, objective_s=0.05)
        faults = () if self.ok else ("its code ended",)
        return (
            wire.Prepared(ref=REF, ok=self.ok, faults=faults, spec=spec(self.batch_max), pages=1, batching=batching),
        )

    def serves(self, ok: bool) -> None:
        """Its code has died, or serves again."""
        self.ok = ok
        self._tell(self.reports()[0])

    def prepare(self, ref: str, content: str) -> None:
        """It is prepared."""
        self._tell(self.reports()[0])

    def forget(self, ref: str) -> None:
        """Nothing changes."""

    def executed(self, action: wire.Load | wire.Infer, duration_s: float) -> None:
        """Nothing is measured."""


class PoisonedMesh:
    """Requests are told apart by their numbers."""

    def __init__(self, workers: int = 1, *, batch_max: int = 128, contained: bool = False, policy: str = "atc") -> None:
        self.bad: set[int] = set()  # these fail
        self.deadly: set[int] = set()  # these end the process
        self.broken = False  # every batch fails
        self.broken_worker = ""  # every batch fails there
        self.answers: dict[int, str] = {}  # {request: "ok", or the code that it was told}
        self.messages: dict[int, str] = {}  # {request that was refused: what it was told}
        self.answered_s: dict[int, float] = {}
        self.executed: list[tuple[int, ...]] = []  # requests of every batch, in the order in which they ended
        self.deaths: list[tuple[int, ...]] = []  # requests of the batches during which a process died
        self.kills = 0  # of workers, by somebody else
        self.failed_s = 0.0  # device time of batches that failed
        self._policy, self._contained = policy, contained
        self.mesh = VirtualMesh(self._scheduler, SteadyNetwork(), self, now=100.0, checked=True)
        for i in range(workers):
            self._add(f"w{i}", batch_max)
        self.mesh.begin([REF], [FRONTEND])
        self.mesh.scheduler.want([REF], [REF] if contained else [], now=self.mesh.now)
        self.run(0.1)

    def _scheduler(self, now: float) -> Scheduler:
        state = ShardState()
        return Scheduler(make_policy(self._policy, state), state)

    def _add(self, name: str, batch_max: int) -> None:
        versions = OneVersion(batch_max, contained=self._contained)
        worker = SimWorker(
            name, self.mesh.timeline, 4, versions, self._duration_s, checked=not self._contained,
            container=REF if self._contained else "",
        )  # fmt: skip
        worker.fault = lambda action: self._fault(worker, versions, action)
        self.mesh.add(worker)

    def _duration_s(self, phase: Phase, job: Job) -> float:
        return LOAD_S if isinstance(job.action, wire.Load) else BASE_S + ROW_S * job.action.batch

    def _fault(self, worker: SimWorker, versions: OneVersion, action: wire.Infer) -> ActionCode:
        numbers = tuple(part.request for part in action.parts)
        if not versions.ok:
            return ActionCode.RESTARTING
        self.executed.append(numbers)
        if self.deadly & set(numbers):
            self.deaths.append(numbers)
            return self._die(worker, versions)
        if self.broken or worker.name == self.broken_worker or self.bad & set(numbers):
            self.failed_s += BASE_S + ROW_S * action.batch
            return ActionCode.DEVICE_ERROR
        return OK

    def _die(self, worker: SimWorker, versions: OneVersion) -> ActionCode:
        if self._contained:
            versions.serves(False)
            self.later(RESTART_S, lambda: versions.serves(True))
            return ActionCode.CONTAINER_DIED
        worker.linked = False  # its last result is never sent
        self.later(0.0, lambda: self.mesh.kill(worker))
        self.later(RESTART_S, lambda: self.mesh.link(worker))
        return ActionCode.DEVICE_ERROR

    def kill(self, worker: SimWorker) -> None:
        """Somebody kills the worker; it is started again."""
        self.kills += 1
        self.mesh.kill(worker)
        self.later(RESTART_S, lambda: self.mesh.link(worker))

    # -- time and requests --------------------------------------------------------------------------------------------

    def later(self, delay_s: float, call: Callable[[], object]) -> None:
        """`call` happens so much later."""
        self.mesh.timeline.at(self.mesh.now + delay_s, call)

    def run(self, for_s: float) -> None:
        """So much time goes by."""
        until_s = self.mesh.now + for_s
        self.mesh.happened()
        self.mesh.run_due()
        while self.mesh.timeline.next_s() <= until_s:
            self.mesh.timeline.advance(self.mesh.timeline.next_s())
            self.mesh.run_due()
            assert self.mesh.wakes < 500, "the controller is woken without end"
        self.mesh.timeline.advance(until_s)

    def submit(self, numbers: Iterable[int], *, budget_s: float = 0.5, client: Callable[[int], int] = int) -> None:
        """These requests arrive now. `client(number)`: who sends it; each has a client of its own, if not said."""
        for number in numbers:
            self.mesh.submit(
                wire.Submit(request=number, attempt=0, ref=REF, rows=1, budget_s=budget_s, client=client(number)),
                FRONTEND, 0.0,
            )  # fmt: skip

    def cancel(self, number: int) -> None:
        """Its client has gone."""
        self.mesh.cancel(FRONTEND, number)

    def answered(self, action: wire.Infer) -> None:
        """The batch's requests got their outputs."""
        for part in action.parts:
            self._told(part.request, "ok")

    def refused(self, frontend: str, refused: wire.Refused) -> None:
        """The request was refused."""
        self._told(refused.request, refused.code)
        self.messages[refused.request] = refused.message

    def _told(self, number: int, what: str) -> None:
        if self.kills and number in self.answers:
            return  # its outputs came, and their worker was killed before its result did
        assert number not in self.answers, f"{number} is answered twice"
        self.answers[number] = what
        self.answered_s[number] = self.mesh.now

    def told(self, what: str) -> set[int]:
        """The requests that were answered so."""
        return {number for number, answer in self.answers.items() if answer == what}
