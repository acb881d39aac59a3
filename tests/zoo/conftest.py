"""The device that serves the zoo."""

from collections.abc import Iterator

import pytest
import torch

from gpu_worker.devices.cpu import CpuDevice
from mesh.process.settings import Settings


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuDevice]:
    """One device for all cases, on this thread."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    made = CpuDevice(
        Settings(data_dir=tmp_path_factory.mktemp("zoo"), device="cpu", page_mb=1, arena_mb=8, window_mb=4)
    )
    yield made
    made.close()
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)
