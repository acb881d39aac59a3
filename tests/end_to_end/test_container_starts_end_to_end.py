"""Containers whose code takes its time to start, or dies meanwhile: real processes, seen by clients and operators."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, Rejected, TimedOut
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from scripts.rigs.containers import SPECS, X, child_pid, container, is_ready
from scripts.rigs.meshes import LIMIT_S, LONG_MS, background_mesh, emulated_device, emulated_model, gearmesh, until
from tests.end_to_end.conftest import Shared
from tests.messages import names

pytestmark = pytest.mark.end_to_end

SHORT_MS = 500.0  # of a request that may wait in vain for code that is being started

WAITS = """
import os, time
print("loading the weights", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
def f(x):
    return x * 2
"""
DIES = """
import os, signal
with open("lives", "a") as lives:
    lives.write(".")
with open("lives") as lives:
    if len(lives.read()) <= {deaths}:
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.{signal})
def f(x):
    return x * 2
"""


def test_a_container_that_starts_is_seen_from_its_first_second_by_everybody(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    emulated_model(tmp_path / "repository", "a")
    (port,) = free_ports(1)
    settings = {"http_port": port, "device": emulated_device(tmp_path), "compact": True}
    with background_mesh(tmp_path / "repository", tmp_path / "data", settings) as running:

        def get(method: str, path: str, body: str | None = None) -> tuple[int, str]:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)) as connection:
                connection.request(method, path, body)
                response = connection.getresponse()
                return response.status, response.read().decode()

        async def scenario() -> None:
            async with (
                container(running, tmp_path, "waits:f", *SPECS, model="slow", ready=False),
                AsyncClient(running.address) as client,
            ):

                async def told() -> bool:
                    return any("loading the weights" in (entry["fault"] or "") for entry in await client.models())

                await until(told)
                (found,) = [entry for entry in await client.models() if entry["name"] == "slow"]
                assert (found["ready"], found["version"]) == (False, None)
                assert found["starting"]["line"] == "loading the weights"
                outcome = await client.submit("slow", X, slo_ms=LONG_MS)
                assert isinstance(outcome, Rejected), outcome
                assert outcome.code == "not_ready"
                assert outcome.retry_after_ms
                assert names(outcome.message, "container slow has been starting for", "loading the weights")
                for method, path, body in (
                    ("GET", "/v2/models/slow/ready", None),
                    ("POST", "/v2/models/slow/infer", json.dumps({"inputs": [
                        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, 3]}]})),
                ):  # fmt: skip
                    status, text = await asyncio.to_thread(get, method, path, body)
                    assert (status, "loading the weights" in text) == (503, True), (path, text)
                assert (await asyncio.to_thread(get, "GET", "/v2/models/a/ready"))[0] == 200
                for command in (("status", "--over", "0"), ("models",), ("status", "--json")):
                    _, shown = await gearmesh(running, *command)
                    assert "starting" in shown, shown
                (tmp_path / "go").touch()
                await is_ready(running, "slow")
                answer = await client.infer("slow", X, slo_ms=LONG_MS)
                np.testing.assert_array_equal(answer["y"], X * 2)
                (found,) = [entry for entry in await client.models() if entry["name"] == "slow"]
                assert (found["starting"], found["fault"]) == (None, None)

        asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSEGV"])
def test_code_that_is_killed_while_it_is_imported_is_tried_again_and_its_death_is_named(
    number: str, shared: Shared, tmp_path: Path
) -> None:
    (tmp_path / "dies.py").write_text(DIES.format(deaths=2, signal=number))

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "dies:f", *SPECS, model=f"dies-{number}") as started,
            AsyncClient(running.address) as client,
        ):
            answer = await client.infer(f"dies-{number}", X, slo_ms=LONG_MS)
            np.testing.assert_array_equal(answer["y"], X * 2)
            line = await started.says("container_died")
            assert names(line, number, "while it imported", "about to die")
            assert ("out of memory?" in line) is (number == "SIGKILL")
            code, output = await gearmesh(running, "status", "--json")
            assert code == 0
            (state,) = [
                member["child"] for member in json.loads(output)["members"]
                if (member["child"] or {}).get("model") == f"dies-{number}"
            ]  # fmt: skip
            assert (state["serves"], state["starts"]) == (True, 3)
            assert number in state["why"]

    shared.play(scenario)


def test_code_that_starts_again_says_so_to_whoever_is_refused(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "go").touch()

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "waits:f", *SPECS, model="again") as started,
            AsyncClient(running.address) as client,
        ):
            (tmp_path / "go").unlink()
            os.kill(child_pid(started), signal.SIGKILL)

            async def told() -> bool:
                outcome = await client.submit("again", X, slo_ms=SHORT_MS, cache=False)
                if isinstance(outcome, (Prediction, TimedOut)) or outcome.code == "container_died":
                    return False  # it came before the death was noticed, and may have waited for the code in vain
                assert (outcome.status, outcome.code) == ("rejected", "no_replica"), outcome
                return names(outcome.message, "container again has been starting for", "SIGKILL", "loading the weights")

            await until(told)
            (tmp_path / "go").touch()
            await is_ready(running, "again")

    shared.play(scenario)
