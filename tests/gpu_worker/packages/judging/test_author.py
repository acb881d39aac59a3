"""The module that is written is unchanged, whatever it does when it runs; and its copy is complete."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpu_worker.packages.export import write_package
from gpu_worker.packages.importing.copying import whole_copy
from gpu_worker.packages.importing.reaching import ReachableState
from mesh.codes import PackageCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import ROW

SEEN: list[int] = []
last: Any = None


class Leaves(nn.Module):
    """Leaves something in every kind of place whenever it runs."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept, self.seen, counted = nn.Linear(4, 3), {}, [], 0

        def count() -> int:
            nonlocal counted
            counted += 1
            return counted

        self.count, self.look = count, lambda: counted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 3]."""
        global last
        last = x
        SEEN.append(len(x))
        Leaves.calls += 1
        self.kept["x"], self.later = x, x
        self.seen.append(x)
        self.count()
        return self.net(x)


def left(module: Leaves) -> tuple[Any, ...]:
    """Returns what it left."""
    return dict(module.kept), list(module.seen), module.look(), hasattr(module, "later"), list(SEEN), last, Leaves.calls


def test_what_a_module_leaves_when_it_is_run_is_nowhere_once_it_is_written(tmp_path: Path) -> None:
    module = Leaves().train()
    before = left(module)
    write_package(tmp_path, "m", "1", module, inputs=ROW)
    assert left(module) == before
    assert all(part.training for part in module.modules())


def test_what_a_module_held_lies_where_it_lay_before() -> None:
    module = Leaves()
    module(torch.zeros(2, 4))
    before, held = left(module), ReachableState(module)
    module(torch.ones(1, 4))
    assert len(module.seen) == 2
    held.put_back()
    assert len(module.seen) == 1
    assert module.look() == before[2]
    assert module.kept["x"] is before[0]["x"]
    assert before[4] == SEEN
    assert last is before[5]


class ByName(nn.Module):
    """Reaches the only instance by a global name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 1, 2, 2] -> [batch, 1, 2, 2]."""
        return the_one.norm(x)


the_one = ByName()


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_that_reaches_the_module_by_name_leaves_it_as_it_was(tmp_path: Path, training: bool) -> None:
    the_one.train(training)
    before = {name: tensor.clone() for name, tensor in the_one.state_dict().items()}
    inputs = {"x": ("float32", (1, 2, 2))}
    if training:
        with pytest.raises(PackageError) as caught:
            write_package(tmp_path, "m", "1", the_one, inputs=inputs)
        assert caught.value.code == PackageCode.BAD_MODULE
        assert "norm.running_mean" in str(caught.value)
    else:
        write_package(tmp_path, "m", "1", the_one, inputs=inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in the_one.state_dict().items())


def test_a_module_is_written_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        package = write_package(tmp_path, "m", "1", module, inputs=ROW)
        assert torch.is_inference_mode_enabled()
    assert package.spec.outputs[0].shape == (-1, 3)


class Unlike(nn.Module):
    """Its copies differ from itself."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unlike":
        made = Unlike()
        made.factor = 2.0
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * self.factor


def test_a_copy_that_answers_otherwise_than_the_module_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PackageError) as caught:
        write_package(tmp_path, "m", "1", Unlike(), inputs=ROW)
    assert caught.value.code == PackageCode.NOT_EQUAL
    assert not (tmp_path / "m").exists()


def test_functions_that_reach_nothing_of_the_module_are_the_same_in_its_copy() -> None:
    module = nn.Linear(4, 3)
    outside: list[int] = []
    module.pool, module.own = nn.functional.max_pool2d, lambda: outside
    copied: Any = whole_copy(module)
    assert copied.pool is module.pool
    assert copied.own is module.own


class Counts(nn.Module):
    """Two functions share a variable; one of them reaches the module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, counted = nn.Parameter(torch.zeros(1)), 0

        def count() -> int:
            nonlocal counted
            counted += len(self.weight)
            return counted

        self.count, self.look = count, lambda: counted


def test_functions_that_share_a_variable_share_one_in_the_copy() -> None:
    copied: Any = whole_copy(Counts())
    with torch.no_grad():
        copied.weight.set_(torch.zeros(3))
    assert (copied.count(), copied.count(), copied.look()) == (3, 6, 6)
