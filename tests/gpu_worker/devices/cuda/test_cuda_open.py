"""Models with open dimensions on a device of fixed shapes: a graph for each batch, and answers cut out of the slot."""

from pathlib import Path
from random import Random

import pytest
import torch

from gpu_worker.core.fixed import FixedBatches
from gpu_worker.core.jobs import Done
from gpu_worker.devices.cuda import graphs
from gpu_worker.devices.cuda.driver import MemoryFull, Work
from gpu_worker.devices.cuda.host import HostDriver
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import read_package
from mesh.codes import ActionCode
from mesh.errors import PackageError
from tests.gpu_worker.devices.cuda.cuda_builders import Served, served
from tests.gpu_worker.devices.cuda.cuda_results import CLOSE, drivers
from tests.gpu_worker.devices.cuda.cuda_sizes import keep, kinds
from tests.gpu_worker.devices.open_models import LONGEST, Blur, Found, Made, Peaks, answers, encoder, job_of, texts
from tests.loops import on_loop

EDGES = (2, 6, 11, 16, LONGEST)  # with which the encoder was measured before


@pytest.fixture(scope="module")
def encoder_made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = encoder(tmp_path_factory.mktemp("repository"), batch_max=4)
    for kind in kinds():
        keep(made[0], [(extent,) for extent in EDGES], kind=kind)
    return made


async def asked(made: Served, model: Made, seed: int, most: int = LONGEST) -> Done:
    """Some texts of unequal lengths in one batch; what each gets is what it gets alone. Returns the outcome."""
    package, module = model
    rng = Random(seed)
    requests = texts([rng.randint(1, most) for _ in range(3)])
    longest = max(ids.shape[1] for ids, _ in requests)
    _, extents = FixedBatches(made.device.traits(package.ref).cells).holding(3, (longest,)) or (0, ())
    job = job_of(package.ref, (0,), [((ids.shape[1],), (ids, mask)) for ids, mask in requests], extents=extents)
    done = await made.through(job)
    assert done.code == ActionCode.OK, done
    for inputs, got in zip(requests, answers(job, package.spec.outputs), strict=True):
        for one, other in zip(got, module(*inputs), strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other.detach(), **CLOSE)
    made.device.release(job)
    return done


@drivers
@on_loop
async def test_texts_of_any_length_get_in_one_batch_what_each_gets_alone(driver: str, encoder_made: Made) -> None:
    async with served(driver) as made:
        made.device.prepare(encoder_made[0])
        await made.load("encoder:1", (0,))
        for seed in range(12):
            await asked(made, encoder_made, seed)


@drivers
@on_loop
async def test_there_is_a_graph_for_each_batch_and_measuring_runs_execute_it(driver: str, encoder_made: Made) -> None:
    async with served(driver) as made:
        made.device.prepare(encoder_made[0])
        await made.load("encoder:1", (0,))
        cells = tuple(((extent,), (1, 2, 4)) for extent in EDGES)
        assert made.device.traits("encoder:1").cells == cells, "what may be measured"
        assert made.device.figures.graphs == 3 * len(cells)
        for rows, extents in FixedBatches(cells).all:
            job = job_of("encoder:1", (0,), [], extents=extents, batch=rows)
            assert (await made.through(job)).code == ActionCode.OK
            made.device.release(job)


@on_loop
async def test_a_batch_of_extents_between_edges_is_padded_to_the_next(encoder_made: Made) -> None:
    package, module = encoder_made
    async with served("host") as made:
        made.device.prepare(package)
        await made.load("encoder:1", (0,))
        (inputs,) = texts([LONGEST - 1])
        job = job_of("encoder:1", (0,), [((LONGEST - 1,), inputs)], extents=(LONGEST - 1,))
        assert (await made.through(job)).code == ActionCode.OK
        ((text, words),) = answers(job, package.spec.outputs)
        assert words.shape == (1, LONGEST - 1, 16)
        torch.testing.assert_close(text, module(*inputs)[0].detach(), **CLOSE)
        made.device.release(job)


class NearlyFull(HostDriver):
    """A device on which some captures find no memory."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self._left, self.captures = kept, 0

    def capture(self, work: Work) -> Work:
        """Returns the work, of all but the first captures. Raises: MemoryFull."""
        self.captures += 1
        if self.captures <= self._left:
            raise MemoryFull("tried to allocate 1 GiB; 3 MiB are free")
        return super().capture(work)


@on_loop
async def test_a_batch_that_does_not_fit_is_left_out_with_all_that_cover_it(encoder_made: Made) -> None:
    package, _ = encoder_made
    async with served(NearlyFull(1)) as made:
        made.device.prepare(package)
        await made.load("encoder:1", (0,))
        assert made.device.figures.graphs == 3 * len(EDGES) - 1
        job = job_of("encoder:1", (0,), [], extents=(LONGEST,), batch=4)
        assert (await made.through(job)).code == ActionCode.NO_MEMORY
        for rows, length in ((2, LONGEST), (4, 16)):
            job = job_of("encoder:1", (0,), [], extents=(length,), batch=rows)
            assert (await made.through(job)).code == ActionCode.OK
            made.device.release(job)
        await asked(made, encoder_made, 5, 16)


@on_loop
async def test_a_version_of_which_not_one_row_fits_is_refused(encoder_made: Made) -> None:
    async with served(NearlyFull(1000)) as made:
        with pytest.raises(PackageError, match="full"):
            made.device.prepare(encoder_made[0])


@on_loop
async def test_a_batch_that_a_slot_does_not_hold_is_not_captured(
    encoder_made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "SLOT_BYTES_MAX", 6000)
    async with served("host") as made:
        made.device.prepare(encoder_made[0])
        await made.load("encoder:1", (0,))
        for rows, code in ((4, ActionCode.NO_MEMORY), (1, ActionCode.OK)):
            job = job_of("encoder:1", (0,), [], extents=(LONGEST,), batch=rows)
            assert (await made.through(job)).code == code
            made.device.release(job)


@on_loop
async def test_what_has_no_fixed_shape_is_refused_with_where_it_can_be_served(tmp_path: Path) -> None:
    write_package(
        tmp_path, "blur", "1", Blur().eval(), inputs={"image": ("float32", (2, "h", "w"))}, outputs=["y"],
        dims={"h": (4, 16), "w": (4, 16)}, batch_max=2, exact=True,
    )  # fmt: skip
    write_package(
        tmp_path, "found", "1", Found(), inputs={"x": ("float32", (6,))}, outputs=["values", "owner"],
        rows={"values": "owner"}, batch_max=2,
    )  # fmt: skip
    async with served("host") as made:
        for ref in ("blur:1", "found:1"):
            with pytest.raises(PackageError, match="cpu"):
                made.device.prepare(read_package(tmp_path, ref, ()))


@drivers
@on_loop
async def test_rows_that_count_what_was_found_are_served(driver: str, tmp_path: Path) -> None:
    write_package(
        tmp_path, "peaks", "1", Peaks(), inputs={"x": ("float32", (6,))}, outputs=["peaks", "count"],
        rows={"peaks": "count"}, batch_max=4,
    )  # fmt: skip
    package = read_package(tmp_path, "peaks:1", ())
    async with served(driver) as made:
        made.device.prepare(package)
        await made.load("peaks:1", (0,))
        rows = [torch.tensor([[1.0, -1, -1, -1, -1, -1]]), torch.tensor([[1.0, 2, 3, 4, -1, -1]])]
        job = job_of("peaks:1", (0,), [((), (row,)) for row in rows], extents=())
        assert (await made.through(job)).code == ActionCode.OK
        (one, _), (other, count) = answers(job, package.spec.outputs)
        assert one.tolist() == [[1.0]]
        assert other.tolist() == [[4.0, 3.0, 2.0]]
        assert count.tolist() == [3]
        made.device.release(job)
