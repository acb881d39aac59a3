"""What a device tells its worker: which phases have ended, and that the device is lost."""

from __future__ import annotations

import asyncio
import time

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.base import Finished, Lost
from gpu_worker.devices.cuda.driver import Driver
from mesh.codes import ActionCode


class Reporter:
    """Reports through the worker's loop, once per phase and once per device."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.is_lost = False
        self.hangs = False
        self._begun: dict[Job, Phase] = {}  # {job: its phase} that has not ended, oldest first
        self._finished: Finished | None = None
        self._lost: Lost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, finished: Finished, lost: Lost) -> None:
        """Ends of phases go to `finished`; `lost` is called once if the device fails. On the loop's thread."""
        self._finished, self._lost = finished, lost
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> bool:
        """Whether every phase that was begun has ended. On the loop's thread."""
        return not self._begun

    def begun(self, phase: Phase, job: Job) -> None:
        """The phase begins; it ends by `tell`, by `give_up` or by `over`. On the loop's thread."""
        self._begun[job] = phase

    def over(self, job: Job) -> None:
        """The job's phase ended while it began, and nothing will be reported. On the loop's thread."""
        del self._begun[job]

    def tell(self, phase: Phase, job: Job, done: Done) -> None:
        """The end of the phase is reported soon. On any thread."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end, phase, job, done)

    def suspect(self) -> None:
        """Checks whether a failure was the device's; then the device is lost to this process.

        Otherwise only one action failed. On any thread.
        """
        if self.is_lost or self._loop is None or self._loop.is_closed():
            return
        why = self._driver.lost()
        if why:
            self._loop.call_soon_threadsafe(self._tell_lost, why)

    def give_up(self, why: str) -> None:
        """The device hangs. Every phase that was begun ends here with an error. On the loop's thread."""
        self.hangs = True
        self._tell_lost(why)
        now = time.monotonic()
        for job, phase in list(self._begun.items()):
            self._end(phase, job, Done(now, now, 0.0, ActionCode.DEVICE_ERROR, why))

    def _tell_lost(self, why: str) -> None:
        assert self._lost is not None
        if not self.is_lost:
            self.is_lost = True
            self._lost(why)

    def _end(self, phase: Phase, job: Job, done: Done) -> None:
        """Reports the end of a phase, unless it was given up and reported before. On the loop's thread.

        Whatever fails on a lost device fails for that reason: the controller tells by the order who was first.
        """
        assert self._finished is not None
        if self._begun.pop(job, None) is not None:
            if self.is_lost and done.code == ActionCode.DEVICE_ERROR:
                done.code = ActionCode.DEVICE_LOST
            self._finished(phase, job, done)
