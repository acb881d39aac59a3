"""Meshes of real processes for tests: with torch, or with emulated devices where only the mesh is in question."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from typer.testing import CliRunner

from gearmesh.cli.main import app
from gearmesh.operations.meshes import Mesh, mesh
from gearmesh.operations.up import first_of

LONG_MS = 40_000.0  # a budget for what is to be answered, however slow the machine is
LIMIT_S = 600.0  # nothing takes so long but what will never end
PAUSE_S = 0.01  # between two looks

MANIFEST = """
batch_max = {batch_max}
slo_ms = {slo_ms}
[architecture]
factory = "pytorchcv.models.resnet:resnet18"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, 4]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, 2]
"""


def emulated_model(
    repository: Path, name: str, *, version: str = "1", megabytes: int = 1, batch_max: int = 8, slo_ms: float = LONG_MS
) -> None:
    """A package that an emulated device serves: [rows, 4] in, [rows, 2] of zeros out."""
    folder = repository / name / version
    folder.mkdir(parents=True)
    save_file({"w": np.zeros(megabytes << 18, np.float32)}, folder / "weights.safetensors")
    (repository / name / "model.toml").write_text(MANIFEST.format(batch_max=batch_max, slo_ms=slo_ms))


def emulated_device(
    folder: Path,
    *,
    exec_ms: float = 1.0,
    slope_ms: float = 0.1,
    memory_mb: int = 1024,
    load_gb_per_s: float = 10.0,
    never: str = "",
) -> str:
    """The GEARMESH_DEVICE of a device on which a model takes exec_ms + slope_ms x batch, and `never` takes hours."""
    file = folder / f"device-{exec_ms}-{memory_mb}.json"
    profile = {
        "name": "test",
        "memory_mb": memory_mb,
        "page_mb": 1,
        "load_gb_per_s": load_gb_per_s,
        "default": {"exec_ms": {"intercept": exec_ms, "slope": slope_ms}},
        "models": {never: {"exec_ms": {"intercept": 1e7, "slope": 0.0}}} if never else {},
    }
    file.write_text(json.dumps(profile))
    return f"emulated:{file}"


def run_with_mesh(scenario: Callable[[Mesh], Any], repository: Path, data_dir: Path, **settings: Any) -> None:
    """Runs the coroutine function `scenario` beside a mesh; on failure, the mesh's log is part of the error."""

    async def run() -> None:
        async with mesh(repository, data_dir, **settings) as running:
            try:
                played = asyncio.ensure_future(scenario(running))
                await first_of(played, running.supervisor.failed, timeout_s=LIMIT_S)
                if not played.done():
                    played.cancel()
                    await asyncio.gather(played, return_exceptions=True)
                    failed = running.supervisor.failed
                    raise AssertionError(failed.result() if failed.done() else f"nothing came of it in {LIMIT_S} s")
                await played
            except BaseException as error:
                error.add_note(f"the mesh's log:\n{running.log(120)}")
                raise

    asyncio.run(run())


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Returns once it holds. Asks again and again, and pauses between: what is waited for needs the processor too."""
    while True:
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(PAUSE_S)


async def gearmesh(running: Mesh, *arguments: str) -> tuple[int, str]:
    """(exit code, output) of a command for that mesh, in this process."""
    environment = {**running.environment, "COLUMNS": "200"}
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
    return result.exit_code, result.output


@contextmanager
def background_mesh(repository: Path, data_dir: Path, settings: Mapping[str, Any]) -> Iterator[Mesh]:
    """A mesh that runs on a thread of its own, for tests that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="mesh", daemon=True)
    thread.start()
    held: dict[str, Any] = {}

    async def enter() -> Mesh:
        held["context"] = mesh(repository, data_dir, **settings)
        running: Mesh = await held["context"].__aenter__()
        return running

    async def leave() -> None:
        await held["context"].__aexit__(None, None, None)

    try:
        running = asyncio.run_coroutine_threadsafe(enter(), loop).result(LIMIT_S)
        try:
            yield running
        finally:
            asyncio.run_coroutine_threadsafe(leave(), loop).result(LIMIT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT_S)
        loop.close()
