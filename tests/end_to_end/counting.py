"""Clients that count how each of their requests ended, and what the mesh says of it: four adapters to one form.

Each adapter gives Counts: {(what was asked, outcome): requests}. What was asked is "model NAME", "app NAME", or
"nothing" where no such thing is deployed.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
from prometheus_client.parser import text_string_to_metric_families

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from gearmesh.telemetry.endings import endings
from gearmesh.telemetry.journals import read_requests
from mesh.codes import AnswerStatus
from scripts.bench_http import request_body
from scripts.rigs.meshes import LONG_MS

Counts = Counter[tuple[str, str]]
Rows = npt.NDArray[np.float32]
CANCELLED = "cancelled"
OUTCOMES = (*map(str, AnswerStatus), CANCELLED)
NOTHING = "nothing"
OF_LOG = {"in_time": "ok", "late": "ok"}  # {outcome in the log: as clients call it}, where that differs


class CountingClients:
    """Clients of one mesh. `seen`: every request of theirs, once it has ended; `http`: every response, by status."""

    def __init__(
        self, zmq: AsyncClient, address: str, http: aiohttp.ClientSession, base: str, targets: set[str]
    ) -> None:
        self._zmq, self._address = zmq, address
        self._session, self._base = http, base
        self._targets = targets  # that are there
        self.seen: Counts = Counter()
        self.http: Counter[str] = Counter()

    def count(self, what: str, outcome: str) -> None:
        """Notes how a request ended."""
        self.seen[what if what in self._targets else NOTHING, outcome] += 1

    async def ask(self, what: str, rows: Rows, **options: Any) -> Prediction | RequestError:
        """One request over ZeroMQ, counted."""
        kind, name = what.split()
        target = {"model": name} if kind == "model" else {"app": name}
        outcome = await self._zmq.submit(x=rows, cache=False, **target, **options)
        self.count(what, "ok" if isinstance(outcome, Prediction) else outcome.status)
        return outcome

    async def ask_and_cancel(self, what: str, rows: Rows, when: asyncio.Event) -> None:
        """One request over ZeroMQ whose task is cancelled at that event, counted; it must not be answered before."""
        await _cancelled(self.ask(what, rows, slo_ms=LONG_MS), when)
        self.count(what, CANCELLED)

    async def ask_and_close(self, what: str, rows: Rows, when: asyncio.Event) -> None:
        """One request on a ZeroMQ connection of its own, which is closed at that event, counted; likewise."""
        async with AsyncClient(self._address) as client:
            await client.models()
            asked = client.submit(what.split()[1], rows, slo_ms=LONG_MS, cache=False)
            await when.wait()
            assert not asked.done(), asked.result()
        self.count(what, CANCELLED)

    async def post(self, what: str, rows: Rows, **parameters: Any) -> str:
        """One request over HTTP, counted; its outcome."""
        kind, name = what.split()
        body, _ = request_body({"x": rows}, parameters={"cache": False, **parameters})
        path = f"/v2/{'models' if kind == 'model' else 'applications'}/{name}/infer"
        async with self._session.post(self._base + path, data=body) as response:
            told = await response.json()
        self.http[str(response.status)] += 1
        outcome = "ok" if response.status == 200 else str(told["status"])
        self.count(what, outcome)
        return outcome

    async def post_and_leave(self, what: str, rows: Rows, when: asyncio.Event) -> None:
        """One request over HTTP whose connection is closed at that event, counted; likewise."""
        await _cancelled(self.post(what, rows, slo_ms=LONG_MS), when)
        self.count(what, CANCELLED)

    async def get(self, path: str) -> Any:
        """What a page says: JSON, or text."""
        async with self._session.get(self._base + path) as response:
            self.http[str(response.status)] += 1
            return await (response.json() if path.endswith(".json") else response.text())

    async def status(self) -> Mapping[str, Any]:
        """What the frontend says."""
        return await self._zmq.call("status")


async def _cancelled(asking: Coroutine[Any, Any, Any], when: asyncio.Event) -> None:
    task = asyncio.create_task(asking)
    await when.wait()
    assert not task.done(), task.result()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@asynccontextmanager
async def counting_clients(address: str, http_port: int, targets: set[str]) -> AsyncIterator[CountingClients]:
    """They are connected until the block ends."""
    connector = aiohttp.TCPConnector(limit=0)
    async with AsyncClient(address) as zmq, aiohttp.ClientSession(connector=connector) as http:
        await zmq.models()
        yield CountingClients(zmq, address, http, f"http://127.0.0.1:{http_port}", targets)


def of_status(status: Mapping[str, Any]) -> Counts:
    """As the frontend counts: the answer to `status`."""
    told = status["outcomes"]
    found = {f"model {name}": tally for name, tally in told["models"].items()}
    found |= {f"app {name}": tally for name, tally in told["applications"].items()}
    return _flat({**found, NOTHING: told["unknown"]})


def of_page(page: Mapping[str, Any]) -> Counts:
    """As /status.json says; what asked for nothing that is there is only in its total."""
    told = page["outcomes"]
    named = _flat({f"model {name}": tally for name, tally in told["models"].items()})
    named += _flat({f"app {name}": tally for name, tally in told["applications"].items()})
    rest = Counter({outcome: told["total"][outcome] for outcome in OUTCOMES})
    rest.subtract(by_outcome(named))
    return named + Counter({(NOTHING, outcome): count for outcome, count in rest.items()})


def of_metrics(text: str) -> Counts:
    """As /metrics says."""
    found: Counts = Counter()
    for name, label in (("gearmesh_requests", "model"), ("gearmesh_app_requests", "app")):
        for labels, value in samples(text, name):
            what = f"{label} {labels[label]}" if labels[label] else NOTHING
            found[what, labels["outcome"]] += int(value)
    return +found


def asks_of(status: Mapping[str, Any]) -> Counter[str]:
    """{outcome: what applications asked of models}, which is in the logs as clients' requests are."""
    return by_outcome(_flat(status["outcomes"]["asks"]))


def of_logs(folder: Path, unlogged: Mapping[str, int]) -> Counter[str]:
    """{outcome: requests}, as controllers' logs have them, and those that no controller ever saw."""

    logged = sum((endings(log.facts) for log in read_requests(folder)), Counter[str]())
    found: Counter[str] = Counter(unlogged)
    for outcome, count in logged.items():
        found[OF_LOG.get(outcome, outcome)] += count
    return +found


def samples(text: str, family: str) -> list[tuple[Mapping[str, str], float]]:
    """(labels, value) of one family of counters or gauges."""
    (found,) = (each for each in text_string_to_metric_families(text) if each.name == family)
    return [(sample.labels, sample.value) for sample in found.samples]


def by_outcome(counts: Counts) -> Counter[str]:
    """{outcome: requests}, whatever was asked."""
    found: Counter[str] = Counter()
    for (_, outcome), count in counts.items():
        found[outcome] += count
    return found


def _flat(tallies: Mapping[str, Mapping[str, int]]) -> Counts:
    return +Counter({(what, each): tally[each] for what, tally in tallies.items() for each in OUTCOMES})
