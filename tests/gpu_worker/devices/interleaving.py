"""Lets the loop's turn come at every point of what a thread does: one point after the other, without a second thread.

Python switches threads between two instructions at the latest. So whatever two threads may do to each other is among
the cases in which, between two given instructions of the one, all of the other's turn happens.
"""

import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any


def instructions_of(modules: tuple[ModuleType, ...], run: Callable[[], object]) -> int:
    """Runs it. Returns how many instructions of these modules that took."""
    return _traced(modules, run, -1, lambda: None)


def interrupted(
    modules: tuple[ModuleType, ...], run: Callable[[], object], at: int, turn: Callable[[], object]
) -> None:
    """Runs it; before its instruction number `at` (of these modules) all of `turn` happens."""
    assert _traced(modules, run, at, turn) > at


def _traced(modules: tuple[ModuleType, ...], run: Callable[[], object], at: int, turn: Callable[[], object]) -> int:
    files = {module.__file__ for module in modules}
    count = 0

    def each(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "opcode":
            count += 1
            if count - 1 == at:
                sys.settrace(None)
                turn()
                sys.settrace(called)
        return each

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return each

    before = sys.gettrace()
    sys.settrace(called)
    try:
        run()
    finally:
        sys.settrace(before)
    return count
