"""The pump: it begins on a device what the lanes order, and gives back to the lanes what the device has ended. Pure.

The worker's service, the benchmark of one device, the simulation and the tests all drive lanes with this class. It
reads no clock: whoever calls it passes `now`, in the worker's clock, and the device measures its own work.

    orders, ended phases, wakes  ->  lanes  ->  phases to start  ->  device.begin
                                            ->  reports          ->  report, then device.release
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from gpu_worker.core.incoming import Incoming
from gpu_worker.core.jobs import Done, Effect, Job, Phase, Report
from gpu_worker.core.lanes import Lanes
from mesh import wire
from mesh.codes import ActionCode

OK = ActionCode.OK
Action = wire.Load | wire.Infer | wire.Unload


class Executor(Protocol):
    """What the pump asks of a device. `gpu_worker.devices.base.Device` says what each method has to do."""

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """Starts a phase. Returns how it went if it is over already; None if `Pump.finished` will be told."""

    def release(self, job: Job) -> None:
        """The job has ended; what it held for inputs and outputs is free."""

    def unloaded(self, ref: str) -> None:
        """The pages of `ref` are not its own any more."""


class InputSource(Protocol):
    """Whence inputs come that orders do not carry."""

    def stale(self, incoming: Incoming) -> Sequence[int]:
        """The parts whose slots have been used anew: what was read of them is not what their frontends had put there.

        As then their requests have ended.
        """

    def release(self, incoming: Incoming) -> None:
        """The inputs are in the device, or are not wanted any more: nothing of them is held, or awaited."""


class NoneKept:
    """The source where no inputs are kept by frontends: orders carry all of them."""

    def stale(self, incoming: Incoming) -> Sequence[int]:
        """Nothing is read from slots."""
        return ()

    def release(self, incoming: Incoming) -> None:
        """Nothing is held."""


class Pump:
    """Lanes, the device behind them, and a listener that hears each report before the device may reuse the buffers.

    Each call returns when the lanes have nothing more to start or to report at that instant. No call may be made from
    inside `report` or `begin`.
    """

    __slots__ = ("_device", "_inputs", "_report", "lanes")

    def __init__(
        self, lanes: Lanes, device: Executor, report: Callable[[Report], None], inputs: InputSource | None = None
    ) -> None:
        """`inputs`: whence those come that orders do not carry; None: there are none."""
        self.lanes = lanes
        self._device = device
        self._report = report
        self._inputs: InputSource = inputs if inputs is not None else NoneKept()

    def take(self, action: Action, epoch: int, *, now: float) -> None:
        """An action was ordered, without inputs."""
        if isinstance(action, wire.Infer):
            self.infer(action, epoch, (), now=now)
        elif isinstance(action, wire.Load):
            self.load(action, epoch, now=now)
        else:
            self.unload(action, epoch, now=now)

    def infer(
        self, action: wire.Infer, epoch: int, tensors: Sequence[Sequence[bytes | memoryview]], *, now: float
    ) -> None:
        """An INFER was ordered. `tensors`: the inputs of each part, in the order of the model's spec."""
        self._run(self.lanes.infer(action, epoch, now=now, tensors=tensors))

    def infer_kept(self, incoming: Incoming, epoch: int, *, now: float) -> None:
        """An INFER was ordered that does not carry all of its inputs. Whenever some have come, call `wake`."""
        halted = self.lanes.halted
        self._run(self.lanes.infer(incoming.action, epoch, now=now, incoming=incoming))
        if halted:
            self._inputs.release(incoming)

    def revoke(self, action: int, epoch: int, *, now: float) -> None:
        """Nobody waits for this INFER any more: it ends, unless its EXEC has begun."""
        self._run(self.lanes.revoke(action, epoch, now=now))

    def load(self, action: wire.Load, epoch: int, *, now: float) -> None:
        """A LOAD was ordered."""
        self._run(self.lanes.load(action, epoch, now=now))

    def unload(self, action: wire.Unload, epoch: int, *, now: float) -> None:
        """An UNLOAD was ordered, and is done."""
        self._run(self.lanes.unload(action, epoch, now=now))
        self._device.unloaded(action.ref)

    def forget(self, ref: str, *, now: float) -> None:
        """The version cannot be executed any more, and has no pages."""
        self._run(self.lanes.forgotten(ref, now=now))
        self._device.unloaded(ref)

    def finished(self, phase: Phase, job: Job, done: Done, *, now: float) -> None:
        """The device has ended a phase that `begin` left running."""
        self._run(self._ended(phase, job, done, now))

    def wake(self, *, now: float) -> bool:
        """What is due by `now` is done. Calling early is harmless. Returns whether anything was started or reported."""
        effects = self.lanes.wake(now=now)
        self._run(effects)
        return bool(effects)

    def wake_at(self) -> float | None:
        """When `wake` next has something to do, if nothing else happens before."""
        return self.lanes.wake_at()

    def welcome(self, epoch: int, *, same: bool = False) -> None:
        """A controller took the device over; what its predecessor ordered and the device has not begun is dropped.

        `same`: it has had the device, and has a newer epoch now.
        """
        for job in self.lanes.welcome(epoch, same=same):
            self._release(job)

    def halt(self) -> None:
        """The device is lost: see `Lanes.halt`. What waits is not reported."""
        for job in self.lanes.halt():
            self._release(job)

    def _release(self, job: Job) -> None:
        self._device.release(job)
        if job.incoming is not None:
            self._inputs.release(job.incoming)

    def _ended(self, phase: Phase, job: Job, done: Done, now: float) -> list[Effect]:
        """The device has ended a phase. Inputs that were read from slots are looked after before they are used."""
        incoming = job.incoming
        if incoming is not None and phase is Phase.INPUT and done.code == OK:
            stale = self._inputs.stale(incoming)
            if stale:
                self._device.release(job)
                return self.lanes.input_again(job, stale, now=now)
            job.tensors = ()
            self._inputs.release(incoming)
        return self.lanes.finished(phase, job, done, now=now)

    def _run(self, effects: list[Effect]) -> None:
        device = self._device
        for effect in effects:  # the list grows meanwhile: what follows from an effect comes behind all others
            if isinstance(effect, Report):
                try:
                    self._report(effect)
                finally:
                    if effect.job is not None:
                        self._release(effect.job)
                continue
            done = device.begin(effect.phase, effect.job)
            if done is not None:
                effects += self._ended(effect.phase, effect.job, done, done.end_s)
