"""A repository of small real packages, exported once per session."""

import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package, read_package
from mesh import wire
from mesh.process.settings import Settings

ROW = {"x": ("float32", (4,))}


class TwoInputs(nn.Module):
    """Takes floats and an index below seven; has a buffer of integers and an output of each dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.table = nn.Embedding(7, 3)
        self.register_buffer("factor", torch.tensor([2, 3]))

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, 4], [batch] -> [batch, 3], [batch]."""
        return self.linear(x) + self.table(i), i * self.factor[0]


class Echo(nn.Module):
    """Returns its input unchanged, and twice the input."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, 4] -> [batch, 4], [batch, 4]."""
        return x, x * 2


class Constant(nn.Module):
    """Returns a row of its weights for each row of input, as a view of them."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 3]."""
        return self.row.expand(x.shape[0], 3)


@dataclass(frozen=True)
class Repository:
    """Packages on disk, and the modules that they were made from."""

    folder: Path
    modules: dict[str, nn.Module]  # {ref: module}

    def package(self, ref: str) -> Package:
        """Returns the package, read again."""
        return read_package(self.folder, ref, ())

    def outputs(self, ref: str, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Returns what the module itself gives."""
        with torch.no_grad():
            outputs = self.modules[ref](*inputs)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch computes on the calling thread.

    Its threads would spin while they wait for each other: slow on busy cores.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_at_a_time_on_a_gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests on a GPU run one at a time, however many pytest workers there are: each takes all free memory."""
    if request.node.get_closest_marker("cuda") is None:
        yield
        return
    with (tmp_path_factory.getbasetemp().parent / "gpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """linear:1 and linear:2 share an architecture; other:1 has another; tall:1 takes three pages of 1 MiB."""
    torch.manual_seed(11)
    made = Repository(tmp_path_factory.mktemp("repository"), {})
    for ref, module, inputs, outputs in (
        ("linear:1", nn.Linear(4, 3), ROW, ["y"]),
        ("linear:2", nn.Linear(4, 3), ROW, ["y"]),
        ("twin:1", nn.Linear(4, 3), ROW, ["y"]),
        ("other:1", nn.Linear(4, 3, bias=False), ROW, ["y"]),
        ("two:1", TwoInputs(), ROW | {"i": ("int64", ())}, ["y", "z"]),
        ("echo:1", Echo(), ROW, ["same", "twice"]),
        ("constant:1", Constant(), ROW, ["y"]),
        ("tall:1", nn.Linear(4, 140_000), ROW, ["y"]),
        ("tall:2", nn.Linear(4, 140_000), ROW, ["y"]),
        (
            "folded:1",
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval(),
            {"x": ("float32", (1, 8, 8))},
            ["y"],
        ),
    ):
        name, version = wire.split_ref(ref)
        write_package(made.folder, name, version, module, inputs=inputs, outputs=outputs, batch_max=8)
        made.modules[ref] = module
    return made


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """Restores the settings of torch that a device changes for the whole process."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    yield
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)


@pytest.fixture
def settings(tmp_path: Path, torch_as_it_was: None) -> Settings:
    """Settings of an arena of eight pages of 1 MiB."""
    return Settings(data_dir=tmp_path / "data", device="cpu", page_mb=1, arena_mb=8, window_mb=4)


@pytest.fixture
def device(settings: Settings) -> Iterator[CpuDevice]:
    """A device without a loop: the test sees everything that it does at once."""
    made = CpuDevice(settings)
    yield made
    made.close()
