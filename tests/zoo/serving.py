"""Runs a package as a worker does, and compares its answers with those of what it was made from."""

import itertools
from collections.abc import Callable, Sequence

import torch

from gpu_worker.core.jobs import Job, Phase
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.packages.comparing import TOLERANCE, difference
from gpu_worker.packages.package import Package
from tests.gpu_worker.devices.cpu_builders import SHORT_S, at_once, put
from tests.gpu_worker.worker_builders import infer
from tests.zoo.cases import Case, Row

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
BATCH_MAX = 17
POOL = 6  # different rows
SEED = 77
numbers = itertools.count(1)


def rows_for(case: Case, count: int = POOL) -> list[torch.Tensor]:
    """Returns so many different rows of each input; drawn here, independently of the importer."""
    generator = torch.Generator().manual_seed(SEED)
    return [_drawn(row, case.draw.get(name), count, generator) for name, row in case.inputs.items()]


def _drawn(row: Row, span: tuple[float, float] | None, count: int, generator: torch.Generator) -> torch.Tensor:
    dtype, shape = getattr(torch, row[0]), (count, *row[1])
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_floating_point and span is None:
        scales = torch.logspace(-1, 1, count).view(-1, *[1] * (len(shape) - 1))
        return (torch.randn(shape, generator=generator) * scales).to(dtype)
    low, high = span or (0, 2)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
    return (drawn if dtype.is_floating_point else drawn.floor()).to(dtype)


def check_served(device: CpuDevice, package: Package, case: Case, reference: Run) -> None:
    """Every row gives what it gives alone in `reference`: at each batch size, at any place, with padding behind it."""
    rows = rows_for(case)
    alone = [[tensor[i : i + 1] for tensor in rows] for i in range(POOL)]
    expected = [torch.cat(outputs) for outputs in zip(*(reference(row) for row in alone), strict=True)]
    assert any(bool(output.isfinite().any()) for output in expected if output.is_floating_point()) or not any(
        output.is_floating_point() for output in expected
    ), "nothing to compare"
    device.prepare(package)
    try:
        put(device, package.ref, (1,))
        for batch, origins in batches(package.spec.batch_max):
            found = served(device, package, [tensor[origins] for tensor in rows], batch)
            for spec, one, other in zip(package.spec.outputs, expected, found, strict=True):
                off = difference(one[origins], other)
                told = f"{spec.name}: rows {origins.tolist()} in a batch of {batch} are off by {off:.2g}"
                assert other.dtype == one.dtype, told
                assert off <= (TOLERANCE[case.exact] if one.is_floating_point() else 0), told
    finally:
        device.forget(package.ref)


def batches(batch_max: int) -> list[tuple[int, torch.Tensor]]:
    """Returns (rows of the batch, indices of the pool's rows in it): alone, mixed, with up to three rows of padding."""
    generator = torch.Generator().manual_seed(SEED)
    made = []
    for batch in range(1, batch_max + 1):
        made.append((batch, torch.randint(POOL, (batch,), generator=generator)))
        if batch > 1:
            made.append((batch, torch.randint(POOL, (max(1, batch - batch % 4),), generator=generator)))
    return made


def served(device: CpuDevice, package: Package, inputs: Sequence[torch.Tensor], batch: int) -> list[torch.Tensor]:
    """Returns the outputs of the rows, in a batch of at least as many. They come in parts, as of several clients."""
    rows = len(inputs[0])
    parts = [rows] if rows < 3 else [1, rows - 2, 1]
    action = infer(next(numbers), package.ref, batch=batch, rows=parts, expected_s=SHORT_S, latest_s=1e12)
    job = Job(action, 0.0, 0)
    job.pages = (1,)
    pieces = [tensor.split(parts) for tensor in inputs]
    job.tensors = [[piece[i].contiguous().numpy().tobytes() for piece in pieces] for i in range(len(parts))]
    for phase in (Phase.INPUT, Phase.EXEC, Phase.OUTPUT):
        done = at_once(device, phase, job)
        assert done.code == "ok", done
    job.slot.data[:] = 255  # overwrites the inputs, as the next batch will
    outputs = [
        torch.frombuffer(bytearray(raw), dtype=getattr(torch, spec.dtype)).view(batch, *spec.shape[1:])[:rows]
        for raw, spec in zip(job.outputs, package.spec.outputs, strict=True)
    ]
    device.release(job)
    return outputs
