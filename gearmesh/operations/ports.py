"""Ports for meshes on this machine that nobody else takes meanwhile: suites and benchmarks may run side by side."""

import fcntl
import os
import socket
import tempfile
from pathlib import Path

PORTS = range(20_000, 32_000, 500)  # where blocks begin; below the ports of whoever asks for any, or connects
_ours: list[int] = []  # ports of this process's block that were not given away


def free_ports(count: int) -> list[int]:
    """Ports in a row that nobody listens on. Nobody else gets them from here before this process ends."""
    while True:
        if len(_ours) < count:
            _ours[:] = _block()
        ports = _ours[:count]
        del _ours[:count]
        if all(map(_is_free, ports)):
            return ports


def _block() -> range:
    """A block of ports is this process's, by a lock that goes with it."""
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
