"""Keeps a process of the code: starts it, and starts it again after growing pauses when it dies. Shell.

A process lives in three steps: it imports the code, it is ready, it serves. The keeper's owner takes it from ready to
serving, and hears of every death. Only what can never be mended by another try ends all: code that cannot be imported
at the very first start, for a reason that lies in the code.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import structlog

from gpu_worker.container.endings import MIB, MemoryLook, how_it_ended, look
from gpu_worker.container.layouts import SlotLayout
from gpu_worker.container.process import ChildProcess
from gpu_worker.container.specs import ContainerError, ContainerOptions
from mesh import wire

# before the next start, by the number of short lives in a row
PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
HEALTHY_S = 5.0  # a process that has served so long ends the row
WARM_LIVES_MAX = 2  # the row is no longer after one that executed a batch well: the input after that was to blame
LOOK_S = 0.5  # between two looks at its memory
LINE_S = 1.0  # least time between two lines that others are told of
LINE_MAX, WHY_MAX = 200, 500  # characters that others are told
log = structlog.get_logger("container")


class ChildOwner(Protocol):
    """Who uses the process. All is called on the loop's thread."""

    def ready(self, message: dict[str, Any]) -> None:
        """A process has imported the code, and says what it takes and gives. `ChildKeeper.serve` makes it serve."""

    def ran(self, message: dict[str, Any]) -> None:
        """A batch has ended."""

    def died(self, why: str) -> None:
        """The process is gone. Another one is started, unless the keeper is closed now."""


class ChildKeeper:
    """At most one process at a time. `start` begins; `close` ends all."""

    def __init__(
        self,
        options: ContainerOptions,
        start_s: float,
        cannot: Callable[[str], None],
        changed: Callable[[wire.ChildState], None],
    ) -> None:
        """`start_s`: how long an import may take. `cannot`: called once, with the reason, if no try could mend it.

        `changed`: called when `state` is another, for a printed line at most once per LINE_S.
        """
        self._options, self._start_s = options, start_s
        self._cannot, self._changed = cannot, changed
        self._owner: ChildOwner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._child: ChildProcess | None = None
        self._serves = False
        self._served = False  # at least once: then whatever goes wrong may be mended
        self._since_s = time.monotonic()  # of serving, or of not serving
        self._starts = 0
        self._lives = 0  # short ones in a row
        self._ending = ""  # why the process is being ended
        self._why = ""  # how the last process ended
        self._told: tuple[str, float] = ("", float("-inf"))  # the line that others were told, and when
        self._memory = MemoryLook()  # when the process was last seen
        self._memory_max = (options.memory_mb << 20) or _half_of_memory()
        self._closed = False

    # -- for the owner ------------------------------------------------------------------------------------------------

    def start(self, owner: ChildOwner) -> None:
        """The first process is being started."""
        self._owner, self._loop = owner, asyncio.get_running_loop()
        self._later("look", LOOK_S, self._look)
        self._begin()

    def hand_to(self, owner: ChildOwner) -> None:
        """From now on this owner hears of the process."""
        self._owner = owner

    def serve(self, memory: int, layout: SlotLayout) -> None:
        """The process that is ready shares this memory (a descriptor), and serves."""
        assert self._child is not None
        self._child.share(memory, layout)
        self._turn(serves=True)

    def run(self, number: int, rows: int, at: int, described: int) -> bool:
        """The process is asked to run the batch in the slot at `at`. Returns False if none serves."""
        child = self._child
        return self._serves and not self._ending and child is not None and child.run(number, rows, at, described)

    @property
    def pid(self) -> int | None:
        """The process; None while there is none."""
        return self._child.pid if self._child is not None else None

    @property
    def warm(self) -> bool:
        """Whether a batch has ended well in the process."""
        return self._child is not None and self._child.warm

    def end(self, why: str) -> None:
        """The process is gone, for this reason, and the owner has heard of it."""
        self._ending = why
        self._died()

    def close(self) -> None:
        """No process is left, and none is started."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        if self._child is not None:
            self._unlisten(self._child)
            self._child.end()
            self._child = None

    # -- for others ---------------------------------------------------------------------------------------------------

    def state(self) -> wire.ChildState:
        """How the code is now."""
        line = "" if self._serves or self._child is None else self._child.last_line
        return wire.ChildState(
            model=self._options.model,
            serves=self._serves,
            for_s=time.monotonic() - self._since_s,
            starts=self._starts,
            line=line[:LINE_MAX],
            why=self._why[:WHY_MAX],
        )

    def _turn(self, *, serves: bool) -> None:
        """The process serves now, or does not any more."""
        if serves != self._serves:
            self._serves, self._since_s = serves, time.monotonic()
            self._served = self._served or serves
        self._tell()

    def _tell(self) -> None:
        state = self.state()
        self._told = (state.line, time.monotonic())
        self._changed(state)

    # -- one life -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._starts += 1
        self._ending = ""
        try:
            self._child = child = ChildProcess(self._options)
        except ContainerError as error:
            self._not_begun(str(error))
            return
        self._memory = replace(look(child.pid), held_bytes=None)  # what an interpreter holds that has just begun
        assert self._loop is not None
        self._loop.add_reader(child.control.fileno(), self._readable)
        self._loop.add_reader(child.exits, self._exited)
        self._later("slow", self._start_s, self._too_slow)
        self._tell()

    def _not_begun(self, why: str) -> None:
        """The interpreter cannot be started."""
        if not self._served:
            self._fail(why)
            return
        log.error("not_started", ref=self._options.ref, error=why)
        self._why = why
        self._again()

    def _readable(self) -> None:
        child = self._child
        while child is not None and child is self._child:
            message = child.read()
            if message is None:
                return
            if not message:
                self.end(child.fault) if child.fault else self._died()
            elif child.ready is None:
                self._first(child, message)
            else:
                child.warm = child.warm or message["error"] is None
                assert self._owner is not None
                self._owner.ran(message)

    def _exited(self) -> None:
        """The process is gone. A fork of it may hold its end of the socket, which then never closes."""
        child = self._child
        self._readable()  # messages that it sent before
        if child is not None and child is self._child:
            self._died()

    def _first(self, child: ChildProcess, message: dict[str, Any]) -> None:
        """The process has imported the code, or could not."""
        self._cancel("slow")
        if message["op"] != "error":
            child.ready = message
            assert self._owner is not None
            self._owner.ready(message)
        elif self._served or message["passing"]:
            self.end(message["text"].strip().rpartition("\n")[2])
        else:
            self._fail(message["text"])

    def _too_slow(self) -> None:
        if self._child is not None and self._child.ready is None:
            self.end(f"its code was not ready after {self._start_s:g} s (--start-s)")

    def _died(self) -> None:
        child = self._child
        assert child is not None
        self._unlisten(child)
        doing = "served" if self._serves else "imported"
        code = child.end()
        self._why = self._ending or how_it_ended(code, doing, self._memory, look(child.pid))
        self._child = None
        self._cancel("slow")
        if code >= 0 and not self._ending and not self._served:
            self._fail(f"the interpreter ended before the code was ready: exit code {code}\n{child.tail}")
            return
        log.warning("container_died", ref=self._options.ref, why=self._why, code=code, printed=child.tail)
        healthy = self._serves and time.monotonic() - self._since_s > HEALTHY_S
        self._lives = 0 if healthy else self._lives + 1
        if child.warm:
            self._lives = min(self._lives, WARM_LIVES_MAX)
        assert self._owner is not None
        self._turn(serves=False)
        self._owner.died(self._why)
        self._again()

    def _again(self) -> None:
        if not self._closed:
            self._later("start", PAUSES_S[min(self._lives, len(PAUSES_S) - 1)], self._begin)

    def _fail(self, why: str) -> None:
        """Nothing that another try could mend: all is over."""
        self.close()
        self._cannot(why)

    # -- what goes on meanwhile ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._later("look", LOOK_S, self._look)
        child = self._child
        if child is None:
            return
        self._memory = look(child.pid)
        held = self._memory.held_bytes or 0
        if held > self._memory_max:
            limit = self._memory_max // MIB
            self.end(f"its code held {held // MIB} MiB; the limit is {limit} MiB (--memory-mb)")
            return
        line, told_s = self._told
        if not self._serves and child.last_line[:LINE_MAX] != line and time.monotonic() - told_s >= LINE_S:
            self._tell()

    def _unlisten(self, child: ChildProcess) -> None:
        assert self._loop is not None
        self._loop.remove_reader(child.control.fileno())
        self._loop.remove_reader(child.exits)

    def _later(self, name: str, delay_s: float, call: Callable[[], None]) -> None:
        assert self._loop is not None
        self._timers[name] = self._loop.call_later(delay_s, call)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
