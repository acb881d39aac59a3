"""Graphs see no memory but their own, and what is compiled is run only if nobody else can have written it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gpu_worker.devices.execution.compiled import check_own
from gpu_worker.devices.execution.executables import load_forward
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package

ROW = {"x": ("float32", (4,))}


class Strided(nn.Module):
    """Shifts what it is given, by strides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 2]: the second and third value of each row."""
        return x.as_strided((x.shape[0], 2), (4, 1), 1)


class Emptied(nn.Module):
    """Makes room, and fills one half of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        kind = torch.int32  # of which nothing that lay there before is NaN
        like, new = torch.empty_like(x, dtype=kind), x.new_empty(x.shape[0], 4, dtype=kind)
        return (like + new + torch.empty(x.shape[0], 4, dtype=kind)) * 0 + x


def written(folder: Path, module: nn.Module) -> Package:
    return write_package(folder, "m", "1", module, inputs=ROW, batch_max=4)


def test_strides_reach_no_further_than_the_tensor_itself(tmp_path: Path) -> None:
    forward = load_forward(written(tmp_path, Strided()))
    memory = torch.arange(100.0)
    (y,) = forward(memory[:8].view(2, 4))
    assert y.tolist() == [[1, 2], [5, 6]]
    (y,) = forward(memory[40:48].view(2, 4))  # of a tensor that somebody else's memory surrounds
    assert y.tolist() == [[41, 42], [45, 46]]


def test_what_a_graph_leaves_empty_holds_zeros(tmp_path: Path) -> None:
    forward = load_forward(written(tmp_path, Emptied()))
    called = {str(node.target) for node in forward.__self__.graph.nodes}  # type: ignore[attr-defined]
    assert not any("empty" in name for name in called)
    x = torch.from_numpy(np.random.default_rng(0).random((3, 4), np.float32))
    assert torch.equal(forward(x)[0], x)


@pytest.mark.parametrize(("mode", "own"), [(0o700, True), (0o750, True), (0o770, False), (0o702, False)])
def test_a_folder_that_others_may_write_to_is_not_one_s_own(tmp_path: Path, mode: int, own: bool) -> None:
    (tmp_path / "executables").mkdir()
    (tmp_path / "executables").chmod(mode)
    if own:
        check_own(tmp_path / "executables")
    else:
        with pytest.raises(PermissionError):
            check_own(tmp_path / "executables")


def test_a_link_to_an_executable_is_not_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch(0o600)
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    with pytest.raises(PermissionError):
        check_own(tmp_path / "ours")
