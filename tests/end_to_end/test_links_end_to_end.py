"""Links between real processes that become half dead, and frontends that name what is not theirs."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from gearmesh.operations.meshes import Mesh
from mesh import wire
from mesh.net.keys import Keys
from mesh.roles import PortKind
from scripts.rigs.meshes import LONG_MS, emulated_device, emulated_model, gearmesh, run_with_mesh, until
from tests.black_holes import swallow_port

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
X = np.zeros((1, 4), np.float32)


async def status(running: Mesh) -> Any:
    code, printed = await gearmesh(running, "status", "--json")
    assert code == 0, printed
    return json.loads(printed)


def pids(seen: Any) -> dict[str, int]:
    """{role: its process}."""
    return {member["role"]: member["pid"] for member in seen["members"]}


def results_of(seen: Any) -> tuple[str, ...]:
    """Where the frontend takes outputs."""
    (frontend,) = [member for member in seen["members"] if member["role"] == "frontend"]
    return tuple(frontend["endpoints"]["results"])


async def load(client: AsyncClient, seconds: float, slo_ms: float, loops: int = 4) -> Counter[str]:
    """How the requests of closed loops ended."""
    ends_at = time.monotonic() + seconds
    ended: Counter[str] = Counter()

    async def one() -> None:
        while time.monotonic() < ends_at:
            outcome: Any = await client.submit("a", X, slo_ms=slo_ms, cache=False)
            ended["ok" if isinstance(outcome, Prediction) else f"{outcome.status} {outcome.code}"] += 1

    await asyncio.gather(*(one() for _ in range(loops)))
    return ended


def test_a_half_dead_connection_for_outputs_costs_no_answer_that_can_wait_for_another_one(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            assert set(await load(client, 0.2, LONG_MS)) == {"ok"}
            seen = await status(running)
            asked = pids(seen)
            number = int(results_of(seen)[-1].rpartition(":")[2])
            assert swallow_port(number, asked["gpu_worker"], asked["frontend"])
            assert set(await load(client, 3.0, LONG_MS)) == {"ok"}
            (told,) = (await status(running))["frontends"].values()
            (link,) = [link for link in told["links"] if link["role"] == "gpu_worker"]
            assert link["up"]
            assert (link["resent"] > 0, told["computed_for_nobody"]) == (True, 0)
            assert link["lost"] > 0
            assert "came again" in (await gearmesh(running, "status", "--over", "0"))[1]

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))


def test_controller_and_frontend_count_alike_what_a_half_dead_connection_cost(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await load(client, 0.2, LONG_MS)
            seen = await status(running)
            asked = pids(seen)
            number = int(results_of(seen)[-1].rpartition(":")[2])
            swallow_port(number, asked["gpu_worker"], asked["frontend"])
            ended = await load(client, 3.0, 200.0)  # budgets that end before anybody can know
            assert ended["ok"] > 0
            assert ended["timed_out deadline"] > 0
            assert set(await load(client, 0.5, LONG_MS)) == {"ok"}

            async def agree() -> bool:
                now = await status(running)
                (snapshot,) = now["controllers"].values()
                (frontend,) = now["frontends"].values()
                total = frontend["outcomes"]["total"]
                return bool(
                    snapshot["timed_out"] + snapshot["amended"].get("timed_out", 0)
                    == total["timed_out"]
                    == ended["timed_out deadline"]
                    and snapshot["in_time"] + snapshot["late"] - sum(snapshot["amended"].values()) == total["ok"]
                )

            await until(agree)

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))


class Rogue:
    """A process with the keys of the mesh, which speaks to the controller as a frontend does."""

    def __init__(self, keys: Keys, seen: Any, results: tuple[str, ...]) -> None:
        (controller,) = [member for member in seen["members"] if member["role"] == "controller"]
        self._context = zmq.Context()
        self._sock = self._context.socket(zmq.DEALER)
        self._sock.setsockopt(zmq.ROUTING_ID, b"frontend-rogue")
        keys.present(self._sock, PortKind.CONTROL, controller["id"])
        self._sock.connect(controller["endpoints"]["control"][-1])
        self.results = results
        self.say(wire.FrontendHello(member="frontend-rogue", host="h", results=results))

    def say(self, *messages: Any) -> None:
        self._sock.send(msgspec.msgpack.encode(wire.Envelope(time.monotonic(), None, 0, list(messages))))

    def submit(self, request: int) -> None:
        """A request whose number the other frontend uses, too."""
        row = memoryview(X.tobytes())
        self.say(wire.Submit(request=request, attempt=0, ref="a:1", rows=1, budget_s=1.0, inline=(row,)))

    def hears(self, kind: str) -> bool:
        """Whether such a message has come by now, or comes soon."""
        ends_at = time.monotonic() + 30.0
        while time.monotonic() < ends_at:
            if self._sock.poll(100):
                body = self._sock.recv_multipart()[0]
                if any(message[0] == kind for message in msgspec.msgpack.decode(body, strict=False)[3]):
                    return True
        return False

    def leave(self) -> None:
        self.say(wire.Goodbye())
        self._sock.close(200)
        self._context.term()


BAD = {
    "none": (),
    "unknown transport": ("garbage://x",),
    "a name that nobody knows": ("tcp://nosuchhost.invalid:1",),
    "only in memory": ("memory://nope",),
    "port 0": ("tcp://127.0.0.1:0",),
}


def test_frontends_that_name_what_is_not_theirs_harm_nobody(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def beside(seen: Any, client: AsyncClient, results: tuple[str, ...], refused: bool) -> None:
        rogue = Rogue(Keys.of_data_dir(tmp_path / "data", make=False), seen, results)
        try:
            told = await asyncio.to_thread(rogue.hears, "hello_refused" if refused else "serving")
            assert told
            for request in range(1, 20):
                rogue.submit(request)
            assert set(await load(client, 0.5, LONG_MS)) == {"ok"}
        finally:
            rogue.leave()

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            assert set(await load(client, 0.2, LONG_MS)) == {"ok"}
            seen = await status(running)
            for results in BAD.values():
                await beside(seen, client, results, True)
            await beside(seen, client, results_of(seen), False)
            await beside(seen, client, ("tcp://127.0.0.1:1",), False)
            assert set(await load(client, 0.5, LONG_MS)) == {"ok"}
            (told,) = (await status(running))["frontends"].values()
            assert (told["link_losses"], told["outputs_resent"], told["computed_for_nobody"]) == (0, 0, 0)

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))
