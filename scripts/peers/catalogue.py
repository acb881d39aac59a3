"""The peers: what to install, how to start them, how to send a request and read the answer. Pure."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgpack

TORCH = "torch"  # the installer pins it to gearmesh's own version


@dataclass(frozen=True, slots=True)
class Peer:
    """One of the servers that gearmesh is compared with."""

    name: str
    packages: tuple[str, ...]  # besides torch and numpy
    script: str
    configuration: str  # for readers of the tables
    path: str
    content_type: str
    body: Callable[[Sequence[float]], bytes]
    answer: Callable[[bytes], tuple[float, ...]]
    batches: bool = True


def _floats(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 4}f", data)


def _raw(row: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(row)}f", *row)


def _msgpack_body(row: Sequence[float]) -> bytes:
    body: bytes = msgpack.packb({"x": _raw(row)})
    return body


BINARY, JSON = "application/octet-stream", "application/json"
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "mosec", ("mosec", "msgpack"), "mosec_server.py", "1 worker, dynamic batches, wait 1 ms, msgpack raw bytes",
            "/inference", "application/msgpack", _msgpack_body, lambda body: _floats(msgpack.unpackb(body)["y"]),
        ),
        Peer(
            "litserve", ("litserve",), "litserve_server.py",
            "1 worker, batches, wait 1 ms, fast_queue (no-op: neither), raw bytes", "/predict", BINARY, _raw, _floats,
        ),
        Peer(
            "bentoml", ("bentoml",), "bentoml_server.py", "1 worker, batchable API, JSON",
            "/predict", JSON, lambda row: json.dumps({"x": [list(row)]}).encode(),
            lambda body: tuple(json.loads(body)[0]),
        ),
        Peer(
            "ray", ("ray[serve]",), "ray_server.py", "1 replica, @serve.batch, wait 2 ms, raw bytes",
            "/", BINARY, _raw, _floats,
        ),
        Peer(
            "fastapi", ("fastapi", "uvicorn[standard]"), "fastapi_server.py",
            "1 uvicorn process, model inline, no batches, raw bytes", "/", BINARY, _raw, _floats, batches=False,
        ),
    )
}  # fmt: skip
