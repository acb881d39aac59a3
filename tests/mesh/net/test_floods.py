"""mesh/net/transport.py, mesh/net/memory.py: a process is as small after a flood of garbage as before."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq

from mesh.net.keys import Keys
from mesh.roles import PortKind
from scripts import ROOT
from tests.loops import LIMIT_S

pytestmark = pytest.mark.slow
CONNECTIONS, MESSAGES, BYTES = 40, 60, 1 << 16  # 150 MiB
MIB_MORE = 24  # than before: what the flood was, to a sixth
PAUSE_S = 0.05


class Size(NamedTuple):
    """What the flooded process tells of itself."""

    mib: int
    mib_max: int
    refused: int  # messages


def ask(child: "subprocess.Popen[str]", line: str) -> Size:
    """The process's answer, after it has obeyed."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()
    while not (told := child.stdout.readline()).startswith("size"):
        assert told, "the process has ended"
    return Size(*map(int, told.split()[1:]))


def until(child: "subprocess.Popen[str]", holds: Callable[[Size], bool]) -> Size:
    """Its answer once it holds."""
    ends_at = time.monotonic() + LIMIT_S
    while not holds(size := ask(child, "size")):
        assert time.monotonic() < ends_at, size
        time.sleep(PAUSE_S)  # between two looks
    return size


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
            before = ask(child, "size").mib
            socks = []
            for i in range(CONNECTIONS):
                sock = context.socket(zmq.DEALER)
                sock.setsockopt(zmq.ROUTING_ID, b"frontend-1" if names == "all the same" else b"frontend-%d" % i)
                sock.setsockopt(zmq.SNDTIMEO, int(LIMIT_S * 1e3))  # one that was refused takes nothing, ever
                keys.present(sock, PortKind.CONTROL)
                sock.connect(address)
                sock.send(b"\xc1")
                socks.append(sock)
            heard = 1 if names == "all the same" else CONNECTIONS  # one of a name takes the place of the other
            until(child, lambda size: size.refused >= heard)  # they are let in
            child.stdin.write("stall\n")  # its answer is read below
            child.stdin.flush()
            for sock in socks:
                for _ in range(MESSAGES):
                    sock.send(b"\xc1" * BYTES)
            stalled = ask(child, "size")
            if names == "each its own":  # of one name, how much is there at once is a matter of who calls again when
                assert stalled.mib_max > before + MIB_MORE, "it was no flood"
            for sock in socks:
                sock.close(0)
            until(child, lambda size: size.mib <= before + MIB_MORE)
        finally:
            child.stdin.close()
            context.destroy(linger=0)
