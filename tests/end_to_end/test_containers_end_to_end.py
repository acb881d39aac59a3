"""Black-box containers: real processes, numpy-only functions."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from frontend.client import AsyncClient
from scripts.meshes import Mesh
from tests.end_to_end.containers import X, container
from tests.end_to_end.meshes import emulated_device, emulated_model, run_with_mesh

pytestmark = pytest.mark.end_to_end


def test_a_function_serves_beside_a_device_s_model_and_its_batches_grow(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")
    (tmp_path / "toy.py").write_text("def double(x):\n    return x * 2\n")

    async def scenario(running: Mesh) -> None:
        async with container(running, tmp_path, "toy:double"), AsyncClient(running.address) as client:
            answer = await client.infer("f", X)
            np.testing.assert_array_equal(answer["y"], X * 2)
            assert answer.device is not None
            assert answer.device.startswith("container:f:1/")
            assert (await client.infer("a", X)).model == "a"
            biggest = 1
            for _ in range(20):
                answers = await asyncio.gather(*(client.infer("f", X + i, cache=False) for i in range(32)))
                for i, one in enumerate(answers):
                    np.testing.assert_array_equal(one["y"], (X + i) * 2)
                biggest = max([biggest, *(one.batch_size or 0 for one in answers)])
            assert biggest >= 4

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))
