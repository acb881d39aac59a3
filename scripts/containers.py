"""Containers that `gearmesh up` keeps running: which, and how many replicas of each, in a file that others may change.

`gearmesh container --replicas N` and `gearmesh scale NAME N` write the file; whoever runs the mesh looks at it.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from scripts.supervisor import Supervisor

LOOK_S = 0.3  # between looks at the file
REPLICAS_MAX = 64


class Kept(msgspec.Struct):
    """One container that is kept running."""

    arguments: list[str]  # of `gearmesh container`
    folder: str  # where it was started: modules are found from there
    replicas: int


class Roster:
    """The file. A change is whole or not at all, and two at a time are made one after the other."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "containers.json"
        self._runner = data_dir / "supervisor.lock"

    def read(self) -> dict[str, Kept]:
        """{model: container}. Raises: ValueError, naming the file."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, Kept])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise ValueError(f"{self._file}: {error}") from error

    def put(self, model: str, arguments: list[str], folder: Path, replicas: int) -> None:
        """The container is to be kept, in so many replicas."""
        with self._changing() as kept:
            kept[model] = Kept(arguments, str(folder), replicas)

    def scale(self, model: str, replicas: int) -> bool:
        """So many replicas are to be kept. False if no such container is."""
        with self._changing() as kept:
            if model not in kept:
                return False
            kept[model].replicas = replicas
            return True

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Kept]]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = self.read()
            yield kept
            handle, temporary = tempfile.mkstemp(dir=self._file.parent, suffix=".tmp")
            with os.fdopen(handle, "w") as out:
                json.dump(msgspec.to_builtins(kept), out, indent=1)
            os.replace(temporary, self._file)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Others can see, until the block ends, that somebody keeps these containers."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._runner, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    @property
    def is_watched(self) -> bool:
        """A `gearmesh up` of this data folder runs."""
        try:
            with open(self._runner, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


async def keep_containers(supervisor: Supervisor, roster: Roster) -> None:
    """Runs until cancelled: as many replicas run as the roster says."""
    said: Any = None
    with roster.watched():
        while True:
            try:
                kept = roster.read()
            except ValueError as error:
                if str(error) != said:
                    said = str(error)
                    supervisor.say("up", said)
                kept = None
            if kept is not None:
                for model, container in kept.items():
                    supervisor.scale(model, _command(container), container.replicas)
            await asyncio.sleep(LOOK_S)


def _command(container: Kept) -> str:
    words = [sys.executable, "-m", "scripts.cli", "container", *container.arguments]
    root = Path(__file__).resolve().parent.parent
    path = f"PYTHONPATH={shlex.quote(str(root))}:$PYTHONPATH"
    return f"cd {shlex.quote(container.folder)} && {path} exec {shlex.join(words)}"
