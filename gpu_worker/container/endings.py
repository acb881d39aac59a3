"""How a process of the code ended, in words that say what to look at. Reads what the kernel tells of memory."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryLook:
    """Memory at one moment; None: not known."""

    held_bytes: int | None = None  # by the process
    left_bytes: int | None = None  # on the machine
    kills: int | None = None  # processes of our control group that the kernel has killed for memory so far


def look(pid: int) -> MemoryLook:
    """Returns the memory as it is now."""
    return MemoryLook(resident_bytes(pid), _left_bytes(), _kills())


def how_it_ended(code: int, doing: str, last: MemoryLook, now: MemoryLook) -> str:
    """Returns one sentence. `code`: the exit code, negative for a signal; `last`: the memory when it was last seen."""
    if code >= 0:
        return f"its code ended with exit code {code} while it {doing}"
    text = f"its code was killed by {_name(-code)} while it {doing}"
    if -code != signal.SIGKILL:
        return text
    seen = []
    if last.held_bytes:
        seen.append(f"it held {last.held_bytes // MIB} MiB a moment before")
    if last.left_bytes is not None:
        seen.append(f"the machine had {last.left_bytes // MIB} MiB left")
    if last.kills is not None and now.kills is not None and now.kills > last.kills:
        seen.append(f"the kernel killed {now.kills - last.kills} of this control group for memory")
    return f"{text}: out of memory?" + (f" ({', '.join(seen)})" if seen else "")


def resident_bytes(pid: int) -> int | None:
    """Returns the bytes of memory that the process holds; None if they cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"signal {number}"


def _left_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, IndexError, ValueError):
        return None


def _kills() -> int | None:
    """Source: Linux, Documentation/admin-guide/cgroup-v2.rst, memory.events; v1: memory.oom_control."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in groups:
        if not controllers:
            found = _counted(Path(f"/sys/fs/cgroup{path}/memory.events"))
        elif "memory" in controllers.split(","):
            found = _counted(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
        else:
            continue
        if found is not None:
            return found
    # inside a container the path is the host's, and the group's files are at the root
    return _counted(Path("/sys/fs/cgroup/memory.events"))


def _counted(file: Path) -> int | None:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
        return next(int(value) for key, value in lines if key == "oom_kill")
    except (OSError, StopIteration, ValueError):
        return None
