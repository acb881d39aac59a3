"""What the canaries see, so that a test that asks them can fail, and fails nobody for what the machine did."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.end_to_end.canary import canaries, covered_s, read, ready_and_not_run_s

pytestmark = pytest.mark.end_to_end
FOR_EVER = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile os.getppid() == int(sys.argv[2]): pass"


@pytest.mark.parametrize(
    ("seen", "covered"),
    [
        ([], 0.0),
        ([(0.0, 1.0)], 0.0),
        ([(3.0, 4.0)], 0.0),
        ([(0.0, 1.25)], 0.25),
        ([(1.5, 1.75)], 0.25),
        ([(1.75, 4.0)], 0.25),
        ([(0.0, 4.0)], 1.0),
        ([(1.25, 1.75), (1.5, 1.875)], 0.625),  # at once: counted once
        ([(1.75, 1.875), (1.0, 1.25)], 0.375),
    ],
)
def test_time_counts_once_whoever_waited_and_only_between_the_two_instants(
    seen: Sequence[tuple[float, float]], covered: float
) -> None:
    assert covered_s(seen, 1.0, 2.0) == covered


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("1.5 2.5\n3.0 3.")
    assert list(read(tmp_path / "canary")) == [(1.5, 2.5)]


def test_a_loop_that_is_blocked_is_seen_and_what_was_before_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with canaries(tmp_path, lambda: ()) as seen:
            await asyncio.sleep(0)
            began_s = time.monotonic()
            time.sleep(0.2)  # noqa: ASYNC251  # this is what is to be seen
            blocked_s = time.monotonic()
            for _ in range(3):
                await asyncio.sleep(0.01)
            assert seen.waited_s(began_s, blocked_s) > 0.15
            assert seen.waited_s(began_s - 1.0, began_s - 0.5) == 0.0

    asyncio.run(scenario())


@pytest.mark.skipif(not ready_and_not_run_s(os.getpid()), reason="the kernel does not account for it")
def test_processes_that_share_a_core_are_seen_waiting_for_it(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-S", "-c", FOR_EVER, str(core), str(os.getpid())]

    async def scenario(pids: Sequence[int]) -> None:
        async with canaries(tmp_path, lambda: pids) as seen:
            began_s = time.monotonic()
            while seen.waited_s(began_s, time.monotonic()) < 0.05:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0)

    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(subprocess.Popen(command)) for _ in range(2)]
        for process in busy:
            stack.callback(process.kill)
        asyncio.run(scenario([process.pid for process in busy]))
