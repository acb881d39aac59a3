"""mesh/process/crashes.py: what nobody catches ends a real service, which says what it was doing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh import wire
from mesh.clocks import OffsetFilter
from mesh.doing import note
from mesh.net.links import Link
from mesh.net.transport import Mail
from mesh.process.crashes import CRASHED, doing
from scripts import ROOT
from tests.loops import LIMIT_S, on_loop
from tests.mesh.net.processes import processes

SERVICE = """
import asyncio, ctypes, threading, zmq
import structlog
from mesh import wire
from mesh.process import runtime
from mesh.process.crashes import for_life
from mesh.process.timers import Alarm

log = structlog.get_logger("test")

def fail(*_):
    raise ZeroDivisionError("of the test")

class Failing:
    def __del__(self):
        fail()

class Service:
    def __init__(self, mine):
        self.mine, self.hub, self.loop = mine, mine.hub, mine.hub.loop

    def start(self):
        log.info("started")
        self.begin()

    def drain(self):
        return True

    def stop(self):
        log.info("stopped")

    def pair(self, drain):
        "Two sockets; `drain` is called when the second one has a message."
        one, other = (self.hub.socket(zmq.PAIR, size_max=-1) for _ in range(2))
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        self.hub.read(other, drain)
        one.send(b"message")

class Test(Service):
    def begin(self):
        {begin}

runtime.serve("tested", lambda mine: [Test(mine)])
"""

KINDS = {
    "a callback": "self.loop.call_soon(fail)",
    "a timer": "self.loop.call_later(0.001, fail)",
    "an alarm": "self.alarm = Alarm(self.loop, fail); self.alarm.set(1.0)",
    "a drain": "self.pair(fail)",
    "a turn": "self.hub.on_turn(fail); self.hub.schedule_turn()",
    "a flush": "self.hub.on_flush(fail); self.hub.schedule_turn()",
    "a task that nobody awaits": "self.loop.create_task(asyncio.to_thread(fail))",
    "a task that somebody keeps": "self.task = for_life(self.loop.create_task(asyncio.to_thread(fail)))",
    "a thread": "threading.Thread(target=fail).start()",
    "a thread that wants to exit": "import sys; threading.Thread(target=sys.exit, args=(fail,)).start()",
    "a destructor": "Failing()",
    "a callback from C": "ctypes.CFUNCTYPE(None)(fail)()",
    "the start": "fail()",
    "the end": "self.drain = fail; self.loop.call_soon(self.mine.end, 0)",
    "a signal's handler": "import os; self.loop.add_signal_handler(10, fail); os.kill(os.getpid(), 10)",
}


def ran(begin: str, folder: Path, **options: Any) -> tuple[int, str, list[dict[str, Any]]]:
    """(exit code, what was written, the log's lines) of a service that starts with these statements."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GEARMESH_DATA_DIR": str(folder),
        "GEARMESH_LOG_FORMAT": "json",
    }
    script = SERVICE.replace("{begin}", begin)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, timeout=LIMIT_S, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options,
    )  # fmt: skip
    lines = [msgspec.json.decode(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, done.stdout, [line for line in lines if line["event"] != "code"]


@pytest.mark.parametrize("begin", KINDS.values(), ids=KINDS.keys())
def test_what_nobody_catches_ends_the_process_with_its_traceback(begin: str, tmp_path: Path) -> None:
    code, written, lines = ran(begin, tmp_path)
    assert code == CRASHED, written
    assert [line["event"] for line in lines] == ["started", "crashed"], written
    crash = lines[-1]
    assert (crash["level"], crash["exit_code"], crash["service"]) == ("error", CRASHED, "tested")
    if "sys.exit" not in begin:
        assert "in fail" in crash["exception"]
        assert crash["exception"].endswith("ZeroDivisionError: of the test")


def test_the_message_that_it_came_with_and_its_sender_are_named(tmp_path: Path) -> None:
    begin = "peer, message = 'frontend-1', wire.Cancel(request=7)\n        fail()"
    _, written, lines = ran(begin, tmp_path)
    assert (lines[-1]["peer"], lines[-1]["messages"]) == ("frontend-1", ["Cancel"]), written


def test_an_exception_that_was_caught_ends_nobody(tmp_path: Path) -> None:
    begin = (
        "task = self.loop.create_task(asyncio.to_thread(fail))\n"
        "        task.add_done_callback(lambda task: (task.exception(), self.mine.end(3)))"
    )
    code, written, lines = ran(begin, tmp_path)
    assert (code, [line["event"] for line in lines]) == (3, ["started", "stopped"]), written


@pytest.mark.parametrize(
    "begin",
    [
        "self.loop.create_future().set_exception(ZeroDivisionError())",
        "self.loop.create_task(asyncio.open_connection('127.0.0.1', 1))",
    ],
    ids=["an outcome that nobody asked for", "a connection that was refused"],
)
def test_what_leaves_nothing_half_done_is_logged_and_ends_nobody(begin: str, tmp_path: Path) -> None:
    code, written, lines = ran(f"{begin}\n        self.loop.call_later(0.2, self.mine.end, 3)", tmp_path)
    assert (code, [line["event"] for line in lines]) == (3, ["started", "loop_error", "stopped"]), written


def test_a_process_that_c_code_ends_says_in_which_python_code_that_was(tmp_path: Path) -> None:
    code, written, lines = ran("ctypes.string_at(0)", tmp_path)
    assert code == -signal.SIGSEGV
    assert "in begin" in written
    assert [line["event"] for line in lines] == ["started"], "what was logged before has left"


def test_a_crash_whose_output_nobody_reads_ends_the_process_all_the_same(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GEARMESH_DATA_DIR": str(tmp_path)}
    fill = "for _ in range(3000): print('x' * 99)\n        self.loop.call_soon(fail)"
    script = SERVICE.replace("{begin}", fill)
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        assert process.wait(LIMIT_S) == CRASHED
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def raised(mail: Any, **_: Any) -> Exception:
    """An exception, where these are variables of a function on its way."""

    def handle(message: Any) -> None:
        raise ZeroDivisionError(message)

    try:
        handle(mail.messages[-1])
    except ZeroDivisionError as error:
        return error
    raise AssertionError


def test_what_it_was_doing_is_told_by_kinds_with_the_innermost_last_and_by_the_sender() -> None:
    messages: list[Any] = [wire.Heartbeat(), wire.Cancel(request=1), wire.Heartbeat(), wire.Goodbye()]
    mail = Mail("worker-1", messages, [], 0.0, 0, 0.0, OffsetFilter())
    assert doing(raised(mail)) == {"messages": ["Cancel", "Heartbeat", "Goodbye"], "peer": "worker-1"}
    assert doing(ValueError()) == {}


def test_what_was_noted_is_told_where_no_variables_are() -> None:
    error = ValueError()
    note(error, [wire.Heartbeat(), wire.Cancel(request=1)], "worker-1")
    note(error, [wire.Goodbye()], "of whoever passed it on")
    assert doing(error) == {"messages": ["Heartbeat", "Cancel"], "peer": "worker-1"}


@on_loop
async def test_what_raises_while_mail_is_taken_in_is_known_to_be_of_that_mail() -> None:
    failed: list[Exception] = []

    def received(mail: Mail[Any]) -> None:
        raise ValueError

    mail = Mail[Any]("worker-1", [wire.Cancel(request=1)], [], 0.0, 0, 0.0, OffsetFilter())
    async with processes() as made:
        link: Link[Any, Any] = Link(
            made.runtime().transport, "frontend-1", "worker-1", msgspec.msgpack.Decoder(), received, lambda *_: None
        )
        try:
            link.take(mail)
        except ValueError as error:
            failed.append(error)
    failed[0].__traceback__ = None
    assert doing(failed[0]) == {"messages": ["Cancel"], "peer": "worker-1"}


def test_nothing_of_a_message_is_told_but_its_kind() -> None:
    secret = "s" * 100
    mail = Mail(
        "p" * 1000, [wire.FrontendHello(member=secret, host=secret, results=())], [], 0.0, 0, 0.0, OffsetFilter()
    )
    told = doing(raised(mail))
    assert secret not in str(told)
    assert len(str(told)) < 400
