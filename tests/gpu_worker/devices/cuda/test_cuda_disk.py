"""LOADs from disk on the device with graphs: weights beyond the host memory's budget."""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_worker.core.jobs import Job, Phase
from gpu_worker.devices.arena import Bytes
from gpu_worker.devices.cuda.driver import Stream, Work
from gpu_worker.devices.cuda.host import HostDriver, HostStream
from gpu_worker.devices.cuda.issuer import Helper
from gpu_worker.devices.cuda.plans import MIB, Room
from gpu_worker.devices.executables import read_image
from gpu_worker.devices.images import DISK, HOST, DiskImage
from gpu_worker.packages.package import Package, read_package
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cuda.cuda_builders import DRIVERS, Served, infer_job, numbers, served
from tests.gpu_worker.worker_builders import load
from tests.loops import LIMIT_S, on_loop

drivers = pytest.mark.parametrize("driver", DRIVERS)
SMALL_PAGES = Room(page_bytes=MIB // 4, pages=32, window_pages=16)  # so that a model of 2.7 MiB takes eleven pieces
CLOSE = {"atol": 1e-3, "rtol": 1e-3}


@pytest.fixture
def folder(repository: Repository, tmp_path: Path) -> Path:
    """A repository whose files a test may damage."""
    for name in ("tall", "linear"):
        shutil.copytree(repository.folder / name, tmp_path / name)
    return tmp_path


def assert_in_pages(on: Served, package: Package, pages: tuple[int, ...]) -> None:
    """Each byte of the weights is where its page is."""
    image = np.zeros(package.image_bytes, np.uint8)
    read_image(package, image)
    size = on.device.info.page_bytes
    arena = on.device._memory.arena.cpu().view(-1, size)
    found = arena[list(pages)].flatten().numpy()
    for weight in package.layout:
        piece = slice(weight.offset, weight.offset + weight.size)
        assert (found[piece] == image[piece]).all(), weight.name


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
            assert done.code == "ok", done
            assert done.duration_s > 0
            assert done.end_s == pytest.approx(done.begin_s + done.duration_s)
        x = torch.randn(2, 4)
        for package, width in ((tall, 140_000), (other, 140_000), (linear, 3)):
            assert_in_pages(on, package, places[package.ref])
            (y,) = await on.run(infer_job(package.ref, places[package.ref], x), (2, width))
            assert torch.allclose(y, repository.outputs(package.ref, x)[0], **CLOSE)
        on.device._loader.copies.check()


@drivers
@on_loop
async def test_an_architecture_that_is_first_seen_in_a_model_on_disk_is_captured_with_its_weights(
    driver: str, repository: Repository
) -> None:
    """Its weights are indices: with zeros instead, or with another's, warming up would not be that of this model."""
    async with served(driver, host_bytes_max=0) as on:
        on.device.prepare(repository.package("two:1"))
        await on.load("two:1", (2,))
        x, i = torch.randn(3, 4), torch.tensor([6, 0, 1])
        y, z = await on.run(infer_job("two:1", (2,), x, i), (3, 3), (3,), dtypes=("<f4", "<i8"))
        assert torch.allclose(y, repository.outputs("two:1", x, i)[0], **CLOSE)
        assert z.tolist() == [12, 0, 2]


@on_loop
async def test_one_file_is_one_image_and_what_is_forgotten_makes_room_for_others(
    repository: Repository, folder: Path
) -> None:
    tall = repository.package("tall:1")
    async with served("host", host_bytes_max=tall.image_bytes) as on:
        for _ in range(2):
            on.device.prepare(tall)
        on.device.prepare(repository.package("tall:2"))
        assert [on.device.traits(ref).load_from for ref in ("tall:1", "tall:2")] == [HOST, DISK]
        on.device.forget("tall:1")
        on.device.prepare(repository.package("tall:2"))
        assert on.device.traits("tall:2").load_from == HOST
        on.device._versions.images.check()


@on_loop
async def test_a_version_that_could_not_be_prepared_leaves_its_share_of_the_budget(repository: Repository) -> None:
    tall = repository.package("tall:1")
    async with served("host", host_bytes_max=tall.image_bytes) as on:
        on.driver._memory_bytes = on.driver._used
        with pytest.raises(Exception, match="host:0"):
            on.device.prepare(tall)
        assert on.device._versions.images.used_bytes == 0


# -- files that are not what they were --------------------------------------------------------------------------------


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
        assert [done.code for done in (first, second, third)] == ["content_changed", "ok", "content_changed"]
        assert "weights.safetensors" in first.message
        x = torch.randn(2, 4)
        (y,) = await on.run(infer_job("tall:2", range(11, 22), x), (2, 140_000))
        assert torch.allclose(y, repository.outputs("tall:2", x)[0], **CLOSE)
        assert on.lost == []
        on.device._loader.copies.check()


class Gated(HostStream):
    """A stream that does nothing before its gate is open."""

    def __init__(self, name: str, gate: threading.Event) -> None:
        self.gate, self.came = gate, threading.Event()
        super().__init__(name)

    def run(self, work: Work) -> None:
        """See Stream."""

        def wait() -> None:
            self.came.set()
            self.gate.wait()
            work()

        super().run(wait)


class GatedDriver(HostDriver):
    """LOADs copy once the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.loads: list[Gated] = []

    def stream(self, name: str) -> Stream:
        """See Driver."""
        if name != "load":
            return super().stream(name)
        stream = Gated(name, self.gate)
        self._streams.append(stream)
        self.loads.append(stream)
        return stream


@on_loop
async def test_a_file_that_is_cut_while_it_is_read_fails_that_load_once_its_copies_have_ended(folder: Path) -> None:
    """Not before: its pages are another's then, and the copies would write into them."""
    driver = GatedDriver()
    on = Served(driver, Helper("helper"), SMALL_PAGES, 0)
    on.device.prepare(read_package(folder, "tall:1", ()))
    loading = asyncio.ensure_future(on.load("tall:1", range(11)))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(driver.loads[0].came.wait, LIMIT_S), "a first piece was read, and is on its way"
    cut(folder / "tall" / "1" / "weights.safetensors")
    assert not loading.done()
    driver.gate.set()
    done = await loading
    assert done.code == "content_changed"
    assert "weights.safetensors" in done.message
    assert not on.device._loader.copies._in_flight
    on.device._loader.copies.check()
    assert on.device._loader.events.free == on.device._loader.events.count
    on.device.close()


@on_loop
async def test_a_load_whose_window_is_past_when_its_turn_comes_is_not_read(folder: Path) -> None:
    driver = GatedDriver()
    on = Served(driver, Helper("helper"), SMALL_PAGES, 0)
    for ref in ("tall:1", "tall:2"):
        on.device.prepare(read_package(folder, ref, ()))
    (folder / "tall" / "2" / "weights.safetensors").unlink()  # reading it would be an error
    first = asyncio.ensure_future(on.load("tall:1", range(11)))
    second = asyncio.ensure_future(on.load("tall:2", range(11, 22), latest_s=time.monotonic() + 0.001))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(driver.loads[0].came.wait, LIMIT_S)
    assert not second.done(), "it waits for its turn"
    asyncio.get_running_loop().call_later(0.01, driver.gate.set)
    assert [(await first).code, (await second).code] == ["ok", "late"]
    on.device.close()


class SlowImage(DiskImage):
    """An image on a disk that answers when it is told to."""

    def __init__(self, package: Package) -> None:
        super().__init__(package)
        self.asked, self.answer = threading.Event(), threading.Event()

    def read(self, target: Bytes, at: int) -> None:
        """See DiskImage."""
        self.asked.set()
        self.answer.wait()
        super().read(target, at)


@on_loop
async def test_a_disk_that_does_not_answer_holds_up_no_exec_and_no_loop(repository: Repository) -> None:
    async with served("host", SMALL_PAGES, host_bytes_max=0) as on:
        for ref in ("tall:1", "linear:1"):
            on.device.prepare(repository.package(ref))
        await on.load("linear:1", (31,))
        version = on.device._versions.get("tall:1")
        assert version is not None
        slow = version.image = SlowImage(repository.package("tall:1"))
        loading = asyncio.ensure_future(on.load("tall:1", range(11)))
        await asyncio.sleep(0)
        assert await asyncio.to_thread(slow.asked.wait, LIMIT_S)
        for _ in range(3):
            x = torch.randn(8, 4)
            (y,) = await on.run(infer_job("linear:1", (31,), x), (8, 3))
            assert torch.allclose(y, repository.outputs("linear:1", x)[0], **CLOSE)
        assert not loading.done()
        slow.answer.set()
        assert (await loading).code == "ok"
        assert_in_pages(on, repository.package("tall:1"), tuple(range(11)))


@on_loop
async def test_a_piece_is_read_while_others_are_copied(folder: Path) -> None:
    """With the copies held up, three pieces are read: two are on their way, and the next is there already."""
    driver = GatedDriver()
    on = Served(driver, Helper("helper"), SMALL_PAGES, 0)
    on.device.prepare(read_package(folder, "tall:1", ()))
    job = Job(load(next(numbers), "tall:1"), 0.0, 0)
    job.pages = tuple(range(11))
    ended = on.begin(Phase.LOAD, job)
    copies = on.device._loader.copies
    await until_issued(on, lambda: bool(copies._queue and copies._queue[0].waiting))
    (transfer,) = copies._queue
    assert [len(queue) for queue in (transfer.in_flight, transfer.waiting, transfer.unread)] == [2, 1, 8]
    driver.gate.set()
    assert (await ended).code == "ok"
    on.device.close()


async def until_issued(on: Served, there: Callable[[], bool]) -> None:
    """Looked at from the issuing thread, again and again, until it is so."""
    loop = asyncio.get_running_loop()
    while True:
        seen: asyncio.Future[bool] = loop.create_future()
        on.device._issuer.now(lambda seen=seen: loop.call_soon_threadsafe(seen.set_result, there()))  # type: ignore[misc]
        if await seen:
            return
