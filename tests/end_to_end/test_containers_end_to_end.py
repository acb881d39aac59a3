"""Black-box containers: real processes, numpy-only functions."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from mesh.process.settings import without_settings
from scripts import ROOT
from scripts.rigs.containers import SPECS, X, container, is_ready
from scripts.rigs.meshes import LIMIT_S, LONG_MS, gearmesh, until
from tests.end_to_end.conftest import Shared

pytestmark = pytest.mark.end_to_end


def test_a_function_serves_beside_a_device_s_model_and_its_batches_grow(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("def double(x):\n    return x * 2\n")

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "toy:double", *SPECS, model="grows"),
            AsyncClient(running.address) as client,
        ):
            answer = await client.infer("grows", X, slo_ms=LONG_MS)
            np.testing.assert_array_equal(answer["y"], X * 2)
            assert answer.device is not None
            assert answer.device.startswith("container:grows:1/")
            assert (await client.infer("a", X)).model == "a"
            biggest = 1
            while biggest < 4:
                asked = (client.infer("grows", X + i, slo_ms=LONG_MS, cache=False) for i in range(32))
                for i, one in enumerate(await asyncio.gather(*asked)):
                    np.testing.assert_array_equal(one["y"], (X + i) * 2)
                    biggest = max(biggest, one.batch_size or 0)

    shared.play(scenario)


async def keep(running: Mesh, folder: Path, *arguments: str, code: int = 0) -> str:
    """What `gearmesh container` says, which ends so; as a process, since the mesh goes by its folder and arguments."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gearmesh", "container", *arguments,
        cwd=folder, env={**running.environment, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == code, output.decode()
    return output.decode()


def test_scale_changes_how_many_replicas_a_running_mesh_keeps(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("import os\n\ndef who(x):\n    return x * 0 + os.getpid() % 10000\n")

    async def seen(client: AsyncClient) -> set[float]:
        asked = (client.infer("scaled_by_hand", X + i, slo_ms=LONG_MS, cache=False) for i in range(32))
        answers = await asyncio.gather(*asked)
        return {float(answer["y"][0, 0]) for answer in answers}

    async def scenario(running: Mesh) -> None:
        await keep(running, tmp_path, "--model", "scaled_by_hand", "--predict", "toy:who", *SPECS, "--replicas", "1")
        await is_ready(running, "scaled_by_hand")
        async with AsyncClient(running.address) as client:
            assert len(await seen(client)) == 1
            code, output = await gearmesh(running, "scale", "scaled_by_hand", "2")
            assert code == 0, output
            while len(await seen(client)) < 2:
                pass
            code, output = await gearmesh(running, "scale", "scaled_by_hand", "0")
            assert code == 0, output
            await is_ready(running, "scaled_by_hand", ready=False)
            outcome = await client.submit("scaled_by_hand", X)
            assert getattr(outcome, "code", None) == "no_replica", outcome
            code, output = await gearmesh(running, "scale", "nobody", "1")
            assert code == 2
            assert "scaled_by_hand" in output

    shared.play(scenario)


@contextlib.contextmanager
def up_in(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """`gearmesh up` without a device works in that folder. Its log is part of an error."""
    command = [sys.executable, "-P", "-m", "gearmesh", "up", "--compact", "-f", "gpu_worker=0", "-f", "gateway=0"]
    log = folder / "log"
    with log.open("w") as lines:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=lines, stderr=lines)
    try:
        yield
    except BaseException as error:
        error.add_note(f"the mesh's log:\n{log.read_text()}")
        raise
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def test_a_replica_kept_from_another_folder_serves_the_mesh_that_keeps_it_whatever_mesh_is_set_there(
    tmp_path: Path,
) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        folder.mkdir()
        frontend, broker, controller = free_ports(3)
        (folder / "gearmesh.toml").write_text(
            f"broker_port = {broker}\ncontroller_port = {controller}\nfrontend_port = {frontend}\nhttp_port = 0\n"
            f'data_dir = "data-{folder.name}"\n'
        )
        if folder is ours:
            address = f"tcp://127.0.0.1:{frontend}"
    (other / "toy.py").write_text("def double(x):\n    return x * 2\n")
    plain = without_settings(os.environ)
    plain["PYTHONPATH"] = str(ROOT)
    named = {"GEARMESH_CONFIG": str(ours / "gearmesh.toml"), "GEARMESH_DATA_DIR": str(ours / "data-ours")}

    async def scenario() -> None:
        async with AsyncClient(address) as client:
            await client.call("models", timeout_s=LIMIT_S)  # the mesh is up
            command = ("container", "--model", "far", "--predict", "toy:double", *SPECS, "--replicas", "1")
            keeping = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "gearmesh", *command, cwd=other, env={**plain, **named}
            )
            assert await keeping.wait() == 0

            async def is_ready_there() -> bool:
                return any(entry["ready"] for entry in await client.models())

            await until(is_ready_there)
            np.testing.assert_array_equal((await client.infer("far", X, slo_ms=LONG_MS))["y"], X * 2)

    with up_in(ours, plain):
        asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))


def test_a_kept_replica_that_cannot_start_says_why_and_is_tried_again_when_it_is_scaled(
    shared: Shared, tmp_path: Path
) -> None:
    module, good = tmp_path / "toy.py", "def double(x):\n    return x * 2\n"

    async def scenario(running: Mesh) -> None:
        async def does(*arguments: str) -> str:
            code, output = await gearmesh(running, *arguments)
            assert code == 0, output
            return output

        async def down() -> dict[str, str]:
            found: dict[str, str] = json.loads(await does("status", "--json"))["containers_down"]
            return found

        async def it_is_said() -> bool:
            return "ModuleNotFoundError" in (await down()).get("mended.1", "")

        async def it_is_forgotten() -> bool:
            return "mended.1" not in await down()

        module.write_text(good)
        options = ("--model", "mended", "--predict", "toy:double", *SPECS, "--replicas", "0")
        await keep(running, tmp_path, *options)
        module.write_text("import nowhere\n" + good)
        await does("scale", "mended", "1")
        await until(it_is_said)
        why = (await down())["mended.1"]
        assert why in " ".join((await does("status", "--over", "0")).split())
        module.write_text(good)
        assert why in " ".join((await does("scale", "mended", "1")).split())
        await is_ready(running, "mended")
        await until(it_is_forgotten)
        await does("scale", "mended", "0")

    shared.play(scenario)


def test_what_is_kept_is_replaced_when_it_is_put_anew_and_other_code_without_a_gap(
    shared: Shared, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        async def kept(factor: int, *more: str, folder: Path = tmp_path, code: int = 0) -> str:
            (folder / "toy.py").write_text(f"def f(x):\n    return x * {factor}\n")
            options = ("--predict", "toy:f", *SPECS, "--replicas", "2", *more)
            return await keep(running, folder, "--model", "anew", *options, code=code)

        async def serves(client: AsyncClient, factor: int, version: str, refusals: set[str]) -> None:
            """Returns once the answers are of the new code; on the way, they are of the old one or such refusals."""
            while True:
                outcome = await client.submit("anew", X, slo_ms=LONG_MS)
                if not isinstance(outcome, Prediction):
                    assert outcome.code in refusals, outcome
                elif np.array_equal(outcome["y"], X * factor):
                    assert outcome.version == version
                    return

        assert "replaced" not in await kept(2)
        await is_ready(running, "anew")
        async with AsyncClient(running.address) as client:
            await serves(client, 2, "1", set())
            assert "replaced" not in await kept(2)
            for factor, version in ((3, "2"), (2, "1"), (4, "3")):  # other code, code that comes back, other code
                assert "replaced" in await kept(factor)
                await serves(client, factor, version, set())
            assert "replaced" in await kept(4, "--slo-ms", "500")  # the same version: one after the other
            await serves(client, 4, "3", {"no_replica"})
            elsewhere = tmp_path / "elsewhere"  # replicas of the other code may still be starting
            elsewhere.mkdir()
            assert "version_exists" in await kept(5, "--version", "3", folder=elsewhere, code=1)
            await serves(client, 4, "3", {"no_replica"})
        await gearmesh(running, "scale", "anew", "0")

    shared.play(scenario)


def test_a_dry_run_says_what_would_be_served_and_what_is_wrong(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "sample.npy", np.ones((3, 4), np.float32))
    (tmp_path / "toy.py").write_text("def good(x):\n    return x.sum(axis=1)\n\ndef bad(x):\n    return x[0]\n")

    async def scenario(running: Mesh) -> None:
        command = ("container", "--model", "dry", "--sample", str(tmp_path / "sample.npy"), "--check", "--predict")
        monkeypatch.chdir(tmp_path)
        code, output = await gearmesh(running, *command, "toy:good")
        assert code == 0, output
        assert re.search(r"\bx\b.*float32.*\[-1, 4\]", output)
        assert re.search(r"\by\b.*float32.*\[-1\]", output)
        code, output = await gearmesh(running, *command, "toy:bad")
        assert code == 2
        assert re.search(r"\[4\].*\b3\b", output)

    shared.play(scenario)


def test_a_container_is_a_member_of_an_application_beside_a_model_on_a_device(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "ten.py").write_text("def f(x):\n    y = x[:, :2] * 0\n    y[:, 1] = 10\n    return y\n")
    specs = ("--input", "x:float32:-1,4", "--output", "y:float32:-1,2")

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "ten:f", *specs, model="ten"),
            AsyncClient(running.address) as client,
        ):
            await client.create_app("both", ["a", "ten"], "linear", slo_ms=LONG_MS)
            await client.apps()
            alone = await client.infer("a", X)
            answer = await client.infer(app="both", x=X)
            assert answer.models_used == ("a", "ten")
            np.testing.assert_allclose(answer.output, np.add(alone.output, [0, 10]) / 2)
            told = await client.feedback(answer.decision_id, label=1)
            assert told["applied"], told
            app = next(app for app in await client.apps() if app["name"] == "both")
            assert app["weights"]["ten"] > app["weights"]["a"]
            again = await client.infer(app="both", x=X)
            assert again.cached  # both members' answers were
            await client.delete_app("both")

    shared.play(scenario)
