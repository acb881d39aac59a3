"""Sound clients in an open loop: requests at given instants, whatever became of those before; answers are checked."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from frontend.gateway.tensors import NAMES, to_json

CLIENTS = 4  # connections of ZeroMQ that take turns
TOLERANCE = 1e-4  # of an answer, relative and absolute: batches are computed in other orders
OK, LATE, WRONG = "ok", "late", "wrong"  # outcomes beside an error's status and code


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is asked, and what it should answer."""

    model: str
    rows: Sequence[npt.NDArray[Any]]  # each [1, ...], asked in turn
    expected: Sequence[npt.NDArray[Any]]  # their outputs
    slo_ms: float
    batch_max: int
    replicas: int = 1
    input: str = "x"

    def is_right(self, number: int, output: npt.ArrayLike) -> bool:
        """Whether this is the output of the request of that number."""
        expected = self.expected[number % len(self.expected)]
        return bool(np.allclose(np.reshape(output, expected.shape), expected, TOLERANCE, TOLERANCE))


@dataclass(frozen=True, slots=True)
class Reply:
    """How one request ended."""

    outcome: str  # ok | wrong | an error's status and code
    process: str = ""  # that computed it, where the model says so in an output named pid


Ask = Callable[[int], Awaitable[Reply]]  # the request of that number


@dataclass(slots=True)
class Seen:
    """What the clients of one open loop saw."""

    latencies_s: list[float] = field(default_factory=list)  # from the due instant, of those answered ok, however late
    outcomes: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def zmq_asker(address: str, subject: Subject) -> AsyncIterator[Ask]:
    """Asks over ZeroMQ until the block ends."""
    clients = [AsyncClient(address) for _ in range(CLIENTS)]

    async def ask(number: int) -> Reply:
        rows = subject.rows[number % len(subject.rows)]
        client = clients[number % CLIENTS]
        outcome = await client.submit(subject.model, rows, slo_ms=subject.slo_ms, cache=False)
        if not isinstance(outcome, Prediction):
            return Reply(f"{outcome.status} {outcome.code}")
        right = subject.is_right(number, outcome.output)
        return Reply(OK if right else WRONG, str(outcome.outputs.get("pid", "")))

    try:
        for client in clients:
            await client.models()
        yield ask
    finally:
        for client in clients:
            client.close()


@asynccontextmanager
async def http_asker(port: int, subject: Subject) -> AsyncIterator[Ask]:
    """Asks over HTTP, as JSON, until the block ends; connections are kept, as many as there are requests in flight."""
    url = f"http://127.0.0.1:{port}/v2/models/{subject.model}/infer"
    bodies = [
        {
            "inputs": [
                {"name": subject.input, "shape": rows.shape, "datatype": NAMES[rows.dtype.name], "data": to_json(rows)}
            ],
            "parameters": {"slo_ms": subject.slo_ms, "cache": False},
        }
        for rows in subject.rows
    ]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int) -> Reply:
            try:
                async with session.post(url, json=bodies[number % len(bodies)]) as response:
                    told = await response.json()
            except aiohttp.ClientError as error:
                return Reply(f"HTTP {type(error).__name__}")
            if response.status != 200:
                return Reply(f"{told.get('status', response.status)} {told['code']}")
            right = subject.is_right(number, told["outputs"][0]["data"])
            return Reply(OK if right else WRONG)

        yield ask


def poisson(rate_per_s: float, seconds: float, rng: np.random.Generator) -> list[float]:
    """Instants of requests, in seconds from the start."""
    at_s = itertools.accumulate(iter(lambda: float(rng.exponential(1 / rate_per_s)), None))
    return list(itertools.takewhile(lambda s: s < seconds, at_s))


async def drive(ask: Ask, due_s: Sequence[float], budget_s: float) -> Seen:
    """Asks at these instants, and returns when all have ended."""
    seen = Seen()
    start_s = time.perf_counter()

    async def one(number: int, due_s: float) -> None:
        reply = await ask(number)
        took_s = time.perf_counter() - due_s
        if reply.outcome == OK:
            seen.latencies_s.append(took_s)
        seen.outcomes[LATE if reply.outcome == OK and took_s > budget_s else reply.outcome] += 1

    async with asyncio.TaskGroup() as group:
        for number, at_s in enumerate(due_s):
            await asyncio.sleep(start_s + at_s - time.perf_counter())
            group.create_task(one(number, start_s + at_s))
    return seen


async def capacity(ask: Ask, in_flight: int, seconds: float) -> float:
    """Right answers per second with so many requests in flight."""
    numbers = itertools.count()
    start_s = time.perf_counter()

    async def loop() -> int:
        right = 0
        while time.perf_counter() < start_s + seconds:
            right += (await ask(next(numbers))).outcome == OK
        return right

    answered = sum(await asyncio.gather(*(loop() for _ in range(in_flight))))
    return answered / (time.perf_counter() - start_s)


async def settled(ask: Ask, subject: Subject, within_s: float) -> None:
    """Returns once every replica answers. Raises: TimeoutError."""
    ends_s = time.perf_counter() + within_s
    found: set[str] = set()
    last = ""
    while len(found) < subject.replicas:
        if time.perf_counter() > ends_s:
            raise TimeoutError(
                f"{subject.model}: {len(found)} of {subject.replicas} answer after {within_s:g} s: {last}"
            )
        replies = await asyncio.gather(*(ask(number) for number in range(4 * subject.replicas)))
        found.update(reply.process for reply in replies if reply.outcome == OK)
        last = replies[-1].outcome
