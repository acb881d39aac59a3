"""gearmesh/operations/supervisor.py: the lines of a Procfile, and real processes that run them."""

import asyncio
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from gearmesh.operations import supervisor as module
from gearmesh.operations.supervisor import ReplicaProgram, Supervisor, procfile_commands
from scripts import ROOT
from tests.loops import LIMIT_S, Told, on_loop
from tests.messages import names

PROCFILE = "broker: run broker\ncontroller: run controller\ngpu_worker: run gpu_worker --x=1\nfrontend: run frontend\n"


@pytest.fixture
def procfile(tmp_path: Path) -> Path:
    """Four services, as in the project's own Procfile."""
    (tmp_path / "Procfile").write_text(PROCFILE)
    return tmp_path / "Procfile"


# -- the Procfile -----------------------------------------------------------------------------------------------------


def test_every_line_is_one_process(procfile: Path) -> None:
    assert procfile_commands(procfile, {}) == {
        "broker": ("run broker", 0),
        "controller": ("run controller", 0),
        "gpu_worker": ("run gpu_worker --x=1", 0),
        "frontend": ("run frontend", 0),
    }


def test_the_projects_own_procfile_starts_the_four_services_and_the_gateway() -> None:
    commands = procfile_commands(ROOT / "Procfile", {})
    assert list(commands) == ["broker", "controller", "gpu_worker", "frontend", "gateway"]
    modules = {name: name for name in commands} | {"gateway": "frontend.gateway"}
    assert all(
        command.startswith("exec ") and command.endswith(f"-m {modules[name]}")
        for name, (command, _) in commands.items()
    )


def test_compact_leaves_the_gateway_a_process_of_its_own() -> None:
    commands = procfile_commands(ROOT / "Procfile", {}, compact=True)
    assert list(commands) == ["mesh", "gpu_worker", "gateway"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [("gpu_worker", 0)]),
        (2, [("gpu_worker.1", 0), ("gpu_worker.2", 1)]),
        (3, [("gpu_worker.1", 0), ("gpu_worker.2", 1), ("gpu_worker.3", 2)]),
    ],
)
def test_a_formation_says_how_many_of_a_process(procfile: Path, count: int, expected: list[tuple[str, int]]) -> None:
    commands = procfile_commands(procfile, {"gpu_worker": count})
    workers = [(name, instance) for name, (_, instance) in commands.items() if name.startswith("gpu_worker")]
    assert workers == expected
    assert len(commands) == 3 + count


def test_a_process_that_is_not_in_the_procfile_is_refused_with_those_that_are(procfile: Path) -> None:
    with pytest.raises(ValueError, match=r"worker, x.*broker, controller, gpu_worker, frontend"):
        procfile_commands(procfile, {"worker": 2, "broker": 1, "x": 1})


def test_compact_puts_the_front_into_one_process_ahead_of_the_workers(procfile: Path) -> None:
    commands = procfile_commands(procfile, {"gpu_worker": 2}, compact=True)
    assert list(commands) == ["mesh", "gpu_worker.1", "gpu_worker.2"]
    assert commands["mesh"][0].endswith("-m gearmesh.operations.compact")


def test_several_of_what_compact_puts_into_one_process_are_refused(procfile: Path) -> None:
    with pytest.raises(ValueError, match="frontend"):
        procfile_commands(procfile, {"frontend": 2}, compact=True)


def test_comments_and_blank_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("# a comment\n\nbroker: run: it\n  \nnot a line\n")
    assert procfile_commands(tmp_path / "Procfile", {}) == {"broker": ("run: it", 0)}


def test_a_procfile_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Procfile"):
        procfile_commands(tmp_path / "Procfile", {})


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_a_procfile_without_processes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "Procfile").write_text(text)
    with pytest.raises(ValueError, match="Procfile"):
        procfile_commands(tmp_path / "Procfile", {})


# -- processes --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(
    commands: Mapping[str, str | tuple[str, int]], environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Supervisor, Told]]:
    """A supervisor of these shell commands, and all output lines."""
    said = Told()
    pairs = {name: command if isinstance(command, tuple) else (command, 0) for name, command in commands.items()}
    supervisor = Supervisor(pairs, said, environment or {"PATH": os.environ["PATH"]})
    supervisor.start()
    try:
        yield supervisor, said
    finally:
        await supervisor.stop()
        assert supervisor.pids() == {}


async def heard(said: Told, *lines: tuple[str, str]) -> None:
    await said.until(lambda items: all(line in items for line in lines))


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between starts are a hundredth of the real ones, and processes that are slow to stop are not killed."""
    monkeypatch.setattr(module, "BACKOFF_S", tuple(wait_s / 100 for wait_s in module.BACKOFF_S))
    monkeypatch.setattr(module, "KILL_AFTER_S", LIMIT_S)


@on_loop
async def test_what_processes_say_is_said_with_their_names() -> None:
    commands = {"a": "echo one; echo two >&2; exec sleep 6000", "b": "printf '\\377 three  \\n'; exec sleep 6000"}
    async with running(commands) as (_, said):
        await heard(said, ("a", "one"), ("a", "two"), ("b", "\ufffd three"))


@on_loop
async def test_a_process_that_dies_is_started_again_and_the_others_go_on() -> None:
    async with running({"a": "echo here; exec sleep 6000", "b": "echo $$; exec sleep 6000"}) as (supervisor, said):
        await said.until(lambda items: {name for name, _ in items} == {"a", "b"})
        before = supervisor.pids()
        os.kill(before["a"], signal.SIGKILL)
        await said.until(lambda items: items.count(("a", "here")) == 2)
        after = supervisor.pids()
        assert after["a"] != before["a"]
        assert after["b"] == before["b"]
        (line,) = [line for name, line in said.items if name == "up"]
        assert names(line, "a", "SIGKILL")


@on_loop
async def test_waits_grow_with_the_failures_in_a_row_and_the_exit_code_is_told() -> None:
    async with running({"a": "exit 3"}) as (_, said):
        items = await said.count(len(module.BACKOFF_S) + 1)
        waits = [*module.BACKOFF_S[1:], module.BACKOFF_S[-1], module.BACKOFF_S[-1]]
        for (name, line), wait_s in zip(items, waits, strict=False):
            assert (name, names(line, "a", "code 3", f" {wait_s} s")) == ("up", True)


@on_loop
async def test_a_process_that_lived_long_enough_starts_its_waits_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEALTHY_S", 0.0)
    async with running({"a": "exit 3"}) as (_, said):
        for name, line in (await said.count(3))[:3]:
            assert (name, names(line, "a", "code 3", f" {module.BACKOFF_S[0]} s")) == ("up", True)


@on_loop
async def test_wrong_settings_end_the_mesh_with_what_the_process_said() -> None:
    async with running({"a": "echo wrong settings:; echo '  - x'; exit 2", "b": "exec sleep 6000"}) as (supervisor, _):
        first, *said = (await supervisor.failed).splitlines()
        assert (names(first, "a"), said) == (True, ["wrong settings:", "  - x"])
    async with running({"a": "seq 100; exit 2"}) as (supervisor, _):
        assert (await supervisor.failed).splitlines()[1:] == [str(i) for i in range(93, 101)]


@on_loop
async def test_a_process_whose_device_was_lost_is_tried_until_it_can_start_again(tmp_path: Path) -> None:
    """A lost GPU must not end the mesh, which other GPUs still serve."""
    script = f"cd '{tmp_path}'; echo x >> starts; case $(wc -l < starts) in 1) exit 3;; 2|3) exit 2;; esac; echo up"
    async with running({"a": f"{script}; exec sleep 6000", "b": "exec sleep 6000"}) as (supervisor, said):
        await heard(said, ("a", "up"))
        codes = [re.findall(r"code (\d)", line) for name, line in said.items if name == "up"]
        assert codes == [["3"], ["2"], ["2"]]
        assert not supervisor.failed.done()


@on_loop
async def test_stopping_asks_every_process_and_lets_it_finish() -> None:
    script = "trap 'echo bye; exit 0' TERM; echo here; while :; do sleep 0.01; done"
    async with running({"a": script, "b": script}) as (_, said):
        await heard(said, ("a", "here"), ("b", "here"))
    assert sorted(item for item in said.items if item[1] == "bye") == [("a", "bye"), ("b", "bye")]
    assert not [line for name, line in said.items if name == "up"]  # nothing is started again


@on_loop
async def test_a_process_that_does_not_stop_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KILL_AFTER_S", 0.05)
    script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$; exec sleep 6000' & wait; wait"
    async with running({"stubborn": script}) as (_, said):
        ((_, pid),) = await said.count(1)
    assert any(name == "up" and "stubborn" in line for name, line in said.items)
    assert not runs(int(pid))


def runs(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@on_loop
async def test_stopping_does_not_wait_for_a_process_that_is_about_to_start_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (10 * LIMIT_S,))
    async with running({"a": "exit 3"}) as (_, said):
        await said.count(1)
    assert len(said.items) == 1  # nothing had to be killed


@on_loop
async def test_a_line_that_does_not_end_harms_nobody() -> None:
    async with running({"a": "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo after; exec sleep 6000"}) as (_, said):
        await heard(said, ("a", "after"))
        assert all(len(line) < module.LINE_BYTES_MAX for _, line in said.items)


@pytest.mark.parametrize(
    ("name", "instance", "base", "expected"),
    [
        ("frontend", 0, {}, ""),
        ("frontend.2", 1, {}, "5556"),
        ("frontend.3", 2, {"GEARMESH_FRONTEND_PORT": "7000"}, "7002"),
        ("frontend.2", 1, {"GEARMESH_FRONTEND_PORT": "0"}, "0"),  # any free port for each instance
        ("frontend", 0, {"GEARMESH_FRONTEND_PORT": "7000"}, "7000"),
        ("gpu_worker.2", 1, {"GEARMESH_FRONTEND_PORT": "7000"}, "7000"),
    ],
)
@on_loop
async def test_further_frontends_have_the_ports_that_follow(
    name: str, instance: int, base: dict[str, str], expected: str
) -> None:
    async with running({name: ("echo port=$GEARMESH_FRONTEND_PORT; exec sleep 6000", instance)}, base) as (_, said):
        await heard(said, (name, f"port={expected}"))


@on_loop
async def test_further_controllers_have_the_ports_that_follow() -> None:
    command = "echo port=$GEARMESH_CONTROLLER_PORT $GEARMESH_BROKER_PORT; exec sleep 6000"
    async with running({"controller.2": (command, 1)}, {"GEARMESH_BROKER_PORT": "7000"}) as (_, said):
        await heard(said, ("controller.2", "port=5561 7000"))


@on_loop
async def test_further_gateways_have_the_ports_that_follow() -> None:
    command = "echo port=$GEARMESH_HTTP_PORT; exec sleep 6000"
    async with running({"gateway.2": (command, 1)}) as (_, said):
        await heard(said, ("gateway.2", "port=8001"))


@on_loop
async def test_a_gateway_that_cannot_start_leaves_the_mesh_running() -> None:
    async with running({"gateway": "exit 2", "broker": "echo up; exec sleep 6000"}) as (supervisor, said):
        await heard(said, ("broker", "up"))
        await said.until(lambda items: any(name == "up" and "gateway" in line for name, line in items))
        assert not supervisor.failed.done()
        assert list(supervisor.pids()) == ["broker"]


SUPERVISED = """
import asyncio, os
from gearmesh.operations.supervisor import Supervisor

async def main():
    Supervisor({"a": ("echo $$; exec sleep 6000", 0)}, lambda name, line: print(line, flush=True), os.environ).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_nothing_is_left_behind_by_a_supervisor_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SUPERVISED], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = os.pidfd_open(int(supervisor.stdout.readline()))
        supervisor.kill()
    try:
        assert select.select([child], [], [], LIMIT_S)[0] == [child]  # readable: the process has ended
    finally:
        os.close(child)


@on_loop
async def test_processes_get_the_environment_and_no_input() -> None:
    environment = {"PATH": os.environ["PATH"], "GREETING": "hello"}
    async with running({"a": "echo $GREETING $PYTHONUNBUFFERED; cat; echo over; exec sleep 6000"}, environment) as (
        _,
        said,
    ):
        await heard(said, ("a", "hello 1"), ("a", "over"))


# -- replicas beside the Procfile -------------------------------------------------------------------------------------


def replica(name: str, *, before: str = "", at_the_end: str = "") -> str:
    """A command that reports when it serves, and says so and when it ends."""
    serve = f"printf x > /dev/fd/$GEARMESH_READY_FD; echo {name} up; while :; do sleep 0.01; done"
    return f"{before}trap '{at_the_end}echo {name} ends; exit 0' TERM; {serve}"


def wait_for(file: Path) -> str:
    return f"while [ ! -e {file} ]; do sleep 0.01; done; "


@on_loop
async def test_replicas_of_another_version_take_over_once_they_serve(tmp_path: Path) -> None:
    old = ReplicaProgram(replica("old"), "1")
    new = ReplicaProgram(replica("new", before=wait_for(tmp_path / "go")), "2")
    async with running({}) as (supervisor, said):
        supervisor.scale("f", old, 2)
        await heard(said, ("f.1", "old up"), ("f.2", "old up"))
        for _ in range(3):
            assert not supervisor.scale("f", new, 1)
        (tmp_path / "go").touch()
        while not supervisor.scale("f", new, 1):  # noqa: ASYNC110  # until it serves
            await asyncio.sleep(0)
        await heard(said, ("f.3", "new up"))
        assert not any("ends" in line for _, line in said.items)
        supervisor.retire("f", new)
        assert not supervisor.scale("f", new, 1)
        await heard(said, ("f.1", "old ends"), ("f.2", "old ends"))
        assert ("f.3", "new ends") not in said.items


@on_loop
async def test_the_environment_of_a_replicas_program_goes_before_the_mesh_s() -> None:
    program = ReplicaProgram("echo $A $B $C; exec sleep 6000", environment={"B": "its", "C": "own"})
    async with running({}, {"PATH": os.environ["PATH"], "A": "ours", "B": "ours"}) as (supervisor, said):
        supervisor.scale("f", program, 1)
        await heard(said, ("f.1", "ours its own"))


@on_loop
async def test_replicas_of_other_code_under_one_version_start_when_the_old_ones_have_ended(tmp_path: Path) -> None:
    old = ReplicaProgram(replica("old", at_the_end=wait_for(tmp_path / "go")), "1", code="a")
    new = ReplicaProgram(replica("new"), "1", code="b")
    async with running({}) as (supervisor, said):
        supervisor.scale("f", old, 1)
        await heard(said, ("f.1", "old up"))
        for _ in range(3):
            supervisor.scale("f", new, 1)
            assert list(supervisor.pids()) == ["f.1"]
        (tmp_path / "go").touch()
        await heard(said, ("f.1", "old ends"))
        while ("f.1", "new up") not in said.items:
            supervisor.scale("f", new, 1)
            await asyncio.sleep(0)
        assert said.items.index(("f.1", "old ends")) < said.items.index(("f.1", "new up"))


@on_loop
async def test_replicas_that_cannot_start_leave_those_of_the_other_version_alone() -> None:
    async with running({}) as (supervisor, said):
        supervisor.scale("f", ReplicaProgram(replica("old"), "1"), 1)
        await heard(said, ("f.1", "old up"))
        bad = ReplicaProgram("exit 2", "2")
        supervisor.scale("f", bad, 1)
        await said.until(lambda items: any(name == "up" and "f.2" in line for name, line in items))
        for _ in range(3):
            assert not supervisor.scale("f", bad, 1)
        assert list(supervisor.pids()) == ["f.1"]
        assert ("f.1", "old ends") not in said.items


@on_loop
async def test_a_replica_that_could_not_start_is_down_until_it_is_tried_again(tmp_path: Path) -> None:
    script = f"[ -e {tmp_path / 'mended'} ] || {{ echo loading; echo no module; echo; exit 2; }}; {replica('one')}"
    program = ReplicaProgram(script)
    async with running({}) as (supervisor, said):
        supervisor.scale("f", program, 1)
        await said.until(lambda items: any(name == "up" and "f.1" in line for name, line in items))
        assert list(supervisor.down()) == ["f.1"]
        assert "no module" in supervisor.down()["f.1"]
        (tmp_path / "mended").touch()
        supervisor.scale("f", program, 1)
        assert supervisor.pids() == {}
        supervisor.retry("f")
        assert supervisor.down() == {}
        supervisor.scale("f", program, 1)
        await heard(said, ("f.1", "one up"))
        supervisor.retry("f")  # leaves replicas that serve alone
        supervisor.scale("f", program, 1)
        assert list(supervisor.pids()) == ["f.1"]


@on_loop
async def test_a_replica_that_dies_is_down_until_it_serves_again(tmp_path: Path) -> None:
    script = replica("one", before=f"[ -e {tmp_path / 'mended'} ] || exit 3; ")
    async with running({}) as (supervisor, said):
        supervisor.scale("f", ReplicaProgram(script), 1)
        await said.count(1)
        assert list(supervisor.down()) == ["f.1"]
        assert "code 3" in supervisor.down()["f.1"]
        (tmp_path / "mended").touch()
        while supervisor.down():  # noqa: ASYNC110  # until it serves
            await asyncio.sleep(0)
        await heard(said, ("f.1", "one up"))


@on_loop
async def test_a_replica_serves_when_it_reports_so_whatever_it_prints() -> None:
    old, new = ReplicaProgram(replica("old"), "1"), ReplicaProgram("echo welcomed, up, ready; exec sleep 6000", "2")
    closing = ReplicaProgram(
        "exec python3 -c \"import os; os.close(int(os.environ['GEARMESH_READY_FD'])); print('closed')\"", "3"
    )
    async with running({}) as (supervisor, said):
        supervisor.scale("f", old, 1)
        await heard(said, ("f.1", "old up"))
        supervisor.scale("f", new, 1)
        await heard(said, ("f.2", "welcomed, up, ready"))
        assert not supervisor.scale("f", new, 1)
        supervisor.scale("f", closing, 1)
        await heard(said, ("f.3", "closed"))
        assert not supervisor.scale("f", closing, 1)


@on_loop
async def test_only_replicas_are_asked_to_report() -> None:
    async with running({"a": "echo fd=$GEARMESH_READY_FD; exec sleep 6000"}) as (_, said):
        await heard(said, ("a", "fd="))


@on_loop
async def test_replicas_are_as_many_as_was_said_last() -> None:
    program = ReplicaProgram(replica("one"))
    async with running({}) as (supervisor, _):
        for count in (3, 1, 2, 0, 1):
            assert not supervisor.scale("f", program, count)
            while len(supervisor.pids()) != count:  # noqa: ASYNC110  # processes start and end in their own time
                await asyncio.sleep(0)
