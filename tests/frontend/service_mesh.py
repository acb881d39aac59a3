"""A real frontend and a real broker, with a controller and a worker that act as a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np

from frontend.client.async_client import AsyncClient
from frontend.service import FrontendService
from mesh import wire
from mesh.net.links import Link
from mesh.roles import PortKind
from tests.frontend.client.fakes import ROW
from tests.loops import Told
from tests.mesh.net.brokers import Broker, Caller, package
from tests.mesh.net.processes import Listening, Processes, processes

QUICK = {"heartbeat_ms": 20.0, "silence_ms_max": 60_000.0, "cache_mb": 0}  # a dead member is lost, a slow one is not
FROM_RESULTS: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.FromResults])
SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, 4)),),
    batch_max=8,
    slo_ms=60_000.0,
    labels=("cat", "dog"),
    batch_sizes=(1, 8),
)


class Controller:
    """A controller that only records what it receives."""

    def __init__(self, made: Processes, broker: Broker, name: str) -> None:
        self.name = name
        runtime = made.runtime()
        self.listening = Listening(runtime, "control")
        self.caller = Caller(runtime, broker.addresses, name)
        endpoints = {"control": self.listening.addresses}
        member = wire.Member(id=name, role="controller", host="here", endpoints=endpoints)
        self.caller.link.send(wire.Register(member=member))

    @property
    def frontend(self) -> str:
        """The id of the frontend that called first."""
        return str(self.listening.mail.items[0].peer)

    def send(self, *messages: Any) -> None:
        for message in messages:
            assert self.listening.port.send(self.frontend, message)

    def report(self, ref: str) -> None:
        """Reports the version as prepared and served here."""
        self.caller.link.send(wire.PrepareReport(ref=ref, ok=True, spec=SPEC))

    async def hello(self) -> wire.FrontendHello:
        hello: wire.FrontendHello = (await self.listening.messages(1))[0]
        return hello

    def of(self, kind: Any) -> list[Any]:
        """All messages of this kind received."""
        return [message for mail in self.listening.mail.items for message in mail.messages if isinstance(message, kind)]

    async def wait(self, kind: Any, number: int) -> list[Any]:
        """All messages of this kind, once there are `number`."""
        await self.listening.mail.until(lambda _: len(self.of(kind)) >= number)
        return self.of(kind)

    def leave(self) -> None:
        """Closes everything without saying goodbye."""
        self.listening.port.close()
        self.caller.link.close()


class Mesh:
    """A frontend, model m in version 1 served by controller-1, a client, and a worker."""

    def __init__(self, made: Processes, folder: Path, **settings: Any) -> None:
        package(folder / "repository", "m", "1")
        self.made = made
        self.broker = Broker(made, folder)
        self.controller = Controller(made, self.broker, "controller-1")
        self.runtime = made.runtime(frontend_port=0, **settings)
        self.frontend = FrontendService(self.runtime, self.broker.addresses)
        self.frontend.start()
        self.running = True
        self.address = self.frontend.address
        self.client = AsyncClient(self.address)
        self._link: Link[Any, Any] | None = None
        self.told_worker = Told()  # mails of the frontend to the worker

    async def begin(self) -> None:
        hello = await self.controller.hello()
        self._link = Link(
            self.made.runtime().transport, "gpu_worker-1", hello.member, FROM_RESULTS, self.told_worker, Told(),
            to=PortKind.RESULTS,
        )  # fmt: skip
        self._link.call(hello.results)
        self.controller.report("m:1")
        self.controller.send(wire.Serving(added=("m:1",), removed=(), reset=True, controller="controller-1"))
        await self.models(lambda models: models["m"]["ready"])

    async def models(self, wanted: Any) -> None:
        """{name: what the frontend says of the model} is as wanted, and known to the client."""
        while not wanted({model["name"]: model for model in await self.client.models()}):
            pass

    async def status(self, wanted: Any = lambda status: True) -> Any:
        """What the frontend says of itself, once it is as wanted."""
        while not wanted(status := await self.client.call("status")):
            pass
        return status

    async def until(self, holds: Any) -> None:
        """Returns after the turn of the frontend in which `holds` became true."""
        turns = Told()
        self.runtime.hub.on_turn(turns)
        self.runtime.hub.schedule_turn()
        await turns.until(lambda _: holds())

    def finish(self, *submits: wire.Submit, framed: bool = False, rows_of_batch: int = 0, **fields: Any) -> None:
        """The worker sends the outputs of these requests: twice the input."""
        answers, tensors = [], []
        for submit in submits:
            x = np.frombuffer(submit.inline[0], np.float32) if submit.inline else np.zeros(4 * submit.rows, np.float32)
            y = (x * 2).tobytes()
            tensors += [y] if framed else []
            answer = wire.Answer(
                request=submit.request,
                attempt=submit.attempt,
                rows=submit.rows,
                predicted_s=0.25,
                inline=() if framed else (memoryview(y),),
                frames=int(framed),
            )
            answers.append(msgspec.structs.replace(answer, **fields))
        self.outputs(*answers, frames=tensors, rows=rows_of_batch)

    def outputs(self, *answers: wire.Answer, frames: Any = (), rows: int = 0) -> None:
        assert self._link is not None
        outputs = wire.Outputs(ref="m:1", device="cpu:0", batch=4, exec_s=0.001, answers=answers, rows=rows)
        self._link.send(outputs, frames)

    def ask(self, *messages: wire.ToResults, frames: Any = ()) -> None:
        """The worker sends these. `frames`: of the last one."""
        assert self._link is not None
        for message in messages:
            self._link.send(message, frames if message is messages[-1] else ())

    def close(self) -> None:
        self.client.close()
        self.stop_frontend()
        self.broker.stop()

    def stop_frontend(self) -> None:
        """As at the end of its process, however often."""
        if self.running:
            self.running = False
            self.frontend.stop()


@contextlib.asynccontextmanager
async def mesh(folder: Path, **settings: Any) -> AsyncIterator[Mesh]:
    async with processes(**QUICK) as made:
        begun = Mesh(made, folder, **settings)
        try:
            await begun.begin()
            yield begun
        finally:
            begun.close()


async def hear(sock: Any) -> Any:
    """The next answer, while the loop goes on."""
    (answer,) = await hear_parts(sock)
    return msgpack.unpackb(answer)


async def hear_parts(sock: Any) -> list[bytes]:
    """The frames of the next answer, while the loop goes on."""
    parts: list[bytes] = await asyncio.to_thread(sock.recv_multipart)
    return parts


def tensor(x: Any = ROW) -> dict[str, Any]:
    """An input of model m, as a client that is no client of ours writes it."""
    return {"name": "x", "dtype": "float32", "shape": list(x.shape), "data": x.tobytes()}


def request(call: Any, **fields: Any) -> bytes:
    """A request for an answer of model m, written by hand."""
    body: bytes = msgpack.packb({"op": "infer", "id": call, "model": "m", "inputs": [tensor()], **fields})
    return body
