"""TCP connections that become half dead: what arrives at one of their ends is dropped by the kernel, unseen.

Nothing is acknowledged, nothing reset, and neither end is told: as when a switch or a firewall forgets a flow. Linux,
and a process of one's own, or a child: a socket filter (SO_ATTACH_FILTER) that keeps nothing.
"""

import contextlib
import ctypes
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SO_ATTACH_FILTER = 26  # source: asm-generic/socket.h; Python 3.11 does not name it
PIDFD_GETFD = 438  # source: asm-generic/unistd.h
ESTABLISHED = "01"


class Connection(NamedTuple):
    """One end of a TCP connection."""

    pid: int
    descriptor: int
    local: int  # port
    remote: int  # port


def connections(pid: int) -> list[Connection]:
    """All TCP connections that a process has."""
    inodes = {}
    for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_, inode = row.split()[:10]
        if state == ESTABLISHED:
            inodes[inode] = (int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16))
    return [Connection(pid, descriptor, *inodes[inode]) for descriptor, inode in _sockets(pid) if inode in inodes]


def _sockets(pid: int) -> Iterator[tuple[int, str]]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
            if found is not None:
                yield int(entry.name), found[1]


def swallow(*ends: Connection) -> None:
    """Nothing that is sent to these ends arrives any more."""
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # return 0: keep no byte
    program = struct.pack("@HP", 1, ctypes.addressof(code))
    for end in ends:
        with socket.socket(fileno=_borrowed(end)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def swallow_port(number: int, *pids: int) -> list[Connection]:
    """Both ends, as far as they belong to these processes, of the connections that lead to this port are half dead."""
    ends = [end for pid in pids for end in connections(pid) if number in (end.local, end.remote)]
    swallow(*ends)
    return ends


def _borrowed(end: Connection) -> int:
    """A descriptor of our own for that socket."""
    if end.pid == os.getpid():
        return os.dup(end.descriptor)
    libc = ctypes.CDLL(None, use_errno=True)
    held = os.pidfd_open(end.pid)
    try:
        descriptor = int(libc.syscall(PIDFD_GETFD, held, end.descriptor, 0))
    finally:
        os.close(held)
    if descriptor < 0:
        pytest.skip(f"the system does not lend sockets of other processes: {os.strerror(ctypes.get_errno())}")
    return descriptor
