"""The device with CUDA graphs: on this process's memory everywhere; on a GPU (marked cuda) where there is one."""

import asyncio
import random
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from gpu_worker.core.jobs import Phase
from gpu_worker.devices.cuda.memory import SLOTS
from gpu_worker.devices.cuda.plans import MIB
from gpu_worker.packages.export import write_package
from mesh.codes import ActionCode
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cuda.cuda_builders import infer_job, served, tensors
from tests.gpu_worker.devices.cuda.cuda_results import CLOSE, drivers, linear
from tests.loops import on_loop

# -- results ----------------------------------------------------------------------------------------------------------


@drivers
@on_loop
async def test_results_are_those_of_the_module_for_each_batch_size(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("linear:1"))
        assert (await on.load("linear:1", (3,))).code == ActionCode.OK
        for rows in range(1, 9):
            x = torch.randn(rows, 4)
            y = await linear(on, "linear:1", (3,), x)
            assert torch.allclose(y, repository.outputs("linear:1", x)[0], **CLOSE)


@drivers
@on_loop
async def test_several_inputs_and_outputs_of_several_kinds_keep_their_order(
    driver: str, repository: Repository
) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("two:1"))
        await on.load("two:1", (0,))
        x, i = torch.randn(5, 4), torch.tensor([0, 6, 3, 1, 1])
        y, z = await on.run(infer_job("two:1", (0,), x, i), (5, 3), (5,), dtypes=("<f4", "<i8"))
        expected = repository.outputs("two:1", x, i)
        assert torch.allclose(y, expected[0], **CLOSE)
        assert torch.equal(z, expected[1])


@drivers
@on_loop
async def test_weights_may_lie_in_any_pages_in_any_order(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        for ref in ("tall:1", "tall:2"):
            on.device.prepare(repository.package(ref))
        x = torch.randn(2, 4)
        for ref, pages in (("tall:1", (0, 1, 2)), ("tall:2", (7, 2, 5)), ("tall:1", (5, 4, 3))):
            assert (await on.load(ref, pages)).code == ActionCode.OK
            (y,) = await on.run(infer_job(ref, pages, x), (2, 140_000))
            assert torch.allclose(y, repository.outputs(ref, x)[0], **CLOSE)


@drivers
@on_loop
async def test_rows_that_are_missing_are_zeros_and_not_what_others_left(driver: str, repository: Repository) -> None:
    """Five rows are computed as six. Another request's leftover sixth index would be outside the table."""
    async with served(driver) as on:
        on.device.prepare(repository.package("echo:1"))
        on.device.prepare(repository.package("two:1"))
        await on.load("echo:1", (1,))
        await on.load("two:1", (0,))
        for _ in range(SLOTS):
            await on.run(infer_job("echo:1", (1,), torch.full((8, 4), 1e30)), (8, 4), (8, 4))
        for _ in range(SLOTS):
            x, i = torch.randn(5, 4), torch.tensor([0, 6, 3, 1, 1])
            (y, _) = await on.run(infer_job("two:1", (0,), x, i, batch=8), (8, 3), (8,), dtypes=("<f4", "<i8"))
            assert torch.allclose(y[:5], repository.outputs("two:1", x, i)[0], **CLOSE)


@drivers
@on_loop
async def test_a_measuring_run_has_no_inputs(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("two:1"))
        await on.load("two:1", (0,))
        done = await on.through(infer_job("two:1", (0,), batch=8))
        assert done.code == ActionCode.OK
        assert done.duration_s > 0


@drivers
@on_loop
async def test_a_model_without_weights_has_a_page_and_nothing_to_gather(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("echo:1"))
        assert (await on.load("echo:1", (2,))).code == ActionCode.OK
        x = torch.randn(3, 4)
        same, twice = await on.run(infer_job("echo:1", (2,), x), (3, 4), (3, 4))
        assert torch.equal(same, x)
        assert torch.equal(twice, x * 2)
        assert on.device.figures.gathers == 0


@drivers
@on_loop
async def test_attention_that_was_exported_on_the_processor_gives_what_the_module_gives(
    driver: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    tokens = {"x": ("float32", (5, 16))}
    package = write_package(tmp_path, "encoder", "1", encoder, inputs=tokens, outputs=["y"], batch_max=4)
    async with served(driver) as on:
        on.device.prepare(package)
        await on.load("encoder:1", (2,))
        for rows in (1, 2, 3, 4):
            x = torch.randn(rows, 5, 16)
            (y,) = await on.run(infer_job("encoder:1", (2,), x), (rows, 5, 16))
            with torch.no_grad():
                assert torch.allclose(y, encoder(x), **CLOSE)


# -- the execution buffer ----------------------------------------------------------------------------------------------


@drivers
@on_loop
async def test_weights_are_gathered_when_the_window_holds_another_model(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        for page, ref in enumerate(("linear:1", "linear:2", "other:1")):
            on.device.prepare(repository.package(ref))
            await on.load(ref, (page,))
        x = torch.randn(1, 4)
        gathered = []
        for page, ref in ((0, "linear:1"), (0, "linear:1"), (1, "linear:2"), (0, "linear:1"), (2, "other:1")):
            job = infer_job(ref, (page,), x)
            done = await on.through(job)
            gathered.append(done.gathered)
            assert torch.allclose(tensors(job, (1, 3))[0], repository.outputs(ref, x)[0], **CLOSE)
            on.device.release(job)
        assert gathered == [True, False, True, True, True]
        assert on.device.figures.graphs == 2 * len((1, 2, 3, 4, 6, 8)), "linear:1 and linear:2 share theirs"


@drivers
@on_loop
async def test_a_version_prepared_again_is_not_taken_for_what_the_window_holds(
    driver: str, repository: Repository
) -> None:
    async with served(driver) as on:
        package = repository.package("linear:1")
        gathered = []
        for _ in range(2):
            on.device.prepare(package)
            await on.load("linear:1", (0,))
            job = infer_job("linear:1", (0,), torch.randn(1, 4))
            gathered.append((await on.through(job)).gathered)
            on.device.release(job)
            on.device.unloaded("linear:1")
            on.device.forget("linear:1")
        assert gathered == [True, True]


# -- several at a time ------------------------------------------------------------------------------------------------


@drivers
@pytest.mark.parametrize("host_bytes_max", [1 << 30, 3 * MIB, 0])
@on_loop
async def test_loads_and_executions_side_by_side_do_not_disturb_each_other(
    driver: str, repository: Repository, host_bytes_max: int
) -> None:
    """Models of three architectures, pages that change owners, up to two LOADs and four INFERs at a time, at random.

    The weights are in host memory, on disk, or one of the tall models' here and the other's there.
    """
    rng = random.Random(5)
    torch.manual_seed(5)
    async with served(driver, host_bytes_max=host_bytes_max) as on:
        refs = ("linear:1", "linear:2", "twin:1", "other:1", "tall:1", "tall:2")
        for ref in refs:
            on.device.prepare(repository.package(ref))
        free = set(range(8))
        for _ in range(25):
            chosen = rng.sample(refs, 2)
            held = {}
            for ref in chosen:
                wanted = 3 if ref.startswith("tall") else 1
                held[ref] = tuple(rng.sample(sorted(free), wanted))
                free -= set(held[ref])
            loads = await asyncio.gather(*(on.load(ref, pages) for ref, pages in held.items()))
            assert {done.code for done in loads} == {ActionCode.OK}
            jobs = []
            for ref in rng.choices(chosen, k=4):
                x = torch.randn(rng.randint(1, 8), 4)
                jobs.append((ref, x, infer_job(ref, held[ref], x)))
            await asyncio.gather(*(on.through(job) for _, _, job in jobs))
            for ref, x, job in jobs:
                (expected,) = repository.outputs(ref, x)
                assert torch.allclose(tensors(job, tuple(expected.shape))[0], expected, **CLOSE)
                on.device.release(job)
            for pages in held.values():
                free |= set(pages)
        on.device.check()


@drivers
@pytest.mark.parametrize("host_bytes_max", [1 << 30, 0])
@on_loop
async def test_serving_allocates_pins_and_captures_nothing(
    driver: str, repository: Repository, host_bytes_max: int
) -> None:
    async with served(driver, host_bytes_max=host_bytes_max) as on:
        refs = ("linear:1", "two:1", "tall:1")
        for ref in refs:
            on.device.prepare(repository.package(ref))

        async def serve() -> None:
            for ref in refs:
                inputs = (torch.randn(5, 4),) + ((torch.ones(5, dtype=torch.int64),) if ref == "two:1" else ())
                await on.load(ref, (0, 1, 2) if ref == "tall:1" else (4,))
                job = infer_job(ref, (0, 1, 2) if ref == "tall:1" else (4,), *inputs)
                assert (await on.through(job)).code == ActionCode.OK
                on.device.release(job)

        await serve()
        before = on.driver.allocations()
        for _ in range(20):
            await serve()
        assert on.driver.allocations() == before


# -- action windows ---------------------------------------------------------------------------------------------------


@drivers
@on_loop
async def test_an_exec_is_issued_at_its_time_and_says_how_late(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("linear:1"))
        await on.load("linear:1", (0,))
        job = infer_job("linear:1", (0,), torch.randn(1, 4), earliest_s=time.monotonic() + 0.03)
        done = await on.through(job)
        assert done.code == ActionCode.OK
        assert done.end_s >= job.action.earliest_s
        (late_s,) = on.device.figures.late_s
        assert late_s >= 0


@drivers
@on_loop
async def test_an_exec_past_its_window_is_refused_and_so_is_one_that_would_start_past_it(
    driver: str, repository: Repository
) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("linear:1"))
        await on.load("linear:1", (0,))
        x = torch.randn(1, 4)
        past = infer_job("linear:1", (0,), x, latest_s=time.monotonic() - 1.0)
        assert (await on.through(past)).code == ActionCode.LATE
        long = infer_job("linear:1", (0,), x, expected_s=3600.0)
        behind = infer_job("linear:1", (0,), x, latest_s=time.monotonic() + 60.0)
        for job in (long, behind):
            assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
        dones = await asyncio.gather(*(on.begin(Phase.EXEC, job) for job in (long, behind)))
        first, second = (done.code for done in dones)
        assert first == ActionCode.OK
        assert second in (ActionCode.LATE, ActionCode.OK), "ok, if the first was over already"
        await on.begin(Phase.OUTPUT, long)


@drivers
@on_loop
async def test_a_load_past_its_window_is_refused(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("linear:1"))
        assert (await on.load("linear:1", (0,), latest_s=time.monotonic() - 1.0)).code == ActionCode.LATE
        assert (await on.load("linear:1", (0,))).code == ActionCode.OK
