"""Where the time of one request goes, hop by hop: a no-op model, one request in flight, every service its own process.

    .venv/bin/python scripts/bench_hops.py [--requests 4000]

Each service runs with its ZeroMQ sends and receives stamped (monotonic clock, one host); a stamp costs about 1 us per
call. Prints medians of the differences between the stamps of one request; the last line is JSON. Requests with a
heartbeat or any other message between their stamps are left out. Results: docs/design/transport.md.
"""

import argparse
import atexit
import json
import os
import runpy
import struct
import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from mesh.codes import AnswerStatus

STAMPS_MAX = 2_000_000
SERVICES = ("frontend", "controller", "gpu_worker")
HOPS = (
    ("client sends → frontend has it", "client", "frontend.r0"),
    ("frontend: checks, opens the call, sends", "frontend.r0", "frontend.s0"),
    ("frontend → controller", "frontend.s0", "controller.r0"),
    ("controller: admits, decides, sends", "controller.r0", "controller.s0"),
    ("controller → worker", "controller.s0", "gpu_worker.r0"),
    ("worker: INPUT, EXEC, OUTPUT, sends", "gpu_worker.r0", "gpu_worker.s0"),
    ("worker → frontend", "gpu_worker.s0", "frontend.r1"),
    ("frontend: joins, answers", "frontend.r1", "frontend.s1"),
    ("frontend → client has it", "frontend.s1", "end"),
)


def probe(module: str, arguments: list[str]) -> None:
    """Runs the service with every send and receive stamped, and writes the stamps at its end."""
    stamps: list[tuple[float, str]] = []
    plain_send, plain_recv = zmq.Socket.send, zmq.Socket.recv

    def send(self: Any, data: Any, flags: int = 0, *rest: Any, **options: Any) -> Any:
        sent = plain_send(self, data, flags, *rest, **options)
        if not flags & zmq.SNDMORE and len(stamps) < STAMPS_MAX:
            stamps.append((time.monotonic(), "s"))
        return sent

    def recv(self: Any, flags: int = 0, *rest: Any, **options: Any) -> Any:
        data = plain_recv(self, flags, *rest, **options)
        if not self.getsockopt(zmq.RCVMORE) and len(stamps) < STAMPS_MAX:
            stamps.append((time.monotonic(), "r"))
        return data

    zmq.Socket.send, zmq.Socket.recv = send, recv  # type: ignore[method-assign]
    stamp_channels(stamps)
    file = Path(os.environ["GEARMESH_DATA_DIR"]) / f"hops-{module}.json"
    plain_exit = os._exit

    def leave(code: int) -> None:
        file.write_text(json.dumps(stamps))
        plain_exit(code)

    atexit.register(lambda: file.write_text(json.dumps(stamps)))
    os._exit = leave  # type: ignore[assignment]  # a worker ends so, and without atexit
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def stamp_channels(stamps: list[tuple[float, str]]) -> None:
    """Stamps what goes through channels in C, which do without pyzmq; comes before mesh.net.channels is loaded."""
    try:
        from mesh.net import _channel
    except ImportError:  # not built: pyzmq's sockets are stamped
        return
    plain = _channel.Channel

    class StampedChannel:
        """A channel that notes when it has taken or sent a message."""

        def __init__(self, sock: Any) -> None:
            self._plain = plain(sock)
            self.descriptor, self.said, self.readable = (
                self._plain.descriptor,
                self._plain.said,
                self._plain.readable,
            )

        def take(self) -> Any:
            taken = self._plain.take()
            if taken is not None and len(stamps) < STAMPS_MAX:
                stamps.append((time.monotonic(), "r"))
            return taken

        def send(self, to: Any, body: Any, frames: Any = ()) -> int:
            code = self._plain.send(to, body, frames)
            if len(stamps) < STAMPS_MAX:
                stamps.append((time.monotonic(), "s"))
            return code

    _channel.Channel = StampedChannel  # type: ignore[assignment, misc]


def ask(address: str, requests: int) -> list[tuple[float, float]]:
    """(sent, answered) of each request; one request at a time."""
    header = {
        "op": "infer",
        "model": "noop",
        "slo_ms": 1000,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 16], "data": struct.pack("<16f", *range(16))}],
    }
    times = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.connect(address)
        for number in range(requests):
            message = msgpack.packb({**header, "id": number})
            sent_s = time.monotonic()
            sock.send(message)
            answer = msgpack.unpackb(sock.recv())
            times.append((sent_s, time.monotonic()))
            if answer["status"] != AnswerStatus.OK:
                raise SystemExit(f"bench_hops: {answer}")
    return times


def spans(times: list[tuple[float, float]], folder: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[requests, hops] in microseconds."""
    stamps = {service: json.loads((folder / f"hops-{service}.json").read_text()) for service in SERVICES}
    instants = {service: [at for at, _ in stamps[service]] for service in SERVICES}
    wanted = {"frontend": "rsrs", "controller": "rs", "gpu_worker": "rs"}
    rows = []
    for begin_s, end_s in times[len(times) // 10 :]:  # the first tenth warms up
        seen: dict[str, float] = {"client": begin_s, "end": end_s}
        for service in SERVICES:
            low, high = bisect_left(instants[service], begin_s), bisect_left(instants[service], end_s)
            mine = stamps[service][low:high]
            if "".join(kind for _, kind in mine)[: len(wanted[service])] != wanted[service]:
                break
            if service == "frontend" and len(mine) != 4:
                break
            for kind in "rs":
                for i, (at, _) in enumerate(entry for entry in mine if entry[1] == kind):
                    seen[f"{service}.{kind}{i}"] = at
        else:
            rows.append([(seen[after] - seen[before]) * 1e6 for _, before, after in HOPS])
    return np.array(rows)


async def measure(requests: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Runs a mesh and sends the requests."""
    from gearmesh.operations.meshes import mesh
    from scripts import ROOT
    from scripts.build_models import build_noop

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build_noop(folder / "models", "noop")
        python = f"{sys.executable} {ROOT / 'scripts/bench_hops.py'}"
        async with mesh(folder / "models", folder / "data", python=python, device="cpu") as running:
            times = ask(running.address, requests)
        return spans(times, folder / "data")


def main() -> None:
    """Prints the median time of each hop."""
    if "-m" in sys.argv[1:3]:  # in place of Python, as a Procfile calls it: [-P] -m SERVICE
        sys.path.insert(0, os.getcwd())
        at = sys.argv.index("-m")
        probe(sys.argv[at + 1], sys.argv[at + 2 :])
        return
    import asyncio

    from gearmesh.telemetry.machine import describe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000)
    microseconds = asyncio.run(measure(parser.parse_args().requests))
    medians, p90 = np.median(microseconds, axis=0), np.quantile(microseconds, 0.9, axis=0)
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores']} cores; n = {len(microseconds)} requests\n")
    print("| hop | p50 µs | p90 µs |\n|---|---|---|")
    for (name, _, _), middle, high in zip(HOPS, medians, p90, strict=True):
        print(f"| {name} | {middle:.0f} | {high:.0f} |")
    total = microseconds.sum(axis=1)
    print(f"| round trip | {np.median(total):.0f} | {np.quantile(total, 0.9):.0f} |\n")
    print(
        json.dumps({"n": len(microseconds), "p50_us": dict(zip([h[0] for h in HOPS], medians.round(1), strict=True))})
    )


if __name__ == "__main__":
    main()
