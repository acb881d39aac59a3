"""mesh/net/transport.py, mesh/net/memory.py: a process is as small after a flood of garbage as before."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from mesh.net.keys import Keys
from mesh.roles import PortKind
from scripts import ROOT
from tests.loops import LIMIT_S

pytestmark = pytest.mark.slow
CONNECTIONS, MESSAGES, BYTES = 40, 60, 1 << 16  # 150 MiB
MIB_MORE = 48  # than before: what the flood was, to a third
SENT_MIN = CONNECTIONS * MESSAGES // 2  # fewer were no flood


def ask(child: "subprocess.Popen[str]", line: str) -> tuple[int, int]:
    """(MiB, MiB at most) of the process, after it has obeyed."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()
    while not (told := child.stdout.readline()).startswith("size"):
        assert told, "the process has ended"
    _, now, most = told.split()
    return int(now), int(most)


@pytest.mark.parametrize("names", ["each its own", "all the same"])
def test_memory_returns_after_a_flood(tmp_path: Path, names: str) -> None:
    command = [sys.executable, "-m", "tests.mesh.net.flooded"]
    keys = Keys.of_data_dir(tmp_path, make=True)
    environment = {**os.environ, "GEARMESH_DATA_DIR": str(tmp_path)}
    context = zmq.Context()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            address = child.stdout.readline().strip()
            before, _ = ask(child, "size")
            child.stdin.write("stall\n")  # its answer is read below
            child.stdin.flush()
            socks, sent = [], 0
            for i in range(CONNECTIONS):
                sock = context.socket(zmq.DEALER)
                sock.setsockopt(zmq.ROUTING_ID, b"frontend-1" if names == "all the same" else b"frontend-%d" % i)
                sock.setsockopt(zmq.LINGER, 5_000)
                sock.setsockopt(zmq.SNDTIMEO, 1_000)  # all fit into its queue, unless its connection was ended
                keys.present(sock, PortKind.CONTROL)
                sock.connect(address)
                socks.append(sock)
                with contextlib.suppress(zmq.Again):
                    for _ in range(MESSAGES):
                        sock.send(b"\xc1" * BYTES)
                        sent += 1
            assert sent >= SENT_MIN
            ask(child, "size")
            for sock in socks:
                sock.close(0)
            ends_at = time.monotonic() + LIMIT_S
            while (size := ask(child, "size")[0]) > before + MIB_MORE and time.monotonic() < ends_at:
                time.sleep(0.1)  # between two looks
            assert size <= before + MIB_MORE
        finally:
            child.stdin.close()
            context.destroy(linger=0)
