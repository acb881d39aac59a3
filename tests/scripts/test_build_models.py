"""scripts/build_models.py: an existing version is never overwritten."""

from pathlib import Path

import torch
from torch import nn

from scripts.build_models import put


def build(repository: Path, seed: int) -> str:
    """The version that a module with the weights of this seed gets."""
    torch.manual_seed(seed)
    options = {"inputs": {"x": ("float32", (4,))}, "outputs": ["y"]}
    return put(repository, "m", nn.Linear(4, 3), **options).folder.name


def test_a_model_that_turns_out_otherwise_is_the_next_version_and_the_same_its_own(tmp_path: Path) -> None:
    assert build(tmp_path, 1) == "1"
    weights = tmp_path / "m" / "1" / "weights.safetensors"
    before = (weights.stat().st_ino, weights.read_bytes())
    assert [build(tmp_path, seed) for seed in (1, 2, 2, 3)] == ["1", "2", "2", "3"]
    assert (weights.stat().st_ino, weights.read_bytes()) == before
