"""One client of the checkout that PYTHONPATH names, measured; and the server beside it, which answers at once.

    python scripts/rigs/measured_clients.py serve ADDRESS
    python scripts/rigs/measured_clients.py async|blocking ADDRESS IN_FLIGHT REQUESTS

Imports nothing of gearmesh but the client: another checkout may lack the rest.
"""

import asyncio
import sys
import time

import msgpack
import numpy as np
import uvloop
import zmq

ROW = np.arange(16, dtype=np.float32)[np.newaxis]
TENSORS = {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 16]}], "outputs": []}
MODELS = {"models": [{"name": "m", "version": "1", "slo_ms": 1000.0, **TENSORS}]}
REST = {
    "model": "m", "version": "1", "latency_ms": 0.5, "predicted_ms": 0.4, "batch_size": 16, "batch_padded": 16,
    "device": "gpu_worker-1/cpu:0", "request": 12345,
}  # fmt: skip


def serve(address: str) -> None:
    """Answers every infer request with its own inputs, until the process is ended."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.setsockopt(zmq.SNDHWM, 0)
        sock.setsockopt(zmq.RCVHWM, 0)
        sock.bind(address)
        while True:
            client, body, *frames = sock.recv_multipart()
            asked = msgpack.unpackb(body)
            told = REST | {"outputs": asked["inputs"]} if asked["op"] == "infer" else MODELS
            sock.send_multipart([client, msgpack.packb({"id": asked["id"], "status": "ok", **told}), *frames])


async def of_async_client(address: str, in_flight: int, requests: int) -> float:
    """CPU microseconds per request, after as many that are not counted."""
    from frontend.client.async_client import AsyncClient

    async with AsyncClient(address) as client:
        await client.models()

        async def ask() -> None:
            for _ in range(requests // in_flight):
                await client.infer("m", ROW, slo_ms=1000)

        began_s = 0.0
        for _ in range(2):
            began_s = time.process_time()
            await asyncio.gather(*(ask() for _ in range(in_flight)))
        return (time.process_time() - began_s) / (requests // in_flight * in_flight) * 1e6


def of_blocking_client(address: str, in_flight: int, requests: int) -> float:
    """The same for `Client`: one `infer` after the other, or `infer_many` of so many."""
    from frontend.client.client import Client

    with Client(address) as client:
        client.models()
        began_s = 0.0
        for _ in range(2):
            began_s = time.process_time()
            for _ in range(requests // in_flight):
                if in_flight == 1:
                    client.infer("m", ROW, slo_ms=1000)
                else:
                    client.infer_many([("m", ROW)] * in_flight, slo_ms=1000)
        return (time.process_time() - began_s) / (requests // in_flight * in_flight) * 1e6


def main() -> None:
    """Serves until it is ended; or prints the CPU microseconds per request."""
    what, address, *numbers = sys.argv[1:]
    if what == "serve":
        serve(address)
    in_flight, requests = map(int, numbers)
    if what == "async":
        print(uvloop.run(of_async_client(address, in_flight, requests)))
    else:
        print(of_blocking_client(address, in_flight, requests))


if __name__ == "__main__":
    main()
