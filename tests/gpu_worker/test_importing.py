"""What is told of a module that is refused, and what is not told of one that is written."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from broker.errors import PackageError
from gpu_worker.export import write_package
from gpu_worker.trials import Run, Trial, check_rows, difference
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
    """Places in the batch are its rows' own affair."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[0])
        best = x.flatten()[x.argmax(1) + places * 4]
        return best - best.mean()


class AddsPlaces(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[0])
        return x + places.view(-1, 1)


class SecondOfTheFirst(nn.Module):
    """The first row is as it is alone."""

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


def draw(rows: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.rand(rows, 4, generator=generator)]


def chaotic(x: torch.Tensor) -> torch.Tensor:
    """A last bit becomes a thousand of them."""
    for _ in range(10):
        x = 3.9 * x * (1 - x)
    return x


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Another last bit where there are several rows, as sums in another order make it."""
    return x * (1 + torch.finfo(x.dtype).eps) if len(x) > 1 else x


CLOSE = 1e-6


def tried(run: Run) -> None:
    trial = Trial(draw, 8, draw(1, torch.Generator().manual_seed(1)))
    check_rows("m:1", ["y"], run, trial, trial.run(run), CLOSE)


def test_what_rounding_makes_of_a_row_is_no_other_row() -> None:
    x = torch.rand(3, 4)
    assert difference(chaotic(x), chaotic(rounded(x))) > 10 * CLOSE
    tried(lambda inputs: [chaotic(rounded(inputs[0]))])


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_what_others_make_of_a_row_is_another_row_however_much_rounding_makes(share: float) -> None:
    with pytest.raises(PackageError) as caught:
        tried(lambda inputs: [chaotic(inputs[0]) + share * inputs[0].mean()])
    assert caught.value.code == "rows_mixed"


def test_integers_that_rounding_tips_are_no_other_row() -> None:
    tried(lambda inputs: [(chaotic(rounded(inputs[0])) * 1e5).long()])
