"""Runs the lines of a Procfile: restarts processes that die, and ends all of them together."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from honcho.environ import parse_procfile

from gearmesh.operations.spares import Spares
from gearmesh.operations.starting import start_process
from mesh.process.readiness import ReadyPipe

BACKOFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)  # wait before the next start, by number of failed starts in a row
HEALTHY_S = 5.0  # a process that lived this long resets its wait
WRONG_SETTINGS = 2  # exit code of a service that cannot start with its settings
NOT_STARTED = 71  # in place of an exit code; EX_OSERR of sysexits.h
DEVICE_LOST = 3  # exit code of a service whose device failed: it cannot start until the device is repaired
KILL_AFTER_S = 8.0  # a process that has not ended so long after SIGTERM is killed
FRONT = ("broker", "controller", "frontend")  # put into one process by --compact
OPTIONAL = ("gateway",)  # the mesh serves without it
OURS = frozenset((*FRONT, *OPTIONAL, "gpu_worker", "mesh"))  # what processes of a mesh are called

PROCESS = re.compile(r"([A-Za-z0-9_-]+):\s*\S")  # begins a line of a Procfile, as honcho reads it
PROCFILE = Path(__file__).with_name("Procfile")  # what runs where the working folder has none

Say = Callable[[str, str], None]  # (process, line)


class CannotStart(Exception):
    """A process reported that it cannot run with these settings; `str()` is its message."""


@dataclass(frozen=True, slots=True)
class ReplicaProgram:
    """The program of replicas beside the Procfile. If any field differs, it is another program."""

    command: str
    version: str = ""  # programs with different versions may run side by side
    code: str = ""  # digest of the content that the command finds
    environment: Mapping[str, str] = field(default_factory=dict)  # goes before the supervisor's own


@dataclass(slots=True)
class Child:
    """One line of the Procfile."""

    name: str
    command: str
    environment: Mapping[str, str]
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    failures: int = 0  # in a row
    ran: bool = False  # its settings were right once: a failed start may pass, and does not end the mesh
    tail: list[str] = field(default_factory=list)  # its last lines of output
    program: ReplicaProgram | None = None  # not a line of the Procfile: the mesh runs without it
    up: bool = False  # a replica beside the Procfile has reported that it serves
    unwanted: bool = False  # it has to end, and is not restarted
    ended: bool = False  # it cannot start, and is not tried again
    why: str = ""  # how a replica beside the Procfile last ended; cleared when it serves


def processes_of(procfile: Path) -> dict[str, str]:
    """{process: command} as the Procfile has them. Raises: OSError, ValueError."""
    text = procfile.read_text()
    lines: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        named = PROCESS.match(line)
        if named:
            lines.setdefault(named[1], []).append(str(number))
    doubled = [f"{name!r} in lines {' and '.join(where)}" for name, where in lines.items() if len(where) > 1]
    if doubled:
        raise ValueError(f"{procfile}: a name is given to several processes: {'; '.join(doubled)}; each needs its own")
    return dict(parse_procfile(text).processes)


def procfile_commands(
    procfile: Path, formation: Mapping[str, int], *, compact: bool = False, worker: bool = False
) -> dict[str, tuple[str, int]]:
    """{process: (command, instance)} of a Procfile. `formation`: {name: count}. Raises: OSError, ValueError.

    `compact`: broker, controller and frontend are one process, and the worker is in it, too, if `worker` says so.
    """
    parsed = processes_of(procfile)
    unknown = [name for name in formation if name not in parsed]
    if unknown:
        raise ValueError(f"no such process in {procfile}: {', '.join(unknown)}; there are: {', '.join(parsed)}")
    if not parsed:
        raise ValueError(f"{procfile} has no process")
    if compact and any(formation.get(name, 1) != 1 for name in FRONT):
        raise ValueError(f"--compact runs one each of {', '.join(FRONT)}")
    if compact:
        joined = (*FRONT, "gpu_worker") if worker else FRONT
        parsed = {name: command for name, command in parsed.items() if name not in joined}
        command = "exec ${GEARMESH_PYTHON:-python3} -P -m gearmesh.operations.compact"
        parsed = {"mesh": f"{command} worker" if worker else command, **parsed}
    commands = {}
    for name, command in parsed.items():
        count = formation.get(name, 1)
        for i in range(count):
            commands[f"{name}.{i + 1}" if count > 1 else name] = (command, i)
    return commands


class Supervisor:
    """All processes of one mesh on this machine."""

    def __init__(
        self,
        commands: Mapping[str, tuple[str, int]],
        say: Say,
        environment: Mapping[str, str],
        spares: Collection[str] = (),
    ) -> None:
        """`spares`: services of which a process is kept ready to take the place of one that dies."""
        self._say = say
        self._spares = Spares(spares, partial(say, "up"))
        self._children = [
            Child(name, command, _environment(environment, name, instance))
            for name, (command, instance) in commands.items()
        ]
        self._base = environment
        self._replicas: dict[str, list[Child]] = {}  # {name: replicas beside the Procfile, oldest first}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._asked = asyncio.Event()
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # why the mesh cannot run

    def start(self) -> None:
        """Starts every process, and restarts those that die."""
        self._tasks = [asyncio.create_task(self._keep(child), name=child.name) for child in self._children]

    def say(self, name: str, line: str) -> None:
        """Prints the line among those of the processes."""
        self._say(name, line)

    def scale(self, name: str, program: ReplicaProgram, count: int) -> bool:
        """Starts or ends replicas until `count` run beside the Procfile's lines. To be called repeatedly.

        Replicas of another program with the same version end before the first new one starts. Returns True if all new
        replicas serve and those of other versions still run: they can then be ended with `retire`.
        """
        children = self._replicas.setdefault(name, [])
        mine = [child for child in children if child.program == program and not child.unwanted]
        others = [child for child in children if child.program is not None and child.program != program]
        rivals = [child for child in others if child.program is not None and child.program.version == program.version]
        serving = len(mine) >= count and all(child.up for child in mine)
        for child in [*mine[count:], *rivals]:
            self._end(child)
        if any(child in children for child in rivals):
            return False
        numbers = range(1, count + len(children) + 1)
        taken = {child.name for child in children}
        fresh = [f"{name}.{i}" for i in numbers if f"{name}.{i}" not in taken][: max(0, count - len(mine))]
        for label in fresh:
            environment = _environment({**self._base, **program.environment}, name, 0)
            child = Child(label, program.command, environment, program=program)
            children.append(child)
            self._children.append(child)
            self._tasks.append(asyncio.create_task(self._keep(child), name=label))
        return serving and any(not child.unwanted for child in others)

    def retire(self, name: str, program: ReplicaProgram) -> None:
        """Ends all replicas of other programs under this name."""
        for child in [child for child in self._replicas.get(name, []) if child.program != program]:
            self._end(child)

    def retry(self, name: str) -> None:
        """Forgets replicas that could not start, so that `scale` starts others in their place."""
        for child in [child for child in self._replicas.get(name, []) if child.ended]:
            self._dropped(child)

    def down(self) -> dict[str, str]:
        """{replica: why} of wanted replicas beside the Procfile that have ended and have not served since."""
        children = [child for replicas in self._replicas.values() for child in replicas]
        return {child.name: child.why for child in children if child.why and not child.unwanted}

    def _end(self, child: Child) -> None:
        """Ends a replica, which is not restarted."""
        if not child.unwanted:
            child.unwanted = True
            self._signal_one(child, signal.SIGTERM)
        if child.ended:
            self._dropped(child)

    def pids(self) -> dict[str, int]:
        """{process: process id} of the running ones."""
        return {
            child.name: child.process.pid
            for child in self._children
            if child.process is not None and child.process.returncode is None
        }

    def spares(self) -> dict[int, str]:
        """{process id: service} of the processes that are ready to take a place. They are no part of the mesh yet."""
        return self._spares.ready()

    async def stop(self) -> None:
        """Ends every process: with SIGTERM, and after KILL_AFTER_S by killing it. Spares are killed at once."""
        self._stopping = True
        self._asked.set()
        self._signal(signal.SIGTERM)
        await self._spares.stop()
        _, left = await asyncio.wait(self._tasks, timeout=KILL_AFTER_S) if self._tasks else (None, set())
        if left:
            self._say("up", f"killing what did not stop: {', '.join(sorted(task.get_name() for task in left))}")
            self._signal(signal.SIGKILL)
            await asyncio.wait(left)

    def _signal(self, number: int) -> None:
        for child in self._children:
            self._signal_one(child, number)

    def _signal_one(self, child: Child, number: int) -> None:
        if child.process is not None and child.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)

    def _dropped(self, child: Child) -> None:
        """A process beside the Procfile has ended for good."""
        self._children.remove(child)
        siblings = self._replicas[child.name.rpartition(".")[0]]
        siblings.remove(child)
        self._tasks = [task for task in self._tasks if task is not asyncio.current_task() and not task.done()]

    async def _keep(self, child: Child) -> None:
        while not self._stopping:
            began_s = time.monotonic()
            code = await self._attempt(child)
            if self._stopping:
                return
            if child.unwanted:
                self._dropped(child)
                return
            if child.program is not None and code == WRONG_SETTINGS:
                name = child.name.rpartition(".")[0]
                said = next((line for line in reversed(child.tail) if line), _describe(code))
                child.ended, child.why = True, f"it cannot start: {said}"
                self._say("up", f"{child.name} cannot start, and is not tried again before gearmesh scale {name} N")
                return
            if code == WRONG_SETTINGS and child.name.partition(".")[0] in OPTIONAL:
                self._say("up", f"{child.name} cannot start, and is not tried again; the mesh runs without it")
                return
            healthy = time.monotonic() - began_s > HEALTHY_S
            child.ran = child.ran or code == DEVICE_LOST or (healthy and code != WRONG_SETTINGS)
            if code == WRONG_SETTINGS and not child.ran:
                if not self.failed.done():
                    self.failed.set_result(f"{child.name} cannot start:\n" + "\n".join(child.tail[-8:]))
                return
            child.failures = 0 if healthy else child.failures + 1
            wait_s = BACKOFF_S[min(child.failures, len(BACKOFF_S) - 1)]
            child.why = f"it ended with {_describe(code)}, and is being started again"
            self._say("up", f"{child.name} ended with {_describe(code)}; starting it again in {wait_s} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), wait_s)

    async def _attempt(self, child: Child) -> int:
        """Runs the process once. Returns its exit code; NOT_STARTED, if it could not be started, or followed: that is
        said, and costs this process alone.
        """
        try:
            return await self._run(child)
        except Exception as error:
            if isinstance(error, OSError):  # no memory, no processes, no descriptors
                self._say("up", f"{child.name} could not be started: {error}")
            else:
                for line in "".join(traceback.format_exception(error)).splitlines():
                    self._say("up", line)
            self._signal_one(child, signal.SIGKILL)
            if child.process is not None:
                await child.process.wait()
            return NOT_STARTED

    async def _run(self, child: Child) -> int:
        """Runs the process once. Returns its exit code."""
        child.up = False
        if child.program is None:
            return await self._follow(child, await self._started(child))
        pipe = ReadyPipe(asyncio.get_running_loop(), partial(_serves, child))
        with contextlib.closing(pipe.open()):
            environment = {**child.environment, **pipe.environment}
            process = await start_process(child.command, environment, pipe.descriptors)
            pipe.handed_over()
            return await self._follow(child, process)

    async def _started(self, child: Child) -> asyncio.subprocess.Process:
        """A process of a line of the Procfile has begun: the spare, if one is ready. Another spare will follow."""
        process = self._spares.take(child.command, child.environment)
        if process is None:
            process = await start_process(child.command, child.environment)
        else:
            self._say("up", f"a spare takes the place of {child.name}")
        self._spares.due(child.command, child.environment)
        return process

    async def _follow(self, child: Child, process: asyncio.subprocess.Process) -> int:
        """Says what the process writes, until it ends. Returns its exit code."""
        child.process = process
        child.starts += 1
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                line = b"(a line of more than a megabyte was left out)\n"
            if not line:
                break
            text = line.decode(errors="replace").rstrip()
            child.tail = [*child.tail[-40:], text]
            self._say(child.name, text)
        return await process.wait()


def _serves(child: Child) -> None:
    """The replica has reported that it serves."""
    child.up, child.why = True, ""


def _environment(base: Mapping[str, str], name: str, instance: int) -> dict[str, str]:
    """The environment of one instance; ports of further instances count up from the first one's."""
    environment = {"GEARMESH_PYTHON": sys.executable, "PYTHONUNBUFFERED": "1", **base}
    if environment.get("PYTHONPATH"):  # a process may work in another folder than we do
        paths = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
    key, first = {
        "frontend": ("GEARMESH_FRONTEND_PORT", 5555),
        "controller": ("GEARMESH_CONTROLLER_PORT", 5560),
        "gateway": ("GEARMESH_HTTP_PORT", 8000),
    }.get(name.partition(".")[0], ("", 0))
    if key and instance and int(environment.get(key, first)):
        environment[key] = str(int(environment.get(key, first)) + instance)
    return environment


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
