"""The exit of a process that failed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.process import runtime
from mesh.process.runtime import Runtime
from mesh.process.settings import Settings
from scripts import ROOT
from tests.loops import LIMIT_S, on_loop

STUCK = """
import ctypes
from mesh.process import runtime

class Stuck:
    def __init__(self, mine):
        self.mine = mine

    def start(self):
        self.mine.end(3)

    def drain(self):
        return True

    def stop(self):
        ctypes.CDLL(None).pause()

runtime.STOP_S = 0.1
runtime.serve("stuck", lambda mine: [Stuck(mine)])
"""


def test_a_service_that_failed_and_cannot_be_stopped_ends_with_its_code_all_the_same(tmp_path: Path) -> None:
    environment = {**os.environ, "GEARMESH_DATA_DIR": str(tmp_path), "GEARMESH_DRAIN_S": "0.1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=tmp_path, env=environment, timeout=LIMIT_S, check=False)
    assert done.returncode == 3


@pytest.mark.parametrize(("code", "told"), [(0, []), (3, [(3, 2.0 + 15.0)])])
@on_loop
async def test_only_a_process_that_failed_is_ended_in_any_case(code: int, told: list[tuple[int, float]]) -> None:
    heard: list[tuple[int, float]] = []
    process = Runtime(Settings(drain_s=2.0), lambda *what: heard.append(what))
    process.end(code)
    assert not process.transport.ending
    assert await process.run([]) == code
    assert process.transport.ending
    assert heard == told
    assert runtime.STOP_S == 15.0
