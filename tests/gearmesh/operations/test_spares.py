"""gearmesh/operations/spares.py: real processes that wait, take the place of those that die, and go with the mesh."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from gearmesh.operations import spares as module
from gearmesh.operations.spares import service_of
from gearmesh.operations.supervisor import PROCFILE, Supervisor, procfile_commands
from scripts import ROOT
from scripts.rigs.meshes import until
from tests.gearmesh.operations.test_supervisor import runs
from tests.loops import LIMIT_S, Told, on_loop
from tests.messages import names

pytestmark = pytest.mark.usefixtures("hurried")

# what stands for a service: it waits as services do, and says who it is when it begins
SERVICE = """
import os, signal, sys
from mesh.process.standby import take_standby
with open("started", "a") as started:
    started.write(f"{os.getpid()}\\n")
standby = take_standby(os.environ)
if standby is not None and os.path.exists("sick"):
    sys.exit("out of order")
if standby is not None:
    standby.wait(None)
print(f"{'spare' if standby else 'fresh'} {os.getpid()} {os.environ.get('NUMBER', '-')}", flush=True)
while True:
    signal.pause()
"""
Begun = tuple[str, int, str]  # spare or fresh, its process id, NUMBER of its environment


def begun(said: Told, name: str = "a") -> list[Begun]:
    """All processes of a line that have begun, in order."""
    words = [line.split(" ") for who, line in said.items if who == name]
    return [(how, int(pid), number) for how, pid, number in words]


def started(folder: Path) -> list[int]:
    """Every process that was ever started, spare or not."""
    file = folder / "started"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The command of a service, gpu_worker by name; spares start at once."""
    monkeypatch.setattr(module, "AFTER_S", 0.0)
    monkeypatch.setattr(module, "PAUSES_S", (0.0,))
    package = tmp_path / "gpu_worker"
    package.mkdir()
    (package / "__init__.py").touch()  # else the real one goes before it
    (package / "__main__.py").write_text(SERVICE)
    monkeypatch.chdir(tmp_path)
    return f"exec {sys.executable} -m gpu_worker"


@contextlib.asynccontextmanager
async def running(
    commands: Mapping[str, str], spares: tuple[str, ...] = ("gpu_worker",), **more: str
) -> AsyncIterator[tuple[Supervisor, Told]]:
    said = Told()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{ROOT}", **more}
    supervisor = Supervisor({name: (line, 0) for name, line in commands.items()}, said, environment, spares)
    supervisor.start()
    try:
        yield supervisor, said
    finally:
        await supervisor.stop()


def has_flag(pid: int) -> bool:
    return b"--threads" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def settled(supervisor: Supervisor, said: Told, spares: int = 1) -> None:
    """All spares are ready, and every process has begun."""
    await until(lambda: len(supervisor.spares()) == spares)
    pids = supervisor.pids()
    await said.until(lambda _: all(begun(said, name) and begun(said, name)[-1][1] == pids[name] for name in pids))


@on_loop
async def test_a_spare_takes_the_place_of_a_process_that_dies_and_another_one_waits(line: str) -> None:
    async with running({"a": line}) as (supervisor, said):
        for number in range(3):
            await settled(supervisor, said)
            (spare,) = supervisor.spares()
            assert begun(said)[-1][1] == supervisor.pids()["a"] != spare
            os.kill(supervisor.pids()["a"], signal.SIGKILL)
            await said.until(lambda _, number=number: len(begun(said)) == number + 2)
            assert begun(said)[-1][:2] == ("spare", spare)
            assert supervisor.pids() == {"a": spare}
        told = [line for name, line in said.items if name == "up"]
        assert sum(names(line, "a", "SIGKILL") for line in told) == 3
        assert sum(names(line, "a", "spare") for line in told) == 3


@on_loop
async def test_a_spare_is_no_process_of_the_mesh_and_begins_nothing_before_its_order(line: str) -> None:
    async with running({"a": line}) as (supervisor, said):
        await settled(supervisor, said)
        assert list(supervisor.pids()) == ["a"]
        assert set(supervisor.spares().values()) == {"gpu_worker"}
        assert [how for how, _, _ in begun(said)] == ["fresh"]


@on_loop
async def test_a_spare_has_the_environment_of_the_process_whose_place_it_takes(line: str) -> None:
    async with running({"a": line}, NUMBER="7", GEARMESH_READY_FD="1") as (supervisor, said):
        await settled(supervisor, said)
        os.kill(supervisor.pids()["a"], signal.SIGKILL)
        await said.until(lambda _: len(begun(said)) == 2)
        assert {number for _, _, number in begun(said)} == {"7"}


@on_loop
async def test_lines_of_one_command_share_a_spare(line: str, tmp_path: Path) -> None:
    async with running({"a": line, "b": line, "c": f"{line} --threads 2"}) as (supervisor, said):
        await settled(supervisor, said, 2)
        (shared,) = [pid for pid in supervisor.spares() if not has_flag(pid)]
        os.kill(supervisor.pids()["b"], signal.SIGKILL)
        await said.until(lambda _: len(begun(said, "b")) == 2)
        assert begun(said, "b")[-1][1] == shared
        await settled(supervisor, said, 2)
        assert len(started(tmp_path)) == 3 + 3


@on_loop
async def test_a_spare_that_dies_is_replaced_and_that_is_said(line: str) -> None:
    async with running({"a": line}) as (supervisor, said):
        await settled(supervisor, said)
        (first,) = supervisor.spares()
        os.kill(first, signal.SIGKILL)
        await until(lambda: bool(supervisor.spares()) and first not in supervisor.spares())
        assert any(names(text, "gpu_worker", "-9") for name, text in said.items if name == "up")
        assert len(begun(said)) == 1  # the mesh has noticed nothing


@on_loop
async def test_without_a_spare_that_is_ready_a_process_is_started(line: str, tmp_path: Path) -> None:
    (tmp_path / "sick").touch()
    async with running({"a": line}) as (supervisor, said):
        await said.until(lambda items: sum(name == "up" for name, _ in items) >= 2)  # spares that have ended
        assert any(names(text, "gpu_worker", "out of order") for name, text in said.items if name == "up")
        await said.until(lambda _: begun(said))
        os.kill(supervisor.pids()["a"], signal.SIGKILL)
        await said.until(lambda _: len(begun(said)) == 2)
        assert begun(said)[-1][0] == "fresh"
        (tmp_path / "sick").unlink()
        await settled(supervisor, said)


@pytest.mark.parametrize("spares", [(), ("broker", "controller")], ids=["none", "others"])
@on_loop
async def test_services_without_spares_have_none(spares: tuple[str, ...], line: str, tmp_path: Path) -> None:
    async with running({"a": line}, spares) as (supervisor, said):
        for number in range(2):
            await said.until(lambda _, number=number: len(begun(said)) == number + 1)
            os.kill(supervisor.pids()["a"], signal.SIGKILL)
        await said.until(lambda _: len(begun(said)) == 3)
        assert {how for how, _, _ in begun(said)} == {"fresh"}
    assert len(started(tmp_path)) == 3


@on_loop
async def test_stopping_leaves_no_spare_behind(line: str, tmp_path: Path) -> None:
    async with running({"a": line, "b": f"{line} --threads 2"}) as (supervisor, said):
        await settled(supervisor, said, 2)
    assert supervisor.spares() == {}
    assert len(started(tmp_path)) == 4
    assert not [pid for pid in started(tmp_path) if runs(pid)]


ALONE = """
import asyncio, os, sys
from gearmesh.operations import spares
from gearmesh.operations.supervisor import Supervisor
spares.AFTER_S = 0.0

async def main():
    supervisor = Supervisor({"a": (sys.argv[1], 0)}, lambda name, line: None, os.environ, ["gpu_worker"])
    supervisor.start()
    while not supervisor.spares():
        await asyncio.sleep(0.01)
    print(*supervisor.spares(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_spare_ends_with_its_supervisor_however_that_ends(line: str, number: int) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", ALONE, line]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as supervisor:
        assert supervisor.stdout is not None
        spare = os.pidfd_open(int(supervisor.stdout.readline()))
        supervisor.send_signal(number)
    try:
        assert select.select([spare], [], [], LIMIT_S)[0] == [spare]  # readable: the process has ended
    finally:
        os.close(spare)


def test_all_services_of_our_own_procfile_may_have_spares() -> None:
    found = {name: service_of(line) for name, (line, _) in procfile_commands(PROCFILE, {}).items()}
    assert found == {name: name for name in ("broker", "controller", "gpu_worker", "frontend", "gateway")}


@pytest.mark.parametrize(
    ("command", "service"),
    [
        ("python -m gpu_worker", "gpu_worker"),
        ("exec /opt/venv/bin/python3.12 -P -m frontend.gateway --http-port 8000", "gateway"),
        ('exec "${GEARMESH_PYTHON:-python3}" -m controller --policy=atc', "controller"),
        ("exec ${GEARMESH_PYTHON} -m broker", "broker"),
        ("exec ${GEARMESH_PYTHON:-python3} -P -m gearmesh.operations.compact", ""),
        ("exec ${GEARMESH_PYTHON:-python3} -P -m gearmesh.operations.compact worker", "gpu_worker"),
        ("./prepare && exec python -m gpu_worker", ""),
        ("python -m gpu_worker; echo over", ""),
        ("python -m gpu_worker | tee log", ""),
        ("python -m gpu_worker > log", ""),
        ("python -m gpu_worker --data-dir $(mktemp -d)", ""),
        ("python -m gpu_worker --data-dir `pwd`", ""),
        ("CUDA_VISIBLE_DEVICES=1 python -m gpu_worker", ""),
        ("python -m gpu_worker_of_mine", ""),
        ("python -m other", ""),
        ("python worker.py -m gpu_worker", ""),
        ("sleep 6000", ""),
    ],
)
def test_only_a_line_that_runs_a_service_and_nothing_else_has_spares(command: str, service: str) -> None:
    assert service_of(command) == service
