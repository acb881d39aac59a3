"""Results of a device with CUDA graphs, and how close they are to those of the module."""

import pytest
import torch

from tests.gpu_worker.devices.cuda.cuda_builders import DRIVERS, Served, infer_job

drivers = pytest.mark.parametrize("driver", DRIVERS)
CLOSE = {"atol": 1e-3, "rtol": 1e-3}  # a GPU sums in another order, and convolves in TF32


async def linear(on: Served, ref: str, pages: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    return (await on.run(infer_job(ref, pages, x), (len(x), 3)))[0]
