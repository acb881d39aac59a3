"""Clients that leave: nothing is computed for them that had not begun, whichever way they asked and left."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from scripts.bench_http import request_body
from scripts.rigs.containers import SPECS, X, container
from scripts.rigs.meshes import LIMIT_S, LONG_MS, background_mesh, emulated_device, emulated_model, until
from tests.end_to_end.conftest import Shared
from tests.end_to_end.test_http_end_to_end import Http, until_ready

pytestmark = pytest.mark.end_to_end

DEAD = 300
GATED = """
import time
from pathlib import Path

def gated(x):
    with open("rows", "a") as file:
        file.write(f"{len(x)} ")
    stopped = not Path("go").exists()
    while not Path("go").exists():
        time.sleep(0.005)
    if stopped:  # what was cancelled behind this row is on its way here
        time.sleep(0.5)
    return x * 2
"""


@pytest.fixture(scope="module")
def port() -> int:
    """Of HTTP."""
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Shared]:
    """A mesh with a gateway."""
    folder = tmp_path_factory.mktemp("cancels")
    emulated_model(folder / "repository", "a")
    settings = {"compact": True, "http_port": port, "device": emulated_device(folder)}
    with background_mesh(folder / "repository", folder / "data", settings) as mesh:
        until_ready(port)
        yield Shared(mesh, folder / "repository")


Leaving = Callable[[Mesh, str, int], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def tasks(running: Mesh, model: str, port: int) -> AsyncIterator[None]:
    """Tasks of one program ask over one connection; in the end all are cancelled."""
    async with AsyncClient(running.address) as client:
        await client.models()
        asked = [asyncio.create_task(client.infer(model, X + i, slo_ms=LONG_MS, cache=False)) for i in range(DEAD)]
        yield
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await client.call("ping")


@contextlib.asynccontextmanager
async def browsers(running: Mesh, model: str, port: int) -> AsyncIterator[None]:
    """Each asks over an HTTP connection of its own; in the end all are closed."""
    with contextlib.ExitStack() as opened:
        for i in range(DEAD):
            body, _ = request_body({"x": X + i}, parameters={"cache": False, "slo_ms": LONG_MS})
            head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            sock = opened.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT_S))
            sock.sendall(head.encode() + body)
        yield


@pytest.mark.parametrize("leaving", [tasks, browsers])
def test_what_has_not_begun_for_clients_that_leave_is_not_computed(
    leaving: Leaving, web: Shared, port: int, tmp_path: Path
) -> None:
    (tmp_path / "toy.py").write_text(GATED)
    model = f"gated_{leaving.__name__}"

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "toy:gated", *SPECS, "--batch-max", "1", model=model),
            AsyncClient(running.address) as client,
        ):
            before = await client.call("status")

            async def are_open(count: int) -> bool:
                status: Any = await client.call("status")
                return int(status["in_flight"]) == count

            async def has_room() -> bool:
                status: Any = await client.call("status")
                return int(status["in_flight_limit"]) > 4 * DEAD

            await until(has_room)  # what came late, as in the test before, lets fewer in for a while
            async with leaving(running, model, port):
                await until(lambda: are_open(DEAD))
            await until(lambda: are_open(0))
            assert await asyncio.to_thread(Http(port).in_flight) == 0
            (tmp_path / "go").touch()
            answer = await client.infer(model, X, slo_ms=LONG_MS, cache=False)
            np.testing.assert_array_equal(answer["y"], X * 2)
            assert (tmp_path / "rows").read_text().split() == ["1", "1"], "the one that ran, and the live one"
            after = await client.call("status")
            assert after["cancelled"] - before["cancelled"] == DEAD
            assert after["computed_for_nobody"] - before["computed_for_nobody"] == 1

    web.play(scenario)
