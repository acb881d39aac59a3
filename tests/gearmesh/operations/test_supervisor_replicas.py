"""gearmesh/operations/supervisor.py: replicas beside the Procfile, which come, go and change their versions."""

import asyncio
import os
from pathlib import Path

import pytest

from gearmesh.operations.supervisor import ReplicaProgram
from tests.gearmesh.operations.supervised import heard, running
from tests.loops import on_loop

pytestmark = pytest.mark.usefixtures("hurried")


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
