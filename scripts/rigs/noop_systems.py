"""Systems that answer a request that takes no time: the mesh, a bare echo over ZeroMQ, and mosec."""

import asyncio
import os
import shutil
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from frontend.client.forms import FRAMED_BYTES
from gearmesh.operations.meshes import mesh
from gearmesh.operations.ports import free_ports
from mesh.codes import AnswerStatus
from scripts.rigs.checkouts import held_mesh
from scripts.rigs.closed_loops import Drive, HttpDriver, ZmqDriver
from scripts.rigs.processes import family, peer_environment, start

MODEL, SLO_MS = "noop", 1000
ECHO_NAME, MOSEC_NAME = "zmq echo", "mosec msgpack"


@dataclass(slots=True)
class System:
    """One of the systems compared."""

    name: str
    drive: Drive
    pids: dict[str, int]
    runs: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # {in flight: results, one per round}


@dataclass(frozen=True, slots=True)
class NoopRequest:
    """A request for the no-op model, whose input is this data; the answer's output has to be the same."""

    data: bytes  # of one row of float32
    framed: bool = False  # the data is a frame behind the message, as clients send what is large

    @classmethod
    def of_size(cls, size_bytes: int) -> "NoopRequest":
        """A request with so many bytes of input, which has to be a multiple of 4."""
        floats = size_bytes // 4
        data = struct.pack(f"<{floats}f", *(float(i % 251) for i in range(floats)))
        return cls(data, framed=size_bytes > FRAMED_BYTES)

    @property
    def floats(self) -> int:
        """Numbers in the input."""
        return len(self.data) // 4

    @property
    def frames(self) -> tuple[bytes, ...]:
        """What follows the message."""
        return (self.data,) if self.framed else ()

    def ask(self, number: int) -> bytes:
        """The message of the request of that number."""
        tensor = {"name": "x", "dtype": "float32", "shape": [1, self.floats]}
        inputs = [tensor if self.framed else {**tensor, "data": self.data}]
        body: bytes = msgpack.packb({"op": "infer", "id": number, "model": MODEL, "inputs": inputs, "slo_ms": SLO_MS})
        return body

    def check(self, body: bytes, *frames: Any) -> tuple[int, bool]:
        """(id, whether it is the right answer)."""
        answer = msgpack.unpackb(body)
        if answer["status"] != AnswerStatus.OK:
            return answer["id"], False
        if frames:  # memoryviews would be compared byte by byte
            words = np.frombuffer(frames[0], np.uint32)
            return answer["id"], np.array_equal(words, np.frombuffer(self.data, np.uint32))
        return answer["id"], answer["outputs"][0]["data"] == self.data


SMALL = NoopRequest.of_size(64)


ECHO = """
import asyncio, sys, uvloop, zmq
async def main():
    sock = zmq.Context().socket(zmq.ROUTER); sock.bind(sys.argv[1])
    loop = asyncio.get_running_loop()
    frames = range(int(sys.argv[2]))
    def readable():
        while True:
            try: identity = sock.recv(zmq.NOBLOCK)
            except zmq.Again: break
            body = sock.recv(zmq.NOBLOCK)
            if frames:
                sock.send(identity, zmq.SNDMORE); sock.send(body, zmq.SNDMORE)
                sock.send_multipart([sock.recv(zmq.NOBLOCK) for _ in frames])
            else:
                sock.send(identity, zmq.SNDMORE); sock.send(body)
        if sock.getsockopt(zmq.EVENTS) & zmq.POLLIN: loop.call_soon(readable)
    loop.add_reader(sock.getsockopt(zmq.FD), readable); loop.call_soon(readable)
    await asyncio.Event().wait()
uvloop.run(main())
"""


@asynccontextmanager
async def echo(request: NoopRequest = SMALL) -> AsyncIterator[System]:
    """A bare ROUTER that returns each message: the lower bound."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    process = start([sys.executable, "-c", ECHO, address, str(len(request.frames))])
    driver = ZmqDriver(address, request.ask, lambda body, *_: (msgpack.unpackb(body)["id"], True), request.frames)
    try:
        yield System(ECHO_NAME, driver.drive, {"echo": process.pid})
    finally:
        driver.close()
        process.kill()
        process.wait()


@asynccontextmanager
async def ours(repository: Path, folder: Path, *, compact: bool, request: NoopRequest = SMALL) -> AsyncIterator[System]:
    """The mesh, compact or with each service as a process of its own."""
    name = "gearmesh compact" if compact else "gearmesh"
    async with mesh(repository, folder / name.replace(" ", "-"), compact=compact) as running:
        driver = ZmqDriver(running.address, request.ask, request.check, request.frames)
        try:
            yield System(name, driver.drive, running.supervisor.pids())
        finally:
            driver.close()


@asynccontextmanager
async def of_checkout(
    checkout: Path, repository: Path, folder: Path, *, compact: bool, request: NoopRequest = SMALL
) -> AsyncIterator[System]:
    """The mesh of another checkout, run by the interpreter in its .venv, with a copy of the models."""
    kind = "compact" if compact else "processes"
    models = folder / f"models-beside-{kind}"
    shutil.copytree(repository, models)
    async with held_mesh(checkout, models, folder / f"data-beside-{kind}", compact=compact) as held:
        driver = ZmqDriver(held.address, request.ask, request.check, request.frames)
        try:
            yield System(f"beside{' compact' if compact else ''}", driver.drive, held.pids)
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


@asynccontextmanager
async def mosec(folder: Path, request: NoopRequest = SMALL) -> AsyncIterator[System]:
    """mosec, the fastest peer here, in an environment of its own."""
    python = peer_environment("mosec", ["mosec", "msgpack", "numpy"])
    port = free_ports(1)[0]
    script = folder / "mosec_noop.py"
    script.write_text(MOSEC)
    process = start([str(python), str(script), "--port", str(port), "--log-level", "error"])
    driver = HttpDriver(port, msgpack.packb({"x": request.data}))
    try:
        await _answers(driver)
        yield System(MOSEC_NAME, driver.drive, family(process.pid))
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
