"""gpu_worker/preloading.py: a worker that was started ahead has imported all that it will need, and opened nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import ROOT
from scripts.rigs.meshes import emulated_device
from tests.gpu_worker.conftest import Repository

RETURNS = """
import json, os, sys
from pathlib import Path
import gpu_worker.main
from gpu_worker.preloading import preload
preload()
data, before = Path(os.environ["GEARMESH_DATA_DIR"]), set(sys.modules)
opened = data.exists()
from gpu_worker.devices.opening import open_device
from gpu_worker.preparing import Preparer
from mesh.process.configuration import read_settings
settings = read_settings()
device = open_device(settings)
if device.measured:
    Preparer(settings.model_repository, (), device).prepare("folded:1", "")
later = sorted(name for name in set(sys.modules) - before)
print(json.dumps([opened, "torch" in before, later]))
os._exit(0)
"""
FEW = 60  # of some 3000 modules


def returns(repository: Path, data_dir: Path, device: str) -> tuple[bool, bool, list[str]]:
    """(whether waiting has made the data folder, whether it imported torch, modules imported after it)."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "GEARMESH_DEVICE": device, "GEARMESH_DATA_DIR": str(data_dir),
        "GEARMESH_MODEL_REPOSITORY": str(repository), "GEARMESH_ARENA_MB": "16",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", RETURNS], env=environment, stdout=subprocess.PIPE, check=True)
    opened, torch, later = json.loads(done.stdout.splitlines()[-1])
    return opened, torch, later


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_worker_that_was_started_ahead_imports_next_to_nothing_later(
    device: str, repository: Repository, tmp_path: Path
) -> None:
    opened, torch, later = returns(repository.folder, tmp_path / "data", device)
    assert not opened
    assert torch
    assert len(later) <= FEW, later


def test_a_worker_of_an_emulated_device_does_without_torch(tmp_path: Path) -> None:
    opened, torch, later = returns(tmp_path, tmp_path / "data", emulated_device(tmp_path))
    assert (opened, torch) == (False, False)
    assert not [name for name in later if name.startswith(("gpu_worker", "torch"))]


@pytest.mark.parametrize("device", ["no such device", "cuda:none"])
def test_what_is_wrong_with_the_settings_is_left_to_the_process_that_begins(device: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GEARMESH_DEVICE": device, "GEARMESH_NO_SUCH": "1"}
    command = "from gpu_worker.preloading import preload; preload(); print('waits')"
    done = subprocess.run([sys.executable, "-c", command], env=environment, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"waits\n"
