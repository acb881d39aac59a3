"""Many models of one architecture in one mesh: each answers with its own weights, all are measured as one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from frontend.client.client import Client
from gpu_worker.packages.export import write_package
from scripts.rigs.meshes import LONG_MS, background_mesh
from scripts.rigs.model_copies import make_copies

pytestmark = pytest.mark.end_to_end
COPIES = 40
PAGES_OF_ALL = 8  # of 1 MiB: far fewer than models, so they are paged


def test_copies_answer_with_their_own_weights_though_they_do_not_fit_at_once(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    torch.manual_seed(3)
    package = write_package(
        repository, "m", "1", torch.nn.Linear(8, 4), inputs={"x": ("float32", (8,))}, outputs=["y"], batch_max=4,
        slo_ms=LONG_MS,
    )  # fmt: skip
    names = ["m", *make_copies(package, repository, COPIES, alias=False, seed=4)]
    x = np.arange(16, dtype=np.float32).reshape(2, 8)
    with (
        background_mesh(
            repository, tmp_path / "data", {"arena_mb": PAGES_OF_ALL, "page_mb": 1, "compact": True}
        ) as mesh,
        Client(mesh.address) as client,
    ):
        for name in [*names, *names[:10]]:
            weights = load_file(repository / name / "1" / "weights.safetensors")
            answer = client.infer(name, {"x": x}, slo_ms=LONG_MS)
            assert np.allclose(answer.outputs["y"], x @ weights["weight"].T + weights["bias"], atol=1e-4), name
        profiles = {file.read_text() for file in repository.glob("*/1/profiles/*.json")}
    assert len(profiles) == 1, "one measurement serves all"
    assert len(list(repository.glob("*/1/profiles/*.json"))) == COPIES + 1
