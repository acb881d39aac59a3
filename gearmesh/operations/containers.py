"""The file of the containers that `gearmesh up` keeps running, with the number of replicas of each.

`gearmesh container --replicas N` and `gearmesh scale NAME N` write the file; the process that runs the mesh reads it.
"""

import asyncio
import contextlib
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from frontend.admin.operator import NoBroker, Operator
from gearmesh.operations.supervisor import ReplicaProgram, Supervisor
from mesh import wire
from mesh.errors import NotWritten
from mesh.process.configuration import CONFIG, environment_of
from mesh.process.files import disk_fault, not_written, write_whole
from mesh.process.settings import Settings

LOOK_S = 0.3  # between two reads of the file
REPLICAS_MAX = 64
REPLICA_SETTINGS = (  # what a replica needs to find and join the mesh, and to behave there as the services do
    "host", "broker_host", "broker_port", "keys_dir", "model_repository", "data_dir", "heartbeat_ms", "silence_ms_max",
    "drain_s", "message_bytes_max", "log_level", "log_format",
)  # fmt: skip
TAKES_OVER_S = 5.0  # longest wait for the broker's reply that another version is current


class KeptContainer(msgspec.Struct):
    """One container that is kept running."""

    arguments: list[str]  # of `gearmesh container`
    folder: str  # where it was started; modules are found from there
    replicas: int
    version: str = "1"  # its version when it was added
    code: str = ""  # digest of its content at that time
    asked: int = 0  # number of commands that set the replicas: each makes failed replicas start again


class ContainerFile:
    """The file. A change is written completely or not at all, and concurrent changes are made one after the other.

    A second file beside it lists the replicas that are down, and why; the process that keeps the containers writes it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "containers.json"
        self._down = data_dir / "containers_down.json"
        self._runner = data_dir / "supervisor.lock"

    def read(self) -> dict[str, KeptContainer]:
        """{model: container}. Raises: ValueError, which names the file and says what to do."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, KeptContainer])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise ValueError(f"{self._file}: {error}; mend that file, or remove it") from error

    def put(self, model: str, container: KeptContainer) -> KeptContainer | None:
        """Adds the container. Returns the one that was kept under this name before. Raises: ValueError, NotWritten."""
        with self._changing() as kept:
            before = kept.get(model)
            container.asked = before.asked + 1 if before is not None else 0
            kept[model] = container
        return before

    def scale(self, model: str, replicas: int) -> bool:
        """Sets the number of replicas. Returns False if there is no such container. Raises: ValueError, NotWritten."""
        with self._changing() as kept:
            if model not in kept:
                return False
            kept[model].replicas = replicas
            kept[model].asked += 1
            return True

    def tell_down(self, down: dict[str, str]) -> None:
        """Replaces the list of replicas that are down: {replica: why}. Raises: NotWritten."""
        _write(self._down, down)

    def down(self) -> dict[str, str]:
        """{replica: why} of those that are down, if a `gearmesh up` runs."""
        if not self.is_watched:
            return {}
        try:
            return msgspec.json.decode(self._down.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):  # it is being written
            return {}

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, KeptContainer]]:
        with _locked(self._file.with_suffix(".lock"), fcntl.LOCK_EX):
            kept = self.read()
            yield kept
            _write(self._file, kept)

    @contextlib.contextmanager
    def watched(self, broker: str = "") -> Iterator[None]:
        """Until the block ends, others can see that these containers are kept, and in which broker's mesh.

        Raises: NotWritten.
        """
        with _locked(self._runner, fcntl.LOCK_SH) as lock:
            with contextlib.suppress(OSError):  # a full disk: then it is not known whose mesh keeps them
                os.truncate(lock, 0)
                os.pwrite(lock, broker.encode(), 0)
            yield

    def why_unwatched(self) -> str:
        """Why nobody would keep a container of this file, and what to do; empty if a `gearmesh up` does."""
        if self.is_watched:
            return ""
        folder = self._file.parent
        fault = disk_fault(folder) if folder.is_dir() else None
        if fault is not None:
            return f"{not_written(self._file, fault)}; then start gearmesh up again"
        return f"no `gearmesh up` runs with GEARMESH_DATA_DIR={folder.absolute()}; it would keep the replicas"

    @property
    def broker(self) -> str:
        """The address of the broker of the mesh that keeps the containers; empty: not known."""
        return self._runner.read_text() if self.is_watched else ""

    @property
    def is_watched(self) -> bool:
        """Whether a `gearmesh up` of this data folder runs."""
        try:
            with open(self._runner) as lock:  # that is enough to lock it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


async def keep_containers(supervisor: Supervisor, container_file: ContainerFile, settings: Settings) -> None:
    """Runs until cancelled: starts and stops replicas as the file says, and records there which are down."""
    said: Any = None
    asked: dict[str, int] = {}
    told: dict[str, str] | None = None
    environment = replica_environment(settings)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(container_file.watched(settings.broker_address))
        except NotWritten as error:  # those of the file are kept all the same
            supervisor.say("up", f"{error}; till then gearmesh container --replicas and scale find no gearmesh up")
        while True:
            kept = None
            try:
                kept = container_file.read()
                if supervisor.down() != told:
                    container_file.tell_down(supervisor.down())
                    told = supervisor.down()
            except (NotWritten, ValueError) as error:
                if str(error) != said:
                    said = str(error)
                    supervisor.say("up", said)
            for model, container in (kept or {}).items():
                if asked.get(model) != container.asked:
                    asked[model] = container.asked
                    supervisor.retry(model)
                program = ReplicaProgram(_command(container), container.version, container.code, environment)
                if supervisor.scale(model, program, container.replicas):
                    await _take_over(supervisor, model, program, container.replicas, settings)
            await asyncio.sleep(LOOK_S)


def replica_environment(settings: Settings) -> dict[str, str]:
    """The environment in which a replica joins the mesh of these settings, whatever folder it works in.

    The folder is where its code is, and may have a gearmesh.toml of another mesh: so no file is read.
    """
    return {CONFIG: os.devnull, **environment_of(settings, REPLICA_SETTINGS)}


async def _take_over(
    supervisor: Supervisor, model: str, program: ReplicaProgram, replicas: int, settings: Settings
) -> None:
    """Makes the new version current and ends the replicas of others; if that fails, nothing changes."""
    why = await asyncio.to_thread(_deploy, model, program.version, settings) if replicas else ""
    if why:
        supervisor.say("up", f"version {program.version} of {model} does not take over yet: {why}")
    else:
        supervisor.retire(model, program)


def _deploy(model: str, version: str, settings: Settings) -> str:
    """Makes the version current. Returns why it failed, or ""."""
    try:
        with Operator(settings) as operator:
            reply = operator.call(wire.Deploy(call=1, name=model, version=version), TAKES_OVER_S)
    except (NoBroker, TimeoutError) as error:
        return str(error)
    return "" if reply.ok else reply.message


def _write(file: Path, found: Any) -> None:
    """Writes the file as JSON, as a whole. Raises: NotWritten."""
    write_whole(file, msgspec.json.format(msgspec.json.encode(found), indent=1))


@contextlib.contextmanager
def _locked(file: Path, how: int) -> Iterator[int]:
    """The file, whose descriptor this is, is locked until the block ends.

    Raises: NotWritten, if it is not there and cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        try:
            lock = os.open(file, os.O_RDONLY | os.O_CLOEXEC)  # that is enough to lock it
        except OSError:
            raise not_written(file, error) from error
    try:
        fcntl.flock(lock, how)
        yield lock
    finally:
        os.close(lock)


def _command(container: KeptContainer) -> str:
    words = [sys.executable, "-P", "-m", "gearmesh", "container", *container.arguments]
    return f"cd {shlex.quote(container.folder)} && exec {shlex.join(words)}"
