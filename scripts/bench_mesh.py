"""The overhead of the mesh: round trips and throughput for a no-op model, compared with a bare ZeroMQ echo and mosec.

    .venv/bin/python scripts/bench_mesh.py [--rounds 3] [--seconds 2] [--without-mosec] [--json FILE]

All systems run interleaved: every round measures each of them at each number of requests in flight. One client process,
closed loop, callbacks only. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import uvloop
import zmq
from rich.console import Console
from rich.table import Table

from gearmesh.operations.meshes import mesh
from gearmesh.operations.ports import free_ports
from gearmesh.telemetry.machine import Watch, describe, median, quantile
from mesh.codes import AnswerStatus
from scripts import ROOT
from scripts.build_models import build_noop

OK = AnswerStatus.OK
IN_FLIGHT = (1, 16, 64, 256)
FLOATS = struct.pack("<16f", *range(16))
console = Console(width=None if sys.stdout.isatty() else 140, stderr=False)
Drive = Callable[[int, float], Awaitable[tuple[list[float], int]]]  # (in flight, seconds) -> latencies, number not ok


@dataclass(slots=True)
class System:
    """One of the systems compared."""

    name: str
    drive: Drive
    pids: dict[str, int]
    runs: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # {in flight: results, one per round}


class ZmqDriver:
    """Keeps a number of requests in flight on one DEALER socket, by callbacks."""

    def __init__(
        self, address: str, request: Callable[[int], bytes], check: Callable[[bytes], tuple[int, bool]]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._request, self._check = request, check
        self._context = zmq.Context()
        self._sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):  # no limits: the number in flight is one
            self._sock.setsockopt(option, 0)
        self._sock.connect(address)
        self._sent: dict[int, float] = {}
        self._number = 0
        self._ends_s = 0.0
        self._latencies: list[float] = []
        self._not_ok = 0
        self._done: asyncio.Future[None] | None = None
        self._loop.add_reader(int(self._sock.getsockopt(zmq.FD)), self._readable)

    async def drive(self, in_flight: int, seconds: float) -> tuple[list[float], int]:
        """Latencies of all requests that ended within the time, and the number of answers not ok."""
        self._latencies, self._not_ok = [], 0
        self._done = self._loop.create_future()
        self._ends_s = time.perf_counter() + seconds
        for _ in range(in_flight):
            self._ask()
        self._loop.call_soon(self._readable)
        await self._done
        return self._latencies, self._not_ok

    def close(self) -> None:
        """Closes the socket."""
        self._loop.remove_reader(int(self._sock.getsockopt(zmq.FD)))
        self._sock.close(0)
        self._context.term()

    def _ask(self) -> None:
        self._number += 1
        self._sent[self._number] = time.perf_counter()
        self._sock.send(self._request(self._number), zmq.NOBLOCK)

    def _readable(self) -> None:
        while True:
            try:
                body = self._sock.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            now = time.perf_counter()
            number, ok = self._check(body)
            self._latencies.append(now - self._sent.pop(number))
            self._not_ok += not ok
            if now < self._ends_s:
                self._ask()
        if not self._sent and self._done is not None and not self._done.done():
            self._done.set_result(None)
        if int(self._sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._readable)


def ask_noop(number: int) -> bytes:
    """An infer request for the no-op model."""
    inputs = [{"name": "x", "dtype": "float32", "shape": [1, 16], "data": FLOATS}]
    body: bytes = msgpack.packb({"op": "infer", "id": number, "model": "noop", "inputs": inputs, "slo_ms": 1000})
    return body


def check_noop(body: bytes) -> tuple[int, bool]:
    """(id, whether it is the right answer)."""
    answer = msgpack.unpackb(body)
    return answer["id"], answer["status"] == OK and answer["outputs"][0]["data"] == FLOATS


def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Starts a process in a group of its own, without output."""
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, start_new_session=True, **options)


ECHO = """
import asyncio, sys, uvloop, zmq
async def main():
    sock = zmq.Context().socket(zmq.ROUTER); sock.bind(sys.argv[1])
    loop = asyncio.get_running_loop()
    def readable():
        while True:
            try: identity = sock.recv(zmq.NOBLOCK)
            except zmq.Again: break
            body = sock.recv(zmq.NOBLOCK)
            sock.send(identity, zmq.SNDMORE); sock.send(body)
        if sock.getsockopt(zmq.EVENTS) & zmq.POLLIN: loop.call_soon(readable)
    loop.add_reader(sock.getsockopt(zmq.FD), readable); loop.call_soon(readable)
    await asyncio.Event().wait()
uvloop.run(main())
"""


@asynccontextmanager
async def echo() -> AsyncIterator[System]:
    """A bare ROUTER that returns each message: the lower bound."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    process = start([sys.executable, "-c", ECHO, address])
    driver = ZmqDriver(address, ask_noop, lambda body: (msgpack.unpackb(body)["id"], True))
    try:
        yield System("zmq echo", driver.drive, {"echo": process.pid})
    finally:
        driver.close()
        process.kill()
        process.wait()


@asynccontextmanager
async def ours(repository: Path, folder: Path, *, compact: bool) -> AsyncIterator[System]:
    """The mesh, compact or with each service as a process of its own."""
    name = "gearmesh compact" if compact else "gearmesh"
    async with mesh(repository, folder / name.replace(" ", "-"), compact=compact) as running:
        driver = ZmqDriver(running.address, ask_noop, check_noop)
        try:
            yield System(name, driver.drive, running.supervisor.pids())
        finally:
            driver.close()


MOSEC = """
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin
import numpy as np
class Noop(MsgpackMixin, Worker):
    def forward(self, data):
        return [{"y": np.frombuffer(item["x"], np.float32).copy().tobytes()} for item in data]
server = Server()
server.append_worker(Noop, num=1, max_batch_size=16, max_wait_time=1)
server.run()
"""


class HttpDriver:
    """Keeps a number of requests in flight, each on a kept-alive connection of its own."""

    def __init__(
        self, port: int, body: bytes, *, path: str = "/inference", content: str = "application/msgpack"
    ) -> None:
        head = (
            f"POST {path} HTTP/1.1",
            "Host: b",
            f"Content-Type: {content}",
            f"Content-Length: {len(body)}",
        )
        self._request = "\r\n".join((*head, "", "")).encode() + body
        self._port = port
        self._pool: list[_Http] = []

    async def drive(self, in_flight: int, seconds: float) -> tuple[list[float], int]:
        """Latencies of all requests that ended within the time, and the number of answers not ok."""
        loop = asyncio.get_running_loop()
        self._pool = [connection for connection in self._pool if not connection.closed]
        while len(self._pool) < in_flight:
            _, protocol = await loop.create_connection(lambda: _Http(self._request), "127.0.0.1", self._port)
            self._pool.append(protocol)
        ends_s = time.perf_counter() + seconds
        runs = [connection.run(ends_s) for connection in self._pool[:in_flight]]
        await asyncio.gather(*runs)
        chosen = self._pool[:in_flight]
        return [s for connection in chosen for s in connection.latencies], sum(c.not_ok for c in chosen)


class _Http(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = b""
        self._transport: Any = None
        self._done: asyncio.Future[None] | None = None
        self._ends_s = self._sent_s = 0.0
        self.latencies: list[float] = []
        self.not_ok = 0
        self.closed = False  # by the server

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._done is not None and not self._done.done():
            self.not_ok += 1
            self.latencies.append(time.perf_counter() - self._sent_s)
            self._done.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def run(self, ends_s: float) -> "asyncio.Future[None]":
        """Sends one request after the other until the time is up."""
        self.latencies, self.not_ok, self._ends_s = [], 0, ends_s
        self._done = asyncio.get_running_loop().create_future()
        self._ask()
        return self._done

    def _ask(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        self._buffer = b""
        now = time.perf_counter()
        self.latencies.append(now - self._sent_s)
        self.not_ok += b" 200 " not in head[:16]
        if now < self._ends_s:
            self._ask()
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)


@asynccontextmanager
async def mosec(folder: Path) -> AsyncIterator[System]:
    """mosec, the fastest peer here, in an environment of its own."""
    python = peer_environment("mosec", ["mosec", "msgpack", "numpy"])
    port = free_ports(1)[0]
    script = folder / "mosec_noop.py"
    script.write_text(MOSEC)
    process = start([str(python), str(script), "--port", str(port), "--log-level", "error"])
    driver = HttpDriver(port, msgpack.packb({"x": FLOATS}))
    try:
        await _answers(driver)
        yield System("mosec msgpack", driver.drive, family(process.pid))
    finally:
        os.killpg(process.pid, 15)
        process.wait()


async def _answers(driver: HttpDriver) -> None:
    for _ in range(300):
        try:
            _, not_ok = await driver.drive(1, 0.01)
            if not not_ok:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("mosec did not start")


def peer_environment(name: str, packages: list[str]) -> Path:
    """The interpreter of a virtual environment with these packages; creates it if it does not exist."""
    folder = ROOT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        console.print(f"installing {name} into {folder.relative_to(ROOT)}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "installed").touch()
    return python


def family(pid: int) -> dict[str, int]:
    """{name: process id} of the process and its descendants."""
    found = {f"p{pid}": pid}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found.update(family(int(child)))
    return found


async def measure(systems: list[System], rounds: int, seconds: float) -> None:
    """Measures every system at every number in flight, in every round."""
    for round_ in range(rounds):
        for system in systems:
            for in_flight in IN_FLIGHT:
                await system.drive(in_flight, 0.3)
                watch = Watch({**system.pids, "client": os.getpid()})
                latencies, not_ok = await system.drive(in_flight, seconds)
                system.runs.setdefault(in_flight, []).append(_summary(latencies, not_ok, watch.stop()))
        console.print(f"round {round_ + 1} of {rounds} done", style="dim")


def _summary(latencies: list[float], not_ok: int, watched: dict[str, Any]) -> dict[str, Any]:
    ordered = sorted(latencies)
    n = len(ordered)
    p50, p99 = quantile(ordered, 0.5), quantile(ordered, 0.99)
    return {
        "n": n,
        "not_ok": not_ok,
        "per_s": n / watched["wall_s"],
        "p50_ms": None if p50 is None else p50 * 1e3,
        "p99_ms": None if p99 is None else p99 * 1e3,
        "cpu_us": {name: used / n * 1e6 for name, used in watched["cpu_s"].items()},
        "steal": watched["steal"],
        "foreign": watched["foreign"],
    }


def report(systems: list[System]) -> dict[str, Any]:
    """Prints the tables and returns the results for the JSON."""
    results: dict[str, Any] = {}
    for in_flight in IN_FLIGHT:
        table = Table(
            "system", "req/s (min-max)", "p50 ms", "p99 ms", "cpu us/req", "steal", "foreign", "not ok",
            title=f"{in_flight} in flight",
        )  # fmt: skip
        for system in systems:
            runs = system.runs[in_flight]
            middle = _middle(runs)
            results.setdefault(system.name, {})[str(in_flight)] = middle
            table.add_row(
                system.name,
                f"{middle['per_s']:,.0f} ({min(r['per_s'] for r in runs):,.0f}-{max(r['per_s'] for r in runs):,.0f})",
                f"{middle['p50_ms']:.2f}" if middle["p50_ms"] is not None else "-",
                f"{middle['p99_ms']:.2f}" if middle["p99_ms"] is not None else "-",
                " ".join(f"{name}={us:.0f}" for name, us in middle["cpu_us"].items()),
                f"{middle['steal']:.2f}",
                f"{middle['foreign']:.2f}",
                str(sum(run["not_ok"] for run in runs)),
            )
        console.print(table)
    return results


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and the values of each round."""
    keys = ("per_s", "p50_ms", "p99_ms", "steal", "foreign")
    middle: dict[str, Any] = {
        key: median(run[key] for run in runs) if all(run[key] is not None for run in runs) else None for key in keys
    }
    middle["cpu_us"] = {name: median(run["cpu_us"].get(name, 0.0) for run in runs) for name in runs[0]["cpu_us"]}
    middle["runs"] = runs
    return middle


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The figures with goals: the round trip relative to the echo's, throughput relative to the best peer's."""
    found = {}
    for name in ("gearmesh", "gearmesh compact"):
        found[f"{name}: p50 at 1 / echo's"] = results[name]["1"]["p50_ms"] / results["zmq echo"]["1"]["p50_ms"]
        if "mosec msgpack" in results:
            for n in ("16", "64", "256"):
                found[f"{name}: req/s at {n} / mosec's"] = (
                    results[name][n]["per_s"] / results["mosec msgpack"][n]["per_s"]
                )
    return found


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts all systems, measures them, and stops them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_noop(folder / "models", "noop")
        async with AsyncExitStack() as stack:
            systems = [
                await stack.enter_async_context(ours(folder / "models", folder, compact=False)),
                await stack.enter_async_context(ours(folder / "models", folder, compact=True)),
                await stack.enter_async_context(echo()),
            ]
            if not arguments.without_mosec:
                systems.append(await stack.enter_async_context(mosec(folder)))
            await measure(systems, arguments.rounds, arguments.seconds)
            results = report(systems)
    found = ratios(results)
    for name, ratio in found.items():
        console.print(f"{name}: {ratio:.2f}")
    return {
        "machine": describe(),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "results": results,
        "ratios": found,
    }


def main() -> int:
    """Runs the benchmark. Exit code 0, or 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--without-mosec", action="store_true")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    result = uvloop.run(run(arguments))
    text = json.dumps(result)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return int(
        any(run["not_ok"] for system in result["results"].values() for n in system.values() for run in n["runs"])
    )


if __name__ == "__main__":
    raise SystemExit(main())
