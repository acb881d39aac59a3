"""A device with CUDA graphs on a loop: on this process's memory everywhere, on a GPU where there is one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.attempts import Attempts
from gpu_worker.devices.cuda.device import CudaDevice
from gpu_worker.devices.cuda.driver import Driver
from gpu_worker.devices.cuda.host import HostDriver
from gpu_worker.devices.cuda.nvidia import NvidiaDriver
from gpu_worker.devices.cuda.plans import MIB, Room
from gpu_worker.devices.cuda.threads import Helper
from gpu_worker.devices.cuda.watchdog import HangLimits
from mesh import wire
from mesh.codes import ActionCode
from tests.gpu_worker.worker_builders import load

NO_GPU = "" if torch.cuda.is_available() else "torch finds no GPU here"
DRIVERS = ["host", pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)])]
ROOM = Room(page_bytes=MIB, pages=8, buffer_pages=4)
SMALL_PAGES = Room(page_bytes=MIB // 4, pages=32, buffer_pages=16)  # so that a model of 2.7 MiB takes eleven pieces
numbers = itertools.count(1)


def make_driver(name: str, helper: Helper) -> Driver:
    """Returns a driver of this kind."""
    return NvidiaDriver(0, helper.do) if name == "cuda" else HostDriver()


class Served:
    """A device, and jobs whose ends can be awaited."""

    def __init__(
        self,
        driver: Driver,
        helper: Helper,
        room: Room,
        host_bytes_max: int,
        attempts: Attempts | None = None,
        hang_limits: HangLimits | None = None,
    ) -> None:
        self.driver = driver
        self.device = CudaDevice(
            driver, room, helper, host_bytes_max=host_bytes_max, attempts=attempts, hang_limits=hang_limits
        )
        self.lost: list[str] = []
        self.told_lost = asyncio.Event()
        self._waiting: dict[tuple[Phase, int], asyncio.Future[Done]] = {}
        self.device.attach(self._finished, self._lost)

    def _finished(self, phase: Phase, job: Job, done: Done) -> None:
        self._waiting.pop((phase, job.action.action)).set_result(done)

    def _lost(self, why: str) -> None:
        self.lost.append(why)
        self.told_lost.set()

    def begin(self, phase: Phase, job: Job) -> "asyncio.Future[Done]":
        """The phase has begun. Returns a future of its outcome."""
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting[phase, job.action.action] = future
        done = self.device.begin(phase, job)
        if done is not None:
            self._waiting.pop((phase, job.action.action)).set_result(done)
        return future

    async def load(self, ref: str, pages: Sequence[int], *, latest_s: float = 1e12) -> Done:
        """The weights are in these pages. Returns the outcome of the LOAD."""
        job = Job(load(next(numbers), ref, latest_s=latest_s), 0.0, 0)
        job.pages = tuple(pages)
        return await self.begin(Phase.LOAD, job)

    async def through(self, job: Job) -> Done:
        """Runs INPUT, EXEC and OUTPUT. Returns the outcome of EXEC, or of the first phase that failed."""
        executed = None
        for phase in (Phase.INPUT, Phase.EXEC, Phase.OUTPUT):
            done = await self.begin(phase, job)
            executed = done if phase is Phase.EXEC else executed
            if done.code != ActionCode.OK:
                return done
        assert executed is not None
        return executed

    async def run(self, job: Job, *shapes: tuple[int, ...], dtypes: Sequence[str] = ()) -> list[torch.Tensor]:
        """Returns the outputs of the job, which has ended."""
        done = await self.through(job)
        assert done.code == ActionCode.OK, done
        outputs = tensors(job, *shapes, dtypes=dtypes)
        self.device.release(job)
        return outputs


def tensors(job: Job, *shapes: tuple[int, ...], dtypes: Sequence[str] = ()) -> list[torch.Tensor]:
    """Returns the job's outputs as tensors."""
    kinds = dtypes or ["<f4"] * len(shapes)
    return [
        torch.from_numpy(np.frombuffer(raw, kind).reshape(shape).copy())
        for raw, shape, kind in zip(job.outputs, shapes, kinds, strict=True)
    ]


def infer_job(
    ref: str,
    pages: Sequence[int],
    *inputs: torch.Tensor,
    batch: int = 0,
    earliest_s: float = 0.0,
    latest_s: float = 1e12,
    expected_s: float = 0.001,
) -> Job:
    """Returns an INFER of these inputs, each row a part of its own; `batch` rows if the inputs are fewer."""
    rows = len(inputs[0]) if inputs else 0
    parts = tuple(wire.Part(frontend="f", request=i, attempt=0, rows=1, predicted_s=0.02) for i in range(rows))
    action = wire.Infer(
        action=next(numbers), ref=ref, earliest_s=earliest_s, latest_s=latest_s, expected_s=expected_s,
        batch=batch or rows, parts=parts,
    )  # fmt: skip
    job = Job(action, 0.0, 0)
    job.pages = tuple(pages)
    job.tensors = [[tensor[i : i + 1].contiguous().numpy().tobytes() for tensor in inputs] for i in range(rows)]
    return job


@asynccontextmanager
async def served(driver: str | Driver, room: Room = ROOM, host_bytes_max: int = 1 << 30) -> AsyncIterator[Served]:
    """A device on that driver, or one of that kind. Behind its test all is as it should be, and closed."""
    grad = torch.is_grad_enabled()
    helper = Helper("helper")
    used = make_driver(driver, helper) if isinstance(driver, str) else driver
    made = Served(used, helper, room, host_bytes_max)
    try:
        yield made
        made.device.check()
    finally:
        made.device.close()
        torch.set_grad_enabled(grad)
