"""gearmesh/operations/supervisor.py: real processes that end, are started again and are stopped."""

import asyncio
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gearmesh.operations import supervisor as module
from gearmesh.operations.starting import LINE_BYTES_MAX
from scripts.rigs.meshes import until
from tests.gearmesh.operations.supervised import heard, running
from tests.loops import LIMIT_S, Told, on_loop
from tests.messages import names

pytestmark = pytest.mark.usefixtures("hurried")


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
async def test_a_process_that_ran_before_is_tried_until_it_can_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that are changed under a running mesh, or a file that was damaged, must not end what still serves."""
    monkeypatch.setattr(module, "HEALTHY_S", 0.0)
    script = f"cd '{tmp_path}'; echo x >> starts; case $(wc -l < starts) in 1) exit 1;; 2|3) exit 2;; esac; echo up"
    async with running({"a": f"{script}; exec sleep 6000", "b": "exec sleep 6000"}) as (supervisor, said):
        await heard(said, ("a", "up"))
        codes = [re.findall(r"code (\d)", line) for name, line in said.items if name == "up"]
        assert codes == [["1"], ["2"], ["2"]]
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
    await until(lambda: not runs(int(pid)))  # it has closed its output, and is nobody's child here: it ends in its time


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
        assert all(len(line) < LINE_BYTES_MAX for _, line in said.items)


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


@pytest.mark.parametrize("fault", [OSError(11, "no more processes"), RuntimeError("nobody foresaw that")])
@on_loop
async def test_a_process_that_could_not_be_started_or_followed_is_tried_again_and_the_others_go_on(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, faults = asyncio.create_subprocess_exec, [fault, fault]

    async def start(*command: str, **options: Any) -> asyncio.subprocess.Process:
        if faults and "echo a" in command[2]:
            raise faults.pop()
        return await real(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    async with running({"a": "echo a; exec sleep 6000", "b": "echo b; exec sleep 6000"}) as (supervisor, said):
        await heard(said, ("b", "b"), ("a", "a"))
        assert not supervisor.failed.done()
        up = [line for name, line in said.items if name == "up"]
        assert sum(str(fault) in line for line in up) == 2
        assert sum(names(line, "a", "starting it again") for line in up) == 2


@on_loop
async def test_a_line_that_makes_the_supervisor_raise_costs_its_process_alone() -> None:
    class Refusing(Told):
        def __call__(self, *said: Any) -> None:
            if said == ("a", "odd"):
                raise UnicodeError("cannot be said")
            super().__call__(*said)

    said = Refusing()
    commands = {"a": ("echo $$; echo odd; exec sleep 6000", 0), "b": ("echo b; exec sleep 6000", 0)}
    supervisor = module.Supervisor(commands, said, {"PATH": os.environ["PATH"]})
    supervisor.start()
    items = await said.until(lambda items: sum(name == "a" for name, _ in items) >= 3)
    pids = [int(line) for name, line in items if name == "a"]
    assert not any(map(runs, pids[:2])), "nobody would read what they write"
    assert "b" in supervisor.pids()
    await supervisor.stop()
