"""frontend/gateway/pool.py: what is deployed, asked for by many at once."""

import subprocess
import sys

from scripts import ROOT
from tests.loops import LIMIT_S

MANY = """
import asyncio, threading
import msgpack, uvloop, zmq
from frontend.gateway.pool import Pool
from mesh.process.settings import Settings

def answer(sock):
    while True:
        client, asked = sock.recv_multipart()
        asked = msgpack.unpackb(asked)
        models = [{"name": "m", "versions": ["1"]}]
        told = {"id": asked["id"], "status": "ok", "models": models, "epoch": 1, "members": []}
        sock.send_multipart([client, msgpack.packb(told)])

async def ask(pool, rounds, pauses):
    for _ in range(rounds):
        for _ in range(pauses):
            await asyncio.sleep(0)
        assert list(await pool.all("models")) == ["m"]

async def main():
    sock = zmq.Context().socket(zmq.ROUTER)
    port = sock.bind_to_random_port("tcp://127.0.0.1")
    threading.Thread(target=answer, args=(sock,), daemon=True).start()
    async with Pool(Settings(frontend_port=port)) as pool:
        while not all(pool.addresses.values()):
            await asyncio.sleep(0.001)
        await asyncio.gather(*(ask(pool, 50, i) for i in range(40)))

uvloop.run(main())
import os; os._exit(0)
"""


def test_callers_whose_turns_fall_in_any_order_are_answered_and_the_loop_goes_on() -> None:
    """In a process of its own: a loop that does not go on can be ended by nobody in it."""
    assert subprocess.run([sys.executable, "-c", MANY], cwd=ROOT, timeout=LIMIT_S, check=False).returncode == 0
