"""`gearmesh up`: runs the Procfile's processes under a supervisor, and reports when the mesh is ready."""

import asyncio
import errno
import os
import re
import signal
import socket
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from frontend.client.async_client import AsyncClient
from frontend.client.client import RequestError
from gearmesh.cli.terminal.consoles import console, text_of
from gearmesh.operations.containers import ContainerFile, keep_containers
from gearmesh.operations.joining import WORKER, why_apart
from gearmesh.operations.supervisor import FRONT, OURS, PROCFILE, Say, Supervisor, processes_of, procfile_commands
from mesh.errors import AddressInUse
from mesh.printable import printable
from mesh.process.configuration import environment_of
from mesh.process.output import take_over
from mesh.process.settings import Settings

POLL_S = 0.2
AGAIN_S = 1.0  # after an error of our own
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # by which a process colours its lines: left out, as its name has our colour
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_black")


def procfile_of(named: Path | None) -> tuple[Path, str]:
    """(the Procfile to run, what to tell the user about the choice): the named one, the working folder's, or our own.

    The working folder's is run if it has a process of a mesh; otherwise it belongs to something else. Raises: OSError,
    ValueError, if it cannot be read.
    """
    if named is not None:
        return named, ""
    here = Path("Procfile")
    if not here.exists():
        return PROCFILE, ""
    processes = processes_of(here)
    if OURS & processes.keys():
        return here, ""
    what = ", ".join(processes) or "nothing"
    return PROCFILE, (
        f"{here.absolute()} runs {what}, and no process of a mesh: running gearmesh's own Procfile instead; "
        "--procfile Procfile runs that one"
    )


async def run_up(settings: Settings, named: Path | None, formation: Mapping[str, int], *, compact: bool) -> int:
    """Runs until a signal. Returns the exit code: 0, or 2 if the mesh cannot run. `named`: a Procfile, or None."""
    out = console()
    try:
        procfile, remark = procfile_of(named)
        apart = why_apart(settings, processes_of(procfile), formation) if compact else ""
        commands = procfile_commands(procfile, formation, compact=compact, worker=compact and not apart)
    except OSError as error:
        advice = "name another with --procfile"
        _refuse(f"gearmesh: {error.filename}: {error.strerror}: {advice}")
        return 2
    except ValueError as error:
        _refuse(f"gearmesh: {error}")
        return 2
    taken = ports_taken(settings, commands)
    if taken:
        _refuse(taken)
        return 2
    output = take_over()
    say = printer(out, commands)
    output.out.notice = partial(_left_out, max(map(len, (*commands, "up"))))
    if remark:
        say("up", remark)
    if compact:
        say("up", told_of_worker(apart, commands))
    if out.is_terminal and settings.log_format == "auto":  # processes write into a pipe
        settings = settings.model_copy(update={"log_format": "console"})
    environment = {**with_ports(settings, os.environ), **environment_of(settings, ["log_format"])}
    supervisor = Supervisor(commands, say, environment, settings.spares)
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: say("up", _fault_in(context)))
    supervisor.start()
    kept = ContainerFile(settings.data_dir)
    ready = asyncio.create_task(again_and_again(say, lambda: _tell_ready(settings, supervisor)))
    containers = asyncio.create_task(again_and_again(say, lambda: keep_containers(supervisor, kept, settings)))
    waiting = asyncio.create_task(asked.wait())
    await first_of(waiting, supervisor.failed)
    ready.cancel()
    containers.cancel()
    await asyncio.gather(ready, containers, return_exceptions=True)
    waiting.cancel()
    await supervisor.stop()
    if supervisor.failed.done():
        _refuse(supervisor.failed.result())
        return 2
    return 0


def told_of_worker(apart: str, processes: Iterable[str]) -> str:
    """What the user reads about where the worker is: beside the compact process, which is one of these, or in it."""
    if apart:
        count = sum([name.partition(".")[0] == WORKER for name in processes])
        if not count:
            return f"no worker is started: {apart}"
        return f"{'the worker has a process of its' if count == 1 else 'workers have processes of their'} own: {apart}"
    return "the worker is in the process of the others: its device is the processor (-f gpu_worker=1 keeps it apart)"


def printer(out: Console, processes: Iterable[str]) -> Say:
    """A function that prints a line of a process behind its name, in the process's colour on a terminal.

    `processes` have colours of their own and set the column's width; a replica that comes later has a colour, too.
    """
    names = [*processes, "up"]
    width = max(map(len, names))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}

    def say(name: str, line: str) -> None:
        head = f"{printable(name):>{width}} |"
        if out.is_terminal:
            with out.capture() as captured:
                out.print(text_of((head, colours.get(name, COLOURS[0]))), end="")
            head = captured.get()
        out.file.write(f"{head} {printable(COLOUR.sub('', line))}\n")
        out.file.flush()

    return say


def _left_out(width: int, lines: int) -> str:
    """What is printed once whoever stopped reading reads again."""
    return f"{'up':>{width}} | {lines} lines were left out while nobody read them\n"


async def again_and_again(say: Say, work: Callable[[], Awaitable[None]]) -> None:
    """Does it until it is done. What it raises is said, and it begins anew: the mesh is supervised all the while."""
    while True:
        try:
            return await work()
        except Exception as error:
            for line in "".join(traceback.format_exception(error)).splitlines():
                say("up", line)
            say("up", f"that is an error in gearmesh up itself, which goes on; please report it ({error!r})")
            await asyncio.sleep(AGAIN_S)


def _fault_in(context: Mapping[str, Any]) -> str:
    """One line about what a callback raised."""
    error = context.get("exception")
    where = traceback.extract_tb(error.__traceback__)[-1:] if error is not None else []
    at = "".join(f", {frame.filename}:{frame.lineno}" for frame in where)
    return f"an error in gearmesh up itself, which goes on; please report it: {context.get('message')} ({error!r}{at})"


def _refuse(text: str) -> None:
    console(stderr=True).print(text, style="red", soft_wrap=True)


def with_ports(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the settings' ports added: further instances of a service count up from them."""
    return {**environment, **environment_of(settings, ("frontend_port", "controller_port", "http_port"))}


def ports_taken(settings: Settings, processes: Iterable[str]) -> str:
    """The ports of a mesh with these processes that are taken, and what to change; empty if none is.

    Otherwise the wait for readiness would reach another mesh.
    """
    services = {name.partition(".")[0] for name in processes}
    faults = []
    for service in FRONT:
        port = int(getattr(settings, f"{service}_port"))
        if port == 0 or not services & {service, "mesh"}:
            continue
        try:
            with socket.create_server((settings.host, port), family=_family(settings.host)):
                pass
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                address, setting = f"tcp://{settings.host}:{port}", f"GEARMESH_{service.upper()}_PORT"
                faults.append(str(AddressInUse(address, setting, os.strerror(errno.EADDRINUSE))))
    return "\n".join(faults)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


async def _tell_ready(settings: Settings, supervisor: Supervisor) -> None:
    began_s = time.monotonic()
    async with client(settings) as session:
        ready = await wait_ready(session, lambda ready, total: None)
    http = settings.http_port and any(name.partition(".")[0] == "gateway" for name in supervisor.pids())
    supervisor.say("up", ready_line(settings, ready, time.monotonic() - began_s, http=bool(http)))


def ready_line(settings: Settings, ready: Sequence[str], took_s: float, *, http: bool) -> str:
    """What the user reads once the mesh is ready: where clients call, and where models are looked for if none is."""
    where = settings.frontend_address + (f", or {settings.http_address}" if http else "")
    empty = "" if ready else f", without a model that can be served in {settings.model_repository.absolute()}"
    return f"ready after {took_s:.1f} s{empty}: clients call {where}"


async def first_of(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Returns once any of the futures is done, or the time is up."""
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def client(settings: Settings) -> AsyncClient:
    """A client of the frontend in the settings."""
    keys = settings.keys()
    return AsyncClient(settings.frontend_address, keys=keys.for_clients if keys else None)


async def wait_ready(session: AsyncClient, progress: Callable[[list[str], list[str]], None]) -> list[str]:
    """Waits until no further model can become ready. Returns the names of those that can be served.

    `progress(ready, all)` is called with names.
    """
    while True:
        try:
            models = await session.models()
        except RequestError:
            continue
        settled = [m for m in models if m["ready"] or (not m["preparing"] and (m["fault"] or not m["version"]))]
        ready = [m["name"] for m in models if m["ready"]]
        progress(ready, [m["name"] for m in models])
        if len(settled) == len(models):
            return ready
        await asyncio.sleep(POLL_S)
