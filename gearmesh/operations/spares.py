"""Keeps a process of a service ready: it has imported everything, and takes the place of one that dies.

A spare is started by the same command and in the same environment as the process whose place it may take, some time
after that has started; it does nothing but import, opens nothing, and waits (`mesh.process.standby`). Lines of a
Procfile with the same command and environment share one. Where there is none, or it is not ready, a process is started
as without spares.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from gearmesh.operations.starting import start_process
from mesh.process.standby import StandbyLink

AFTER_S = 3.0  # from a process's start until its spare's: the process itself has to get ready first
PAUSES_S = (5.0, 10.0, 30.0, 60.0, 300.0)  # before the next spare, by number of those in a row that ended unasked
# one program of ours with plain arguments, which may be started a second time: no shell does anything else before
LINE = re.compile(
    r"""\s*(?:exec\s+)?(?:"?\$\{GEARMESH_PYTHON(?::-[\w./~-]*)?\}"?|[\w./~-]*python[\d.]*)"""
    r"""(?:\s+-[A-Za-z]+)*?\s+-m\s+"""
    r"""(broker|controller|frontend|frontend\.gateway|gpu_worker|gearmesh\.operations\.compact\s+worker)"""
    r"""(?:\s+[\w.,:=/@+-]+)*\s*"""
)
WITH_WORKER = " worker"  # ends the name of the compact process that has a worker: it is started ahead as a worker is

Key = tuple[str, frozenset[tuple[str, str]]]  # command and environment


def service_of(command: str) -> str:
    """The service that the command of a Procfile runs and nothing else; empty: it may do other things.

    The compact process with a worker counts as the worker, whose imports are what takes long.
    """
    found = LINE.fullmatch(command)
    if not found:
        return ""
    return "gpu_worker" if found[1].endswith(WITH_WORKER) else found[1].rpartition(".")[2]


@dataclass(slots=True)
class Spare:
    """One process that waits, or that is yet to be started."""

    service: str
    process: asyncio.subprocess.Process | None = None
    link: StandbyLink | None = None
    ready: bool = False
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class Spares:
    """At most one spare for each command and environment."""

    def __init__(self, services: Collection[str], say: Callable[[str], None]) -> None:
        """`services`: those that have spares. `say`: prints a line for the operator."""
        self._services, self._say = frozenset(services), say
        self._spares: dict[Key, Spare] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    def due(self, command: str, environment: Mapping[str, str]) -> None:
        """A process has been started so: there will be a spare for it in AFTER_S, unless there is one."""
        key, service = _key(command, environment), service_of(command)
        if service in self._services and key not in self._spares and not self._stopping.is_set():
            spare = self._spares[key] = Spare(service)
            task = asyncio.create_task(self._keep(spare, command, environment), name=f"a spare of {service}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def take(self, command: str, environment: Mapping[str, str]) -> asyncio.subprocess.Process | None:
        """The spare that is ready for this command, told to begin; None: there is none. It is no spare any more."""
        key = _key(command, environment)
        spare = self._spares.get(key)
        if spare is None or not spare.ready or spare.process is None or spare.link is None:
            return None
        if spare.process.returncode is not None or not spare.link.order():
            return None  # it has just ended, and is replaced
        del self._spares[key]
        spare.taken.set()
        return spare.process

    def ready(self) -> dict[int, str]:
        """{process id: service} of the spares that wait for nothing but their order."""
        return {spare.process.pid: spare.service for spare in self._spares.values() if spare.process and spare.ready}

    async def stop(self) -> None:
        """No spare is left, and none is started. What was taken goes on."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        self._spares.clear()

    async def _keep(self, spare: Spare, command: str, environment: Mapping[str, str]) -> None:
        """Starts the spare, and another if it ends unasked, until one is taken, or all is over."""
        wait_s, ended = AFTER_S, 0
        while not spare.taken.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
            if self._stopping.is_set():
                return
            why = await self._live(spare, command, environment)
            if why:
                wait_s = PAUSES_S[min(ended, len(PAUSES_S) - 1)]
                ended += 1
                self._say(f"a spare of {spare.service} ended ({why}); another is started in {wait_s:g} s")

    async def _live(self, spare: Spare, command: str, environment: Mapping[str, str]) -> str:
        """One spare, until it is taken, or gone. Returns how it ended by itself; empty: it did not."""
        with contextlib.closing(StandbyLink()) as link:
            try:
                process = await start_process(command, {**environment, **link.environment}, link.descriptors)
            except OSError as error:
                return str(error)
            link.handed_over()
            spare.process, spare.link = process, link
            try:
                await self._first(_told(spare))
                await self._first(process.wait(), spare.taken.wait())
                return "" if spare.taken.is_set() or self._stopping.is_set() else await _last_words(process)
            finally:
                spare.ready = False
                if not spare.taken.is_set():
                    await _kill(process)

    async def _first(self, *waits: Coroutine[Any, Any, object]) -> None:
        """Returns once one of them is over, or all is; none goes on."""
        tasks = [asyncio.create_task(wait) for wait in (*waits, self._stopping.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _told(spare: Spare) -> None:
    """The spare is ready, or gone."""
    assert spare.link is not None
    spare.ready = bool(await asyncio.get_running_loop().sock_recv(spare.link.ours, 1))


def _key(command: str, environment: Mapping[str, str]) -> Key:
    return command, frozenset(environment.items())


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """How a process that has ended did so: its exit code, and the last line that it printed."""
    assert process.stdout is not None
    printed = (await process.stdout.read()).decode(errors="replace").strip().rpartition("\n")[2]
    return f"exit code {process.returncode}" + (f": {printed}" if printed else "")


async def _kill(process: asyncio.subprocess.Process) -> None:
    """The process is gone. It holds nothing that would have to be given back."""
    assert process.stdout is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.stdout.read()  # to its end: only then is the pipe closed here, too
    await process.wait()
