"""`gearmesh up` with real processes whose output nobody reads, and with callbacks that raise: service goes on."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from gearmesh.operations.ports import free_ports
from mesh.process.crashes import CRASHED
from mesh.process.settings import without_settings
from scripts import ROOT
from scripts.rigs.meshes import LIMIT_S, LONG_MS, emulated_device, emulated_model, until

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)
ROLES = ("broker", "controller", "gpu_worker", "frontend")
REQUESTS = 60


class Up:
    """A running `gearmesh up`. What it prints is read, as long as `reads` says so."""

    def __init__(self, folder: Path, roles: Sequence[str], *, loud: bool) -> None:
        emulated_model(folder / "repository", "a")
        program = f"exec {sys.executable} {Path(__file__).with_name('loud_service.py')}"
        procfile = folder / "Procfile"
        procfile.write_text("".join(f"{role}: {program} {role} {'loud' * loud}\n" for role in roles))
        broker, controller, frontend = free_ports(3)
        self.address = f"tcp://127.0.0.1:{frontend}"
        environment = {
            **without_settings(os.environ),
            "PYTHONPATH": str(ROOT),
            "GEARMESH_BROKER_PORT": str(broker),
            "GEARMESH_CONTROLLER_PORT": str(controller),
            "GEARMESH_FRONTEND_PORT": str(frontend),
            "GEARMESH_HTTP_PORT": "0",
            "GEARMESH_MODEL_REPOSITORY": str(folder / "repository"),
            "GEARMESH_DATA_DIR": str(folder / "data"),
            "GEARMESH_DEVICE": emulated_device(folder),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gearmesh", "up", "--procfile", str(procfile)],
            env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.said: list[str] = []  # all but what is only there to be much
        self._hung_up = False
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                if b"xxxxx" not in line:
                    self.said.append(line.decode().rstrip())
                self._goes_on.wait()
                if self._hung_up:
                    return

    def pause(self) -> None:
        """Nobody reads."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Somebody reads again."""
        self._goes_on.set()

    def hang_up(self) -> None:
        """Nobody can read any more."""
        self._hung_up = True
        self._reader.join()

    async def hears(self, *words: str) -> None:
        """Returns once a line has all these words."""
        await until(lambda: any(all(word in line for word in words) for line in list(self.said)))

    def end(self) -> int:
        """The exit code, after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self.go_on()
            self._reader.join()


@contextlib.asynccontextmanager
async def running(folder: Path, roles: Sequence[str] = ROLES, *, loud: bool = False) -> AsyncIterator[Up]:
    """A mesh that is ready."""
    up = Up(folder, roles, loud=loud)
    try:
        await up.hears("up |", "ready after")
        yield up
    except BaseException as error:
        error.add_note("it said:\n" + "\n".join(up.said[-80:]))
        raise
    finally:
        code = up.end()
    assert code == 0, up.said[-80:]


async def status(client: AsyncClient) -> Any:
    """What the frontend says of itself, once it answers."""
    while True:
        with contextlib.suppress(RequestError):
            return await client.call("status")


async def all_answered(client: AsyncClient) -> None:
    """REQUESTS requests, each with an answer."""
    outcomes = await asyncio.gather(*(client.submit("a", X, slo_ms=LONG_MS, cache=False) for _ in range(REQUESTS)))
    assert [outcome for outcome in outcomes if not isinstance(outcome, Prediction)] == []


def stopped(up: Up) -> None:
    """Ctrl-Z."""
    up.process.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(stopped, id="stopped"),
        pytest.param(Up.pause, id="nobody reads"),
        pytest.param(Up.hang_up, id="hung up", marks=pytest.mark.slow),
    ],
)
def test_a_mesh_whose_output_nobody_takes_answers_every_request(stop: Callable[[Up], None], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, loud=True) as up, AsyncClient(up.address) as client:
            await all_answered(client)
            stop(up)
            if stop is stopped:

                async def full() -> bool:
                    return bool((await status(client))["lines"]["dropped"])

                await until(full)
            await all_answered(client)
            if stop is not stopped:  # it goes on to start again what dies
                (frontend,) = [member for member in (await status(client))["members"] if member["role"] == "frontend"]
                os.kill(frontend["pid"], signal.SIGKILL)

                async def back() -> bool:
                    return (await status(client))["frontend"] != frontend["id"]

                await until(back)
            await all_answered(client)
            up.process.send_signal(signal.SIGCONT)
            up.go_on()
            if stop is stopped:
                await up.hears("frontend |", "log_lines_dropped")

    asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))


@pytest.mark.parametrize(
    "roles",
    [pytest.param(ROLES, id="apart", marks=pytest.mark.slow), pytest.param(("mesh", "gpu_worker"), id="compact")],
)
def test_whichever_process_has_a_callback_that_raises_ends_and_comes_back(roles: Sequence[str], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, roles) as up, AsyncClient(up.address) as client:
            await all_answered(client)
            for role in roles:
                for pid in pids(up, role):
                    os.kill(pid, signal.SIGUSR1)
                await up.hears(f"{role} |", "crashed", "ZeroDivisionError: asked by somebody", f'"exit_code":{CRASHED}')
                await up.hears("up |", f"{role} ended with code {CRASHED}")

                async def serves() -> bool:
                    outcome = await client.submit("a", X, slo_ms=LONG_MS, cache=False)
                    return isinstance(outcome, Prediction)

                await until(serves)
                await all_answered(client)

    asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))


def pids(up: Up, role: str) -> list[int]:
    """The processes of that role, by their lines `started`."""
    found = [json.loads(line[line.index("{") :]) for line in up.said if re.match(rf" *{role} \| .*\"started\"", line)]
    return [line["pid"] for line in found[-1:]]
