"""What clients count of their own requests is what status, the page, the metrics and the log say of them."""

import asyncio
import http.client
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from frontend.core.outcomes import OUTCOMES
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from gearmesh.telemetry.endings import endings
from gearmesh.telemetry.journals import read_requests
from scripts.rigs.containers import SPECS, container
from scripts.rigs.meshes import LIMIT_S, LONG_MS, emulated_device, emulated_model, gearmesh, run_with_mesh, until

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)
OBJECTIVE_MS = 100.0
SLEEPER = "import time\n\ndef doze(x):\n    time.sleep(0.4)\n    return x * 2\n"
LOG_OF = {"in_time": "ok", "late": "ok"}  # {outcome in the log: the answer's status, where it is another}


class CountingClient:
    """A client that keeps its own account: {target: {outcome: requests}}."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.seen: dict[str, Counter[str]] = {}
        self.numbers: list[tuple[str, int]] = []  # (status, number in the log) of the answers that had one

    async def ask(self, model: str | None, x: Any = X, *, times: int = 1, **more: Any) -> None:
        """So many requests one after the other."""
        for _ in range(times):
            outcome = await self._client.submit(model, x, **{"cache": False, **more})
            status = "ok" if isinstance(outcome, Prediction) else outcome.status
            self.seen.setdefault(model or more["app"], Counter())[status] += 1
            if outcome.request is not None:
                self.numbers.append((status, outcome.request))

    @property
    def total(self) -> Counter[str]:
        """Of all targets."""
        return sum(self.seen.values(), Counter())


def of(tally: Any) -> Counter[str]:
    """The outcomes in what somebody tells."""
    return Counter({outcome: tally[outcome] for outcome in OUTCOMES if tally[outcome]})


def get(port: int, path: str) -> bytes:
    """The body of the gateway's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


def of_metrics(text: bytes, name: str, label: str) -> dict[str, Counter[str]]:
    """{model or application: its outcomes}, by a counter of the metrics."""
    found: dict[str, Counter[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if sample.name == name and sample.value:
                mine = found.setdefault(sample.labels[label], Counter())
                mine[sample.labels["outcome"]] += int(sample.value)
    return found


async def live(client: CountingClient) -> None:
    """Requests that end in every way that needs no fault of the mesh."""
    await client.ask("a", times=5, slo_ms=LONG_MS)
    await client.ask("a", times=3, slo_ms=LONG_MS, cache=True)
    await client.ask("a", np.zeros((20, 4), np.float32), slo_ms=LONG_MS)
    await client.ask("a", times=2, slo_ms=0.01)
    await client.ask("a", times=2, weight=-1.0)
    await client.ask("never", times=2, slo_ms=5000.0)
    await client.ask("nowhere", times=3)
    await client.ask(None, app="both", times=3, slo_ms=LONG_MS)
    await client.ask(None, app="both", weight=-1.0)
    await client.ask("sleepy", times=6)


async def look(client: CountingClient, running: Mesh, port: int) -> dict[str, Any]:
    """What the mesh says of the requests, at each place where it does."""
    seen: dict[str, Any] = {}

    async def told() -> bool:
        text = seen["metrics"] = await asyncio.to_thread(get, port, "/metrics")
        sums = [
            *of_metrics(text, "gearmesh_requests_total", "model").values(),
            *of_metrics(text, "gearmesh_app_requests_total", "app").values(),
        ]
        return sum(map(Counter.total, sums)) >= client.total.total()

    await until(told)  # the gateway's view is up to half a second old
    seen["page"] = json.loads(await asyncio.to_thread(get, port, "/status.json"))
    code, printed = await gearmesh(running, "status", "--json")
    assert code == 0, printed
    seen["status"] = json.loads(printed)
    code, seen["screen"] = await gearmesh(running, "status", "--over", "0")
    assert code == 0, seen["screen"]
    return seen


def test_a_client_s_own_counts_are_those_of_status_page_metrics_and_log(tmp_path: Path) -> None:
    repository, port = tmp_path / "repository", free_ports(1)[0]
    for name in ("a", "b", "never"):
        emulated_model(repository, name)
    seen: dict[str, Any] = {}

    async def scenario(running: Mesh) -> None:
        (tmp_path / "sleeper.py").write_text(SLEEPER)
        options = (*SPECS, "--slo-ms", f"{OBJECTIVE_MS:g}")
        async with (
            container(running, tmp_path, "sleeper:doze", *options, model="sleepy"),
            AsyncClient(running.address) as client,
        ):
            await client.create_app("both", ["a", "b"], policy="exp4")
            seen["client"] = CountingClient(client)
            await live(seen["client"])
            seen.update(await look(seen["client"], running, port))

    device = emulated_device(tmp_path, never="never")
    settings = {"device": device, "http_port": port, "compact": True}
    run_with_mesh(scenario, repository, tmp_path / "data", **settings)
    mine: CountingClient = seen["client"]
    assert mine.seen["sleepy"]["timed_out"] >= 1
    assert set(mine.seen["sleepy"]) <= {"timed_out", "rejected"}
    assert mine.total == of(seen["status"]["outcomes"]["total"]) == of(seen["page"]["outcomes"]["total"])
    models = {name: counts for name, counts in mine.seen.items() if name not in ("nowhere", "both")}
    for told in (seen["status"], seen["page"]):
        assert {name: of(tally) for name, tally in told["outcomes"]["models"].items()} == models
        assert of(told["outcomes"]["applications"]["both"]) == mine.seen["both"]
        assert told["outcomes"]["models"]["sleepy"]["attainment"] == 0.0
    assert of_metrics(seen["metrics"], "gearmesh_requests_total", "model") == {
        **models, "": mine.seen["nowhere"],
    }  # fmt: skip
    assert of_metrics(seen["metrics"], "gearmesh_app_requests_total", "app") == {"both": mine.seen["both"]}
    (line,) = [line.split() for line in seen["screen"].splitlines() if line.startswith("sleepy:1 ")]
    assert str(mine.seen["sleepy"]["timed_out"]) in line
    assert "0.0%" in line
    check_log(tmp_path / "data" / "telemetry", mine, seen["status"])


def check_log(folder: Path, mine: CountingClient, status: Any) -> None:
    """The log has what was asked of models and reached a controller: how much that was, the frontend knows."""
    (log,) = read_requests(folder)
    logged: Counter[str] = Counter()
    for outcome, count in endings(log.facts).items():
        logged[LOG_OF.get(outcome, outcome)] += count
    (frontend,) = status["frontends"].values()
    told = frontend["outcomes"]
    expected = sum((counts for target, counts in mine.seen.items() if target != "both"), Counter[str]())
    expected += sum(map(of, told["asks"].values()), Counter[str]())
    assert told["unlogged"]["ok"] >= 2, "of three equal requests that may be cached, two are"
    assert logged == expected - Counter(told["unlogged"])
    by_number: dict[int, set[str]] = {}
    for fact in log.facts:
        by_number.setdefault(fact.call or fact.request, set()).add(LOG_OF.get(fact.outcome, fact.outcome))
    for outcome, number in mine.numbers:
        assert by_number[number] == {outcome}, "an answer carries the number that the log has"
