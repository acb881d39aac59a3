"""What the process of every service has in common: event loop, signals, garbage collector, exit code."""

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from mesh.errors import GearmeshError
from mesh.net.keys import Keys
from mesh.net.memory import keep_freed
from mesh.net.sockets import Hub
from mesh.net.transport import Transport
from mesh.printable import printable
from mesh.process import descriptors, logs
from mesh.process.compiled import Why, form
from mesh.process.configuration import settings_or_exit
from mesh.process.crashes import Guard
from mesh.process.output import leave, take_over
from mesh.process.settings import Settings

STOP_S = 15.0  # time to stop after draining; a process that has failed is then ended by force
CHANGED_SHOWN = 8  # files that a log line names
log = structlog.get_logger("runtime")


class Service(Protocol):
    """The shell around one core."""

    def start(self) -> None:
        """Opens the sockets and calls the peers. Raises: GearmeshError."""

    def drain(self) -> bool:
        """Accepts nothing new; returns True once nothing is left to finish.

        Called repeatedly until then, or until time is up.
        """

    def stop(self) -> None:
        """Says goodbye and closes what `start` opened."""


class Runtime:
    """One process: a hub, its links, and the services in it."""

    def __init__(
        self, settings: Settings, failing: Callable[[int, float], None] | None = None, keys: Keys | None = None
    ) -> None:
        """`failing(code, seconds)` is called for an exit code other than 0; the process should end within that many
        seconds. `keys`: the mesh's; by default those that the settings name, made if need be.
        """
        self.settings = settings
        self._failing = failing
        self.hub = Hub(asyncio.get_running_loop(), keys or settings.mesh_keys(make=True))
        self.transport = Transport(
            self.hub,
            heartbeat_s=settings.heartbeat_ms / 1e3,
            silence_s_max=settings.silence_ms_max / 1e3,
            message_bytes_max=settings.message_bytes_max,
        )
        self._asked = asyncio.Event()
        self._exit_code = 0

    def end(self, exit_code: int) -> None:
        """The services drain, as after a signal; then `run` returns this code."""
        self._exit_code = exit_code
        if exit_code and self._failing is not None:
            self._failing(exit_code, self.settings.drain_s + STOP_S)
        self._asked.set()

    async def run(self, services: list[Service]) -> int:
        """Serves until SIGTERM, SIGINT or `end`, then drains; a second signal stops at once. Returns the exit code."""
        loop = asyncio.get_running_loop()
        asked = self._asked
        again = asyncio.Event()

        def signalled() -> None:
            (again if asked.is_set() else asked).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled)
        for service in services:
            service.start()
        gc.collect()
        gc.freeze()
        keep_freed()
        await asked.wait()
        self.transport.ending = True
        await self._drain(services, again)
        self.hub.schedule_turn()
        await asyncio.sleep(0)  # one turn, so that the last results leave
        for service in reversed(services):
            service.stop()
        self.hub.schedule_turn()
        await asyncio.sleep(0)  # one turn, so that the goodbyes leave
        self.transport.close()
        self.hub.close()
        return self._exit_code

    async def _drain(self, services: list[Service], again: asyncio.Event) -> None:
        began_at = time.monotonic()
        ends_at = began_at + self.settings.drain_s
        waiting = list(services)
        while waiting and time.monotonic() < ends_at:
            waiting = [service for service in waiting if not service.drain()]
            if not waiting:
                return
            try:
                await asyncio.wait_for(again.wait(), 0.02)
            except TimeoutError:
                continue
            break
        for service in waiting:
            log.warning("not_drained", what=type(service).__name__, after_s=round(time.monotonic() - began_at, 3))


def begin(settings: Settings, role: str) -> Guard:
    """What this process writes never makes it wait, its log lines name `role`, and what nobody catches ends it."""
    logs.set_up(settings, role, take_over())
    guard = Guard()
    guard.watch()
    tell_form()
    return guard


def tell_form() -> None:
    """The log says in which form this process runs what can be compiled."""
    found = form()
    if found.why is Why.STALE:
        shown = found.changed[:CHANGED_SHOWN]
        log.warning("compiled_is_stale", changed=shown, files=len(found.changed), advice="run scripts/setup")
    else:
        log.info("code", form=found.name, why=found.why)


def serve(role: str, make: Callable[[Runtime], list[Service]]) -> None:
    """The `main` of a service: reads settings, runs the services of `make` until a signal, then exits."""
    settings = settings_or_exit()
    guard = begin(settings, role)
    descriptors.raise_limit()
    sys.path.append(os.getcwd())  # code that models and policies name may lie there; behind what is installed: no file
    # there takes the place of a module of ours, or of a library's

    async def main() -> int:
        runtime = Runtime(settings, _end_within)
        try:
            return await runtime.run(make(runtime))
        except GearmeshError:
            runtime.hub.close()
            raise

    try:
        code = guard.run(main())
    except GearmeshError as error:
        sys.stderr.write(printable(f"{role}: {error}\n"))
        raise SystemExit(2) from error
    if code:
        leave(code)  # what failed must not block the exit or change its code: threads, destructors that abort


def _end_within(code: int, seconds: float) -> None:
    """Ends the process with `code` after `seconds` if it still runs: what made it fail may also keep it from ending."""
    timer = threading.Timer(seconds, leave, (code,))
    timer.daemon = True
    timer.start()
