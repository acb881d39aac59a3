"""INPUT on the CPU: which bytes are refused, how batches are filled up, and how many buffers there are."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.cpu import SLOTS, CpuDevice
from gpu_worker.packages.package import read_package
from mesh import wire
from mesh.codes import ActionCode
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import SHORT_S, at_once, infer_job, put, run
from tests.gpu_worker.worker_builders import infer


def input_done(device: CpuDevice, ref: str, batch: int, parts: Sequence[tuple[int, list[bytes]]]) -> Done:
    """Runs INPUT of parts with these rows and bytes. Returns its outcome."""
    job = Job(infer(1, ref, batch=batch, rows=[rows for rows, _ in parts]), 0.0, 0)
    job.tensors = [tensors for _, tensors in parts]
    done = at_once(device, Phase.INPUT, job)
    device.release(job)
    return done


def test_bytes_that_are_not_those_of_the_part_s_rows_are_refused(device: CpuDevice, repository: Repository) -> None:
    """Otherwise one client's rows would be computed from another's bytes, or from those of an earlier request."""
    device.prepare(repository.package("linear:1"))
    row = bytes(16)
    for parts in (
        [(1, [row + b"x"])],
        [(1, [row[1:]])],
        [(1, [b""])],
        [(1, [row * 2])],
        [(2, [row])],
        [(1, [row]), (1, [row + b"x"])],
        [(1, [row * 2]), (1, [b""])],
        [(1, [])],
        [(1, [row, row])],
    ):
        batch = sum(rows for rows, _ in parts)
        assert input_done(device, "linear:1", batch, parts).code == ActionCode.BAD_INPUT, parts
        assert input_done(device, "linear:1", batch, [(batch, [row * batch])]).code == ActionCode.OK


def test_what_a_request_brought_is_not_seen_by_the_next(device: CpuDevice, repository: Repository) -> None:
    device.prepare(repository.package("echo:1"))
    put(device, "echo:1", (0,))
    for value in (1.0, 2.0, 3.0):
        x = torch.full((2, 4), value)
        assert torch.equal(run(device, infer_job("echo:1", (0,), x), (2, 4), (2, 4))[1], x * 2)


@pytest.mark.parametrize("example", [True, False])
def test_a_batch_is_filled_up_with_a_row_of_the_example_or_with_zeros(
    device: CpuDevice, repository: Repository, tmp_path: Path, example: bool
) -> None:
    shutil.copytree(repository.folder / "echo", tmp_path / "echo")
    row = load_file(tmp_path / "echo" / "1" / "example.safetensors")["x"][0]
    assert row.any()
    if not example:
        (tmp_path / "echo" / "1" / "example.safetensors").unlink()
    device.prepare(read_package(tmp_path, "echo:1", ()))
    put(device, "echo:1", (0,))
    for _ in range(SLOTS):
        run(device, infer_job("echo:1", (0,), torch.ones(8, 4)), (8, 4), (8, 4))
    measuring = Job(infer(1, "echo:1", batch=8, rows=[], expected_s=SHORT_S), 0.0, 0)
    padded = infer_job("echo:1", (0,), torch.ones(3, 4))
    padded.action = infer(2, "echo:1", batch=8, rows=[3], expected_s=SHORT_S, latest_s=1e12)
    for job, rows in ((measuring, 0), (padded, 3)):
        job.pages = (0,)
        same, _ = run(device, job, (8, 4), (8, 4))
        assert (same[:rows] == 1).all()
        assert (same[rows:] == (torch.from_numpy(row) if example else 0)).all()


def test_there_are_so_many_buffers_for_inputs_and_each_can_be_used_again(
    device: CpuDevice, repository: Repository
) -> None:
    device.prepare(repository.package("linear:1"))
    jobs = [infer_job("linear:1", (0,), torch.randn(1, 4)) for _ in range(SLOTS + 1)]
    codes = [at_once(device, Phase.INPUT, job).code for job in jobs]
    assert codes == [ActionCode.OK] * SLOTS + [ActionCode.NO_SLOTS]
    device.release(jobs[-1])
    device.release(jobs[3])
    assert at_once(device, Phase.INPUT, infer_job("linear:1", (0,), torch.randn(1, 4))).code == ActionCode.OK
    assert at_once(device, Phase.INPUT, infer_job("linear:1", (0,), torch.randn(1, 4))).code == ActionCode.NO_SLOTS


def test_buffers_grow_with_the_largest_model_though_old_ones_are_still_in_use(
    device: CpuDevice, repository: Repository
) -> None:
    device.prepare(repository.package("linear:1"))
    small = infer_job("linear:1", (0,), torch.randn(1, 4))
    at_once(device, Phase.INPUT, small)
    device.prepare(repository.package("folded:1"))
    device.release(small)
    put(device, "folded:1", (0,))
    for _ in range(2 * SLOTS):
        x = torch.randn(8, 1, 8, 8)
        (y,) = run(device, infer_job("folded:1", (0,), x), (8, 3))
        assert torch.allclose(y, repository.outputs("folded:1", x)[0], atol=1e-5)


def test_wire_and_device_agree_on_what_a_row_is(device: CpuDevice, repository: Repository) -> None:
    package = repository.package("two:1")
    device.prepare(package)
    assert [wire_bytes(spec) for spec in package.spec.inputs] == [16, 8]
    assert input_done(device, "two:1", 1, [(1, [bytes(16), bytes(8)])]).code == ActionCode.OK


def wire_bytes(spec: wire.TensorSpec) -> int:
    return int(np.prod(spec.shape[1:], dtype=int)) * np.dtype(spec.dtype).itemsize
