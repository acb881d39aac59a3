"""Modules with open dimensions are served as they are: each row as alone, whatever extents its batch has."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gpu_worker.devices.execution.building import declared_of
from gpu_worker.devices.execution.executables import check_by_running, load_forward, read_image, views
from gpu_worker.packages.comparing import TOLERANCE, difference
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package, read_package
from mesh.errors import PackageError
from tests.zoo.reading import check_read_as_by_torch
from tests.zoo.sizes import CASES, SizedCase

BATCH_MAX, ROUNDS, SEED = 8, 12, 5
Rows = list[torch.Tensor]


@pytest.mark.parametrize("case", [case for case in CASES if not case.code], ids=lambda case: case.name)
def test_every_row_gives_what_it_gives_alone_in_batches_of_any_extents(case: SizedCase, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = case.make().eval()
    options = {"batch_max": BATCH_MAX, **case.options}
    write_package(tmp_path, "m", "1", module, inputs=case.inputs, dims=case.dims, **options)
    package = read_package(tmp_path, "m:1", ())
    spec = package.spec
    assert {dim.name: (dim.least, dim.most) for dim in spec.dims} == dict(case.dims)
    assert [named(t.shape, t.dims) for t in spec.inputs] == [row for _, row in case.inputs.values()]
    assert {t.name: (t.dtype, named(t.shape, t.dims)) for t in spec.outputs} == dict(case.outputs)
    check_read_as_by_torch(package)
    check_declared(package)
    forward, weights = load_forward(package), stored(package)
    check_by_running(package, forward, weights)
    generator = np.random.default_rng(SEED)
    for extents, batch, filled_up in batches(case, generator):
        rows = [drawn(case, one, generator) for one in extents]
        inputs = [torch.cat(each) for each in zip(*(filled(case, row, filled_up) for row in rows), strict=True)]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about nested tensors, in which torch keeps padded sequences
            found = forward(*weights, *inputs)
            for i, (row, own) in enumerate(zip(rows, extents, strict=True)):
                expected = outputs_of(module(*(tensor.clone() for tensor in row)))
                for output, whole, tensor in zip(expected, found, spec.outputs, strict=True):
                    cut = whole[i : i + 1][(slice(None), *map(slice, output.shape[1:]))]
                    off = difference(output, cut)
                    assert off <= TOLERANCE[torch.float32], f"{tensor.name} of {own} in {batch} of {filled_up}: {off}"


@pytest.mark.parametrize("case", [case for case in CASES if case.code], ids=lambda case: case.name)
def test_what_would_not_get_its_own_answer_is_refused_and_told_why(case: SizedCase, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"batch_max": BATCH_MAX, **case.options}
    with pytest.raises(PackageError) as caught:
        write_package(tmp_path, "m", "1", case.make(), inputs=case.inputs, dims=case.dims, **options)
    assert caught.value.code == case.code, str(caught.value)
    assert case.words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def named(shape: Sequence[int], dims: Sequence[str]) -> tuple[int | str, ...]:
    """Returns the shape of a row, as people write it."""
    return tuple(dim or extent for extent, dim in zip(shape[1:], dims or ("",) * len(shape[1:]), strict=True))


def check_declared(package: Package) -> None:
    """The graph itself leaves open what the spec says is open, and nothing else."""
    forward: Any = load_forward(package)
    places = forward.__self__.graph.find_nodes(op="placeholder")[-len(package.spec.inputs) :]
    for node, tensor in zip(places, package.spec.inputs, strict=True):
        found = declared_of(node)
        assert found is not None
        assert [extent is None for extent in found.shape] == [extent == -1 for extent in tensor.shape]


def stored(package: Package) -> list[torch.Tensor]:
    image = np.zeros(package.image_bytes, np.uint8)
    read_image(package, image)
    return list(views(image, package))


def batches(case: SizedCase, generator: np.random.Generator) -> list[tuple[list[dict[str, int]], int, dict[str, int]]]:
    """Returns (extents of each row, rows, extents of the batch): at the ends of the ranges, and in between."""
    exact, made = case.options.get("exact", False), []
    for at in range(ROUNDS):
        count = 1 + at % BATCH_MAX
        ends = [int((at + i) % 3 == 0) if at < 4 else None for i in range(count)]
        extents = [{n: drawn_extent(span, end, generator) for n, span in case.dims.items()} for end in ends]
        if exact:
            extents = [extents[0]] * count
        joint = {name: max(one[name] for one in extents) for name in case.dims}
        more = {name: min(case.dims[name][1], joint[name] + (0 if exact else at % 3)) for name in joint}
        made.append((extents, count, more))
    return made


def drawn_extent(span: tuple[int, int], end: int | None, generator: np.random.Generator) -> int:
    return span[end] if end is not None else int(generator.integers(span[0], span[1] + 1))


def drawn(case: SizedCase, extents: Mapping[str, int], generator: np.random.Generator) -> Rows:
    """Returns one row `[1, ...]` of each input, of these extents. A mask is True, or ends before the row does."""
    found = []
    for name, (dtype, row) in case.inputs.items():
        shape = (1, *(extents[extent] if isinstance(extent, str) else extent for extent in row))
        if name == case.lengths:
            array: Any = np.full(shape, min(extents.values()))
        elif dtype == "bool":
            array = np.ones(shape, bool)
            if generator.random() < 0.5 and math.prod(shape) > 1:
                array.reshape(-1)[1 + int(generator.integers(array.size - 1)) :] = False
        elif dtype == "int64":
            array = generator.integers(*case.span[name], shape)
        else:
            array = generator.normal(size=shape)
        found.append(torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, dtype)))
    return found


def filled(case: SizedCase, row: Rows, extents: Mapping[str, int]) -> Rows:
    """Returns the row filled up to these extents."""
    found = []
    for (name, (_, shape)), tensor in zip(case.inputs.items(), row, strict=True):
        goal = (1, *(extents[extent] if isinstance(extent, str) else extent for extent in shape))
        whole = torch.zeros(goal, dtype=tensor.dtype) + case.options.get("pad", {}).get(name, 0)
        whole = whole.to(tensor.dtype)
        whole[tuple(map(slice, tensor.shape))] = tensor
        found.append(whole)
    return found


def outputs_of(value: Any) -> list[torch.Tensor]:
    return list(value.values()) if isinstance(value, dict) else [value]


def test_the_module_itself_is_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.LSTM(4, 4, batch_first=True)
    write_package(
        tmp_path, "m", "1", nn.Sequential(nn.Linear(4, 4)), inputs={"x": ("float32", ("seq", 4))}, dims={"seq": (1, 9)}
    )
    steps, _ = module(torch.ones(2, 3, 4))
    assert steps.shape == (2, 3, 4)
    assert bool(steps.abs().sum() > 0), "layers compute again once the export has ended"
