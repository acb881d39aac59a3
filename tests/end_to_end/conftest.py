"""What several files of end-to-end tests share: models that are trained once, and a mesh whose state is nobody's."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gearmesh.operations.meshes import Mesh
from gpu_worker.packages.export import write_package
from scripts.build_models import PIXELS, linear, mlp, train
from scripts.rigs.containers import kill_everybody
from scripts.rigs.meshes import LIMIT_S, LONG_MS, background_mesh, emulated_device, emulated_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch computes on the thread that asks it: threads wait for each other awake, on busy cores for ages."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digit_models(one_thread: None) -> dict[str, torch.nn.Module]:
    """Trained here, so that answers can be checked against them."""
    models: dict[str, torch.nn.Module] = {"digits_linear": linear(), "digits_mlp": mlp()}
    for model in models.values():
        torch.manual_seed(0)
        train(model, 20)
    return models


@pytest.fixture(scope="session")
def digits_repository(digit_models: dict[str, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their packages; not to be added to."""
    folder: Path = tmp_path_factory.mktemp("digits")
    for name, model in digit_models.items():
        write_package(folder, name, "1", model, inputs=PIXELS, outputs=["scores"], batch_max=16, slo_ms=LONG_MS)
    return folder


@dataclass(frozen=True, slots=True)
class Shared:
    """A mesh with models a and b on an emulated device. Who puts anything there gives it a name of its own."""

    mesh: Mesh
    repository: Path

    def play(self, scenario: Callable[[Mesh], Coroutine[Any, Any, None]]) -> None:
        """Runs the coroutine function beside it; on failure, the mesh's log is part of the error."""
        try:
            asyncio.run(asyncio.wait_for(scenario(self.mesh), LIMIT_S))
        except BaseException as error:
            error.add_note(f"the mesh's log:\n{self.mesh.log(120)}")
            raise
        finally:
            kill_everybody()


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One for all tests in which only names of their own matter."""
    folder = tmp_path_factory.mktemp("shared")
    for name in ("a", "b"):
        emulated_model(folder / "repository", name)
    with background_mesh(folder / "repository", folder / "data", {"device": emulated_device(folder)}) as mesh:
        yield Shared(mesh, folder / "repository")
