"""What processes hold.

What this process holds is asked as "what is there now that was not there before": what earlier tests left to the
garbage collector may go at any time.
"""

import contextlib
import os
from pathlib import Path


def resident_kib(pid: int) -> int:
    """Memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def open_files() -> set[tuple[str, str]]:
    """Returns (descriptor, what it is) of each file that this process has open."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own, or closed by another thread since
            found.add((descriptor, os.readlink(f"/proc/self/fd/{descriptor}")))
    return found


def mapped_bytes(name: str) -> dict[str, int]:
    """Returns {inode: bytes that this process has mapped} of the anonymous files of this name."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        if name in line:
            edges, _, _, _, inode, *_ = line.split()
            first, last = (int(edge, 16) for edge in edges.split("-"))
            found[inode] = found.get(inode, 0) + last - first
    return found
