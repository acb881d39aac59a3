"""Processes and environments of the systems that benchmarks compare."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts import ROOT

console = Console(width=None if sys.stdout.isatty() else 170, stderr=False)


def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Starts a process in a group of its own, without output."""
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, start_new_session=True, **options)


def peer_environment(name: str, packages: list[str]) -> Path:
    """The interpreter of a virtual environment with these packages; creates it if it does not exist."""
    folder = ROOT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        console.print(f"installing {name} into {folder.relative_to(ROOT)}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "installed").touch()
    return python


def family(pid: int) -> dict[str, int]:
    """{name: process id} of the process and its descendants."""
    found = {f"p{pid}": pid}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            for child in task.read_text().split():
                found.update(family(int(child)))
    return found
