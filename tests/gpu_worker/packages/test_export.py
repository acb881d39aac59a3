"""Packages as write_package writes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from gpu_worker.devices.execution.executables import load_forward, read_image, views
from gpu_worker.packages.export import write_package
from mesh.codes import PackageCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import ROW, Repository


class Branches(nn.Module):
    """Cannot be exported: its computation depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x if x.sum() > 0 else -x


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return self.second(self.first(x))


class Normalised(nn.Module):
    """Makes tensors of constants while it runs, as much published code does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 3]."""
        scaled: torch.Tensor = self.linear((x - torch.tensor([1.0, 2.0, 3.0, 4.0])) / torch.tensor(2.0))
        return scaled + torch.arange(3)


def test_tensors_made_of_constants_are_stored_and_taken_like_weights(tmp_path: Path) -> None:
    module = Normalised()
    package = write_package(tmp_path, "normalised", "1", module, inputs=ROW, outputs=["y"])
    assert len(package.layout) == 4
    image = np.zeros(package.image_bytes, np.uint8)
    read_image(package, image)
    x = torch.randn(3, 4)
    with torch.no_grad():
        (y,) = load_forward(package)(*views(image, package), x)
        assert torch.allclose(y, module(x))


def test_the_graph_has_no_weights_in_it(repository: Repository) -> None:
    version = repository.folder / "tall" / "1"
    assert (version / "weights.safetensors").stat().st_size > 2 << 20
    assert (version / "graph.pt2").stat().st_size < 100 << 10


def test_the_weights_are_those_of_the_module(repository: Repository) -> None:
    stored = load_file(repository.folder / "linear" / "2" / "weights.safetensors")
    module = repository.modules["linear:2"]
    assert stored.keys() == module.state_dict().keys()
    assert all((stored[name] == tensor.numpy()).all() for name, tensor in module.state_dict().items())


def test_the_module_itself_is_not_changed(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    write_package(tmp_path, "m", "1", module, inputs={"x": ("float32", (1, 4, 4))}, outputs=["y"])
    assert module.training
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_module_with_tied_weights_is_written_and_read(tmp_path: Path) -> None:
    package = write_package(tmp_path, "m", "1", Tied(), inputs=ROW, outputs=["y"])
    assert [weight.name for weight in package.layout] == ["first.weight", "second.weight"]


def test_a_module_that_takes_one_row_at_most_is_written_and_read(tmp_path: Path) -> None:
    package = write_package(tmp_path, "m", "1", nn.Linear(4, 3), inputs=ROW, outputs=["y"], batch_max=1)
    assert package.spec.batch_max == 1


def test_text_in_the_manifest_is_kept_as_it_is(tmp_path: Path) -> None:
    labels = ['a "quoted" one', "back\\slash", "tab\tand\nline", "häßlich", "snow ☃ man 🙂"]
    package = write_package(
        tmp_path, "m", "1", nn.Linear(4, 3), inputs=ROW, outputs=["y"], labels=labels, description='"', cache=False,
        slo_ms=0.5,
    )  # fmt: skip
    assert package.spec.labels == tuple(labels)
    assert (package.spec.cacheable, package.spec.slo_ms) == (False, 0.5)


@pytest.mark.parametrize(
    ("module", "outputs", "code"),
    [(Branches(), ["y"], PackageCode.DATA_DEPENDENT), (nn.Linear(4, 3), ["y", "z"], PackageCode.BAD_NAMES)],
)
def test_a_module_that_is_refused_leaves_nothing_behind(
    tmp_path: Path, module: nn.Module, outputs: list[str], code: str
) -> None:
    with pytest.raises(PackageError) as caught:
        write_package(tmp_path, "m", "1", module, inputs=ROW, outputs=outputs)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_no_half_written_files_are_left_behind(repository: Repository) -> None:
    names = {path.name for path in repository.folder.rglob("*") if path.is_file()}
    assert names == {"model.toml", "graph.pt2", "weights.safetensors", "example.safetensors"}
