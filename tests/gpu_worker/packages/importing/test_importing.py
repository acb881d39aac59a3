"""What an importer reports of a refused module, and of one that is written."""

import weakref
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from gpu_worker.packages.export import write_package
from mesh.codes import PackageCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import ROW

HERE = Path(__file__).name


class ByTheLargest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.max()
        return x / largest


class OneByOne(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [row * 2 for row in x]
        return torch.stack(rows)


class Drops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x * 2
        return nn.functional.dropout(kept, training=True)


class Decides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = x * 2
        return doubled if doubled.sum() > 0 else x


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = x * 2
        return doubled @ doubled[0, 0, 0]


class OfTheBest(nn.Module):
    """Positions in the batch do not affect the rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[0])
        best = x.flatten()[x.argmax(1) + places * 4]
        return best - best.mean()


class AddsPlaces(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[0])
        return x + places.view(-1, 1)


class SecondOfTheFirst(nn.Module):
    """The first row is as it is alone; the second depends on it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = x * 2
        mixed = torch.where(torch.arange(x.shape[0]).view(-1, 1) == 0, doubled, doubled + x[:1])
        return mixed * 2


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (OfTheBest(), 3),
        (AddsPlaces(), 2),
        (SecondOfTheFirst(), 2),
        (ByTheLargest(), 2),
        (OneByOne(), 1),
        (Drops(), 2),
        (Decides(), 2),
        (Fails(), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_line_that_is_at_fault_is_named(tmp_path: Path, module: nn.Module, line: int) -> None:
    with pytest.raises(PackageError) as caught:
        write_package(tmp_path, "m", "1", module, inputs=ROW)
    first = type(module).forward.__code__.co_firstlineno
    assert f"{HERE}:{first + line}" in caught.value.faults[0]


def test_nothing_of_the_author_s_source_is_in_the_package(tmp_path: Path) -> None:
    package = write_package(tmp_path, "m", "1", nn.Sequential(nn.Linear(4, 3), nn.ReLU()), inputs=ROW)
    assert package.graph is not None
    with zipfile.ZipFile(package.graph) as archive:
        written = b"".join(archive.read(name) for name in archive.namelist())
    for told in (HERE, str(Path(torch.__file__).parent), "Sequential", "stack_trace"):
        assert told.encode() not in written


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = weakref.proxy(parent)


def test_a_module_that_holds_itself_is_told_of_it(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    module.append(Child(module))
    with pytest.raises(PackageError) as caught:
        write_package(tmp_path, "m", "1", module, inputs=ROW)
    assert caught.value.code == PackageCode.BAD_MODULE
