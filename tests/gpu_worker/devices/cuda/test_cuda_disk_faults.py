"""LOADs from files that are not what they were: the failure of that LOAD, and of nothing else."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpu_worker.packages.package import read_package
from mesh.codes import ActionCode
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cuda.cuda_builders import SMALL_PAGES, infer_job, served
from tests.gpu_worker.devices.cuda.slow_loads import GatedDriver, SlowDisk
from tests.loops import LIMIT_S, on_loop
from tests.messages import names

CLOSE = {"atol": 1e-3, "rtol": 1e-3}


@pytest.fixture
def folder(repository: Repository, tmp_path: Path) -> Path:
    """A repository whose files a test may damage."""
    for name in ("tall", "linear"):
        shutil.copytree(repository.folder / name, tmp_path / name)
    return tmp_path


def cut(file: Path) -> None:
    """Half of it is gone."""
    os.truncate(file, file.stat().st_size // 2)


def replaced(file: Path) -> None:
    """Other bytes, in a file of another's."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(bytes(len(content)))


def overwritten(file: Path) -> None:
    """Other bytes in the file, which does not tell when."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(before.st_size // 2)
        opened.write(bytes(1000))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("damage", [cut, replaced, overwritten, Path.unlink])
@on_loop
async def test_a_file_that_is_not_there_as_it_was_is_the_failure_of_that_load_alone(
    repository: Repository, folder: Path, damage: Callable[[Path], None]
) -> None:
    async with served("host", SMALL_PAGES, host_bytes_max=0) as on:
        for ref in ("tall:1", "tall:2"):
            on.device.prepare(read_package(folder, ref, ()))
        damage(folder / "tall" / "1" / "weights.safetensors")
        first, second, third = await asyncio.gather(
            on.load("tall:1", range(11)), on.load("tall:2", range(11, 22)), on.load("tall:1", range(11))
        )
        assert (first.code, third.code) == (ActionCode.CONTENT_CHANGED, ActionCode.CONTENT_CHANGED)
        assert second.code == ActionCode.OK
        assert names(first.message, "weights.safetensors")
        x = torch.randn(2, 4)
        (y,) = await on.run(infer_job("tall:2", range(11, 22), x), (2, 140_000))
        assert torch.allclose(y, repository.outputs("tall:2", x)[0], **CLOSE)
        assert on.lost == []


@on_loop
async def test_a_file_that_is_cut_while_it_is_read_fails_that_load_once_its_copies_have_ended(
    repository: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: its pages are another's then, and the copies would write into them."""
    driver = GatedDriver()
    async with served(driver, SMALL_PAGES, host_bytes_max=0) as on:
        for ref in ("tall:1", "linear:1"):
            on.device.prepare(read_package(folder, ref, ()))
        driver.gate.set()
        assert (await on.load("linear:1", (31,))).code == ActionCode.OK
        driver.gate.clear()
        driver.came.clear()
        disk = SlowDisk(monkeypatch)
        disk.answer(1)
        loading = asyncio.ensure_future(on.load("tall:1", range(11)))
        assert await asyncio.to_thread(driver.came.wait, LIMIT_S), "a first piece was read, and is on its way"
        await asyncio.to_thread(disk.wait_for_answer)
        for _ in range(2):  # the second piece is being read: its file is open, and was what it should be
            await asyncio.to_thread(disk.wait_for_ask)
        os.truncate(folder / "tall" / "1" / "weights.safetensors", 0)
        disk.answer()
        await asyncio.to_thread(disk.wait_for_answer)
        x = torch.randn(2, 4)
        for _ in range(3):  # what the disk said has come to the thread that issues, which these go through as well
            (y,) = await on.run(infer_job("linear:1", (31,), x), (2, 3))
            assert torch.allclose(y, repository.outputs("linear:1", x)[0], **CLOSE)
        assert not loading.done()
        driver.gate.set()
        done = await loading
        assert done.code == ActionCode.CONTENT_CHANGED
        assert names(done.message, "weights.safetensors")
        assert on.lost == []
