"""Edges of open dimensions on a device with graphs: by what batches cost there, and the same ones after a restart."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from gpu_worker.core.figures import Cell
from gpu_worker.core.fixed import EDGES
from gpu_worker.devices.cuda.host import HostDriver
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package, read_package
from gpu_worker.preparing import Preparer
from mesh.codes import ActionCode
from mesh.errors import PackageError
from tests.gpu_worker.devices.cuda.cuda_builders import served
from tests.gpu_worker.devices.cuda.cuda_results import CLOSE, drivers
from tests.gpu_worker.devices.cuda.cuda_sizes import Computing, keep, measure
from tests.gpu_worker.devices.open_models import LONGEST, answers, encoder, job_of
from tests.loops import on_loop

REF = "encoder:1"
FLAT = (0.001, 0.0)  # what a batch takes depends on nothing
STEEP = (1e-6, 1e-9)  # ... on what it computes


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    encoder(folder, batch_max=4)
    return folder


@pytest.fixture
def package(written: Path, tmp_path: Path) -> Package:
    """The encoder, never measured."""
    shutil.copytree(written, tmp_path / "r")
    return read_package(tmp_path / "r", REF, ())


async def cells_on(driver: HostDriver, package: Package) -> tuple[Cell, ...]:
    """The batches that a new device on this driver can execute of the version."""
    async with served(driver) as made:
        made.device.prepare(package)
        return made.device.traits(package.ref).cells


@on_loop
async def test_where_length_costs_nothing_all_is_padded_to_the_longest(package: Package) -> None:
    assert await cells_on(Computing(*FLAT), package) == (Cell((LONGEST,), (1, 2, 4)),)


@on_loop
async def test_where_length_costs_time_there_are_as_many_edges_as_are_worth_it(package: Package) -> None:
    cells = await cells_on(Computing(*STEEP), package)
    edges = [cell.extents[0] for cell in cells]
    assert len(edges) == EDGES[1]
    assert edges == sorted(edges)
    assert edges[-1] == LONGEST
    assert max(later - edge for edge, later in itertools.pairwise(edges)) <= 6, "long texts cost the most"


@on_loop
async def test_a_batch_that_takes_far_too_long_gets_no_graph(package: Package) -> None:
    slow = await cells_on(Computing(0.1, 1e-5), package)
    assert slow[0].batches == (1, 2, 4)
    assert slow[-1] == Cell((LONGEST,), (1, 2)), "more take longer than 1.5 times what is of use"
    slower = await cells_on(Computing(0.1, 1e-4), package)
    assert slower[-1] == Cell((LONGEST,), (1,)), "one row is always of use"


@on_loop
async def test_the_survey_runs_short_batches_more_often_and_few_at_all(package: Package) -> None:
    device = Computing(0.01, 1e-6)
    await cells_on(device, package)
    assert {len(runs) for runs in device.runs} == {2, 3, 4}
    assert all(sum(runs[:-1]) < 0.1 for runs in device.runs if len(runs) > 2)
    assert len(device.runs) <= 20


@drivers
@on_loop
async def test_what_is_timed_was_run_on_the_device(driver: str) -> None:
    async with served(driver) as made:
        timed, number = made.driver.timer(), made.driver.allocate(1)
        for _ in range(2):
            found = timed(lambda: number.add_(1), lambda seconds: len(seconds) == 3)
            assert len(found) == 3
            assert all(0.0 < seconds < 60.0 for seconds in found)
        assert number.item() == 6


@on_loop
async def test_a_version_has_the_same_graphs_after_a_restart_and_its_profile_holds(package: Package) -> None:
    cells = await cells_on(Computing(*STEEP), package)
    measure(package, cells)
    again = Computing(*FLAT)
    async with served(again) as made:
        prepared = Preparer(package.folder.parents[1], (), made.device).prepare(REF, "")
        assert made.device.traits(REF).cells == cells
        assert not again.runs
        assert prepared.profile is not None
        assert [times.extents for times in prepared.profile.sizes] == [cell.extents for cell in cells]


@on_loop
async def test_only_what_was_measured_is_captured_again(package: Package) -> None:
    keep(package, [(5,), (LONGEST,)], [(1, 2, 4), (1,)])
    assert await cells_on(Computing(*STEEP), package) == (Cell((5,), (1, 2, 4)), Cell((LONGEST,), (1,)))


@pytest.mark.parametrize(
    ("places", "rows"),
    [(range(LONGEST - EDGES[1], LONGEST + 1), (1, 2, 4)), ((5, LONGEST), (1, 2, 3)), ((5, LONGEST - 1), (1, 2, 4))],
    ids=["too many edges", "other rows", "not all extents"],
)
@on_loop
async def test_a_profile_that_no_such_device_measured_is_not_followed(
    package: Package, places: tuple[int, ...], rows: tuple[int, ...]
) -> None:
    keep(package, [(place,) for place in places], [rows] * len(places))
    assert await cells_on(Computing(*FLAT), package) == (Cell((LONGEST,), (1, 2, 4)),)


@on_loop
async def test_edges_are_found_though_large_batches_do_not_fit(package: Package) -> None:
    whole, narrow = Computing(*STEEP), Computing(*STEEP, flops_max=150_000)
    cells = await cells_on(narrow, package)
    await cells_on(whole, package)
    assert 0 < len(narrow.runs) < len(whole.runs)
    assert len(cells) == EDGES[1]


@on_loop
async def test_a_version_of_which_one_row_of_the_greatest_extents_does_not_fit_is_refused(package: Package) -> None:
    async with served(Computing(*STEEP, flops_max=10_000)) as made:
        with pytest.raises(PackageError, match="full"):
            made.device.prepare(package)


@drivers
@on_loop
async def test_images_get_what_each_gets_alone_whatever_edges_were_found(driver: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    write_package(
        tmp_path, "points", "1", module, inputs={"image": ("float32", (2, "h", "w"))}, outputs=["y"],
        dims={"h": (4, 40), "w": (4, 32)}, batch_max=2,
    )  # fmt: skip
    package = read_package(tmp_path, "points:1", ())
    async with served(driver) as made:
        made.device.prepare(package)
        await made.load("points:1", (0,))
        cells = made.device.traits("points:1").cells
        assert 1 <= len(cells) <= EDGES[2] ** 2
        assert cells[-1].extents == (40, 32)
        for sizes in ([(4, 4)], [(40, 5), (7, 32)], [(13, 9), (13, 9)]):
            images = [torch.randn(1, 2, *size) for size in sizes]
            joint = (max(h for h, _ in sizes), max(w for _, w in sizes))
            job = job_of("points:1", (0,), [(size, (image,)) for size, image in zip(sizes, images, strict=True)],
                         extents=joint)  # fmt: skip
            assert (await made.through(job)).code == ActionCode.OK
            for image, (got,) in zip(images, answers(job, package.spec.outputs), strict=True):
                torch.testing.assert_close(got, module(image).detach(), **CLOSE)
            made.device.release(job)
