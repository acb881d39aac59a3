"""What nobody caught ends the process, with its traceback and what it was doing; whoever started it starts it again.

A process that went on would have half of what it was doing done. Wherever an exception gets loose (a callback of the
loop, a timer, a task, a thread, a destructor), it comes here. Only what happens to a connection, which the loop then
closes, concerns that connection alone (of HTTP's clients; ZeroMQ's are not the loop's).
"""

import asyncio
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
import structlog
import uvloop

from mesh.doing import doing_of
from mesh.errors import GearmeshError
from mesh.process.output import leave

CRASHED = 70  # exit code; EX_SOFTWARE of sysexits.h: an error of our own
PEERS = ("peer", "client", "worker", "frontend", "controller", "member")  # variables that name whom it was about
MESSAGES_TOLD = 5
TEXT_MAX = 200
MESSAGES_SEEN = 100  # of one list
LEAVE_S = 5.0  # then it ends, whatever keeps its last lines from leaving
Result = TypeVar("Result")
log = structlog.get_logger("runtime")


class Guard:
    """Ends this process when an exception is not caught. From the end of what `run` runs on, it only logs."""

    def __init__(self) -> None:
        self._crashing = threading.Lock()  # held from the first crash on
        self._by = 0  # the thread that crashed
        self._over = False

    def watch(self) -> None:
        """Threads and destructors are watched. A process that C code ends says in which Python code that was."""
        threading.excepthook = self._in_thread
        sys.unraisablehook = self._unraisable
        faulthandler.enable(file=2)

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """What `main` returns, after running on a loop that is watched. Raises: GearmeshError."""
        try:
            return uvloop.run(self._watched(main))
        except GearmeshError:
            raise
        except Exception as error:
            self._over = False
            self.crash(error, "the service itself")
            raise

    def crash(self, error: BaseException, where: str) -> None:
        """The process ends, with the traceback and what it was doing."""
        if self._over:
            log.error("failed_at_the_end", where=where, exc_info=error)
            return
        if not self._crashing.acquire(blocking=False):
            if self._by != threading.get_ident():
                threading.Event().wait()  # the thread that crashed first ends the process
            return  # a destructor failed while the crash was told
        self._by = threading.get_ident()
        timer = threading.Timer(LEAVE_S, os._exit, (CRASHED,))
        timer.daemon = True
        timer.start()
        try:
            log.error("crashed", where=where, **doing(error), exit_code=CRASHED, exc_info=error)
        except Exception:
            traceback.print_exception(error)
        leave(CRASHED)

    async def _watched(self, main: Coroutine[Any, Any, Result]) -> Result:
        asyncio.get_running_loop().set_exception_handler(self._on_loop)
        try:
            return await main
        finally:
            self._over = True  # threads may find the loop closed, and destructors find things gone

    def _on_loop(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        where = str(context.get("message", ""))
        if error is None or _harmless(error, context):
            log.error("loop_error", where=where, exc_info=error)
        else:
            self.crash(error, where)

    def _in_thread(self, fault: "threading.ExceptHookArgs") -> None:
        error = fault.exc_value if fault.exc_value is not None else fault.exc_type()
        self.crash(error, f"thread {fault.thread.name if fault.thread is not None else ''}")

    def _unraisable(self, fault: "sys.UnraisableHookArgs") -> None:
        error = fault.exc_value if fault.exc_value is not None else fault.exc_type()
        self.crash(error, f"{fault.err_msg or 'destructor, or callback from C'}: {fault.object!r}")


def _harmless(error: BaseException, context: Mapping[str, Any]) -> bool:
    """Whether no code of ours was left half done: what a connection met, which is closed; or an outcome that was given
    to a future, and whoever waited for it had left.
    """
    if isinstance(error, ConnectionError) or "transport" in context or "protocol" in context:
        return True
    if "socket" in context and isinstance(error, OSError):  # a connection could not be accepted
        return True
    future = context.get("future")
    return future is not None and not isinstance(future, asyncio.Task)


def for_life(task: "asyncio.Task[Result]") -> "asyncio.Task[Result]":
    """The task, which nobody awaits while it is well: what it raises ends the process at once."""
    task.add_done_callback(_raise)
    return task


def _raise(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


def doing(error: BaseException) -> dict[str, Any]:
    """What the code was doing that raised: {"messages": kinds of messages, "peer": whose}, as far as it was noted, or
    the variables on the way say so, which compiled code has not. Contents of messages are not told.
    """
    messages: list[str] = []
    peer = ""
    noted = doing_of(error)
    steps: list[dict[str, Any]] = [] if noted is None else [{"messages": noted.messages, "peer": noted.peer}]
    trace = error.__traceback__
    while trace is not None:
        steps.append(dict(trace.tb_frame.f_locals))
        trace = trace.tb_next
    for found in steps:
        mail = found.get("mail")
        found |= {name: getattr(mail, name) for name in ("messages", "peer") if hasattr(mail, name)}
        for name, value in found.items():
            told = value[:MESSAGES_SEEN] if isinstance(value, list) else [value]
            for kind in [type(each).__name__ for each in told if _is_message(each)]:
                messages = [*(other for other in messages if other != kind), kind]  # the last is the innermost
            if name in PEERS and value is not None:
                peer = str(value)
    about: dict[str, Any] = {"messages": messages[-MESSAGES_TOLD:]} if messages else {}
    return {**about, "peer": peer[:TEXT_MAX]} if peer else about


def _is_message(value: object) -> bool:
    """Whether it came over a socket: messages are tagged structs."""
    return isinstance(value, msgspec.Struct) and value.__struct_config__.tag is not None
