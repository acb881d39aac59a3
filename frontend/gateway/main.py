"""`python -m frontend.gateway`: HTTP for the mesh on GEARMESH_HTTP_PORT."""

import asyncio
import signal
import sys

import structlog

from mesh.errors import GearmeshError, SettingsError
from mesh.printable import printable
from mesh.process import descriptors
from mesh.process.configuration import settings_or_exit
from mesh.process.runtime import begin
from mesh.process.settings import Settings

log = structlog.get_logger("gateway")


def main() -> None:
    """Serves HTTP until a signal; with http_port 0 it only waits. Exits 0, or 2 with the reason if it cannot start."""
    settings = settings_or_exit()
    guard = begin(settings, "gateway")
    descriptors.raise_limit()
    try:
        _check(settings)
        guard.run(_run(settings))
    except GearmeshError as error:
        sys.stderr.write(printable(f"gateway: {error}\n"))
        raise SystemExit(2) from error


def _check(settings: Settings) -> None:
    """Checks that the settings let the gateway reach the mesh: keys and port. Raises: GearmeshError."""
    settings.keys()
    if settings.http_port and not settings.frontend_port:
        raise SettingsError(["frontend_port=0: the gateway finds the mesh at this port; name one, or set http_port=0"])


async def _run(settings: Settings) -> None:
    signals: asyncio.Queue[int] = asyncio.Queue(8)  # the first drains, the second stops at once
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _note, signals, number)
    if settings.http_port:
        from frontend.gateway.server import serve  # imports aiohttp only if HTTP is on

        await serve(settings, signals)
    else:
        # Without HTTP the process stays alive, because process managers restart, or stop with, a process that ends.
        log.info("off", why="http_port is 0")
        await signals.get()
    log.info("stopped")


def _note(signals: "asyncio.Queue[int]", number: int) -> None:
    if not signals.full():
        signals.put_nowait(number)
