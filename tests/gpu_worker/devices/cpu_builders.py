"""Jobs for the CPU device, and their outcomes; the device on a loop."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.cpu import INLINE_S_MAX, CpuDevice
from mesh.codes import ActionCode
from mesh.process.settings import Settings
from tests.gpu_worker.worker_builders import infer, load, never
from tests.loops import Told

FLOAT = np.dtype("<f4")
SHORT_S = INLINE_S_MAX / 2
numbers = itertools.count(1)


def load_job(ref: str, pages: Sequence[int]) -> Job:
    job = Job(load(next(numbers), ref), 0.0, 0)
    job.pages = tuple(pages)
    return job


def infer_job(
    ref: str,
    pages: Sequence[int],
    *tensors: torch.Tensor,
    parts: Sequence[int] | None = None,
    expected_s: float = SHORT_S,
    latest_s: float = 1e12,
) -> Job:
    """Returns an INFER of these inputs, cut into parts of `parts` rows."""
    rows = len(tensors[0])
    cut = [rows] if parts is None else list(parts)
    job = Job(infer(next(numbers), ref, batch=rows, rows=cut, expected_s=expected_s, latest_s=latest_s), 0.0, 0)
    job.pages = tuple(pages)
    ends = list(itertools.accumulate(cut))
    job.tensors = [
        [tensor[end - count : end].numpy().tobytes() for tensor in tensors]
        for end, count in zip(ends, cut, strict=True)
    ]
    return job


def at_once(device: CpuDevice, phase: Phase, job: Job) -> Done:
    done = device.begin(phase, job)
    assert done is not None
    return done


def put(device: CpuDevice, ref: str, pages: Sequence[int]) -> None:
    """The weights are in these pages, copied on this thread."""
    assert device.load(load_job(ref, pages)).code == ActionCode.OK


def outputs_of(job: Job, *shapes: tuple[int, ...], dtypes: Sequence[np.dtype] = ()) -> list[torch.Tensor]:
    kinds = dtypes or [FLOAT] * len(shapes)
    return [
        torch.from_numpy(np.frombuffer(raw, kind).reshape(shape).copy())
        for raw, shape, kind in zip(job.outputs, shapes, kinds, strict=True)
    ]


def run(device: CpuDevice, job: Job, *shapes: tuple[int, ...], dtypes: Sequence[np.dtype] = ()) -> list[torch.Tensor]:
    """Runs INPUT, EXEC and OUTPUT of the job at once. Returns its outputs."""
    for phase in (Phase.INPUT, Phase.EXEC, Phase.OUTPUT):
        done = at_once(device, phase, job)
        assert done.code == ActionCode.OK, done
    outputs = outputs_of(job, *shapes, dtypes=dtypes)
    device.release(job)
    return outputs


def linear(device: CpuDevice, ref: str, pages: Sequence[int], x: torch.Tensor) -> torch.Tensor:
    return run(device, infer_job(ref, pages, x), (len(x), 3))[0]


def attached(settings: Settings) -> tuple[CpuDevice, Told]:
    """A device on this loop, and what it reports."""
    told = Told()
    device = CpuDevice(settings)
    device.attach(told, never)
    return device, told
