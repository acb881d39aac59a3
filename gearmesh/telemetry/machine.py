"""Facts about the machine that a benchmark ran on, and about other load during the run."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.process.compiled import form

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """The machine and the versions of the software."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    packages = ("gearmesh", "torch", "pyzmq", "msgspec", "uvloop", "numpy")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "form": form().name,
        "packages": {name: _version(name) for name in packages},
    }


def _commit() -> str:
    if shutil.which("git") is None or not (ROOT / ".git").exists():  # installed, not a checkout
        return "unknown"
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def cpu_s(pid: int) -> float:
    """CPU seconds used by all threads of the process, with nanosecond resolution; 0 if it has ended."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[0])
        except (OSError, IndexError):
            continue
    return total / 1e9


def _machine_ticks() -> tuple[int, int]:
    """(busy, stolen) ticks of all cores."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(fields[:3]) + sum(fields[5:7]), fields[7] if len(fields) > 7 else 0


@dataclass(slots=True)
class MachineWatch:
    """Measures from construction to `stop`: CPU time of our processes and of others, and time stolen by the host."""

    pids: Mapping[str, int]  # {name: process id}; a process with several names counts once, under all of them joined
    _began_s: float = field(default_factory=time.monotonic)
    _before: dict[str, float] = field(default_factory=dict)
    _machine: tuple[int, int] = field(default_factory=_machine_ticks)

    def __post_init__(self) -> None:
        names: dict[int, list[str]] = {}
        for name, pid in self.pids.items():
            names.setdefault(pid, []).append(name)
        self.pids = {" + ".join(shared): pid for pid, shared in names.items()}
        self._before = {name: cpu_s(pid) for name, pid in self.pids.items()}

    def stop(self) -> dict[str, Any]:
        """{"wall_s", "cpu_s": {process: seconds}, "foreign": cores used by others, "steal": cores the host took}."""
        wall_s = time.monotonic() - self._began_s
        used = {name: cpu_s(pid) - self._before[name] for name, pid in self.pids.items()}
        busy, stolen = _machine_ticks()
        foreign = (busy - self._machine[0]) / TICK - sum(used.values())
        return {
            "wall_s": wall_s,
            "cpu_s": used,
            "foreign": round(max(0.0, foreign) / wall_s, 3),
            "steal": round((stolen - self._machine[1]) / TICK / wall_s, 3),
        }


def quantile(sorted_values: list[float], share: float) -> float | None:
    """The quantile by nearest rank; None if fewer than 10 values lie beyond it."""
    n = len(sorted_values)
    if n == 0 or (share > 0.5 and n * (1 - share) < 10):
        return None
    return sorted_values[min(n - 1, int(share * n))]


def median(values: Iterable[float]) -> float:
    """The middle value; of an even number, the lower of the two."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]
