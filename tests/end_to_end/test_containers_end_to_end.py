"""Black-box containers: real processes, numpy-only functions."""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from frontend.client import AsyncClient, Prediction
from scripts.meshes import ROOT, Mesh
from tests.end_to_end.containers import SPECS, X, container, is_ready
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


async def gearmesh(running: Mesh, folder: Path, *arguments: str) -> tuple[int, str]:
    """(exit code, output) of a command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.cli", *arguments,
        cwd=folder, env={**running.environment, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def test_scale_changes_how_many_replicas_a_running_mesh_keeps(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")
    (tmp_path / "toy.py").write_text("import os\n\ndef who(x):\n    return x * 0 + os.getpid() % 10000\n")

    async def seen(client: AsyncClient) -> set[float]:
        answers = await asyncio.gather(*(client.infer("f", X + i, cache=False) for i in range(32)))
        return {float(answer["y"][0, 0]) for answer in answers}

    async def scenario(running: Mesh) -> None:
        command = ("container", "--model", "f", "--predict", "toy:who", *SPECS)
        code, output = await gearmesh(running, tmp_path, *command, "--replicas", "1")
        assert code == 0, output
        await is_ready(running, "f")
        async with AsyncClient(running.address) as client:
            assert len(await seen(client)) == 1
            code, output = await gearmesh(running, tmp_path, "scale", "f", "2")
            assert code == 0, output
            while len(await seen(client)) < 2:
                pass
            code, output = await gearmesh(running, tmp_path, "scale", "f", "0")
            assert code == 0, output
            await is_ready(running, "f", ready=False)
            outcome = await client.submit("f", X)
            assert getattr(outcome, "code", None) == "no_replica", outcome
            code, output = await gearmesh(running, tmp_path, "scale", "g", "1")
            assert code == 2
            assert "there are: f" in output

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))


def test_a_kept_replica_that_cannot_start_says_why_and_is_tried_again_when_it_is_scaled(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")
    module, good = tmp_path / "toy.py", "def double(x):\n    return x * 2\n"

    async def scenario(running: Mesh) -> None:
        async def does(*arguments: str) -> str:
            code, output = await gearmesh(running, tmp_path, *arguments)
            assert code == 0, output
            return output

        module.write_text(good)
        await does("container", "--model", "f", "--predict", "toy:double", *SPECS, "--replicas", "0")
        module.write_text("import nowhere\n" + good)
        await does("scale", "f", "1")
        why = "it cannot start: ModuleNotFoundError: No module named 'nowhere'"
        while f"container f.1 is down: {why}" not in await does("status", "--over", "0"):
            pass
        module.write_text(good)
        assert f"f.1 was down, and is tried again: {why}" in await does("scale", "f", "1")
        await is_ready(running, "f")
        assert "is down" not in await does("status", "--over", "0")

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))


def test_what_is_kept_is_replaced_when_it_is_put_anew_and_other_code_without_a_gap(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def scenario(running: Mesh) -> None:
        async def keep(factor: int, *more: str, code: int = 0) -> str:
            (tmp_path / "toy.py").write_text(f"def f(x):\n    return x * {factor}\n")
            options = ("--predict", "toy:f", *SPECS, "--replicas", "2", *more)
            ended, output = await gearmesh(running, tmp_path, "container", "--model", "f", *options)
            assert ended == code, output
            return output

        async def serves(client: AsyncClient, factor: int, version: str, refusals: set[str]) -> None:
            """Returns once the answers are of the new code; on the way, they are of the old one or such refusals."""
            while True:
                outcome = await client.submit("f", X, slo_ms=5000)
                if not isinstance(outcome, Prediction):
                    assert outcome.code in refusals, outcome
                elif np.array_equal(outcome["y"], X * factor):
                    assert outcome.version == version
                    return

        assert "replaced" not in await keep(2)
        await is_ready(running, "f")
        async with AsyncClient(running.address) as client:
            await serves(client, 2, "1", set())
            assert "replaced" not in await keep(2)
            for factor, version in ((3, "2"), (2, "1"), (4, "3")):  # other code, code that comes back, other code
                assert "is being replaced" in await keep(factor)
                await serves(client, factor, version, set())
            assert "is being replaced" in await keep(4, "--slo-ms", "500")  # the same version: one after the other
            await serves(client, 4, "3", {"no_replica"})
            assert "version_exists" in await keep(5, "--version", "3", code=1)
            await serves(client, 4, "3", {"no_replica"})

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))


def test_a_dry_run_says_what_would_be_served_and_what_is_wrong(tmp_path: Path) -> None:
    np.save(tmp_path / "sample.npy", np.ones((3, 4), np.float32))
    (tmp_path / "toy.py").write_text("def good(x):\n    return x.sum(axis=1)\n\ndef bad(x):\n    return x[0]\n")

    async def scenario(running: Mesh) -> None:
        command = ("container", "--model", "f", "--sample", "sample.npy", "--check", "--predict")
        code, output = await gearmesh(running, tmp_path, *command, "toy:good")
        assert code == 0, output
        assert "input x: float32 [-1, 4]" in output
        assert "output y: float32 [-1]" in output
        code, output = await gearmesh(running, tmp_path, *command, "toy:bad")
        assert code == 2
        assert "has shape [4] for 3 rows: batch comes first" in output

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path), ready=False)


def test_a_container_is_a_member_of_an_application_beside_a_model_on_a_device(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")
    (tmp_path / "ten.py").write_text("def f(x):\n    y = x[:, :2] * 0\n    y[:, 1] = 10\n    return y\n")
    specs = ("--input", "x:float32:-1,4", "--output", "y:float32:-1,2")

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "ten:f", *specs, model="ten"),
            AsyncClient(running.address) as client,
        ):
            await client.create_app("both", ["a", "ten"], "linear", slo_ms=2000)
            await client.apps()
            alone = await client.infer("a", X)
            answer = await client.infer(app="both", x=X)
            assert answer.models_used == ("a", "ten")
            np.testing.assert_allclose(answer.output, np.add(alone.output, [0, 10]) / 2)
            told = await client.feedback(answer.decision_id, label=1)
            assert told["applied"], told
            (app,) = await client.apps()
            assert app["weights"]["ten"] > app["weights"]["a"]
            again = await client.infer(app="both", x=X)
            assert again.cached  # both members' answers were

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))
