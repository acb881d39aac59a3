"""mesh/process/standby.py: both ends of the link to a process that was started ahead."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from mesh.process.standby import NICENESS, READY, STANDBY_FD, StandbyLink, take_standby
from scripts import ROOT
from tests.loops import LIMIT_S

WAITING = f"""
import os, subprocess, sys, threading
from mesh.process.standby import take_standby
standby = take_standby(os.environ)
imported = []
def preload():
    imported.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    raise ImportError("not here")
standby.wait(preload)
print(imported, os.getpriority(os.PRIO_PROCESS, 0), {STANDBY_FD!r} in os.environ)
print(threading.active_count())
"""


@pytest.fixture
def link() -> Iterator[StandbyLink]:
    with closing(StandbyLink()) as made:
        yield made


def waiting(link: StandbyLink) -> "subprocess.Popen[str]":
    """A process that waits at the other end."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], env={**os.environ, **link.environment, "PYTHONPATH": str(ROOT)},
        pass_fds=link.descriptors, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    link.handed_over()
    return process


def hears(link: StandbyLink) -> bytes:
    """What the process says next; nothing: it is gone."""
    assert select.select([link.ours], [], [], LIMIT_S)[0]
    return link.ours.recv(8)


def test_a_process_says_that_it_is_ready_and_begins_with_the_order(link: StandbyLink) -> None:
    with waiting(link) as process:
        assert hears(link) == READY
        assert link.order()
        assert process.stdout is not None
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        # it imported on a thread of low priority, which is gone; what that raised has ended nothing
        assert process.stdout.read() == f"[{niceness + NICENESS}] {niceness} False\n1\n"
    assert process.returncode == 0


def test_a_process_whose_link_ends_without_an_order_begins_nothing(link: StandbyLink) -> None:
    with waiting(link) as process:
        assert hears(link) == READY
        link.close()
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert process.returncode == 0


def test_an_order_to_a_process_that_is_gone_is_refused(link: StandbyLink) -> None:
    with waiting(link) as process:
        assert hears(link) == READY
        process.kill()
        process.wait()
        assert hears(link) == b""
        assert not link.order()


@pytest.mark.parametrize("named", ["", "no number", "-1", "99999999999999999999", "1048575"])
def test_a_variable_that_names_no_socket_is_ignored(named: str) -> None:
    environment = {STANDBY_FD: named, "OTHER": "x"}
    assert take_standby(environment) is None
    assert environment == {"OTHER": "x"}


def test_a_variable_that_names_a_pipe_is_ignored_and_the_pipe_left_alone() -> None:
    ours, theirs = os.pipe()
    try:
        assert take_standby({STANDBY_FD: str(theirs)}) is None
        os.write(theirs, b"x")
        assert os.read(ours, 1) == b"x"
    finally:
        os.close(ours)
        os.close(theirs)
