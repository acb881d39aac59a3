"""The gateway's process: its port, its clients, and its end."""

import asyncio
import os
from typing import Any

import structlog
from aiohttp import web

from frontend.gateway.connection import HttpClients, HttpConnection
from frontend.gateway.pool import Pool
from frontend.gateway.service import Gateway
from frontend.gateway.watch import MeshWatch
from mesh.errors import AddressInUse
from mesh.process.settings import Settings

KEEP_ALIVE_S = 75.0  # an idle connection is closed after so long
log = structlog.get_logger("gateway")


async def serve(settings: Settings, signals: "asyncio.Queue[int]") -> None:
    """Serves until a signal, then finishes open requests for up to drain_s or a second signal. Raises: AddressInUse."""
    watch = MeshWatch(settings)
    try:
        async with Pool(settings) as pool:
            gateway = Gateway(settings, pool, watch)
            runner = web.AppRunner(  # a client that closes its connection cancels its request
                gateway.application(), shutdown_timeout=settings.drain_s, handler_cancellation=True
            )
            await runner.setup()
            try:
                listener = await _listen(runner, gateway.clients, settings)
            except AddressInUse:
                await runner.cleanup()
                raise
            await signals.get()
            gateway.draining = True
            log.info("draining", requests=gateway.gate.requests)
            listener.close()
            await _until(runner.cleanup(), signals)
    finally:
        await watch.close()


async def _until(cleanup: Any, signals: "asyncio.Queue[int]") -> None:
    """Waits for the clean-up, or a second signal: closing the pool then answers what is left."""
    tasks = [asyncio.create_task(cleanup, name="cleanup"), asyncio.create_task(signals.get(), name="again")]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(runner: web.AppRunner, clients: HttpClients, settings: Settings) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    manager = runner.server
    assert manager is not None  # created by setup
    options: dict[str, Any] = {"keepalive_timeout": KEEP_ALIVE_S, "access_log": None}
    try:
        listener = await loop.create_server(
            lambda: HttpConnection(clients, manager, loop=loop, **options),
            settings.http_host,
            settings.http_port,
            backlog=1024,
        )
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise AddressInUse(settings.http_address, "GEARMESH_HTTP_PORT", why) from error
    log.info("started", address=settings.http_address, pid=os.getpid())
    if settings.http_host != settings.host:
        log.info("stays_on_loopback", host=settings.host, advice="a proxy with TLS and log-in may stand in front of it")
    return listener
