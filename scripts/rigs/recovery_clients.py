"""Steady clients of a mesh in which something dies: what each of their requests saw, and how long the outage was."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import numpy.typing as npt

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from frontend.gateway.tensors import NAMES, to_json

SLO_MS = 500.0
AGAIN_S = 1.0  # an outage is over when nothing fails for so long
HANGS_S = 0.4  # a request without an answer for so long may have been lost
PAUSE_S = 0.02  # between two looks at that
OK = "ok"
Ask = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that a client asks."""

    input: str
    row: npt.NDArray[np.float32]
    every_s: float  # between two requests


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it left, when its answer was there, and what that was."""

    sent_s: float
    ended_s: float
    outcome: str  # ok, or an error's status and code


@dataclass(slots=True)
class Path:
    """One client in an open loop, for one model over one protocol."""

    name: str
    every_s: float
    asked: list[Asked] = field(default_factory=list)
    pending: set[float] = field(default_factory=set)  # when each request left that has no answer yet

    def back_s(self, since_s: float) -> float | None:
        """When the first answer was there of those after which nothing that was sent since then has failed.

        `since_s` if nothing failed; None if nothing has been answered ok since the last failure.
        """
        since = [each for each in self.asked if each.sent_s >= since_s]
        failed = [each.sent_s for each in since if each.outcome != OK]
        if not failed:
            return since_s
        return min((each.ended_s for each in since if each.outcome == OK and each.sent_s > max(failed)), default=None)

    def is_well(self, since_s: float, now: float) -> bool:
        """Whether requests that left since then are answered ok, none has failed for AGAIN_S, and none hangs."""
        back_s = self.back_s(since_s)
        if back_s is None or now - back_s < AGAIN_S:
            return False
        hanging = any(since_s <= sent_s < now - HANGS_S for sent_s in self.pending)
        return not hanging and any(each.outcome == OK and each.sent_s >= since_s for each in self.asked)


@dataclass(frozen=True, slots=True)
class Outage:
    """What the clients saw of one death."""

    seconds: float | None  # until answers were ok again on every path; None: they never were
    asked: int  # requests that were in flight or sent until then
    lost: dict[str, int]  # {outcome: requests} of those that were not ok


def outage(paths: Iterable[Path], killed_s: float) -> Outage:
    """The outage of a death at that instant: the longest of all paths.

    On a path where nothing fails that is sent after the death, it is the longest that such a request waits.
    """
    seconds = [_of_path(path, killed_s) for path in paths]
    concerned = [each for path in paths for each in path.asked if each.ended_s >= killed_s]
    lost = Counter(each.outcome for each in concerned if each.outcome != OK)
    known = [each for each in seconds if each is not None]
    longest = max(known) if len(known) == len(seconds) else None
    until_s = killed_s + (longest or 0.0)
    return Outage(longest, sum(each.sent_s <= until_s for each in concerned), dict(lost))


def _of_path(path: Path, killed_s: float) -> float | None:
    back_s = path.back_s(killed_s)
    if back_s is None or back_s > killed_s:
        return None if back_s is None else back_s - killed_s
    return max((each.ended_s - each.sent_s for each in path.asked if each.sent_s >= killed_s), default=0.0)


async def is_over(paths: Iterable[Path], killed_s: float, within_s: float) -> None:
    """Returns once nothing has failed on any path for AGAIN_S, or the time is up."""
    while time.monotonic() < killed_s + within_s:
        now = time.monotonic()
        if all(path.is_well(killed_s, now) for path in paths):
            return
        await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def clients(
    address: str, http_port: int, subjects: dict[str, Subject], http_model: str
) -> AsyncIterator[list[Path]]:
    """New clients that ask until the block ends: each model over ZeroMQ, and `http_model` over HTTP, too.

    They are new, as a client that was served when a worker died is not served like any other.
    """
    async with AsyncClient(address) as client, aiohttp.ClientSession() as session:
        asks = [(_zmq(client, name, subject), Path(name, subject.every_s)) for name, subject in subjects.items()]
        http = subjects[http_model]
        asks.append((_http(session, http_port, http_model, http), Path(f"{http_model} over HTTP", http.every_s)))
        tasks = [asyncio.create_task(_loop(ask, path)) for ask, path in asks]
        try:
            yield [path for _, path in asks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _loop(ask: Ask, path: Path) -> None:
    """A request in each interval, whatever became of those before."""
    start_s = time.monotonic()

    async def one() -> None:
        sent_s = time.monotonic()
        path.pending.add(sent_s)
        outcome = await ask()
        path.pending.discard(sent_s)
        path.asked.append(Asked(sent_s, time.monotonic(), outcome))

    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            await asyncio.sleep(max(0.0, start_s + number * path.every_s - time.monotonic()))
            group.create_task(one())


def _zmq(client: AsyncClient, model: str, subject: Subject) -> Ask:
    async def ask() -> str:
        outcome = await client.submit(model, {subject.input: subject.row}, slo_ms=SLO_MS, cache=False)
        return OK if isinstance(outcome, Prediction) else f"{outcome.status} {outcome.code}"

    return ask


def _http(session: aiohttp.ClientSession, port: int, model: str, subject: Subject) -> Ask:
    row = subject.row
    url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
    tensor = {"name": subject.input, "shape": row.shape, "datatype": NAMES[row.dtype.name], "data": to_json(row)}
    body = {"inputs": [tensor], "parameters": {"slo_ms": SLO_MS, "cache": False}}

    async def ask() -> str:
        try:
            async with session.post(url, json=body, timeout=aiohttp.ClientTimeout(total=5.0)) as response:
                told = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"HTTP {type(error).__name__}"
        return OK if response.status == 200 else f"{told.get('status', response.status)} {told.get('code', '')}"

    return ask
