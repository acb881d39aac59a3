"""gpu_worker/devices/cuda/device.py: inputs that are not those of their rows, captures, and computed values."""

import asyncio
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from gpu_worker.core.jobs import Phase
from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cuda.device import CudaDevice
from gpu_worker.devices.cuda.driver import Event, Stream, Work
from gpu_worker.devices.cuda.host import HostDriver, HostStream
from gpu_worker.devices.cuda.memory import SLOTS, Memory
from gpu_worker.devices.cuda.nvidia import set_tf32
from gpu_worker.devices.cuda.plans import MIB, Room
from gpu_worker.devices.cuda.waiting.threads import Helper
from gpu_worker.packages.export import write_package
from mesh.codes import ActionCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import ROW, Repository
from tests.gpu_worker.devices.cuda.cuda_builders import ROOM, Served, infer_job, served
from tests.gpu_worker.devices.cuda.cuda_results import CLOSE, drivers, linear
from tests.loops import on_loop
from tests.messages import names

# -- bad input --------------------------------------------------------------------------------------------------------


@drivers
@on_loop
async def test_inputs_that_are_not_those_of_their_rows_are_refused(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("linear:1"))
        await on.load("linear:1", (0,))
        for wrong in (b"1234" * 5, b"1234" * 3):
            job = infer_job("linear:1", (0,), torch.randn(2, 4))
            job.tensors[1][0] = wrong
            done = await on.through(job)
            assert done.code == ActionCode.BAD_INPUT
            assert names(done.message, "input 0", len(wrong), 1, 16)
            on.device.release(job)


@drivers
@on_loop
async def test_more_inputs_than_slots_are_refused_and_slots_come_back(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("linear:1"))
        await on.load("linear:1", (0,))
        jobs = [infer_job("linear:1", (0,), torch.randn(1, 4)) for _ in range(SLOTS + 1)]
        codes = [(await on.begin(Phase.INPUT, job)).code for job in jobs]
        assert codes == [ActionCode.OK] * SLOTS + [ActionCode.NO_SLOTS]
        for job in jobs:
            on.device.release(job)
        x = torch.randn(2, 4)
        y = await linear(on, "linear:1", (0,), x)
        assert torch.allclose(y, repository.outputs("linear:1", x)[0], **CLOSE)


@on_loop
async def test_what_fails_on_the_device_is_that_action_s_outcome_alone(repository: Repository) -> None:
    """Not on a GPU: there an invalid index ends the process."""
    async with served("host") as on:
        on.device.prepare(repository.package("two:1"))
        await on.load("two:1", (0,))
        bad = infer_job("two:1", (0,), torch.randn(1, 4), torch.tensor([99]))
        done = await on.through(bad)
        assert done.code == ActionCode.DEVICE_ERROR
        assert "index" in done.message
        on.device.release(bad)
        x, i = torch.randn(1, 4), torch.tensor([6])
        (y, _) = await on.run(infer_job("two:1", (0,), x, i), (1, 3), (1,), dtypes=("<f4", "<i8"))
        assert torch.allclose(y, repository.outputs("two:1", x, i)[0], **CLOSE)
        on.device.check()


class Lost(HostStream):
    """A stream of a device that can fail for good, as a GPU does after an access to invalid memory."""

    left = 1_000_000  # works until it fails

    def run(self, work: Work) -> None:
        """`work` is issued; it fails once the device is lost."""
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the device is lost")
        super().run(work)


class LostDriver(HostDriver):
    """A driver whose streams and durations fail once `lose` was called."""

    def __init__(self) -> None:
        super().__init__()
        self.warmed = threading.Event()

    def stream(self, name: str) -> Stream:
        """Returns a stream that can be lost."""
        stream = Lost(name)
        self._streams.append(stream)
        return stream

    def keep_warm(self) -> Work:
        """Returns work that sets `warmed`."""
        return self.warmed.set

    def seconds(self, begin: Event, end: Event) -> float:
        """Returns the seconds between two events. Raises: RuntimeError if the device is lost."""
        if self.lost():
            raise RuntimeError(self.lost())
        return super().seconds(begin, end)

    def lost(self) -> str:
        """Returns the failure, or ""."""
        gone = any(isinstance(stream, Lost) and stream.left < 0 for stream in self._streams)
        return "the device is lost" if gone else ""

    def lose(self, left: int) -> None:
        """Each stream runs `left` more works and then fails."""
        for stream in self._streams:
            assert isinstance(stream, Lost)
            stream.left = left


@on_loop
async def test_a_device_that_is_lost_says_so_of_everything_from_then_on(repository: Repository) -> None:
    """Every phase that is begun ends, however many come: the controller would wait for a silent worker."""
    helper, driver = Helper("helper"), LostDriver()
    on = Served(driver, helper, ROOM, 1 << 30)
    for ref in ("linear:1", "tall:1"):
        on.device.prepare(repository.package(ref))
    await on.load("linear:1", (0,))
    job = infer_job("linear:1", (0,), torch.randn(1, 4))
    assert (await on.through(job)).code == ActionCode.OK
    on.device.release(job)
    assert await asyncio.to_thread(driver.warmed.wait, 5.0), "it was kept warm, until then"
    held = infer_job("linear:1", (0,), torch.randn(1, 4))
    assert (await on.begin(Phase.INPUT, held)).code == ActionCode.OK
    driver.lose(0)
    codes = [(await on.begin(Phase.EXEC, held)).code]
    for _ in range(3):
        codes += [done.code for done in await asyncio.gather(on.load("tall:1", (1, 2, 3)), on.load("linear:1", (0,)))]
        job = infer_job("linear:1", (0,), torch.randn(1, 4))
        codes.append((await on.begin(Phase.INPUT, job)).code)
        on.device.release(job)
    assert codes == [ActionCode.DEVICE_LOST] * 10
    on.device.close()


@on_loop
async def test_a_load_whose_later_pieces_cannot_be_started_fails_when_those_on_their_way_have_arrived(
    repository: Repository,
) -> None:
    helper, driver = Helper("helper"), LostDriver()
    on = Served(driver, helper, ROOM, 1 << 30)
    on.device.prepare(repository.package("tall:1"))
    driver.lose(2)
    done = await on.load("tall:1", (1, 2, 3))
    assert (done.code, done.message) == (ActionCode.DEVICE_LOST, "the device is lost")
    on.device.check()
    assert on.lost == ["the device is lost"]
    on.device.close()


@on_loop
async def test_a_model_that_was_never_prepared_is_refused(repository: Repository) -> None:
    async with served("host") as on:
        assert (await on.load("linear:1", (0,))).code == ActionCode.UNKNOWN_MODEL
        assert (await on.through(infer_job("linear:1", (0,), torch.randn(1, 4)))).code == ActionCode.UNKNOWN_MODEL


@on_loop
async def test_a_model_larger_than_window_or_arena_is_refused_with_all_figures(repository: Repository) -> None:
    async with served("host", Room(page_bytes=MIB, pages=2, buffer_pages=1)) as on:
        with pytest.raises(PackageError) as raised:
            on.device.prepare(repository.package("tall:1"))
        window, arena = raised.value.faults
        assert names(window, "2.7", 1, "GEARMESH_WINDOW_MB")
        assert names(arena, 3, 2, "GEARMESH_ARENA_MB")


def test_memory_that_is_not_there_is_refused_at_start() -> None:
    with pytest.raises(DeviceError, match=r"host:0.*\b8\b.*\b4\b.*GEARMESH_ARENA"):
        CudaDevice(HostDriver(memory_bytes=4 * MIB), Room(page_bytes=MIB, pages=8, buffer_pages=4), host_bytes_max=0)


@on_loop
async def test_a_device_that_is_full_refuses_what_is_deployed_and_serves_on(repository: Repository) -> None:
    async with served("host") as on:
        on.device.prepare(repository.package("linear:1"))
        await on.load("linear:1", (0,))
        on.driver.memory_bytes = on.driver.used_bytes
        with pytest.raises(PackageError, match=r"host:0.*GEARMESH_ARENA_MB"):
            on.device.prepare(repository.package("tall:1"))
        x = torch.randn(2, 4)
        y = await linear(on, "linear:1", (0,), x)
        assert torch.allclose(y, repository.outputs("linear:1", x)[0], **CLOSE)


@drivers
@on_loop
async def test_what_was_unloaded_is_gathered_again(driver: str, repository: Repository) -> None:
    async with served(driver) as on:
        on.device.prepare(repository.package("linear:1"))
        await on.load("linear:1", (0,))
        gathered = []
        for unload in (False, False, True, False):
            if unload:
                on.device.unloaded("linear:1")
            job = infer_job("linear:1", (0,), torch.randn(1, 4))
            gathered.append((await on.through(job)).gathered)
            on.device.release(job)
        assert gathered == [True, False, True, False]


def test_rows_of_the_page_table_are_aligned_whatever_the_window_s_size() -> None:
    """A kernel is compiled for aligned addresses; an unaligned address would make it compile again while serving."""
    memory = Memory(HostDriver(), Room(page_bytes=MIB, pages=8, buffer_pages=3))
    rows = [memory.row((first, (first + 3) % 8))[0] for first in range(8)]
    assert all((row.data_ptr() - rows[0].data_ptr()) % 256 == 0 for row in rows)
    assert memory.host_tables[5, :2].tolist() == [5, 0]


# -- captures and computed values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "matmul", "convolutions"), [("convolutions", False, True), ("all", True, True), ("none", False, False)]
)
def test_what_is_multiplied_in_tf32_is_as_it_was_set(what: str, matmul: bool, convolutions: bool) -> None:
    try:
        set_tf32(what)
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == matmul
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == convolutions
        assert (torch.backends.cudnn.rnn.fp32_precision == "tf32") == convolutions
    finally:
        set_tf32("convolutions")


class Waits(nn.Module):
    """Waits for the device in the middle, which no graph can do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 3]."""
        return self.linear(x) * self.linear.bias.abs().max().item()


@drivers
@on_loop
async def test_a_model_that_no_graph_can_hold_is_refused_and_others_are_captured_after_it(
    driver: str, repository: Repository, tmp_path: Path
) -> None:
    """Only on a GPU, because on the host everything can be captured."""
    waits = write_package(tmp_path, "waits", "1", Waits(), inputs=ROW, outputs=["y"], batch_max=2)
    async with served(driver) as on:
        on.device.prepare(repository.package("linear:1"))
        await on.load("linear:1", (0,))
        for _ in range(2):
            if driver == "cuda":
                with pytest.raises(PackageError, match="waits"):
                    on.device.prepare(waits)
            else:
                on.device.prepare(waits)
        on.device.prepare(repository.package("two:1"))
        await on.load("two:1", (1,))
        x, i = torch.randn(3, 4), torch.tensor([6, 0, 1])
        y = await linear(on, "linear:1", (0,), x)
        assert torch.allclose(y, repository.outputs("linear:1", x)[0], **CLOSE)
        (y, _) = await on.run(infer_job("two:1", (1,), x, i), (3, 3), (3,), dtypes=("<f4", "<i8"))
        assert torch.allclose(y, repository.outputs("two:1", x, i)[0], **CLOSE)
        assert on.lost == []


def _fill(buffer: torch.Tensor) -> None:
    buffer.fill_(7)


@drivers
@on_loop
async def test_what_was_captured_keeps_the_tensors_that_it_reads_and_writes(driver: str) -> None:
    """Otherwise others would get their memory, and a replay would write into it."""
    async with served(driver) as on:
        held, (stream, event) = on.driver, (on.driver.stream("replays"), on.driver.event(sleeps=False))

        def captured() -> Work:
            buffer = held.allocate(4096)
            addresses.append(buffer.data_ptr())
            return held.capture(partial(_fill, buffer))

        addresses: list[int] = []
        replay = captured()
        others = [held.allocate(4096) for _ in range(64)]
        stream.run(replay)
        stream.record(event)
        await asyncio.to_thread(event.synchronize)
        assert addresses[0] not in {other.data_ptr() for other in others}
        assert not any(bool(other.any()) for other in others)
