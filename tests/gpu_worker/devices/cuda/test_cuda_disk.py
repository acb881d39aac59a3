"""LOADs from disk on the device with graphs: weights beyond the host memory's budget."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from gpu_worker.devices.images import DISK, HOST
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import read_package
from mesh.codes import ActionCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import ROW, Repository
from tests.gpu_worker.devices.cuda.cuda_builders import DRIVERS, SMALL_PAGES, Served, infer_job, served
from tests.gpu_worker.devices.cuda.slow_loads import GatedDriver, SlowDisk
from tests.loops import LIMIT_S, on_loop

drivers = pytest.mark.parametrize("driver", DRIVERS)
CLOSE = {"atol": 1e-3, "rtol": 1e-3}
WIDTHS = {"tall": 140_000, "linear": 3}
EACH_WEIGHT = torch.cat([torch.zeros(1, 4), torch.eye(4)])  # the biases, and each column of the weights: exact sums


class CountsFromOne(nn.Module):
    """Adds rows of a table; zeros in place of its indices would ask for a row before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.register_buffer("rows", torch.tensor([1, 3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x + self.table(self.rows - 1).sum(0)


async def assert_in_pages(on: Served, repository: Repository, ref: str, pages: tuple[int, ...]) -> None:
    """Each weight of a layer of 4 inputs is where its page is: outputs are, bit for bit, what they make."""
    width = WIDTHS[ref.partition(":")[0]]
    (y,) = await on.run(infer_job(ref, pages, EACH_WEIGHT), (len(EACH_WEIGHT), width))
    assert torch.equal(y, repository.outputs(ref, EACH_WEIGHT)[0])


@drivers
@on_loop
async def test_weights_beyond_the_budget_stay_on_disk_and_are_the_same_in_the_pages(
    driver: str, repository: Repository
) -> None:
    tall, other, linear = (repository.package(ref) for ref in ("tall:1", "tall:2", "linear:1"))
    async with served(driver, SMALL_PAGES, host_bytes_max=tall.image_bytes) as on:
        for package in (tall, other, linear):
            on.device.prepare(package)
        assert [on.device.traits(p.ref).load_from for p in (tall, other, linear)] == [HOST, DISK, DISK]
        places = {"tall:1": tuple(range(11)), "tall:2": tuple(range(31, 20, -1)), "linear:1": (15,)}
        dones = await asyncio.gather(*(on.load(ref, pages) for ref, pages in places.items()))
        for done in dones:
            assert done.code == ActionCode.OK, done
            assert done.duration_s > 0
            assert done.end_s == pytest.approx(done.begin_s + done.duration_s)
        for ref, pages in places.items():
            await assert_in_pages(on, repository, ref, pages)
            x = torch.randn(2, 4)
            (y,) = await on.run(infer_job(ref, pages, x), (2, WIDTHS[ref.partition(":")[0]]))
            assert torch.allclose(y, repository.outputs(ref, x)[0], **CLOSE)


@drivers
@on_loop
async def test_an_architecture_that_is_first_seen_in_a_model_on_disk_is_captured_with_its_weights(
    driver: str, tmp_path: Path
) -> None:
    """Its weights are indices: with zeros instead, or with another's, warming up would not be that of this model."""
    module = CountsFromOne()
    write_package(tmp_path, "counts", "1", module, inputs=ROW, outputs=["y"], batch_max=8)
    async with served(driver, host_bytes_max=0) as on:
        on.device.prepare(read_package(tmp_path, "counts:1", ()))
        await on.load("counts:1", (2,))
        x = torch.randn(3, 4)
        (y,) = await on.run(infer_job("counts:1", (2,), x), (3, 4))
        assert torch.allclose(y, module(x), **CLOSE)


@on_loop
async def test_one_file_is_one_image_and_what_is_forgotten_makes_room_for_others(repository: Repository) -> None:
    tall = repository.package("tall:1")
    async with served("host", host_bytes_max=tall.image_bytes) as on:
        for _ in range(2):
            on.device.prepare(tall)
        on.device.prepare(repository.package("tall:2"))
        assert [on.device.traits(ref).load_from for ref in ("tall:1", "tall:2")] == [HOST, DISK]
        on.device.forget("tall:1")
        on.device.prepare(repository.package("tall:2"))
        assert on.device.traits("tall:2").load_from == HOST


@on_loop
async def test_a_version_that_could_not_be_prepared_leaves_its_share_of_the_budget(repository: Repository) -> None:
    tall = repository.package("tall:1")
    async with served("host", host_bytes_max=tall.image_bytes) as on:
        free = on.driver.memory_bytes - on.driver.used_bytes
        on.driver.memory_bytes -= free
        with pytest.raises(PackageError, match="host:0"):
            on.device.prepare(tall)
        on.driver.memory_bytes += free
        on.device.prepare(repository.package("tall:2"))
        assert on.device.traits("tall:2").load_from == HOST


# -- copies and reads that take their time ----------------------------------------------------------------------------


@on_loop
async def test_a_load_whose_window_is_past_when_its_turn_comes_is_not_read(
    repository: Repository, tmp_path: Path
) -> None:
    shutil.copytree(repository.folder / "tall", tmp_path / "tall")
    driver = GatedDriver()
    async with served(driver, SMALL_PAGES, host_bytes_max=0) as on:
        for ref in ("tall:1", "tall:2"):
            on.device.prepare(read_package(tmp_path, ref, ()))
        (tmp_path / "tall" / "2" / "weights.safetensors").unlink()  # reading it would be an error
        first = asyncio.ensure_future(on.load("tall:1", range(11)))
        second = asyncio.ensure_future(on.load("tall:2", range(11, 22), latest_s=time.monotonic() + 0.001))
        await asyncio.sleep(0)
        assert await asyncio.to_thread(driver.came.wait, LIMIT_S)
        assert not second.done(), "it waits for its turn"
        asyncio.get_running_loop().call_later(0.01, driver.gate.set)
        assert [(await first).code, (await second).code] == [ActionCode.OK, ActionCode.LATE]


@on_loop
async def test_a_disk_that_does_not_answer_holds_up_no_exec_and_no_loop(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served("host", SMALL_PAGES, host_bytes_max=0) as on:
        for ref in ("tall:1", "linear:1"):
            on.device.prepare(repository.package(ref))
        await on.load("linear:1", (31,))
        disk = SlowDisk(monkeypatch)
        loading = asyncio.ensure_future(on.load("tall:1", range(11)))
        await asyncio.to_thread(disk.wait_for_ask)
        for _ in range(3):
            x = torch.randn(8, 4)
            (y,) = await on.run(infer_job("linear:1", (31,), x), (8, 3))
            assert torch.allclose(y, repository.outputs("linear:1", x)[0], **CLOSE)
        assert not loading.done()
        disk.answer()
        assert (await loading).code == ActionCode.OK
        await assert_in_pages(on, repository, "tall:1", tuple(range(11)))


@on_loop
async def test_pieces_are_read_while_others_are_copied_and_never_more_than_there_are_buffers_for(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the copies held up, three pieces are read: two are on their way, and the next is there already."""
    driver, piece_bytes = GatedDriver(), SMALL_PAGES.page_bytes
    ahead: list[int] = []  # bytes that were read, and not copied yet, after each read
    async with served(driver, SMALL_PAGES, host_bytes_max=0) as on:
        for ref in ("tall:1", "linear:1"):
            on.device.prepare(repository.package(ref))
        driver.gate.set()
        await on.load("linear:1", (31,))
        driver.gate.clear()
        driver.issued = driver.copied = 0
        disk = SlowDisk(monkeypatch, lambda: ahead.append(disk.bytes_read - driver.copied * piece_bytes))
        disk.answer()
        loading = asyncio.ensure_future(on.load("tall:1", range(11)))
        while disk.bytes_read <= 2 * piece_bytes:
            await asyncio.to_thread(disk.wait_for_answer)
        await assert_in_pages(on, repository, "linear:1", (31,))  # issued behind whatever the third piece brings about
        assert (driver.issued, driver.copied) == (2, 0)
        driver.gate.set()
        assert (await loading).code == ActionCode.OK
    assert 2 * piece_bytes < max(ahead) <= 3 * piece_bytes
    assert disk.bytes_read == 140_000 * 5 * 4
