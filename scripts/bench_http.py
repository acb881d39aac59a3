"""The cost of HTTP: the same requests over ZeroMQ, and through the gateway as JSON and as JSON with raw bytes.

    .venv/bin/python scripts/bench_http.py [--rounds 3] [--seconds 2]

Emulated device (1 ms for any batch), cache bypassed, closed loop. Over HTTP every request in flight has a connection of
its own; over ZeroMQ all share one. Every round measures each way at each size and number in flight. The last line is
JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt
import uvloop
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from frontend.gateway.tensors import NAMES, to_json
from gearmesh.operations.meshes import mesh
from gearmesh.operations.ports import free_ports
from gearmesh.telemetry.machine import describe, quantile
from mesh.codes import AnswerStatus
from mesh.tensors import raw
from scripts.rigs.closed_loops import Drive, HttpDriver, ZmqDriver

OK = AnswerStatus.OK
WIDTHS = {"digit, 256 bytes": 64, "photograph, 602 kB": 3 * 224 * 224}  # {what: floats of one row}
IN_FLIGHT = (1, 16)
SLO_MS = 5000.0
MANIFEST = """
batch_max = 32
slo_ms = 5000
[architecture]
factory = "pytorchcv.models.resnet:resnet18"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, {width}]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, 10]
"""
console = Console(width=None if sys.stdout.isatty() else 110)
Way = tuple[str, str]  # (input, protocol)
Results = dict[Way, dict[int, list[float]]]  # {way: {in flight: latencies in seconds}}


def request_body(
    inputs: Mapping[str, npt.NDArray[Any]],
    *,
    binary: bool = False,
    parameters: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> tuple[bytes, int | None]:
    """(body, length of its JSON if raw bytes follow) of an OIP request as clients send it."""
    tensors = []
    behind = []
    for name, array in inputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype.name], "shape": list(array.shape)}
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            behind.append(bytes(raw(array)))
        else:
            tensor["data"] = to_json(array)
        tensors.append(tensor)
    header: dict[str, Any] = {"inputs": tensors}
    if request_id is not None:
        header["id"] = request_id
    if parameters:
        header["parameters"] = dict(parameters)
    text = msgspec.json.encode(header)
    return b"".join([text, *behind]), len(text) if binary else None


def write_model(repository: Path, name: str, width: int) -> None:
    """Writes a package for an emulated device."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    save_file({"w": np.zeros(1 << 18, np.float32)}, folder / "weights.safetensors")
    (repository / name / "model.toml").write_text(MANIFEST.format(width=width))


def over_zmq(address: str, model: str, x: npt.NDArray[Any]) -> Drive:
    """A driver for the public ZeroMQ protocol, one frame per message."""
    inputs = [{"name": "x", "dtype": "float32", "shape": list(x.shape), "data": x.tobytes()}]

    def ask(number: int) -> bytes:
        message = {"op": "infer", "id": number, "model": model, "inputs": inputs, "slo_ms": SLO_MS, "cache": False}
        body: bytes = msgpack.packb(message)
        return body

    def check(body: bytes) -> tuple[int, bool]:
        answer = msgpack.unpackb(body)
        return answer["id"], answer["status"] == OK

    return ZmqDriver(address, ask, check).drive


def over_http(port: int, model: str, x: npt.NDArray[Any], *, binary: bool) -> Drive:
    """A driver for HTTP through the gateway."""
    parameters = {"slo_ms": SLO_MS, "cache": False, "binary_data_output": binary}
    body, length = request_body({"x": x}, binary=binary, parameters=parameters)
    content = "application/json" if length is None else f"x/x\r\nInference-Header-Content-Length: {length}"
    return HttpDriver(port, body, path=f"/v2/models/{model}/infer", content=content).drive


async def measure(rounds: int, seconds: float, folder: Path) -> Results:
    """Latencies of all rounds."""
    for i, width in enumerate(WIDTHS.values()):
        write_model(folder / "models", f"m{i}", width)
    profile = {"name": "bench", "memory_mb": 256, "page_mb": 1, "load_gb_per_s": 10.0}
    device = folder / "device.json"
    device.write_text(json.dumps({**profile, "default": {"exec_ms": {"intercept": 1.0, "slope": 0.0}}}))
    port = free_ports(1)[0]
    results: Results = {}
    async with mesh(folder / "models", folder / "data", http_port=port, device=f"emulated:{device}") as running:
        ways: dict[Way, Drive] = {}
        for i, (what, width) in enumerate(WIDTHS.items()):
            x = np.random.default_rng(i).random((1, width), np.float32)
            ways[what, "ZeroMQ"] = over_zmq(running.address, f"m{i}", x)
            ways[what, "HTTP, raw bytes"] = over_http(port, f"m{i}", x, binary=True)
            ways[what, "HTTP, JSON"] = over_http(port, f"m{i}", x, binary=False)
        for drive in ways.values():
            await drive(1, 0.5)
        for _ in range(rounds):
            for way, drive in ways.items():
                for in_flight in IN_FLIGHT:
                    latencies, not_ok = await drive(in_flight, seconds)
                    if not_ok:
                        raise RuntimeError(f"{way}: {not_ok} of {len(latencies)} were not answered ok\n{running.log()}")
                    results.setdefault(way, {}).setdefault(in_flight, []).extend(latencies)
    return results


def summary(latencies: list[float], measured_s: float) -> dict[str, float | None]:
    """Quantiles and rate of all rounds of one way."""
    ordered = sorted(latencies)
    return {"n": len(ordered), "per_s": len(ordered) / measured_s} | {
        f"p{share}_ms": None if (value := quantile(ordered, share / 100)) is None else value * 1e3 for share in (50, 99)
    }


def show(told: Mapping[Way, Mapping[int, Mapping[str, float | None]]]) -> None:
    """Prints a row for each way."""
    table = Table("what", "how", "in flight", "p50 ms", "p99 ms", "requests/s", "n")
    for (what, how), found in told.items():
        for in_flight, row in found.items():
            times = ["-" if (value := row[key]) is None else f"{value:.2f}" for key in ("p50_ms", "p99_ms")]
            table.add_row(what, how, str(in_flight), *times, f"{row['per_s']:.0f}", str(row["n"]))
    console.print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = uvloop.run(measure(arguments.rounds, arguments.seconds, Path(folder)))
    measured_s = arguments.rounds * arguments.seconds
    told = {way: {n: summary(runs[n], measured_s) for n in IN_FLIGHT} for way, runs in results.items()}
    show(told)
    print(json.dumps({"machine": describe(), "results": {" / ".join(way): found for way, found in told.items()}}))


if __name__ == "__main__":
    main()
