"""Drives a container's device with a real child process, phase by phase."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpu_worker.container.device import ContainerDevice
from gpu_worker.container.keeper import ChildKeeper
from gpu_worker.container.specs import ContainerError, ContainerOptions
from gpu_worker.core.fitting import servable
from gpu_worker.core.jobs import Done, Job, Phase, Report
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.outputs import outputs_by_frontend
from gpu_worker.core.pages import PageTable
from gpu_worker.core.pump import Pump
from mesh import wire
from mesh.codes import ActionCode
from mesh.sizes import joint
from mesh.strings import pack, unpack
from mesh.tensors import VARIABLE
from tests.gpu_worker.worker_builders import never
from tests.loops import LIMIT_S, Told

X = {"name": "x", "dtype": "float32", "shape": [-1, 4]}
Y = {"name": "y", "dtype": "float32", "shape": [-1, 4]}
ROW = np.arange(4, dtype=np.float32)[np.newaxis]


class Starting:
    """Code that is being started: `device` comes once it is ready, or raises why it cannot be served at all."""

    def __init__(self, folder: Path, code: str, *, output: dict[str, Any] = Y, start_s: float = LIMIT_S, **more: Any):
        write(folder, code)
        tensors = {"inputs": (X,), "outputs": (output,)} | more
        self._options = ContainerOptions(model="f", predict="mine:f", **{"python": sys.executable} | tensors)
        self.states = Told()
        self.device: asyncio.Future[ContainerDevice] = asyncio.get_running_loop().create_future()
        self.keeper = ChildKeeper(self._options, start_s, self._cannot, self.states)
        self.keeper.start(self)

    def ready(self, message: dict[str, Any]) -> None:
        self.device.set_result(ContainerDevice(self._options, self.keeper, message))

    def ran(self, message: dict[str, Any]) -> None:
        raise AssertionError(message)

    def died(self, why: str) -> None:
        pass

    def _cannot(self, why: str) -> None:
        self.device.set_exception(ContainerError(why))

    async def state(self, wanted: Callable[[wire.ChildState], bool]) -> wire.ChildState:
        """The first state for which `wanted` holds."""
        states = await self.states.until(lambda states: any(map(wanted, states)))
        found: wire.ChildState = next(filter(wanted, states))
        return found


class Rig:
    """The device, its reports about its code, and batches one at a time."""

    def __init__(self, device: ContainerDevice) -> None:
        self.device = device
        self.news: asyncio.Queue[str] = asyncio.Queue()  # why it cannot serve; "": it can again
        self.outdated: list[str] = []
        self._ended: asyncio.Queue[Done] = asyncio.Queue()
        self._actions = 0
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._pump: Pump | None = None  # from the first batch of `ask` on
        device.attach(lambda phase, job, done: self._ended.put_nowait(done), never)
        device.on_change(lambda faults: self.news.put_nowait("; ".join(faults)), self.outdated.append)

    @property
    def pid(self) -> int:
        """The process that the code runs in."""
        assert self.device.pid is not None
        return self.device.pid

    async def started(self) -> int:
        """The process, once there is one: a timer starts it again."""
        while self.device.pid is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return self.device.pid

    async def run(self, x: Any = ROW, *, parts: int = 1, overdue_s: float = 0.0, cold_s: float = 0.0) -> Any:
        """Returns the output of one batch of `parts` requests, or how its EXEC failed.

        `overdue_s`: seconds from now after which it counts as hung; 0: never.
        """
        self._actions += 1
        pieces = np.split(x, parts)
        action = wire.Infer(
            parts=tuple(wire.Part(frontend="f", request=i, attempt=0, rows=len(piece), predicted_s=0.0)
                        for i, piece in enumerate(pieces)),
            action=self._actions, ref="f:1", earliest_s=0.0, latest_s=1e9, expected_s=0.01, batch=len(x),
            overdue_s=time.monotonic() + overdue_s if overdue_s else 0.0, cold_s=cold_s,
        )  # fmt: skip
        job = Job(action, 0.0, self._actions, tensors=[[piece.tobytes()] for piece in pieces])
        filled = self.device.begin(Phase.INPUT, job)
        assert filled is not None
        assert filled.code == ActionCode.OK, filled
        done = self.device.begin(Phase.EXEC, job) or await self._ended.get()
        try:
            if done.code != ActionCode.OK:
                return f"{done.code}: {done.message}"
            self.device.begin(Phase.OUTPUT, job)
            return np.frombuffer(job.outputs[0], self.device.spec.outputs[0].dtype).reshape(len(x), -1)
        finally:
            self.device.release(job)

    async def ask(self, *requests: dict[str, Any]) -> list[dict[str, Any]] | str:
        """Returns what each request of one batch gets, {output: array}, or how the batch failed.

        A request is {input: array}, with rows of one size. Lanes and outputs are those of a worker.
        """
        spec, parts, tensors = self.device.spec, [], []
        if self._pump is None:
            self._pump = self._behind_lanes()
        for i, request in enumerate(requests):
            extents = extents_of(spec, request)
            rows = len(request[spec.inputs[0].name])
            part = wire.Part(frontend="f", request=i, attempt=0, rows=rows, predicted_s=0.0, extents=extents)
            parts.append(part)
            tensors.append([travelling(request[tensor.name], tensor.dtype) for tensor in spec.inputs])
        self._actions += 1
        action = wire.Infer(
            parts=tuple(parts), action=self._actions, ref="f:1", earliest_s=0.0, latest_s=1e9, expected_s=0.01,
            batch=sum(part.rows for part in parts), extents=joint(part.extents for part in parts),
        )  # fmt: skip
        self._pump.infer(action, 0, tensors, now=time.monotonic())
        report = await self._reports.get()
        if report.result.code != ActionCode.OK:
            return f"{report.result.code}: {report.result.message}"
        assert report.job is not None
        message, frames = outputs_by_frontend(action, report.job.outputs, "d", 0.0, report.job.cut)["f"]
        return [answered(spec, answer, frames) for answer in message.answers]

    def _behind_lanes(self) -> Pump:
        """The device as a worker has it."""
        lanes = Lanes(PageTable(1), self.device.depth)
        pump = Pump(lanes, self.device, self._reports.put_nowait)
        lanes.prepared("f:1", servable(self.device.spec, 1, None))
        lanes.table.take("f:1", 1)
        lanes.table.loaded("f:1")
        self.device.attach(lambda phase, job, done: pump.finished(phase, job, done, now=time.monotonic()), never)
        return pump


def extents_of(spec: wire.ModelSpec, request: dict[str, Any]) -> tuple[int, ...]:
    """The extents of a request in the model's open dimensions."""
    known = {}
    for tensor in spec.inputs:
        known.update(zip(tensor.dims, request[tensor.name].shape[1:], strict=False))
    return tuple(known[dim.name] for dim in spec.dims)


def travelling(array: Any, dtype: str) -> bytes:
    """The tensor as it travels."""
    if dtype not in VARIABLE:
        return bytes(np.ascontiguousarray(array, dtype))
    return pack(one.encode() if isinstance(one, str) else one for one in array.ravel().tolist())


def answered(spec: wire.ModelSpec, answer: wire.Answer, frames: list[memoryview]) -> dict[str, Any]:
    """The outputs of one request, {output: array}."""
    pieces = list(answer.inline) or [frames.pop(0) for _ in range(answer.frames)]
    found = {}
    for i, (tensor, piece) in enumerate(zip(spec.outputs, pieces, strict=True)):
        shape = answer.shapes[i] if answer.shapes else (answer.rows, *tensor.shape[1:])
        if tensor.dtype in VARIABLE:
            elements = unpack(piece, int(np.prod(shape)))
            array = np.empty(len(elements), object)
            array[:] = [one.decode() for one in elements] if tensor.dtype == "string" else elements
        else:
            array = np.frombuffer(piece, tensor.dtype)
        found[tensor.name] = array.reshape(shape)
    return found


@asynccontextmanager
async def rig(
    folder: Path, code: str, *, output: dict[str, Any] = Y, start_s: float = LIMIT_S, **more: Any
) -> AsyncIterator[Rig]:
    """Yields the device of a container of `f` in `code`.

    The code may use np, os and sys; `folder` is the working folder.
    """
    starting = Starting(folder, code, output=output, start_s=start_s, **more)
    try:
        device = await starting.device
        try:
            yield Rig(device)
        finally:
            device.close()
    finally:
        starting.keeper.close()


def write(folder: Path, code: str) -> None:
    """The module that the container serves has this code from now on."""
    (folder / "mine.py").write_text(f"import os, sys\nimport numpy as np\n{code}\n")
