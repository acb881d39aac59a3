"""Models with open dimensions on the CPU: a request in a batch of unequal extents gets what it gets alone."""

from pathlib import Path
from random import Random

import pytest
import torch

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import read_package
from mesh.codes import ActionCode
from tests.gpu_worker.devices.cpu_builders import at_once, put
from tests.gpu_worker.devices.open_models import (
    LONGEST,
    Blur,
    Found,
    Made,
    Peaks,
    Tensors,
    answers,
    encoder,
    job_of,
    texts,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def encoder_made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return encoder(tmp_path_factory.mktemp("repository"))


def through(device: CpuDevice, job: Job) -> Done:
    """Runs all phases. Returns the outcome of the last one, or of the first that failed; the job is released."""
    for phase in (Phase.INPUT, Phase.EXEC, Phase.OUTPUT):
        done = at_once(device, phase, job)
        if done.code != ActionCode.OK:
            break
    device.release(job)
    return done


@pytest.mark.parametrize("seed", range(4))
def test_texts_of_any_length_get_in_one_batch_what_each_gets_alone(
    device: CpuDevice, encoder_made: Made, seed: int
) -> None:
    package, module = encoder_made
    device.prepare(package)
    put(device, "encoder:1", (0,))
    torch.manual_seed(seed)
    rng = Random(seed)
    requests = [request for _ in range(4) for request in texts([rng.randint(1, LONGEST)], rng.randint(1, 2))]
    longest = max(ids.shape[1] for ids, _ in requests)
    extents = (rng.randint(longest, LONGEST),)  # EXEC may compute more than any of them needs
    job = job_of("encoder:1", (0,), [((ids.shape[1],), (ids, mask)) for ids, mask in requests], extents=extents)
    assert through(device, job).code == ActionCode.OK
    for inputs, got in zip(requests, answers(job, package.spec.outputs), strict=True):
        with torch.no_grad():
            alone = module(*inputs)
        for one, other in zip(got, alone, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, **CLOSE)


def test_batches_of_other_extents_follow_each_other_in_the_same_buffers(device: CpuDevice, encoder_made: Made) -> None:
    package, module = encoder_made
    device.prepare(package)
    put(device, "encoder:1", (0,))
    for length in (LONGEST, 1, 7, LONGEST, 2):
        (inputs,) = texts([length])
        job = job_of("encoder:1", (0,), [((length,), inputs)], extents=(length,))
        assert through(device, job).code == ActionCode.OK
        ((text, _),) = answers(job, package.spec.outputs)
        with torch.no_grad():
            torch.testing.assert_close(text, module(*inputs)[0], **CLOSE)


def test_a_measuring_run_computes_as_many_rows_of_these_extents(device: CpuDevice, encoder_made: Made) -> None:
    device.prepare(encoder_made[0])
    put(device, "encoder:1", (0,))
    for batch, length in ((1, 1), (8, LONGEST), (3, 5)):
        job = job_of("encoder:1", (0,), [], extents=(length,), batch=batch)
        assert through(device, job).code == ActionCode.OK
        assert job.output_shapes == [(batch, 16), (batch, length, 16)]
        assert job.cut is not None
        assert job.cut.portions == ()


def test_bytes_of_other_extents_than_the_part_says_are_refused(device: CpuDevice, encoder_made: Made) -> None:
    device.prepare(encoder_made[0])
    (inputs,) = texts([5])
    done = through(device, job_of("encoder:1", (0,), [((6,), inputs)], extents=(6,)))
    assert done.code == ActionCode.BAD_INPUT
    assert "ids" in done.message
    assert through(device, job_of("encoder:1", (0,), [((5,), inputs)], extents=(4,))).code == ActionCode.BAD_INPUT


# -- detection --------------------------------------------------------------------------------------------------------


def written(folder: Path, name: str, module: torch.nn.Module, outputs: list[str], rows: dict[str, str]) -> Made:
    write_package(folder, name, "1", module, inputs={"x": ("float32", (6,))}, outputs=outputs, rows=rows, batch_max=8)
    return read_package(folder, f"{name}:1", ()), module


def rows_of(counts: list[int]) -> list[Tensors]:
    """Rows of which so many values are above zero."""
    made = []
    for count in counts:
        row = -torch.rand(6) - 0.1
        row[torch.randperm(6)[:count]] = torch.rand(count) + 0.1
        made.append((row.unsqueeze(0),))
    return made


def test_what_was_found_goes_to_whom_it_was_found_for(device: CpuDevice, tmp_path: Path) -> None:
    package, module = written(tmp_path, "found", Found(), ["values", "owner"], {"values": "owner"})
    device.prepare(package)
    put(device, "found:1", (0,))
    requests = rows_of([2, 0, 6, 1])
    job = job_of("found:1", (0,), [((), inputs) for inputs in requests], extents=())
    assert through(device, job).code == ActionCode.OK
    for inputs, (values, owner) in zip(requests, answers(job, package.spec.outputs), strict=True):
        alone, of = module(*inputs)
        torch.testing.assert_close(values, alone)
        assert torch.equal(owner, of)


def test_each_gets_as_many_as_were_counted_for_it(device: CpuDevice, tmp_path: Path) -> None:
    package, module = written(tmp_path, "peaks", Peaks(), ["peaks", "count"], {"peaks": "count"})
    device.prepare(package)
    put(device, "peaks:1", (0,))
    requests = [(torch.cat([a[0], b[0]]),) for a, b in zip(rows_of([2, 0]), rows_of([1, 5]), strict=True)]
    job = job_of("peaks:1", (0,), [((), inputs) for inputs in requests], extents=())
    assert through(device, job).code == ActionCode.OK
    for inputs, (peaks, count) in zip(requests, answers(job, package.spec.outputs), strict=True):
        values, counted = module(*inputs)
        assert torch.equal(count, counted)
        assert peaks.shape == (2, int(counted.max()))
        for row, n in enumerate(counted.tolist()):
            torch.testing.assert_close(peaks[row, :n], values[row, :n])
            assert not peaks[row, n:].any()


# -- exact models -----------------------------------------------------------------------------------------------------


def test_an_exact_model_s_outputs_have_extents_of_their_own(device: CpuDevice, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Blur().eval()
    write_package(
        tmp_path, "blur", "1", module, inputs={"image": ("float32", (2, "h", "w"))}, outputs=["y"],
        dims={"h": (4, 16), "w": (4, 16)}, batch_max=4, exact=True,
    )  # fmt: skip
    package = read_package(tmp_path, "blur:1", ())
    device.prepare(package)
    put(device, "blur:1", (0,))
    for h, w in ((4, 4), (16, 5), (7, 16)):
        images = torch.randn(3, 2, h, w)
        requests: list[tuple[tuple[int, ...], Tensors]] = [((h, w), (images[:1],)), ((h, w), (images[1:],))]
        job = job_of("blur:1", (0,), requests, extents=(h, w))
        assert through(device, job).code == ActionCode.OK
        with torch.no_grad():
            wanted = module(images)
        got = torch.cat([of for (of,) in answers(job, package.spec.outputs)])
        torch.testing.assert_close(got, wanted, **CLOSE)
