"""Lanes under any sequence of orders, endings and waits: every action ends once, inside its window or not at all."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_worker.core.incoming import Incoming
from gpu_worker.core.jobs import Done, Effect, Job, Phase, Report, Servable, StartPhase
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.pages import PageTable
from mesh import wire
from mesh.codes import ActionCode
from tests.gpu_worker.worker_builders import awaiting, infer, load, unload

REFS = ("a:1", "b:1", "b:2")
PAGES = {"a:1": 1, "b:1": 2, "b:2": 3}
PHASES_IN_LANES = (Phase.LOAD, Phase.INPUT, Phase.EXEC)
DEPTH = {Phase.LOAD: 2, Phase.INPUT: 2, Phase.EXEC: 2, Phase.OUTPUT: 1}
SOON = st.integers(-3, 8)


class LanesMachine(RuleBasedStateMachine):
    """Instants are whole seconds: boundaries are met all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(PageTable(4), dict(DEPTH))
        self.now = 100.0
        self.epoch = 1
        self.count = 0
        self.open: set[int] = set()  # actions without a report
        self.running: list[tuple[Phase, Job]] = []
        self.incomings: list[Incoming] = []  # of INFERs that do not carry their inputs
        self.pages: dict[int, str] = {}  # {page: whose weights were copied there}
        self.lanes.welcome(self.epoch)

    @rule(ref=st.sampled_from(REFS))
    def prepare(self, ref: str) -> None:
        self.lanes.prepared(ref, Servable(PAGES[ref], 4, None, ()))

    @rule(ref=st.sampled_from(REFS), earliest=SOON, latest=SOON)
    def load(self, ref: str, earliest: int, latest: int) -> None:
        action = load(self._number(), ref, earliest_s=self.now + earliest, latest_s=self.now + latest)
        self._take(self.lanes.load(action, self.epoch, now=self.now))

    @rule(ref=st.sampled_from(REFS), earliest=SOON, latest=SOON, batch=st.integers(0, 5))
    def infer(self, ref: str, earliest: int, latest: int, batch: int) -> None:
        action = infer(
            self._number(), ref, earliest_s=self.now + earliest, latest_s=self.now + latest, batch=batch, rows=[1]
        )
        self._take(self.lanes.infer(action, self.epoch, now=self.now))

    @rule(ref=st.sampled_from(REFS), earliest=SOON, latest=SOON, there=st.sets(st.integers(0, 2)))
    def infer_kept(self, ref: str, earliest: int, latest: int, there: set[int]) -> None:
        action = infer(
            self._number(), ref, earliest_s=self.now + earliest, latest_s=self.now + latest, batch=3, rows=[1, 1, 1]
        )
        incoming = awaiting(action, *there)
        self.incomings.append(incoming)
        self._take(self.lanes.infer(incoming.action, self.epoch, now=self.now, incoming=incoming))

    @precondition(lambda self: any(incoming.awaited for incoming in self.incomings))
    @rule(data=st.data(), how=st.sampled_from(["come", "come", "ended", "wrong"]))
    def inputs(self, data: Any, how: str) -> None:
        waiting = [(incoming, part) for incoming in self.incomings for part in sorted(incoming.awaited)]
        incoming, part = waiting[data.draw(st.integers(0, len(waiting) - 1))]
        if how == "come":
            incoming.arrived(part, [b"x"], self.now)
        elif how == "ended":
            incoming.end(part)
        else:
            incoming.miss((part,))
        self._take(self.lanes.wake(now=self.now))

    @precondition(lambda self: any(phase is Phase.INPUT and job.incoming for phase, job in self.running))
    @rule(data=st.data())
    def used_anew(self, data: Any) -> None:
        reading = [(phase, job) for phase, job in self.running if phase is Phase.INPUT and job.incoming]
        phase, job = reading[data.draw(st.integers(0, len(reading) - 1))]
        read = sorted(part for part, _ in job.incoming.read_from)
        if not read:
            return
        self.running.remove((phase, job))
        stale = data.draw(st.lists(st.sampled_from(read), min_size=1, unique=True))
        self._take(self.lanes.input_again(job, stale, now=self.now))

    @rule(ref=st.sampled_from(REFS))
    def unload(self, ref: str) -> None:
        self._take(self.lanes.unload(unload(self._number(), ref), self.epoch, now=self.now))

    @rule(back=st.integers(0, 3), epoch=st.sampled_from([0, 0, 0, 1]))
    def revoke(self, back: int, epoch: int) -> None:
        begun = {job.action.action for phase, job in self.running if phase is not Phase.INPUT}
        effects = self.lanes.revoke(self.count - back, self.epoch - epoch, now=self.now)
        assert all(not isinstance(effect, Report) or effect.result.action not in begun for effect in effects)
        self._take(effects)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), code=st.sampled_from([ActionCode.OK, ActionCode.OK, ActionCode.OK, ActionCode.DEVICE_ERROR]))
    def end(self, data: Any, code: str) -> None:
        phase, job = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if phase is Phase.EXEC:
            self._reads(job)
        if phase is Phase.LOAD and code == ActionCode.OK:
            self.pages |= dict.fromkeys(job.pages, job.action.ref)
        self._take(self.lanes.finished(phase, job, Done(self.now, self.now, 0.0, code), now=self.now))

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self._take(self.lanes.wake(now=self.now))

    @rule()
    def wait_as_asked(self) -> None:
        at = self.lanes.wake_at()
        if at is not None:
            assert at > self.now
            self.now = at
            self._take(self.lanes.wake(now=at))

    @rule(ref=st.sampled_from(REFS))
    def forget(self, ref: str) -> None:
        self._take(self.lanes.forgotten(ref, now=self.now))

    @rule(step=st.sampled_from([0, 1]))
    def welcome(self, step: int) -> None:
        self.epoch += step
        for job in self.lanes.welcome(self.epoch):
            assert job.phase is None
            self.open.remove(job.action.action)

    def _number(self) -> int:
        self.count += 1
        self.open.add(self.count)
        return self.count

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, StartPhase):
                self._started(effect.phase, effect.job)
            else:
                self.open.remove(effect.result.action)
                assert effect.result.received_s <= self.now

    def _started(self, phase: Phase, job: Job) -> None:
        action = job.action
        if phase in (Phase.LOAD, Phase.EXEC):
            assert action.earliest_s <= self.now <= action.latest_s
        if phase is Phase.LOAD:
            assert isinstance(action, wire.Load)
            assert not any(set(job.pages) & set(other.pages) for _, other in self.running)
            self.pages |= dict.fromkeys(job.pages, "being written")
        if phase is Phase.INPUT and job.incoming is not None:
            assert not job.incoming.awaited
            assert isinstance(action, wire.Infer)
            left_out = job.incoming.missing | job.incoming.ended
            assert [part.request for part in action.parts] == [i for i in range(3) if i not in left_out]
            assert len(job.tensors) == len(action.parts) > 0
        if phase is Phase.EXEC:
            self._reads(job)
        self.running.append((phase, job))
        for lane in PHASES_IN_LANES:
            assert sum(other is lane for other, _ in self.running) <= DEPTH[lane]

    def _reads(self, job: Job) -> None:
        assert [self.pages[page] for page in job.pages] == [job.action.ref] * PAGES[job.action.ref]

    @invariant()
    def holds(self) -> None:
        self.lanes.check()
        if not self.running and self.lanes.wake_at() is None:
            assert not self.open, "an action is forgotten"


LanesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestLanesMachine = LanesMachine.TestCase
