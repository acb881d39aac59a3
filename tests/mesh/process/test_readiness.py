"""mesh/process/readiness.py: a process tells whoever started it that it serves, through a real pipe."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mesh.process.configuration import READY_FD
from mesh.process.readiness import ReadyPipe, take_ready_signal
from tests.loops import Told, on_loop

HERE = "from mesh.process.readiness import take_ready_signal; import os; ready = take_ready_signal(os.environ); "


@contextlib.contextmanager
def starting(told: Told) -> Iterator[ReadyPipe]:
    """A pipe for a process, until the block ends."""
    with contextlib.closing(ReadyPipe(asyncio.get_running_loop(), lambda: told("ready")).open()) as pipe:
        yield pipe


async def run(pipe: ReadyPipe, code: str) -> None:
    """Starts a Python process that inherits the pipe, and returns when it has ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env={**os.environ, **pipe.environment}, pass_fds=pipe.descriptors
    )
    pipe.handed_over()
    assert await process.wait() == 0


@on_loop
async def test_a_process_that_says_it_serves_is_ready_once() -> None:
    told = Told()
    with starting(told) as pipe:
        await run(pipe, HERE + "ready.give(); ready.give()")
        assert await told.count(1) == ["ready"]


@on_loop
async def test_a_process_that_ends_without_a_word_is_not_ready() -> None:
    silent, other = Told(), Told()
    with starting(silent) as first, starting(other) as second:
        await run(first, HERE)
        await run(second, HERE + "ready.give()")
        await other.count(1)  # by now the loop has seen the end of the first pipe, too
    assert silent.items == []


@on_loop
async def test_a_process_may_say_so_when_nobody_waits_any_more() -> None:
    told = Told()
    with starting(told) as pipe:
        environment = dict(pipe.environment)
        theirs = os.dup(pipe.descriptors[0])
    ready = take_ready_signal(environment | {READY_FD: str(theirs)})
    ready.give()
    ready.give()
    assert told.items == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(theirs)


def test_the_signal_is_taken_out_of_the_environment_and_not_inherited() -> None:
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    environment = {READY_FD: str(theirs), "PATH": "/bin"}
    ready = take_ready_signal(environment)
    assert environment == {"PATH": "/bin"}
    found = f"import os, sys; sys.exit(os.path.exists('/proc/self/fd/{theirs}'))"
    assert subprocess.run([sys.executable, "-c", found], close_fds=False, check=False).returncode == 0
    ready.give()
    assert os.read(ours, 9) == b"\1"
    assert os.read(ours, 9) == b""
    os.close(ours)


@pytest.mark.parametrize("named", ["", "x", "-1", "999999", "9" * 40, "file"])
def test_what_names_no_pipe_is_ignored(named: str) -> None:
    with open(os.devnull, "w") as file:
        take_ready_signal({READY_FD: str(file.fileno()) if named == "file" else named}).give()
        assert not file.closed
        os.fstat(file.fileno())
    take_ready_signal({}).give()


def test_an_end_to_read_from_and_the_standard_streams_are_no_signal() -> None:
    ours, theirs = os.pipe()
    take_ready_signal({READY_FD: str(ours)}).give()
    os.write(theirs, b"x")
    assert os.read(ours, 1) == b"x"
    standard = os.dup(1)
    try:
        os.dup2(theirs, 1)
        take_ready_signal({READY_FD: "1"}).give()
        os.write(1, b"y")  # it is open, and nothing was written before
        assert os.read(ours, 1) == b"y"
    finally:
        os.dup2(standard, 1)
        for descriptor in (standard, ours, theirs):
            os.close(descriptor)
