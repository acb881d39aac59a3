"""A real redis-server for tests, on a port of its own."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from gearmesh.operations.ports import free_ports
from tests.loops import LIMIT_S

PAUSE_S = 0.02  # between two connection attempts while the server starts


@contextmanager
def redis_server(folder: Path, port: int = 0) -> Iterator[str]:
    """The server's address, redis://...; it runs until the block ends."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is missing: scripts/test installs it, or: apt-get install redis-server")
    if not port:
        (port,) = free_ports(1)
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--dir", str(folder)]
    with (folder / "redis.log").open("w") as log:
        process = subprocess.Popen([program, *options], stdout=log, stderr=log)
    client = redis.Redis(
        port=port, retry=Retry(ConstantBackoff(PAUSE_S), int(LIMIT_S / PAUSE_S)), retry_on_error=[redis.RedisError]
    )
    try:
        client.ping()
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        client.close()
        process.terminate()
        process.wait(LIMIT_S)
