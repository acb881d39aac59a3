"""The gateway's life: its port, its links, and how it ends."""

import asyncio
import os

import structlog
from aiohttp import web

from broker.config import Settings
from broker.errors import AddressInUse
from frontend.gateway.pool import Pool
from frontend.gateway.service import Gateway
from frontend.gateway.watch import Watch

log = structlog.get_logger("gateway")


async def serve(settings: Settings, signals: "asyncio.Queue[int]") -> None:
    """Serves until a signal, then answers what it has, for up to drain_s or another signal. Raises: AddressInUse."""
    watch = Watch(settings)
    try:
        async with Pool(settings) as pool:
            gateway = Gateway(settings, pool, watch)
            runner = web.AppRunner(gateway.application(), access_log=None, shutdown_timeout=settings.drain_s)
            await runner.setup()
            ending: asyncio.Task[None] | None = None
            try:
                await _listen(runner, settings)
                await signals.get()
                gateway.draining = True
                log.info("draining", requests=gateway.gate.requests)
                ending = asyncio.create_task(runner.cleanup())
                again = asyncio.create_task(signals.get())
                await asyncio.wait((ending, again), return_when=asyncio.FIRST_COMPLETED)
                again.cancel()
            finally:
                if ending is None:
                    await runner.cleanup()
                elif not ending.done():
                    ending.cancel()
                    await asyncio.gather(ending, return_exceptions=True)
    finally:
        await watch.close()


async def _listen(runner: web.AppRunner, settings: Settings) -> None:
    address = settings.http_address
    try:
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise AddressInUse(address, "GEARMESH_HTTP_PORT", why) from error
    log.info("started", address=address, pid=os.getpid())
    if settings.http_host != settings.host:
        log.info("stays_on_loopback", host=settings.host, advice="a proxy with TLS and log-in may stand in front of it")
