"""Ports for meshes on this machine that no other process gets: tests and benchmarks may run in parallel."""

import fcntl
import os
import socket
import tempfile
from pathlib import Path

PORTS = range(20_000, 32_000, 500)  # first ports of blocks; below the ports that the system gives to other programs
_ours: list[int] = []  # ports of this process's block that are not given away yet


def free_ports(count: int) -> list[int]:
    """Consecutive ports that nobody listens on. Others using this module do not get them before this process ends."""
    while True:
        if len(_ours) < count:
            _ours[:] = _block()
        ports = _ours[:count]
        del _ours[:count]
        if all(map(_is_free, ports)):
            return ports


def _block() -> range:
    """Reserves a block of ports for this process, with a lock that ends with the process."""
    folder = Path(tempfile.gettempdir()) / f"gearmesh-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for start in PORTS:
        lock = os.open(folder / str(start), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return range(start, start + PORTS.step)
    raise RuntimeError("all blocks of ports are taken")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
