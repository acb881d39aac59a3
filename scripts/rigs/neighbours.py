"""Bad neighbours: clients that give up and ask again, one that repeats a bad row, many that ask and leave.

    python -P neighbours.py PLAN      as a process of its own, with the client of any checkout on PYTHONPATH

PLAN is a Plan as JSON. Prints the instant at which they began; at the end of standard input, how often what happened.
Imports nothing of gearmesh but its client.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

PAUSE_S = 0.02  # between an answer, or giving up, and the next request
STAY_S = 0.5  # after the last request was sent, those that leave do
CONNECTING_MAX = 100  # at once: more than a listening socket keeps would be tried again after a second
Attempt = Callable[[], Awaitable[str]]  # one request; "ok", or status and code


@dataclass(frozen=True, slots=True)
class Plan:
    """What the neighbours do."""

    kind: str  # impatient | impatient_http | repeating | leaving
    address: str  # of the frontend
    http_port: int
    model: str
    dtype: str
    row: list[Any]  # of each request, without the dimension of rows
    slo_ms: float
    clients: int = 1
    patience_s: float = 0.0  # of the impatient


async def impatient(plan: Plan, told: Counter[str]) -> None:
    """Each client gives up at its patience, and asks again. It cancels the task that awaits `AsyncClient.infer`."""
    await _insist([over_zmq(plan) for _ in range(plan.clients)], plan.patience_s, told)


async def impatient_http(plan: Plan, told: Counter[str]) -> None:
    """The same over HTTP: to give up is to close the connection."""
    await _insist([over_http(plan) for _ in range(plan.clients)], plan.patience_s, told)


async def repeating(plan: Plan, told: Counter[str]) -> None:
    """Asks the same again and again, whatever the answer."""
    await _insist([over_zmq(plan)], None, told)


async def leaving(plan: Plan, told: Counter[str]) -> None:
    """All send one request over HTTP, and close their connections."""
    room = asyncio.Semaphore(CONNECTING_MAX)
    request = http_request(plan)

    async def send() -> asyncio.StreamWriter:
        async with room:
            _, writer = await asyncio.open_connection("127.0.0.1", plan.http_port)
            writer.write(request)
            await writer.drain()
            return writer

    writers = await asyncio.gather(*(send() for _ in range(plan.clients)))
    told["asked"] = len(writers)
    await asyncio.sleep(STAY_S)
    for writer in writers:
        writer.close()
    begun()


async def _insist(attempts: Sequence[Attempt], patience_s: float | None, told: Counter[str]) -> None:
    async def one(attempt: Attempt) -> None:
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    outcome = await attempt()
                told[outcome] += 1
            except TimeoutError:
                told["given up"] += 1
            await asyncio.sleep(PAUSE_S)

    begun()
    await asyncio.gather(*map(one, attempts))


def over_zmq(plan: Plan) -> Attempt:
    """One request at a time, by a client of its own."""
    import numpy as np  # those over HTTP need neither

    from gearmesh import AsyncClient, RequestError  # older checkouts have them elsewhere

    client = AsyncClient(plan.address)
    rows = np.array([plan.row], plan.dtype)

    async def attempt() -> str:
        try:
            await client.infer(plan.model, rows, slo_ms=plan.slo_ms, cache=False)
        except RequestError as error:
            return f"{error.status} {error.code}"
        return "ok"

    return attempt


def over_http(plan: Plan) -> Attempt:
    """One request at a time, each on a connection of its own, which is closed when the attempt ends."""
    request = http_request(plan)

    async def attempt() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", plan.http_port)
        try:
            writer.write(request)
            line = await reader.readline()
            status = line.split()[1].decode() if line else "closed"
            return "ok" if status == "200" else f"HTTP {status}"
        finally:
            writer.close()

    return attempt


def http_request(plan: Plan) -> bytes:
    """The same request over HTTP. Only of float32."""
    tensor = {"name": "x", "shape": [1, len(plan.row)], "datatype": "FP32", "data": plan.row}
    body = json.dumps({"inputs": [tensor], "parameters": {"slo_ms": plan.slo_ms, "cache": False}}).encode()
    head = f"POST /v2/models/{plan.model}/infer HTTP/1.1\r\nHost: n\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def begun() -> None:
    """Whoever started this process knows that, and when."""
    sys.stdout.write(f"{time.monotonic()}\n")
    sys.stdout.flush()


KINDS = {each.__name__: each for each in (impatient, impatient_http, repeating, leaving)}


async def main(plan: Plan) -> None:
    """Runs until standard input ends."""
    told: Counter[str] = Counter()
    running = asyncio.create_task(KINDS[plan.kind](plan, told))
    told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), told_to_end.set)
    ended = asyncio.create_task(told_to_end.wait())
    await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()  # those that leave have an end; of the others it is an error
    await ended
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Plan(**json.loads(sys.argv[1]))))
