"""The device with CUDA graphs: on this process's memory everywhere; on a GPU (marked cuda) where there is one."""

import asyncio
import random
import threading
import time
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
from gpu_worker.devices.cuda.threads import Helper
from gpu_worker.packages.export import write_package
from mesh.codes import ActionCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import ROW, Repository
from tests.gpu_worker.devices.cuda.cuda_builders import DRIVERS, ROOM, Served, infer_job, served, tensors
from tests.loops import on_loop
from tests.messages import names

drivers = pytest.mark.parametrize("driver", DRIVERS)
CLOSE = {"atol": 1e-3, "rtol": 1e-3}  # a GPU sums in another order, and convolves in TF32


async def linear(on: Served, ref: str, pages: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    return (await on.run(infer_job(ref, pages, x), (len(x), 3)))[0]


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


# -- the weight buffer ------------------------------------------------------------------------------------------------


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
    assert codes == [ActionCode.DEVICE_ERROR] * 10
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
    assert (done.code, done.message) == (ActionCode.DEVICE_ERROR, "the device is lost")
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
    async with served("host", Room(page_bytes=MIB, pages=2, window_pages=1)) as on:
        with pytest.raises(PackageError) as raised:
            on.device.prepare(repository.package("tall:1"))
        window, arena = raised.value.faults
        assert names(window, "2.7", 1, "GEARMESH_WINDOW_MB")
        assert names(arena, 3, 2, "GEARMESH_ARENA_MB")


def test_memory_that_is_not_there_is_refused_at_start() -> None:
    with pytest.raises(DeviceError, match=r"host:0.*\b8\b.*\b4\b.*GEARMESH_ARENA"):
        CudaDevice(HostDriver(memory_bytes=4 * MIB), Room(page_bytes=MIB, pages=8, window_pages=4), host_bytes_max=0)


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
    memory = Memory(HostDriver(), Room(page_bytes=MIB, pages=8, window_pages=3))
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
