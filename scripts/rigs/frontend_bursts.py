"""What the frontend's own code costs per request: its port and core are real, its broker, controller and worker not.

    PYTHONPATH=. .venv/bin/python scripts/rigs/frontend_bursts.py [--bursts 600] [--size 16]

One process: a client sends bursts over ZeroMQ; what stands for the controller and the worker answers in memory, which
is in the figures, and costs the same for any frontend. Prints JSON: CPU time of the process's thread for one request in
microseconds, without the client's own calls, the median of all bursts; and that in units of a loop that is timed
between them. Compare checkouts by running this file with each one's PYTHONPATH, one after the other, in turns.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import uvloop
import zmq

from frontend.service import FrontendService
from mesh import wire
from mesh.net.links import Link
from mesh.net.ports import Port
from mesh.net.transport import Mail
from mesh.process.runtime import Runtime
from mesh.process.settings import Settings
from mesh.roles import PortKind

ROW = bytes(64)
TENSOR = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 16))
SPEC = wire.ModelSpec(
    inputs=(TENSOR,), outputs=(msgspec.structs.replace(TENSOR, name="y"),), batch_max=32, slo_ms=1000.0, labels=()
)
TO_CONTROLLER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.ToController])
TO_BROKER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.ToBroker])
FROM_RESULTS: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.FromResults])
LOOP = 20_000  # additions in the unit


def unit_us() -> float:
    """CPU time of a fixed piece of Python, microseconds."""
    began_s, total = time.thread_time(), 0
    for i in range(LOOP):
        total += i
    return (time.thread_time() - began_s) * 1e6


class Bursts:
    """The frontend, and who is around it."""

    def __init__(self, folder: Path, size: int) -> None:
        options: dict[str, Any] = {"frontend_port": 0, "cache_mb": 0, "heartbeat_ms": 1000.0, "silence_ms_max": 9000.0}
        self.runtime = Runtime(Settings(data_dir=folder, **options))
        transport = self.runtime.transport
        self.broker: Any = Port(
            transport, "broker", TO_BROKER, self._registered, lambda *_: None, kind=PortKind.BROKER, me="broker"
        )
        self.control: Any = Port(transport, "control", TO_CONTROLLER, self._asked, lambda *_: None, me="controller-1")
        self.worker: Any = Link(
            transport, "gpu_worker-1", "", FROM_RESULTS, lambda mail: None, lambda *_: None, to=PortKind.RESULTS
        )
        where = self.broker.listen("127.0.0.1", 0, "")
        self.controls = self.control.listen("127.0.0.1", 0, "")
        self.frontend = FrontendService(self.runtime, where)
        self.frontend.start()
        self.bodies = [
            msgpack.packb({
                "op": "infer", "id": number, "model": "noop", "slo_ms": 1000,
                "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 16], "data": ROW}],
            })
            for number in range(size)
        ]  # fmt: skip
        self.client: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.client.connect(self.frontend.address)
        self.missing = 0
        self.client_s = 0.0  # CPU time of the client's own calls
        self.done = asyncio.Event()
        self.known = asyncio.Event()
        self.runtime.hub.read(self.client, self._answered)

    def _registered(self, mail: Mail[Any]) -> None:
        for message in mail.messages:
            if not isinstance(message, wire.Register):
                continue
            controller = wire.Member(
                id="controller-1", role="controller", host=message.member.host, endpoints={"control": self.controls}
            )
            model = wire.ModelEntry(
                name="noop", current="1", target=None, versions=("1",), owner="controller-1", spec=SPEC
            )
            table = wire.Table(epoch=1, members=(controller, message.member), models=(model,))
            self.broker.send(mail.peer, table)
            self.worker.call(message.member.endpoints["results"])
            self.known.set()

    def _asked(self, mail: Mail[Any]) -> None:
        answers = tuple(
            wire.Answer(request=each.request, attempt=0, rows=1, predicted_s=0.01, inline=(memoryview(ROW),))
            for each in mail.messages
            if isinstance(each, wire.Submit)
        )
        if answers:
            self.worker.send(
                wire.Outputs(ref="noop:1", device="cpu:0", batch=len(answers), exec_s=1e-4, answers=answers)
            )

    def _answered(self) -> bool:
        began_s = time.thread_time()
        while True:
            try:
                body = self.client.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            assert b"\xa2ok" in body, msgpack.unpackb(body)
            self.missing -= 1
        if self.missing == 0:
            self.done.set()
        self.client_s += time.thread_time() - began_s
        return False

    async def burst(self) -> float:
        """CPU time of one request of a burst, microseconds."""
        self.missing, self.client_s = len(self.bodies), 0.0
        self.done.clear()
        for body in self.bodies:
            self.client.send(body)
        began_s = time.thread_time()
        await self.done.wait()
        return (time.thread_time() - began_s - self.client_s) / len(self.bodies) * 1e6

    async def close(self) -> None:
        """Everything is closed."""
        self.frontend.stop()
        await asyncio.sleep(0.01)  # what it has begun to close is closed
        self.runtime.hub.drop(self.client)
        self.runtime.transport.close()
        self.runtime.hub.close()


async def measure(bursts: int, size: int) -> dict[str, float]:
    """{figure: median}."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Bursts(Path(folder), size)
        await rig.known.wait()
        await asyncio.sleep(0.2)
        for _ in range(50):
            await rig.burst()
        took, units = [], []
        for _ in range(bursts):
            units.append(unit_us())
            took.append(await rig.burst())
        await rig.close()
    us, unit = statistics.median(took), statistics.median(units)
    return {"us": us, "least_us": min(took), "unit_us": unit, "units": us / unit}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bursts", type=int, default=600)
    parser.add_argument("--size", type=int, default=16)
    chosen = parser.parse_args()
    print(json.dumps(uvloop.run(measure(chosen.bursts, chosen.size))), file=sys.stdout)


if __name__ == "__main__":
    main()
