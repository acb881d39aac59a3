"""The CPU device: weights in pages, and results equal to the module's own."""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cpu import INLINE_BYTES_MAX, INLINE_S_MAX, SLOTS, CpuDevice
from gpu_worker.devices.opening import open_device
from gpu_worker.packages.package import read_package
from mesh import wire
from mesh.codes import ActionCode
from mesh.process.settings import Settings
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import (
    FLOAT,
    SHORT_S,
    at_once,
    infer_job,
    linear,
    load_job,
    outputs_of,
    put,
    run,
)
from tests.gpu_worker.worker_builders import infer, never
from tests.loops import LIMIT_S, Told, on_loop

LONG_S = INLINE_S_MAX * 2


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_results_are_those_of_the_module(device: CpuDevice, repository: Repository, rows: int) -> None:
    device.prepare(repository.package("linear:1"))
    put(device, "linear:1", (3,))
    x = torch.randn(rows, 4)
    assert torch.allclose(linear(device, "linear:1", (3,), x), repository.outputs("linear:1", x)[0])


def test_several_inputs_and_outputs_of_several_kinds_keep_their_order(
    device: CpuDevice, repository: Repository
) -> None:
    device.prepare(repository.package("two:1"))
    put(device, "two:1", (0,))
    x, i = torch.randn(5, 4), torch.tensor([0, 6, 3, 1, 1])
    job = infer_job("two:1", (0,), x, i, parts=(2, 1, 2))
    y, z = run(device, job, (5, 3), (5,), dtypes=(FLOAT, np.dtype("<i8")))
    expected = repository.outputs("two:1", x, i)
    assert torch.allclose(y, expected[0])
    assert torch.equal(z, expected[1])


def test_a_folded_batch_normalisation_gives_the_same_results(device: CpuDevice, repository: Repository) -> None:
    device.prepare(repository.package("folded:1"))
    put(device, "folded:1", (0,))
    x = torch.randn(3, 1, 8, 8)
    (y,) = run(device, infer_job("folded:1", (0,), x), (3, 3))
    assert torch.allclose(y, repository.outputs("folded:1", x)[0], atol=1e-5)


def test_weights_may_lie_in_any_pages_in_any_order(device: CpuDevice, repository: Repository) -> None:
    package = repository.package("tall:1")
    assert package.pages(device.info.page_bytes) == 3
    device.prepare(package)
    x = torch.randn(2, 4)
    for pages in ((0, 1, 2), (7, 2, 5), (5, 4, 3)):
        put(device, "tall:1", pages)
        (y,) = run(device, infer_job("tall:1", pages, x), (2, 140_000))
        assert torch.allclose(y, repository.outputs("tall:1", x)[0], atol=1e-6)
        device.unloaded("tall:1")


def test_exec_reads_the_arena_and_nothing_else(device: CpuDevice, repository: Repository) -> None:
    """Two models of one architecture: the weights that were last copied into the pages decide the result."""
    for ref in ("linear:1", "linear:2"):
        device.prepare(repository.package(ref))
    x = torch.randn(4, 4)
    put(device, "linear:1", (0,))
    put(device, "linear:2", (0,))
    assert torch.allclose(linear(device, "linear:1", (0,), x), repository.outputs("linear:2", x)[0])


def test_a_model_that_comes_back_in_other_pages_does_not_see_who_took_its_former_ones(
    device: CpuDevice, repository: Repository
) -> None:
    for ref in ("linear:1", "linear:2"):
        device.prepare(repository.package(ref))
    x = torch.randn(4, 4)
    put(device, "linear:1", (0,))
    first = linear(device, "linear:1", (0,), x)
    device.unloaded("linear:1")
    put(device, "linear:2", (0,))
    put(device, "linear:1", (6,))
    again, other = linear(device, "linear:1", (6,), x), linear(device, "linear:2", (0,), x)
    assert torch.equal(again, first)
    assert torch.allclose(other, repository.outputs("linear:2", x)[0])
    assert not torch.allclose(again, other)


def test_an_exec_that_was_bound_before_an_unload_reads_its_own_pages(device: CpuDevice, repository: Repository) -> None:
    """The lanes keep its pages. When it runs, its model is in other pages, and another model is in its first page."""
    for ref in ("linear:1", "linear:2"):
        device.prepare(repository.package(ref))
    x = torch.randn(4, 4)
    put(device, "linear:1", (0,))
    device.unloaded("linear:1")
    assert torch.allclose(linear(device, "linear:1", (0,), x), repository.outputs("linear:1", x)[0])
    device.unloaded("linear:1")
    put(device, "linear:2", (0,))
    put(device, "linear:1", (1,))
    assert torch.allclose(linear(device, "linear:1", (1,), x), repository.outputs("linear:1", x)[0])


def test_weights_that_were_just_loaded_need_not_be_gathered_and_others_are(
    device: CpuDevice, repository: Repository
) -> None:
    device.prepare(repository.package("linear:1"))
    put(device, "linear:1", (0,))
    gathered = []
    for forget_views in (False, False, True, False):
        if forget_views:
            device.unloaded("linear:1")
        job = infer_job("linear:1", (0,), torch.randn(1, 4))
        at_once(device, Phase.INPUT, job)
        gathered.append(at_once(device, Phase.EXEC, job).gathered)
        device.release(job)
    assert gathered == [False, False, True, False]


def test_outputs_that_are_views_of_inputs_outlive_them(device: CpuDevice, repository: Repository) -> None:
    """The next request reuses the input buffer while these outputs are still being sent."""
    device.prepare(repository.package("echo:1"))
    put(device, "echo:1", (0,))
    x = torch.randn(2, 4)
    first = infer_job("echo:1", (0,), x)
    for phase in (Phase.INPUT, Phase.EXEC, Phase.OUTPUT):
        at_once(device, phase, first)
    device.release(first)
    for _ in range(SLOTS):
        job = infer_job("echo:1", (0,), torch.zeros(2, 4))
        at_once(device, Phase.INPUT, job)
        device.release(job)
    same, twice = outputs_of(first, (2, 4), (2, 4))
    assert torch.equal(twice, x * 2)
    assert torch.equal(same, x)


def test_outputs_that_are_views_of_weights_outlive_them(device: CpuDevice, repository: Repository) -> None:
    for ref in ("constant:1", "linear:1"):
        device.prepare(repository.package(ref))
    put(device, "constant:1", (0,))
    job = infer_job("constant:1", (0,), torch.randn(1, 4))
    for phase in (Phase.INPUT, Phase.EXEC, Phase.OUTPUT):
        at_once(device, phase, job)
    device.unloaded("constant:1")
    put(device, "linear:1", (0,))
    assert torch.equal(outputs_of(job, (1, 3))[0], repository.outputs("constant:1", torch.randn(1, 4))[0])


# -- LOAD -------------------------------------------------------------------------------------------------------------


def test_a_small_load_is_over_at_once_and_says_how_long_it_took(device: CpuDevice, repository: Repository) -> None:
    package = repository.package("linear:1")
    assert package.image_bytes <= INLINE_BYTES_MAX
    device.prepare(package)
    done = at_once(device, Phase.LOAD, load_job("linear:1", (0,)))
    assert done.code == ActionCode.OK
    assert done.end_s - done.begin_s == pytest.approx(done.duration_s)
    assert done.duration_s > 0


@on_loop
async def test_a_large_load_runs_on_a_thread_of_its_own(settings: Settings, repository: Repository) -> None:
    package = repository.package("tall:1")
    assert package.image_bytes > INLINE_BYTES_MAX
    device, told = attached(settings)
    device.prepare(package)
    job = load_job("tall:1", (1, 2, 3))
    assert device.begin(Phase.LOAD, job) is None
    ((phase, ended, done),) = await told.count(1)
    assert (phase, ended, done.code) == (Phase.LOAD, job, ActionCode.OK)
    x = torch.randn(1, 4)
    (y,) = run(device, infer_job("tall:1", (1, 2, 3), x), (1, 140_000))
    assert torch.allclose(y, repository.outputs("tall:1", x)[0], atol=1e-6)
    device.close()


def attached(settings: Settings) -> tuple[CpuDevice, Told]:
    """A device on this loop, and what it reports."""
    told = Told()
    device = CpuDevice(settings)
    device.attach(told, never)
    return device, told


# -- EXEC -------------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_short_exec_is_over_at_once_and_a_long_one_runs_on_a_thread(
    settings: Settings, repository: Repository
) -> None:
    device, told = attached(settings)
    device.prepare(repository.package("linear:1"))
    put(device, "linear:1", (0,))
    x = torch.randn(3, 4)
    for expected_s, threaded in ((INLINE_S_MAX, False), (INLINE_S_MAX * 1.001, True)):
        job = infer_job("linear:1", (0,), x, expected_s=expected_s)
        at_once(device, Phase.INPUT, job)
        done = device.begin(Phase.EXEC, job)
        assert (done is None) == threaded
        if threaded:
            ((phase, ended, done),) = await told.count(1)
            assert (phase, ended) == (Phase.EXEC, job)
        assert done is not None
        assert done.code == ActionCode.OK
        assert torch.allclose(outputs_of(job, (3, 3))[0], repository.outputs("linear:1", x)[0])
        device.release(job)
    device.close()


@on_loop
async def test_executions_end_in_the_order_they_began_and_are_told_on_the_loop(
    settings: Settings, repository: Repository
) -> None:
    device = CpuDevice(settings)
    told = Told()
    threads = []

    def finished(phase: Phase, job: Job, done: Done) -> None:
        threads.append(threading.current_thread())
        told(job)

    device.attach(finished, never)
    device.prepare(repository.package("tall:1"))
    put(device, "tall:1", (0, 1, 2))
    jobs = [infer_job("tall:1", (0, 1, 2), torch.randn(8, 4), expected_s=LONG_S)]
    jobs += [infer_job("tall:1", (0, 1, 2), torch.randn(1, 4), expected_s=SHORT_S) for _ in range(2)]
    for job in jobs:
        at_once(device, Phase.INPUT, job)
    assert [device.begin(Phase.EXEC, job) for job in jobs] == [None, None, None]
    assert await told.count(3) == jobs
    assert set(threads) == {threading.main_thread()}
    device.close()


@on_loop
async def test_closing_waits_for_what_runs(settings: Settings, repository: Repository) -> None:
    device, told = attached(settings)
    device.prepare(repository.package("tall:1"))
    job = load_job("tall:1", (0, 1, 2))
    device.begin(Phase.LOAD, job)
    device.close()
    await told.count(1)
    assert [thread.name for thread in threading.enumerate() if thread.name in ("exec", "load")] == []


@pytest.mark.parametrize(("margin_s", "code"), [(-1.0, ActionCode.LATE), (LIMIT_S, ActionCode.OK)])
def test_an_exec_that_comes_to_its_turn_after_its_window_is_not_run(
    device: CpuDevice, repository: Repository, margin_s: float, code: str
) -> None:
    device.prepare(repository.package("linear:1"))
    put(device, "linear:1", (0,))
    job = infer_job("linear:1", (0,), torch.randn(1, 4), latest_s=time.monotonic() + margin_s)
    at_once(device, Phase.INPUT, job)
    assert at_once(device, Phase.EXEC, job).code == code
    assert bool(job.outputs) == (code == ActionCode.OK)


@pytest.mark.parametrize("expected_s", [SHORT_S, LONG_S])
def test_a_model_that_fails_is_an_outcome_and_the_device_goes_on(
    settings: Settings, repository: Repository, expected_s: float
) -> None:
    @on_loop
    async def story() -> None:
        device, told = attached(settings)
        device.prepare(repository.package("two:1"))
        put(device, "two:1", (0,))
        for index, code in ((7, ActionCode.DEVICE_ERROR), (6, ActionCode.OK)):
            job = infer_job("two:1", (0,), torch.randn(1, 4), torch.tensor([index]), expected_s=expected_s)
            at_once(device, Phase.INPUT, job)
            done = device.begin(Phase.EXEC, job)
            if done is None:
                done = (await told.count(1)).pop()[2]
            assert done.code == code
            assert ("index" in done.message) == (code == ActionCode.DEVICE_ERROR)
            device.release(job)
        device.close()

    story()


# -- INPUT ------------------------------------------------------------------------------------------------------------


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


# -- the device itself ------------------------------------------------------------------------------------------------


def test_a_device_says_what_it_is(device: CpuDevice) -> None:
    info = device.info
    assert (info.name, info.pages, info.page_bytes, info.any_batch) == ("cpu:0", 8, 1 << 20, True)
    assert info.kind.startswith("cpu ")
    assert f"1 threads, torch {torch.__version__}" in info.kind


def test_two_workers_do_not_drive_one_device(settings: Settings, device: CpuDevice) -> None:
    with pytest.raises(DeviceError, match=f"pid {os.getpid()}"):
        CpuDevice(settings)


def test_auto_claims_the_next_free_one_of_as_many_as_there_are_cores(settings: Settings) -> None:
    automatic = settings.model_copy(update={"device": "auto"})
    count = os.cpu_count() or 1
    held = [open_device(automatic) for _ in range(count)]
    assert [one.info.name for one in held] == [f"cpu:{i}" for i in range(count)]
    with pytest.raises(DeviceError, match="cpu:0"):
        open_device(automatic)
    for one in held:
        one.close()


def test_an_arena_beyond_the_memory_there_is_is_refused_before_it_is_allocated(settings: Settings) -> None:
    with pytest.raises(DeviceError, match=r"100000000.*\d+ MiB.*ARENA_MB"):
        CpuDevice(settings.model_copy(update={"arena_mb": 100_000_000}))
    CpuDevice(settings).close()  # its lock is free again


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "tpu:0", "emulated"])
def test_a_device_that_there_is_not_is_refused_with_those_there_are(settings: Settings, name: str) -> None:
    with pytest.raises(DeviceError, match="auto, cpu"):
        open_device(settings.model_copy(update={"device": name}))


def test_a_closed_device_is_free_for_another_worker(settings: Settings) -> None:
    CpuDevice(settings).close()
    CpuDevice(settings).close()


@on_loop
async def test_a_device_leaves_no_thread_behind(settings: Settings) -> None:
    before = set(threading.enumerate())
    device, _ = attached(settings)
    assert len(threading.enumerate()) == len(before) + 2
    device.close()
    assert set(threading.enumerate()) == before
    await asyncio.get_running_loop().create_task(nothing())


async def nothing() -> None:
    """Returns at once, if the loop still runs."""


def test_wire_and_device_agree_on_what_a_row_is(device: CpuDevice, repository: Repository) -> None:
    package = repository.package("two:1")
    device.prepare(package)
    assert [wire_bytes(spec) for spec in package.spec.inputs] == [16, 8]
    assert input_done(device, "two:1", 1, [(1, [bytes(16), bytes(8)])]).code == ActionCode.OK


def wire_bytes(spec: wire.TensorSpec) -> int:
    return int(np.prod(spec.shape[1:], dtype=int)) * np.dtype(spec.dtype).itemsize


def test_a_device_that_an_installed_package_brings_is_opened_by_its_name(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clay.py").write_text("from gpu_worker.devices.cpu import CpuDevice\n")
    about = tmp_path / "clay-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: clay\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[gearmesh.devices]\nclay = clay:CpuDevice\nbroken = clay:Nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    opened = open_device(settings.model_copy(update={"device": "clay:0"}))
    assert isinstance(opened, CpuDevice)
    opened.close()
    with pytest.raises(DeviceError, match=r"'broken'.*clay:Nothing.*AttributeError"):
        open_device(settings.model_copy(update={"device": "broken"}))
    with pytest.raises(DeviceError, match=r"PROFILE\.json, broken, clay"):
        open_device(settings.model_copy(update={"device": "mud"}))
