"""Lanes of one device: LOAD, INPUT, EXEC, OUTPUT. Holds actions until their window opens, refuses those past it. Pure.

Nothing here queues, batches, reorders or caches on its own initiative: every action is the controller's, starts inside
its window or not at all, and ends in exactly one report. Source of the semantics: Clockwork (OSDI'20) section 4.4.

    LOAD    from `earliest`, until `latest`; takes pages when it starts.
    UNLOAD  at once; pages that an execution still reads are given back when it ends.
    INFER   INPUT from INPUT_AHEAD_S before `earliest`; EXEC from `earliest` until `latest`, once INPUT is done and the
            weights are there (a LOAD that is still on its way is waited for); OUTPUT at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gpu_worker.core.pages import Holding, PageTable
from mesh import wire

INPUT_AHEAD_S = 0.005  # Source: Clockwork, worker: inputs are copied up to 5 ms before EXEC may start
ACTIONS_MAX = 1024  # at one device; the controller keeps a handful there

CODES = {
    "ok": "done",
    "late": "its window had passed before it could start",
    "unknown_model": "the model is not prepared here",
    "wrong_version": "another version of the model is prepared here, not this one",
    "weights_missing": "the weights are not in the arena, and no LOAD of them is on its way",
    "already_loaded": "the weights are in the arena already, or on their way",
    "no_pages": "not enough free pages",
    "bad_batch": "the device cannot execute this batch size",
    "bad_input": "the inputs do not fit the model",
    "no_slots": "no free buffer for inputs",
    "stale_epoch": "ordered by a controller that has been replaced",
    "overfull": "too many actions wait at this device",
    "rows_changed": "the model gave another number of rows than it got",
    "bad_outputs": "the model gave outputs that are not those it promised",
    "content_changed": "the weights on disk are not, or not any more, those of the version",
    "device_error": "the device failed",
    "model_error": "a container's code raised an exception, or returned what it must not",
    "container_died": "a container's code died or hung; it is being started again",
}


class Phase(Enum):
    """What a lane does. Members are the lanes' names in traces."""

    LOAD = "load"
    INPUT = "input"
    EXEC = "exec"
    OUTPUT = "output"

    __hash__ = object.__hash__  # identity: an enum's own hash is computed in Python, on the hot path


@dataclass(slots=True)
class Done:
    """How one phase went, as the device measured it. Instants in the worker's clock."""

    begin_s: float
    end_s: float
    duration_s: float
    code: str = "ok"
    message: str = ""
    gathered: bool = False
    clock_mhz: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """One LOAD or INFER on its way through the lanes."""

    action: wire.Load | wire.Infer
    received_s: float
    order: int
    tensors: Sequence[Sequence[bytes | memoryview]] = ()  # of each part of an INFER: its inputs, in the spec's order
    phase: Phase | None = None  # being executed by the device; None: waiting
    input: Done | None = None
    exec: Done | None = None  # or the copy, of a LOAD
    pages: tuple[int, ...] = ()  # where the weights are
    holding: Holding | None = None  # while EXEC reads them
    slot: Any = None  # the device's: where the inputs lie
    output_row_bytes: tuple[int, ...] = ()  # promised, of each output
    outputs: list[memoryview] = field(default_factory=list)  # the device's: one tensor per output, all rows


@dataclass(slots=True)
class Start:
    """The device starts this phase of this job now."""

    phase: Phase
    job: Job


@dataclass(slots=True)
class Report:
    """The controller is told this. `job`, where there is one, has ended; with code ok it carries the outputs."""

    result: wire.ActionResult
    job: Job | None = None


Effect = Start | Report


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the lanes need to know of a version that can be executed here."""

    pages: int
    batch_max: int
    batch_sizes: frozenset[int] | None  # None: any up to the maximum
    output_row_bytes: tuple[int, ...]  # of each output


@dataclass(slots=True)
class Lanes:
    """All lanes of one device."""

    table: PageTable
    depth: dict[Phase, int]  # phases begun at a time: 1, or more where the device queues in order itself
    ahead_s: float = 0.0  # EXECs are given so long before `earliest` to a device that keeps the time itself
    epoch: int = 0  # of the controller that is obeyed
    models: dict[str, Prepared] = field(default_factory=dict)  # {ref: what is prepared}
    _loads: list[Job] = field(default_factory=list)  # LOADs not ended, by (earliest, order)
    _infers: list[Job] = field(default_factory=list)  # INFERs whose EXEC has not begun, by (earliest, order)
    _busy: dict[Phase, int] = field(default_factory=lambda: dict.fromkeys(Phase, 0))  # phases begun, not ended
    _orders: int = 0
    _advanced_s: float = -1.0  # `now` of the last advance: what was due by then was done
    _halted: bool = False  # nothing more is begun

    # -- events -------------------------------------------------------------------------------------------------------

    def welcome(self, epoch: int) -> list[Job]:
        """A controller took this device over: what its predecessor ordered and has not begun is dropped."""
        if epoch <= self.epoch:
            return []
        self.epoch = epoch
        dropped = [job for job in (*self._loads, *self._infers) if job.phase is None]
        self._loads = [job for job in self._loads if job.phase is not None]
        self._infers = [job for job in self._infers if job.phase is not None]
        return dropped

    def halt(self) -> None:
        """The device is lost: nothing more is begun, or taken.

        What waits, or comes, is not answered: whoever ordered it will hear that the worker is gone, and plan it
        elsewhere. What was begun ends in a report as ever.
        """
        self._halted = True
        self._loads = [job for job in self._loads if job.phase is not None]
        self._infers = [job for job in self._infers if job.phase is not None]

    def prepared(self, ref: str, model: Prepared) -> None:
        """`ref` can be executed here from now on."""
        self.models[ref] = model

    def forgotten(self, ref: str, *, now: float) -> list[Effect]:
        """`ref` cannot be executed here any more; its pages are free, or will be when what runs has ended."""
        self.models.pop(ref, None)
        if self.table.is_loaded(ref):
            self.table.release(ref)
        waiting = [job for job in self._loads if job.action.ref == ref and job.phase is None]
        self._loads = [job for job in self._loads if job not in waiting]
        return [*(self._failed(job, "unknown_model") for job in waiting), *self._advance(now)]

    def load(self, action: wire.Load, epoch: int, *, now: float) -> list[Effect]:
        """A LOAD was ordered."""
        if self._halted:
            return []
        job = self._job(action, now)
        code = self._refuse(job, epoch)
        if code is None and (self.table.holds(action.ref) or any(j.action.ref == action.ref for j in self._loads)):
            code = "already_loaded"
        if code is not None:
            return [self._failed(job, code)]
        _insert(self._loads, job)
        return self._advance(now)

    def unload(self, action: wire.Unload, epoch: int, *, now: float) -> list[Effect]:
        """An UNLOAD was ordered; done at once, and INFERs that wait for these weights are refused."""
        code = "ok"
        if epoch < self.epoch:
            code = "stale_epoch"
        elif not self.table.is_loaded(action.ref):
            code = "weights_missing"
        else:
            self.table.release(action.ref)
        result = wire.ActionResult(
            action=action.action,
            kind="unload",
            code=code,
            received_s=now,
            free_pages=self.table.free,
            begin_s=now,
            end_s=now,
        )
        return [Report(result), *self._advance(now)]

    def infer(
        self, action: wire.Infer, epoch: int, *, now: float, tensors: Sequence[Sequence[bytes | memoryview]] = ()
    ) -> list[Effect]:
        """An INFER was ordered; `tensors`: of each part, its inputs."""
        if self._halted:
            return []
        job = self._job(action, now)
        job.tensors = tensors
        code = self._refuse(job, epoch) or self._refuse_batch(action)
        if code is None and not self._weights_coming(action.ref):
            code = "weights_missing"
        if code is not None:
            return [self._failed(job, code)]
        job.output_row_bytes = self.models[action.ref].output_row_bytes
        _insert(self._infers, job)
        return self._advance(now)

    def finished(self, phase: Phase, job: Job, done: Done, *, now: float) -> list[Effect]:
        """The device ended a phase that it was told to start."""
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
        elif done.code != "ok":
            if phase is Phase.INPUT:
                self._infers.remove(job)
            effects.append(self._failed(job, done.code, done.message))
        elif phase is Phase.INPUT:
            job.input = done
        elif phase is Phase.EXEC:
            job.exec = done
            effects.append(self._start(Phase.OUTPUT, job))
        else:
            fault = _misfit(job)
            effects.append(self._failed(job, "bad_outputs", fault) if fault else self._inferred(job, done))
        effects.extend(self._advance(now))
        return effects

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not (self._loads or self._infers or self.running)

    @property
    def running(self) -> bool:
        """The device has not ended all that was begun."""
        return any(self._busy.values())

    def wake(self, *, now: float) -> list[Effect]:
        """What has become due by `now`. Calling early is harmless."""
        return self._advance(now)

    def wake_at(self) -> float | None:
        """When `wake` next has something to do, if nothing else happens before."""
        if not self._loads and not self._infers:
            return None
        times = [job.action.earliest_s for job in self._loads if job.phase is None]
        times += [_past(job.action.latest_s) for job in self._loads if job.phase is None]
        for job in self._infers:
            times.append(_past(job.action.latest_s))
            if job.phase is None:
                times.append(job.action.earliest_s - (INPUT_AHEAD_S if job.input is None else self.ahead_s))
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
                effects.append(self._failed(job, "late"))
            elif now >= action.earliest_s and self._busy[Phase.LOAD] < self.depth[Phase.LOAD]:
                pages = self.table.take(action.ref, self.models[action.ref].pages)
                if pages is None:
                    self._loads.remove(job)
                    effects.append(self._failed(job, "no_pages"))
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
                effects.append(self._failed(job, "late"))
            elif not self._weights_coming(action.ref):
                begun.append(job)
                effects.append(self._failed(job, "weights_missing"))
            elif (
                job.input is None
                and now >= action.earliest_s - INPUT_AHEAD_S
                and self._busy[Phase.INPUT] < self.depth[Phase.INPUT]
            ):
                effects.append(self._start(Phase.INPUT, job))
        for job in begun:
            self._infers.remove(job)

    def _may_execute(self, job: Job, now: float) -> bool:
        action = job.action
        return (
            action.earliest_s - self.ahead_s <= now <= action.latest_s
            and self._busy[Phase.EXEC] < self.depth[Phase.EXEC]
            and self.table.is_loaded(action.ref)
        )

    def _weights_coming(self, ref: str) -> bool:
        return self.table.is_loaded(ref) or any(job.action.ref == ref for job in self._loads)

    def _refuse(self, job: Job, epoch: int) -> str | None:
        if epoch < self.epoch:
            return "stale_epoch"
        ref = job.action.ref
        if ref not in self.models:
            name = wire.split_ref(ref)[0]
            same = any(wire.split_ref(known)[0] == name for known in self.models)
            return "wrong_version" if same else "unknown_model"
        if len(self._loads) + len(self._infers) >= ACTIONS_MAX:
            return "overfull"
        if job.received_s > job.action.latest_s:
            return "late"
        return None

    def _refuse_batch(self, action: wire.Infer) -> str | None:
        model = self.models[action.ref]
        rows = sum(part.rows for part in action.parts)
        if not 1 <= action.batch <= model.batch_max or rows > action.batch:
            return "bad_batch"
        if model.batch_sizes is not None and action.batch not in model.batch_sizes:
            return "bad_batch"
        return None

    def _job(self, action: wire.Load | wire.Infer, now: float) -> Job:
        self._orders += 1
        return Job(action, now, self._orders)

    def _start(self, phase: Phase, job: Job) -> Start:
        self._busy[phase] += 1
        job.phase = phase
        return Start(phase, job)

    # -- reports ------------------------------------------------------------------------------------------------------

    def _load_ended(self, job: Job, done: Done) -> Report:
        self._loads.remove(job)
        ref = job.action.ref
        if done.code != "ok":
            self.table.release(ref)
            return self._failed(job, done.code, done.message)
        self.table.loaded(ref)
        if ref not in self.models:
            self.table.release(ref)  # forgotten while it was being copied
        return Report(
            wire.ActionResult(
                action=job.action.action,
                kind="load",
                code="ok",
                received_s=job.received_s,
                free_pages=self.table.free,
                begin_s=done.begin_s,
                end_s=done.end_s,
                duration_s=done.duration_s,
            ),
            job,
        )

    def _inferred(self, job: Job, done: Done) -> Report:
        assert job.exec is not None
        assert job.input is not None
        ran = job.exec
        return Report(
            wire.ActionResult(
                action=job.action.action,
                kind="infer",
                code="ok",
                received_s=job.received_s,
                free_pages=self.table.free,
                begin_s=ran.begin_s,
                end_s=ran.end_s,
                duration_s=ran.duration_s,
                input_s=job.input.duration_s,
                output_s=done.duration_s,
                gathered=ran.gathered,
                clock_mhz=ran.clock_mhz,
            ),
            job,
        )

    def _failed(self, job: Job, code: str, message: str = "") -> Report:
        kind = "load" if isinstance(job.action, wire.Load) else "infer"
        return Report(
            wire.ActionResult(
                action=job.action.action,
                kind=kind,
                code=code,
                received_s=job.received_s,
                free_pages=self.table.free,
                message=message or CODES.get(code, ""),
            ),
            job,
        )

    def check(self) -> None:
        """Every invariant holds."""
        self.table.check()
        for phase, busy in self._busy.items():
            assert 0 <= busy <= self.depth[phase] or phase is Phase.OUTPUT, (phase, busy)
        for jobs in (self._loads, self._infers):
            keys = [(job.action.earliest_s, job.order) for job in jobs]
            assert keys == sorted(keys)
        assert all(job.phase in (None, Phase.INPUT) for job in self._infers)
        assert all(job.phase in (None, Phase.LOAD) for job in self._loads)


def _past(latest_s: float) -> float:
    """The first instant at which what had to start by `latest_s` is late."""
    return math.nextafter(latest_s, math.inf)


def _misfit(job: Job) -> str:
    """Why nobody may get a row of the job's outputs, whatever the device says of them; or nothing.

    Rows are told apart by their bytes: with one too many, each would be its neighbour's.
    """
    action = job.action
    assert isinstance(action, wire.Infer)
    found = [len(output) for output in job.outputs]
    wanted = [size * action.batch for size in job.output_row_bytes]
    return "" if found == wanted else f"outputs of {found} bytes; {action.batch} rows take {wanted}"


def _insert(jobs: list[Job], job: Job) -> None:
    """Keeps `jobs` in order of (earliest, order); a new one almost always comes last."""
    at = len(jobs)
    while at and jobs[at - 1].action.earliest_s > job.action.earliest_s:
        at -= 1
    jobs.insert(at, job)
