"""The CPU device: weights in pages, and results equal to the module's own."""

import numpy as np
import pytest
import torch

from gpu_worker.core.jobs import Phase
from gpu_worker.devices.cpu import SLOTS, CpuDevice
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import FLOAT, at_once, infer_job, linear, outputs_of, put, run


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
