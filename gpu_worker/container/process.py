"""The child process of a container: starts it, exchanges messages with it, and ends it. Shell."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gpu_worker.container.endings import how_it_ended, look
from gpu_worker.container.layouts import SlotLayout
from gpu_worker.container.promises import OPEN_EXTENT_MAX
from gpu_worker.container.specs import ContainerError, ContainerOptions

PROGRAM = Path(__file__).with_name("child")
PACKET_BYTES_MAX = 1 << 16
LINES_PER_S_MAX = 20  # printed lines that are logged; the rest is counted
LINE_MAX = 500  # characters kept of a line
TAIL = 20  # last lines that are kept, to find out why the code died
DECODER = msgspec.json.Decoder(dict[str, Any])


class CodeReady(msgspec.Struct, tag_field="op", tag="ready"):
    """Child -> container: the code is imported."""

    inputs: list[dict[str, Any]] | None
    outputs: list[dict[str, Any]] | None
    code: str
    declared: dict[str, Any] = msgspec.field(default_factory=dict)


class CodeNotReady(msgspec.Struct, tag_field="op", tag="error"):
    """Child -> container: it cannot be served."""

    text: str
    passing: bool


class BatchDone(msgspec.Struct, tag_field="op", tag="done"):
    """Child -> container: a batch has ended."""

    id: int
    begin: float  # seconds of CLOCK_MONOTONIC
    end: float
    error: str | None
    trace: str = ""
    refused: bool = False  # it is the inputs that cannot be read
    described: tuple[int, int] = (0, 0)  # where in the slot the outputs are described, and in how many bytes


CHECKER = msgspec.json.Decoder(
    CodeReady | CodeNotReady | BatchDone
)  # the code in the child may write to its socket, too
NO_MESSAGE = "its process sent what is no message of ours: does the code write to descriptors that are not its own?"
log = structlog.get_logger("container")


class ChildProcess:
    """One life of the user's code."""

    def __init__(self, options: ContainerOptions, *, check: bool = False) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told = {
            "inputs": options.inputs,
            "outputs": options.outputs,
            "sample": str(options.sample) if options.sample is not None else None,
            "check": check,
            "rows_max": options.batch_max,
            "cache": options.cache,
            "declared": options.declared,
            "extent_max": OPEN_EXTENT_MAX,
        }
        about = msgspec.json.encode(told).decode()
        command = [options.python, "-u", str(PROGRAM), str(theirs.fileno()), options.predict, about]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise ContainerError(f"--python {options.python}: cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
        ours.setblocking(False)
        self.control = ours
        self.pid = self._process.pid
        # readable once the process is gone, even if another process holds its socket
        self.exits = os.pidfd_open(self.pid)
        self.ready: dict[str, Any] | None = None
        self.warm = False  # whether a batch has ended well in it
        self.fault = ""  # what was wrong with what it sent; it has to end then
        self._printed = ChildOutput(self._process, options.ref)

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Returns the code's first message, once it is imported. Raises: ContainerError with the code's traceback."""
        if not _readable(timeout_s, self.control.fileno(), self.exits):
            self.end()
            raise ContainerError(f"the code was not ready after {timeout_s:g} s; raise --start-s")
        message = self.read()
        if not message:
            now, code = look(self.pid), self.end()
            if self.fault:
                raise ContainerError(f"{self.fault}\n{self.tail}")
            raise ContainerError(f"{how_it_ended(code, 'imported', now, look(self.pid))}\n{self.tail}")
        if message["op"] == "error":
            self.end()
            raise ContainerError(message["text"])
        self.ready = message
        return message

    def share(self, memory: int, layout: SlotLayout) -> None:
        """The child maps the memory (a descriptor) and knows where tensors are in it."""
        message = {
            "op": "memory", "bytes": layout.total_bytes, "inputs": layout.inputs, "outputs": layout.outputs,
            "dims": layout.dims, "room": layout.slot_bytes if layout.open else 0,
        }  # fmt: skip
        with contextlib.suppress(OSError):  # the child is gone: the next read shows it
            socket.send_fds(self.control, [msgspec.json.encode(message)], [memory])

    def run(self, number: int, rows: int, at: int, described: int) -> bool:
        """The child is asked to run the batch in the slot at offset `at`. Returns False if the child is gone.

        `described`: bytes there that describe the batch; 0 where all batches lie as the layout says.
        """
        order = {"op": "run", "id": number, "rows": rows, "at": at, "described": described}
        try:
            self.control.send(msgspec.json.encode(order))
        except OSError:
            return False
        return True

    def read(self) -> dict[str, Any] | None:
        """Returns the next answer; empty if the child is gone, or has to go (`fault`), None if there is none yet."""
        try:
            packet = self.control.recv(PACKET_BYTES_MAX)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        try:
            if packet:
                awaited = BatchDone if self.ready is not None else (CodeReady, CodeNotReady)
                if isinstance(CHECKER.decode(packet), awaited):
                    return DECODER.decode(packet)
                self.fault = NO_MESSAGE
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.fault = NO_MESSAGE
        return {}

    @property
    def tail(self) -> str:
        """The last lines that the code printed."""
        return self._printed.tail()

    @property
    def last_line(self) -> str:
        """What the code printed last, also where that line has no end yet; empty if it printed nothing."""
        return self._printed.last_line

    def end(self) -> int:
        """The child and its own children are gone. Returns its exit code, negative for a signal."""
        if self._process.poll() is None and self._gone_soon() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.control.close()
        os.close(self.exits)
        self._printed.join()
        return code

    def _gone_soon(self) -> int | None:
        """Returns the exit code if the child has closed its end of the socket and ends within 0.2 s; else None."""
        try:
            if self.control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return None
            return self._process.wait(0.2)
        except (OSError, subprocess.TimeoutExpired):
            return None


class ChildOutput:
    """Reads what the code prints, on its own thread, so that printing never blocks the code. Logs part of it.

    The thread alone writes. Whoever reads gets `_tail` or `last_line` as a whole: each is replaced, never changed.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", ref: str) -> None:
        assert process.stdout is not None
        self._pipe = process.stdout
        self._ref = ref
        self._tail: tuple[str, ...] = ()  # the last lines, at most TAIL
        self.last_line = ""  # what was printed last, without white space
        self._left_out = 0
        self._second, self._in_second = 0, 0
        self._thread = threading.Thread(target=self._read, name="printed", daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """Returns the last lines."""
        return "\n".join(self._tail)

    def join(self) -> None:
        """All that was printed has been read, unless another process holds the pipe open."""
        self._thread.join(0.5)

    def _read(self) -> None:
        rest = b""
        with self._pipe:
            while chunk := self._chunk():
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()[-LINE_MAX:]
                self._take(lines)
                self._note([*lines[-TAIL:], rest])
        if rest:
            self._take([rest])
        self._tell_left_out()

    def _chunk(self) -> bytes:
        """Returns what was printed next. After a second of silence, the number of lines left out is logged."""
        if self._left_out and not _readable(1.0, self._pipe.fileno()):
            self._tell_left_out()
        return os.read(self._pipe.fileno(), 1 << 16)

    def _take(self, lines: list[bytes]) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._tell_left_out()
            self._second, self._in_second = second, 0
        logged = lines[: max(0, LINES_PER_S_MAX - self._in_second)]
        self._in_second += len(logged)
        self._left_out += len(lines) - len(logged)
        for line in logged:
            log.info("printed", ref=self._ref, line=_text(line))
        self._tail = (*self._tail, *map(_text, lines[-TAIL:]))[-TAIL:]

    def _note(self, lines: list[bytes]) -> None:
        """The last of these lines that is not empty is what was printed last; of a progress bar, its last state."""
        states = (_text(state).strip() for line in reversed(lines) for state in reversed(line.split(b"\r")))
        self.last_line = next((state for state in states if state), self.last_line)

    def _tell_left_out(self) -> None:
        if self._left_out:
            log.warning("printed_more", ref=self._ref, lines_left_out=self._left_out, limit_per_s=LINES_PER_S_MAX)
            self._left_out = 0


def _text(line: bytes) -> str:
    return line[:LINE_MAX].decode(errors="replace")


def _readable(timeout_s: float, *descriptors: int) -> bool:
    poll = select.poll()  # select() accepts no descriptor beyond 1023
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(timeout_s * 1e3))
