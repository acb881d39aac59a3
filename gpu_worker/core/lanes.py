"""Lanes of one device: LOAD, INPUT, EXEC, OUTPUT. An action waits until its window opens, and then starts. Pure.

The lanes do not batch, reorder or cache on their own initiative. The controller orders every action. An action starts
inside its window, from `earliest_s` to `latest_s`, or not at all, and ends in exactly one report.

    LOAD    starts inside its window, and takes its pages then.
    UNLOAD  happens at once. Pages that an EXEC still reads become free when that EXEC ends.
    REVOKE  ends an INFER whose EXEC has not begun. One that has begun goes on.
    INFER   INPUT starts up to INPUT_AHEAD_S before the window opens. EXEC starts inside the window, after INPUT has
            ended and a LOAD of the weights, if one is on its way, has ended. OUTPUT follows at once.

Source: Clockwork (OSDI'20), section 4.4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu_worker.core.endings import failed, infer_ended, load_ended, unload_ended, wrong_outputs
from gpu_worker.core.fitting import batch_fault
from gpu_worker.core.incoming import Incoming
from gpu_worker.core.input_times import InputTimes
from gpu_worker.core.jobs import Done, Effect, Job, Phase, Report, Servable, StartPhase
from gpu_worker.core.pages import PageTable
from mesh import wire
from mesh.codes import ActionCode

OK = ActionCode.OK
INPUT_AHEAD_S = 0.005  # Source: Clockwork's worker copies inputs up to 5 ms before EXEC may start
ACTIONS_MAX = 1024  # that wait or run at one device; a controller orders only a handful ahead


@dataclass(slots=True)
class Lanes:
    """All lanes of one device."""

    table: PageTable
    depth: dict[Phase, int]  # phases that may run at a time; more than 1 where the device itself queues them in order
    ahead_s: float = 0.0  # EXEC goes to the device so long before `earliest_s`, if the device waits for the time itself
    epoch: int = 0  # of the controller that is obeyed
    servables: dict[str, Servable] = field(default_factory=dict)  # {ref: what is prepared}
    _loads: list[Job] = field(default_factory=list)  # LOADs that have not ended, by (earliest_s, order)
    _infers: list[Job] = field(default_factory=list)  # INFERs whose EXEC has not begun, by (earliest_s, order)
    _busy: dict[Phase, int] = field(default_factory=lambda: dict.fromkeys(Phase, 0))  # phases that run
    _orders: int = 0  # jobs made so far
    _advanced_s: float = -1.0  # `now` of the last advance, which did everything that was due by then
    _halted: bool = False  # no phase begins any more
    _input_times: InputTimes = field(default_factory=InputTimes)  # of inputs that orders do not carry

    # -- events -------------------------------------------------------------------------------------------------------

    def welcome(self, epoch: int, *, same: bool = False) -> list[Job]:
        """A controller with this epoch took the device over. Jobs that wait for the device are dropped, and returned.

        A controller that is not newer than the one that is obeyed changes nothing. `same`: it is the one that is
        obeyed, under a newer epoch; what it ordered before holds.
        """
        if epoch <= self.epoch:
            return []
        self.epoch = epoch
        if same:
            return []
        return self._drop_waiting()

    @property
    def halted(self) -> bool:
        """Whether the device is lost."""
        return self._halted

    def halt(self) -> list[Job]:
        """The device is lost: no phase begins, and no action is taken any more.

        Actions that wait are returned. They, and what comes later, are not reported: the controller learns that the
        worker is gone, and plans them elsewhere. A phase that runs still ends in a report.
        """
        self._halted = True
        return self._drop_waiting()

    def prepared(self, ref: str, servable: Servable) -> None:
        """`ref` can be executed here from now on."""
        self.servables[ref] = servable

    def forgotten(self, ref: str, *, now: float) -> list[Effect]:
        """`ref` cannot be executed here any more. Its pages are free, or will be when the phases that use them end."""
        self.servables.pop(ref, None)
        self._input_times.forget(ref)
        if self.table.is_loaded(ref):
            self.table.release(ref)
        waiting = [job for job in self._loads if job.action.ref == ref and job.phase is None]
        self._loads = [job for job in self._loads if job not in waiting]
        return [*(self._failed(job, ActionCode.UNKNOWN_MODEL) for job in waiting), *self._advance(now)]

    def load(self, action: wire.Load, epoch: int, *, now: float) -> list[Effect]:
        """A LOAD was ordered; it waits for its window, starts, or is refused."""
        if self._halted:
            return []
        job = self._job(action, epoch, now)
        code = self._refuse(job)
        if code is None and (self.table.holds(action.ref) or any(j.action.ref == action.ref for j in self._loads)):
            code = ActionCode.ALREADY_LOADED
        if code is not None:
            return [self._failed(job, code)]
        _insert(self._loads, job)
        return self._advance(now)

    def unload(self, action: wire.Unload, epoch: int, *, now: float) -> list[Effect]:
        """An UNLOAD was ordered, and is done. INFERs that wait for these weights are refused."""
        code = OK
        if epoch < self.epoch:
            code = ActionCode.STALE_EPOCH
        elif not self.table.is_loaded(action.ref):
            code = ActionCode.WEIGHTS_MISSING
        else:
            self.table.release(action.ref)
        return [unload_ended(action, code, self.table.free, now), *self._advance(now)]

    def infer(
        self,
        action: wire.Infer,
        epoch: int,
        *,
        now: float,
        tensors: Sequence[Sequence[bytes | memoryview]] = (),
        incoming: Incoming | None = None,
    ) -> list[Effect]:
        """An INFER was ordered. `tensors`: the inputs of each part, in the order of the model's spec.

        `incoming`: in place of these, if the order does not carry all of them. What comes of them, or will not come,
        is noted there; call `wake` then.
        """
        if self._halted:
            return []
        job = self._job(action, epoch, now)
        job.tensors, job.incoming = tensors, incoming
        code, why = self._refuse(job), ""
        if code is None:
            code, why = batch_fault(self.servables[action.ref], action)
        if code is None and not self._weights_coming(action.ref):
            code = ActionCode.WEIGHTS_MISSING
        if code is not None:
            return [self._failed(job, code, why)]
        servable = self.servables[action.ref]
        job.output_row_bytes, job.spec = servable.output_row_bytes, servable.spec
        if incoming is not None:
            incoming.shrinks = servable.batch_sizes is None
        _insert(self._infers, job)
        return self._advance(now)

    def revoke(self, action: int, epoch: int, *, now: float) -> list[Effect]:
        """Nobody waits for this INFER: it ends as revoked, at once or with its INPUT, unless its EXEC has begun.

        Then, as when it has ended or never came, nothing happens: its own report says all.
        """
        for job in self._infers:
            if job.action.action == action and job.epoch == epoch:
                if job.phase is not None:
                    job.revoked = True
                    return []
                self._infers.remove(job)
                return [self._failed(job, ActionCode.REVOKED), *self._advance(now)]
        return []

    def finished(self, phase: Phase, job: Job, done: Done, *, now: float) -> list[Effect]:
        """The device has ended a phase that a StartPhase told it to start."""
        assert job.phase is phase, f"{phase} of action {job.action.action} had not begun"
        self._busy[phase] -= 1
        job.phase = None
        if phase is Phase.EXEC:
            assert job.holding is not None
            self.table.unpin(job.holding)
            job.holding = None
        effects: list[Effect] = []
        if phase is Phase.LOAD:
            effects.append(self._load_ended(job, done))
        elif done.code != OK:
            if phase is Phase.INPUT:
                self._infers.remove(job)
            effects.append(self._failed(job, done.code, done.message))
        elif job.revoked:
            self._infers.remove(job)
            effects.append(self._failed(job, ActionCode.REVOKED))
        elif phase is Phase.INPUT:
            job.input = done
            if job.incoming is not None and job.action.ref in self.servables:
                self._input_times.took(job.action.ref, done.duration_s)
        elif phase is Phase.EXEC:
            job.exec = done
            effects.append(self._start(Phase.OUTPUT, job))
        else:
            fault = wrong_outputs(job)
            if fault:
                effects.append(self._failed(job, ActionCode.BAD_OUTPUTS, fault))
            else:
                effects.append(infer_ended(job, done, self.table.free))
        effects.extend(self._advance(now))
        return effects

    def input_again(self, job: Job, parts: Sequence[int], *, now: float) -> list[Effect]:
        """The device has ended INPUT, but what it read of these parts cannot be trusted: it is done without them."""
        assert job.phase is Phase.INPUT
        assert job.incoming is not None
        self._busy[Phase.INPUT] -= 1
        job.phase = None
        job.incoming.miss(parts)
        if job.revoked:
            self._infers.remove(job)
            return [self._failed(job, ActionCode.REVOKED), *self._advance(now)]
        return self._advance(now)

    @property
    def idle(self) -> bool:
        """Whether no job waits and no phase runs."""
        return not (self._loads or self._infers or self.running)

    @property
    def running(self) -> bool:
        """Whether a phase runs on the device."""
        return any(self._busy.values())

    def wake(self, *, now: float) -> list[Effect]:
        """Does what is due by `now`. Calling early is harmless."""
        return self._advance(now)

    def wake_at(self) -> float | None:
        """When `wake` next has something to do, if nothing else happens before; None: never."""
        if not self._loads and not self._infers:
            return None
        times = [job.action.earliest_s for job in self._loads if job.phase is None]
        times += [_past(job.action.latest_s) for job in self._loads if job.phase is None]
        for job in self._infers:
            times.append(_past(job.action.latest_s))
            if job.phase is None:
                times.append(job.action.earliest_s - (INPUT_AHEAD_S if job.input is None else self.ahead_s))
                if job.incoming is not None and job.incoming.awaited:
                    times.append(self._give_up_s(job))
        future = [t for t in times if t > self._advanced_s]
        return min(future) if future else None

    # -- rules --------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Effect]:
        self._advanced_s = now
        effects: list[Effect] = []
        if self._halted:
            return effects
        if self._loads:
            self._advance_loads(now, effects)
        if self._infers:
            self._advance_infers(now, effects)
        return effects

    def _advance_loads(self, now: float, effects: list[Effect]) -> None:
        for job in list(self._loads):
            action = job.action
            if job.phase is not None:
                continue
            if now > action.latest_s:
                self._loads.remove(job)
                effects.append(self._failed(job, ActionCode.LATE))
            elif now >= action.earliest_s and self._busy[Phase.LOAD] < self.depth[Phase.LOAD]:
                pages = self.table.take(action.ref, self.servables[action.ref].pages)
                if pages is None:
                    self._loads.remove(job)
                    effects.append(self._failed(job, ActionCode.NO_PAGES))
                    continue
                job.pages = pages
                effects.append(self._start(Phase.LOAD, job))

    def _advance_infers(self, now: float, effects: list[Effect]) -> None:
        begun = []
        for job in self._infers:
            action = job.action
            if job.phase is None and job.input is not None and self._may_execute(job, now):
                begun.append(job)
                job.holding = self.table.pin(action.ref)
                job.pages = job.holding.pages
                effects.append(self._start(Phase.EXEC, job))
            elif job.phase is not None:
                continue
            elif now > action.latest_s:
                begun.append(job)
                effects.append(self._overdue(job))
            elif not self._weights_coming(action.ref):
                begun.append(job)
                effects.append(self._failed(job, ActionCode.WEIGHTS_MISSING))
            elif job.incoming is not None and job.input is None and not self._inputs_there(job, job.incoming, now):
                if job.incoming.empty:
                    begun.append(job)
                    effects.append(self._failed(job, ActionCode.INPUTS_MISSING))
            elif (
                job.input is None
                and now >= action.earliest_s - INPUT_AHEAD_S
                and self._busy[Phase.INPUT] < self.depth[Phase.INPUT]
            ):
                if job.incoming is not None:
                    job.action, job.tensors = job.incoming.batch()
                effects.append(self._start(Phase.INPUT, job))
        for job in begun:
            self._infers.remove(job)

    def _inputs_there(self, job: Job, incoming: Incoming, now: float) -> bool:
        """Whether nothing is awaited any more, and not all parts are left out."""
        if incoming.awaited and now >= self._give_up_s(job):
            self._give_up(job, incoming)
        return not incoming.awaited and not incoming.empty

    def _give_up_s(self, job: Job) -> float:
        return self._input_times.give_up_s(job.action.ref, job.received_s, job.action.latest_s)

    def _give_up(self, job: Job, incoming: Incoming) -> None:
        """What is awaited is left out."""
        incoming.give_up()
        self._input_times.in_vain(job.action.ref)

    def _may_execute(self, job: Job, now: float) -> bool:
        action = job.action
        return (
            action.earliest_s - self.ahead_s <= now <= action.latest_s
            and self._busy[Phase.EXEC] < self.depth[Phase.EXEC]
            and self.table.is_loaded(action.ref)
        )

    def _weights_coming(self, ref: str) -> bool:
        return self.table.is_loaded(ref) or any(job.action.ref == ref for job in self._loads)

    def _refuse(self, job: Job) -> ActionCode | None:
        if job.epoch < self.epoch:
            return ActionCode.STALE_EPOCH
        ref = job.action.ref
        if ref not in self.servables:
            name = wire.split_ref(ref)[0]
            same = any(wire.split_ref(known)[0] == name for known in self.servables)
            return ActionCode.WRONG_VERSION if same else ActionCode.UNKNOWN_MODEL
        if len(self._loads) + len(self._infers) >= ACTIONS_MAX:
            return ActionCode.OVERFULL
        if job.received_s > job.action.latest_s:
            return ActionCode.LATE
        return None

    def _job(self, action: wire.Load | wire.Infer, epoch: int, now: float) -> Job:
        self._orders += 1
        return Job(action, now, self._orders, epoch)

    def _start(self, phase: Phase, job: Job) -> StartPhase:
        self._busy[phase] += 1
        job.phase = phase
        return StartPhase(phase, job)

    def _drop_waiting(self) -> list[Job]:
        """No job waits any more; returns those that did."""
        dropped = [job for job in (*self._loads, *self._infers) if job.phase is None]
        self._loads = [job for job in self._loads if job.phase is not None]
        self._infers = [job for job in self._infers if job.phase is not None]
        return dropped

    # -- endings ------------------------------------------------------------------------------------------------------

    def _load_ended(self, job: Job, done: Done) -> Report:
        self._loads.remove(job)
        ref = job.action.ref
        if done.code != OK:
            self.table.release(ref)
            return self._failed(job, done.code, done.message)
        self.table.loaded(ref)
        if ref not in self.servables:
            self.table.release(ref)  # the version was forgotten during the copy
        return load_ended(job, done, self.table.free)

    def _overdue(self, job: Job) -> Report:
        incoming = job.incoming
        if incoming is None or not incoming.awaited:
            return self._failed(job, ActionCode.LATE)
        self._give_up(job, incoming)
        return self._failed(job, ActionCode.INPUTS_MISSING)

    def _failed(self, job: Job, code: ActionCode, message: str = "") -> Report:
        return failed(job, code, self.table.free, message or code.meaning)

    def check(self) -> None:
        """Every invariant holds."""
        self.table.check()
        for phase, busy in self._busy.items():
            assert 0 <= busy <= self.depth[phase] or phase is Phase.OUTPUT, (phase, busy)
        for jobs in (self._loads, self._infers):
            keys = [(job.action.earliest_s, job.order) for job in jobs]
            assert keys == sorted(keys)
        assert all(job.phase in (None, Phase.INPUT) for job in self._infers)
        assert all(job.phase is Phase.INPUT for job in self._infers if job.revoked)
        assert all(job.phase in (None, Phase.LOAD) for job in self._loads)
        begun = [job.incoming for job in self._infers if job.phase is not None or job.input is not None]
        assert not any(incoming.awaited for incoming in begun if incoming is not None)


def _past(latest_s: float) -> float:
    """The first instant at which an action that has to start by `latest_s` is late."""
    return math.nextafter(latest_s, math.inf)


def _insert(jobs: list[Job], job: Job) -> None:
    """Inserts the job; `jobs` stay in order of (earliest_s, order). A new job almost always comes last."""
    at = len(jobs)
    while at and jobs[at - 1].action.earliest_s > job.action.earliest_s:
        at -= 1
    jobs.insert(at, job)
