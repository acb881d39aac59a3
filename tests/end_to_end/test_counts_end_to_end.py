"""In a run with faults, clients count how each of their requests ended: status, page, metrics and logs say the same."""

import asyncio
import contextlib
import errno
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from scripts.rigs.containers import SPECS, container
from scripts.rigs.meshes import LONG_MS, emulated_device, emulated_model, run_with_mesh, until
from tests.end_to_end.counting import (
    CANCELLED,
    NOTHING,
    CountingClients,
    asks_of,
    by_outcome,
    counting_clients,
    of_logs,
    of_metrics,
    of_page,
    of_status,
    samples,
)

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
X = np.ones((1, 4), np.float32)
BAD, STOPS = -X, 99 * X  # a row that the function raises on, and one that it stops at the gate with
OBJECTIVE_MS = 1000.0  # that the container sleeps through
HOPELESS_MS = 5000.0  # for what takes hours: it is refused, and long before its deadline
GATED = """
def double(x):
    if (x < 0).any():
        raise ValueError("negative")
    if (x == 99).any():
        open({gate!r}, "rb").read()
    return x * 2
"""


class Gate:
    """Where the container's function stops until it is let go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        os.mkfifo(path)

    async def reached(self) -> None:
        """The function has stopped here."""
        await until(self._open)

    def _open(self) -> bool:
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nobody is here
                return False
            raise
        return True

    def let_go(self) -> None:
        """The function goes on."""
        os.close(self._fd)


@dataclass(slots=True)
class Evidence:
    """What was seen of one run, after all of it."""

    seen: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by the clients
    http: Mapping[str, int] = field(default_factory=dict)  # responses by status, as clients saw them
    status: Mapping[str, Any] = field(default_factory=dict)
    page: Mapping[str, Any] = field(default_factory=dict)
    metrics: str = ""
    telemetry: Path = Path()


async def sound(clients: CountingClients) -> None:
    for what in ("model a", "model gated"):
        for _ in range(5):
            assert isinstance(await clients.ask(what, X, slo_ms=LONG_MS), Prediction)
            assert await clients.post(what, X, slo_ms=LONG_MS) == "ok"


async def large(clients: CountingClients) -> None:
    """More rows than a batch takes: several requests for the controller, one for the client."""
    rows = np.ones((20, 4), np.float32)
    assert isinstance(await clients.ask("model a", rows, slo_ms=LONG_MS), Prediction)
    await clients.ask("model never", rows, slo_ms=HOPELESS_MS)


async def raising(clients: CountingClients) -> None:
    """The function raises: for requests alone, and for one among others."""
    for rows in (BAD, X, BAD):
        await clients.ask("model gated", rows, slo_ms=LONG_MS)
        await clients.post("model gated", rows, slo_ms=LONG_MS)
    rows = [X, X, BAD, X, X, X]
    await asyncio.gather(*(clients.ask("model gated", each, slo_ms=LONG_MS) for each in rows))


async def sleeping(clients: CountingClients, gate: Gate) -> None:
    """The container sleeps through its objective: of the request that it has, and of those behind it."""
    first = asyncio.create_task(clients.ask("model gated", STOPS, slo_ms=OBJECTIVE_MS))
    await gate.reached()
    behind = [clients.ask("model gated", X, slo_ms=OBJECTIVE_MS) for _ in range(3)]
    outcomes = await asyncio.gather(first, *behind, clients.post("model gated", X, slo_ms=OBJECTIVE_MS))
    assert not isinstance(outcomes[0], Prediction)
    assert outcomes[0].status == "timed_out"
    gate.let_go()


async def cancelling(clients: CountingClients, gate: Gate) -> None:
    """Clients cancel what is being computed, and what waits behind it; others close their connections."""
    before = sum(of_status(await clients.status()).values())
    now = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(clients.ask_and_cancel("model gated", STOPS, now))
        await gate.reached()
        for leave in (clients.ask_and_cancel, clients.ask_and_close, clients.post_and_leave):
            for _ in range(3):
                group.create_task(leave("model gated", X, now))
        await until(lambda: in_flight(clients, 10))
        now.set()
    await until(lambda: in_flight(clients, 0))
    assert sum(of_status(await clients.status()).values()) == before + 10
    gate.let_go()


async def in_flight(clients: CountingClients, count: int) -> bool:
    return bool((await clients.status())["in_flight"] == count)


async def invalid(clients: CountingClients) -> None:
    wrong = np.ones((1, 5), np.float32)
    for what in ("model a", "model gated", "app covered"):
        await clients.ask(what, wrong, slo_ms=LONG_MS)
    for what in ("model nobody", "app nobody"):
        await clients.ask(what, X, slo_ms=LONG_MS)
    await clients.ask("model a", X, version="7")
    await clients.ask("model a", X, slo_ms=-1)
    await clients.ask("model a", X, weight=1e9)
    await clients.post("model a", X, slo_ms=1e12)
    assert clients.seen[NOTHING, "invalid"] == 2


async def hopeless(clients: CountingClients) -> None:
    """Budgets that are too small for what is asked; applications do with that what they are told to."""
    for _ in range(3):
        await clients.ask("model never", X, slo_ms=HOPELESS_MS)
        await clients.post("model never", X, slo_ms=HOPELESS_MS)
        covered = await clients.ask("app covered", X, slo_ms=HOPELESS_MS)
        assert isinstance(covered, Prediction)
        assert covered.default_used
        await clients.ask("app bare", X, slo_ms=HOPELESS_MS)
        await clients.ask("app sound", X, slo_ms=LONG_MS)
    assert clients.seen["model never", "rejected"] == 7  # with the large one


async def killing(clients: CountingClients, running: Mesh) -> None:
    """The only worker is killed while it has requests."""
    asked = [asyncio.create_task(clients.ask("model a", X, slo_ms=3000)) for _ in range(40)]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    pid = running.supervisor.pids()["gpu_worker"]
    os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*asked)
    await until(lambda: running.supervisor.pids().get("gpu_worker", pid) != pid)
    while not isinstance(await clients.ask("model a", X, slo_ms=3000), Prediction):
        pass


@asynccontextmanager
async def applications(running: Mesh) -> AsyncIterator[set[str]]:
    """One of a model that serves, and two of one that does not; their names."""
    async with AsyncClient(running.address) as client:
        default = {"y": np.zeros((1, 2), np.float32)}
        await client.create_app("sound", ["a"], "single", slo_ms=LONG_MS)
        await client.create_app("covered", ["never"], "single", slo_ms=HOPELESS_MS, default=default)
        await client.create_app("bare", ["never"], "single", slo_ms=HOPELESS_MS)
        yield {"app sound", "app covered", "app bare"}


async def at_rest(clients: CountingClients, evidence: Evidence) -> None:
    """All that is said of the run is in the evidence, as it stays; views are as old as the gateway lets them be."""
    await until(lambda: in_flight(clients, 0))
    evidence.status = await clients.status()
    while not of_same_age(evidence):
        evidence.page = await clients.get("/status.json")
    http = Counter(clients.http)
    evidence.metrics = await clients.get("/metrics")
    evidence.seen, evidence.http = dict(clients.seen), http


def of_same_age(evidence: Evidence) -> bool:
    """The page shows the frontend as it is at rest, not as it was before."""
    (told,) = evidence.page.get("frontends", {"": {"uptime_s": 0.0}}).values()
    return bool(told["uptime_s"] >= evidence.status["uptime_s"])


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Of a run with every fault; its logs are closed."""
    folder = tmp_path_factory.mktemp("counts")
    for name in ("a", "never"):
        emulated_model(folder / "repository", name)
    gate = Gate(folder / "gate")
    (folder / "gated.py").write_text(GATED.format(gate=str(gate.path)))
    found = Evidence(telemetry=folder / "data" / "telemetry")
    port = free_ports(1)[0]

    async def scenario(running: Mesh) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(container(running, folder, "gated:double", *SPECS, model="gated"))
            names = await stack.enter_async_context(applications(running))
            targets = {*names, "model a", "model gated", "model never"}
            clients = await stack.enter_async_context(counting_clients(running.address, port, targets))
            await until_gateway(clients)
            await sound(clients)
            await large(clients)
            await raising(clients)
            await sleeping(clients, gate)
            await cancelling(clients, gate)
            await invalid(clients)
            await hopeless(clients)
            await killing(clients, running)
            await sound(clients)
            await at_rest(clients, found)

    device = emulated_device(folder, exec_ms=5, never="never")
    run_with_mesh(scenario, folder / "repository", folder / "data", device=device, http_port=port)
    return found


async def until_gateway(clients: CountingClients) -> None:
    """The gateway serves; it was not counted before."""

    async def ready() -> bool:
        with contextlib.suppress(OSError):
            return bool((await clients.get("/status.json")).get("frontends"))  # a refusal has none
        return False

    await until(ready)


def test_the_run_had_every_outcome(evidence: Evidence) -> None:
    outcomes = by_outcome(Counter(evidence.seen))
    expected = {"ok", "rejected", "timed_out", "failed", "invalid", CANCELLED}
    assert {outcome for outcome, count in outcomes.items() if count} == expected


def test_the_frontends_status_counts_what_clients_counted(evidence: Evidence) -> None:
    assert of_status(evidence.status) == evidence.seen


def test_the_page_counts_what_clients_counted(evidence: Evidence) -> None:
    assert of_page(evidence.page) == evidence.seen


def test_the_metrics_count_what_clients_counted(evidence: Evidence) -> None:
    assert of_metrics(evidence.metrics) == evidence.seen


def test_the_logs_and_what_never_came_into_them_count_what_clients_and_applications_asked(evidence: Evidence) -> None:
    asked = by_outcome(Counter({key: count for key, count in evidence.seen.items() if not key[0].startswith("app ")}))
    unlogged = evidence.status["outcomes"]["unlogged"]
    assert of_logs(evidence.telemetry, unlogged) == asked + asks_of(evidence.status)


def test_http_responses_are_counted_as_their_clients_saw_them(evidence: Evidence) -> None:
    told = Counter(evidence.page["gateway"]["responses"]) + Counter({"200": 1})  # the page itself
    assert told == evidence.http
    answers = samples(evidence.metrics, "gearmesh_http_answers")
    assert {labels["code"]: value for labels, value in answers} == evidence.http


def test_attainment_is_answered_in_time_of_offered(evidence: Evidence) -> None:
    total = evidence.page["outcomes"]["total"]
    cancelled = by_outcome(Counter(evidence.seen))[CANCELLED]
    assert total["offered"] == sum(evidence.seen.values()) - cancelled
    assert total["attainment"] == total["in_time"] / total["offered"]
    assert total["in_time"] + total["late"] == total["ok"]
