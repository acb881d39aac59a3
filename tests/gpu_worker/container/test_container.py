"""Black-box code in a real child process: what it may do to itself, and what happens to its batches."""

import asyncio
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from gpu_worker.container.specs import ContainerError
from mesh.codes import ActionCode
from tests.gpu_worker.container.container_builders import ROW, rig, write
from tests.loops import LIMIT_S, on_loop
from tests.memory import resident_kib
from tests.messages import names


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds the code."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@on_loop
async def test_the_first_batch_of_a_process_may_take_longer_than_the_next(folder: Path) -> None:
    code = "import time\ncalls = []\ndef f(x):\n    calls.append(1)\n    time.sleep(%s)\n    return x * 2"
    async with rig(folder, code % "0.3 if len(calls) == 1 else 3600") as one:
        np.testing.assert_array_equal(await one.run(overdue_s=0.05, cold_s=LIMIT_S), ROW * 2)
        assert ActionCode.CONTAINER_DIED in await one.run(overdue_s=0.05, cold_s=LIMIT_S)
        assert await one.news.get()
        assert await one.news.get() == ""
        # the first batch of a new process
        np.testing.assert_array_equal(await one.run(overdue_s=0.05, cold_s=LIMIT_S), ROW * 2)


@on_loop
async def test_a_batch_hangs_when_its_own_time_is_over_not_that_of_one_before(folder: Path) -> None:
    async with rig(folder, "import time\ndef f(x):\n    time.sleep(3600 if x[0, 0] < 0 else 0)\n    return x") as one:
        np.testing.assert_array_equal(await one.run(overdue_s=1.0), ROW)
        began_s = time.monotonic()
        assert ActionCode.CONTAINER_DIED in await one.run(-1 - ROW, overdue_s=2.0)
        # the alarm that was set for the one before has rung meanwhile
        assert time.monotonic() - began_s >= 2.0


@on_loop
async def test_a_batch_that_failed_does_not_end_the_time_of_the_first_one(folder: Path) -> None:
    code = "import time\ndef f(x):\n    if x[0, 0] < 0: raise ValueError('no')\n    time.sleep(0.3)\n    return x"
    async with rig(folder, code) as one:
        assert await one.run(-1 - ROW, overdue_s=0.05, cold_s=LIMIT_S) == "model_error: ValueError: no"
        np.testing.assert_array_equal(await one.run(overdue_s=0.05, cold_s=LIMIT_S), ROW)


@on_loop
async def test_a_process_that_is_killed_is_missed_though_a_fork_of_it_lives_on(folder: Path) -> None:
    code = "import signal\npid = os.fork()\nif pid == 0:\n    signal.pause()\nos.setpgid(pid, pid)\n"
    async with rig(folder, code + "open('fork', 'w').write(str(pid))\ndef f(x): return x") as one:
        first = one.pid
        os.kill(first, signal.SIGKILL)
        assert "SIGKILL" in await one.news.get()
        os.kill(int((folder / "fork").read_text()), signal.SIGKILL)
        assert await one.news.get() == ""
        assert one.pid != first
        np.testing.assert_array_equal(await one.run(), ROW)
        os.kill(int((folder / "fork").read_text()), signal.SIGKILL)


@on_loop
async def test_a_fork_that_returns_from_the_function_does_not_serve_beside_it(folder: Path) -> None:
    async with rig(folder, "def f(x):\n    os.fork()\n    return x * 0 + os.getpid()") as one:
        for _ in range(5):
            np.testing.assert_array_equal(await one.run(), np.full_like(ROW, one.pid))


@on_loop
async def test_memory_stays_flat_over_a_hundred_thousand_queries(folder: Path) -> None:
    x = np.repeat(ROW, 50, axis=0)
    async with rig(folder, "def f(x): return x * 2") as one:

        async def ask(queries: int) -> None:
            for _ in range(queries // len(x)):
                np.testing.assert_array_equal(await one.run(x, parts=len(x)), x * 2)

        await ask(5_000)
        before = [resident_kib(pid) for pid in (os.getpid(), one.pid)]
        await ask(100_000)
        grown = [resident_kib(pid) - was for pid, was in zip((os.getpid(), one.pid), before, strict=True)]
        assert max(grown) < 1024, grown  # ten bytes for each query


@on_loop
async def test_code_that_was_changed_meanwhile_does_not_serve_under_the_old_name(folder: Path) -> None:
    async with rig(folder, "def f(x): return x * 2") as one:
        np.testing.assert_array_equal(await one.run(), ROW * 2)
        write(folder, "def f(x): return x * 3")
        np.testing.assert_array_equal(await one.run(), ROW * 2)
        os.kill(one.pid, signal.SIGKILL)
        assert "SIGKILL" in await one.news.get()
        assert await one.news.get()
        assert len(one.outdated) == 1
        assert ActionCode.RESTARTING in await one.run()


@on_loop
async def test_code_that_cannot_be_imported_any_more_is_tried_again_until_it_can(folder: Path) -> None:
    async with rig(folder, "def f(x): return x * 2") as one:
        write(folder, "def f(x: return")
        os.kill(one.pid, signal.SIGKILL)
        assert "SIGKILL" in await one.news.get()
        assert "SyntaxError" in await one.news.get()
        write(folder, "def f(x): return x * 2")
        while await one.news.get():
            pass
        np.testing.assert_array_equal(await one.run(), ROW * 2)


@pytest.mark.slow
@on_loop
async def test_a_start_that_failed_takes_nothing_of_the_next_one_s_time(folder: Path) -> None:
    """The next one begins half a second later, and is not ready when the time of the first one is over."""
    code = "while os.path.exists('hold'): pass\nif os.path.exists('dies'):\n    os._exit(3)\ndef f(x): return x"
    async with rig(folder, code, start_s=5.0) as one:
        (folder / "dies").touch()
        os.kill(one.pid, signal.SIGKILL)
        assert "SIGKILL" in await one.news.get()
        await one.started()
        began_s = time.monotonic()
        assert "exit code 3" in await one.news.get()
        (folder / "dies").unlink()
        (folder / "hold").touch()
        second = await one.started()
        await asyncio.sleep(began_s + 5.2 - time.monotonic())
        assert (one.device.pid, one.news.empty()) == (second, True), "it has time"
        (folder / "hold").unlink()
        assert await one.news.get() == ""


@on_loop
async def test_a_batch_that_comes_while_the_code_is_being_started_again_goes_elsewhere(folder: Path) -> None:
    async with rig(folder, "while os.path.exists('hold'): pass\ndef f(x): return x") as one:
        (folder / "hold").touch()
        os.kill(one.pid, signal.SIGKILL)
        assert "SIGKILL" in await one.news.get()
        await one.started()
        assert ActionCode.RESTARTING in await one.run()
        (folder / "hold").unlink()
        assert await one.news.get() == ""
        np.testing.assert_array_equal(await one.run(), ROW)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def f(x: return", "SyntaxError"),
        ("import nothing_like_it", "'nothing_like_it'"),
        ("raise RuntimeError('\U0001f600' * 9000)", "\U0001f600" * 1000),
        ("os._exit(7)", "exit code 7"),
        ("print('a last word'); sys.stdout.flush(); os._exit(0)", "a last word"),
        ("open('nowhere')", "nowhere"),
    ],
)
@on_loop
async def test_what_cannot_start_says_why(folder: Path, code: str, text: str) -> None:
    with pytest.raises(ContainerError) as raised:
        async with rig(folder, code):
            pass
    assert text in str(raised.value)


ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
RETURNS = [
    ("x", ROWS),  # a view of its input
    ("x[:, ::-1]", ROWS[:, ::-1]),
    ("np.asfortranarray(x + 1)", ROWS + 1),
    ("(x + 1).astype('>f4')", ROWS + 1),
    ("(x + 1).astype('>f8')", ROWS + 1),
    ("np.broadcast_to(np.float32(3), x.shape)", np.full_like(ROWS, 3)),
    ("[[1, 2, 3, 4]] * 3", [[1, 2, 3, 4]] * 3),
    ("(x > 1)", ROWS > 1),
    ("np.ma.array(x, mask=False)", ROWS),
    ("dict(y=x)", ROWS),
    ("np.asmatrix(x)", ROWS),
    ("__import__('torch').from_numpy(x.copy()).T.contiguous().T", ROWS),
    ("__import__('torch').from_numpy(x * 2).requires_grad_()", ROWS * 2),
    ("__import__('torch').from_numpy(x * 2).bfloat16()", ROWS * 2),
    ("Columns(x)", ROWS),  # as data frames do
    ("(x + 1,)", ROWS + 1),
    ("list(x)", ROWS),
    ("[{'y': row} for row in x]", ROWS),
    ("(row for row in x)", ROWS),
    ("map(lambda row: row * 2, x)", ROWS * 2),
    ("iter([x[:2], x[2:]])", ROWS),  # groups of rows
    ("iter([x])", ROWS),
    ("({'y': row} for row in x)", ROWS),
    ("{'y': (row for row in x)}", ROWS),
    ("later(x)", ROWS + 1),
    ("later_each(x)", ROWS + 1),
    ("Later(x)", ROWS),
]
WRONG = [
    # (what the code does, what the answer names)
    ("None", ("WrongOutput", "None", "y")),
    ("{}", ("WrongOutput", "y")),
    ("iter(range(1 << 60))", ("WrongOutput", "1 rows")),
    ("(row for row in x[:0])", ("WrongOutput", "'y'", "[0]")),
    ("iter([x[None]])", ("WrongOutput", "'y'", "[1, 1, 4]")),
    ("forever()", ("WrongOutput", "1 rows")),
    ("{'y': later(x)}", ("WrongOutput", "'y'", "coroutine", "await")),
    ("later(None)", ("TypeError",)),
    ("{'y': None}", ("WrongOutput", "'y'", "NoneType")),
    ("x.astype(object)", ("WrongOutput", "'y'", "object", "float32")),
    ("x + 1j", ("WrongOutput", "'y'", "complex64", "float32")),
    ("np.ma.array(x, mask=[[1, 0, 0, 0]])", ("WrongOutput", "'y'")),
    ("[[1], [2, 3]]", ("ValueError",)),
    ("x[0]", ("WrongOutput", "'y'", "[4]", 1)),
    ("np.concatenate([x, x])", ("WrongOutput", "'y'", "[2, 4]", 1)),
    ("(x, x)", ("WrongOutput", "'y'", "[2, 1, 4]", 1)),
    ("np.datetime64('2020-01-01') + x.astype('m8[s]')", ("WrongOutput", "'y'", "datetime64[s]", "float32")),
    ("(_ for _ in ()).throw(KeyboardInterrupt)", ("KeyboardInterrupt",)),
    ("sys.exit('bye')", ("SystemExit", "bye")),
    ("[][1]", ("IndexError",)),
    ("endless(x)", ("RecursionError",)),
    ("raise_unspeakable()", ("Unspeakable",)),
    ("raise_many('\\x00')", ("ValueError", "\x00" * 100)),
    ("raise_many('\\U0001f600')", ("ValueError", "\U0001f600" * 100)),
    ("raise_many('\\udc80')", ("ValueError", "???")),
]
HELPERS = """
import asyncio
class Columns:
    def __init__(self, x): self.x = x
    def __array__(self, dtype=None, copy=None): return self.x.astype(dtype or float)
class Later:
    def __init__(self, x): self.x = x
    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return self.x
async def later(x):
    await asyncio.sleep(0)
    return x + 1
async def later_each(x):
    for row in x:
        await asyncio.sleep(0)
        yield row + 1
async def forever():
    while True:
        yield 1
class Unspeakable(Exception):
    def __str__(self): raise self
def endless(x): return endless(x)
def raise_unspeakable(): raise Unspeakable
def raise_many(text): raise ValueError(text * 9000)
returns = open('returns').read().splitlines()
calls = iter(range(1000))
def f(x): return eval(returns[next(calls)])
"""


def chosen(i: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.array([[i, 1, 2, 3]], np.float32)


@on_loop
async def test_whatever_numpy_makes_an_array_of_may_be_returned(folder: Path) -> None:
    (folder / "returns").write_text("\n".join(expression for expression, _ in RETURNS))
    async with rig(folder, HELPERS) as one:
        for expression, expected in RETURNS:
            np.testing.assert_array_equal(await one.run(ROWS), expected, expression)


@on_loop
async def test_whatever_else_is_returned_or_raised_is_an_answer_that_says_what_was_wrong(folder: Path) -> None:
    (folder / "returns").write_text("\n".join(expression for expression, _ in WRONG))
    async with rig(folder, HELPERS) as one:
        pid = one.pid
        for expression, named in WRONG:
            answer = await one.run()
            assert isinstance(answer, str), (expression, answer)
            assert names(answer, ActionCode.MODEL_ERROR, *named)
        assert one.pid == pid


@on_loop
async def test_integers_that_do_not_fit_are_not_cut(folder: Path) -> None:
    small = {"name": "y", "dtype": "int8", "shape": [-1, 4]}
    async with rig(folder, "def f(x): return x.astype(np.int64) * 50", output=small) as one:
        assert names(await one.run(), ActionCode.MODEL_ERROR, "WrongOutput", "'y'", "int8", "int64")
        np.testing.assert_array_equal(await one.run(ROW / 2), [[0, 0, 50, 50]])


HABITS = """
import signal, threading, time
def f(x):
    habit = int(x[0, 0])
    if habit == 0:
        os.write(1, bytes(range(256)) * 1000)
        os.write(2, b"no end of line " * 10000)
    if habit == 1:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
    if habit == 2:
        threading.Thread(target=time.sleep, args=(3600,)).start()
    if habit == 3:
        np.set_printoptions(precision=1); np.seterr(all='raise'); sys.setrecursionlimit(100)
    if habit == 4:
        sys.stdout = sys.stderr = None
    if habit == 5:
        import subprocess; subprocess.run(['/bin/true'])
    if habit == 6:
        os.chdir('/'); os.environ.clear(); sys.path.clear()
    if habit == 7:
        os.close(1); os.close(2)
    return x + 1
"""


@on_loop
async def test_habits_that_harm_nobody_else_cost_nothing(folder: Path) -> None:
    async with rig(folder, HABITS) as one:
        pid = one.pid
        for habit in range(8):
            np.testing.assert_array_equal(await one.run(chosen(habit)), chosen(habit) + 1)
        assert one.pid == pid


LOOPS = """
import asyncio
lock = asyncio.Lock()
async def later(x):
    async with lock:
        return x + 1
def f(x):
    habit = int(x[0, 0])
    if habit == 1:
        asyncio.get_event_loop().close()
    if habit == 2:
        asyncio.get_event_loop().call_soon(asyncio.get_event_loop().stop)
    if habit == 3:
        return asyncio.run(later(x))
    return later(x)
"""


@on_loop
async def test_code_that_harms_its_event_loop_has_another_for_the_next_batch(folder: Path) -> None:
    async with rig(folder, LOOPS) as one:
        pid = one.pid
        for habit in (0, 1, 0, 3, 0):
            np.testing.assert_array_equal(await one.run(chosen(habit)), chosen(habit) + 1)
        await one.run(chosen(2))  # whether it gets that far is asyncio's
        np.testing.assert_array_equal(await one.run(chosen(0)), chosen(0) + 1)
        assert one.pid == pid


@on_loop
async def test_code_that_closes_every_descriptor_dies_and_is_started_again(folder: Path) -> None:
    async with rig(folder, "def f(x):\n    if x[0, 0]: os.closerange(0, 1000)\n    return x") as one:
        assert ActionCode.CONTAINER_DIED in await one.run(chosen(1))
        assert await one.news.get()
        assert await one.news.get() == ""
        np.testing.assert_array_equal(await one.run(), ROW)


@on_loop
async def test_modules_that_lie_beside_the_container_s_own_code_are_not_found(folder: Path) -> None:
    with pytest.raises(ContainerError, match="'specs'"):
        async with rig(folder, "import specs"):
            pass


SPEAKS = """
import json, os, socket, sys
control = socket.socket(fileno=os.dup(int(sys.argv[1])))
def f(x):
    if x[0, 0] < 0:
        control.send(%s)
    return x * 2
"""


@pytest.mark.parametrize(
    "packet",
    [
        "b'{'",
        "b'\\xff' * 100",
        "b'[' * 60_000",
        "json.dumps({'op': 'ready', 'inputs': [], 'outputs': [], 'code': ''}).encode()",
        "json.dumps({'op': 'error', 'text': 'x', 'passing': True}).encode()",
        "json.dumps({'op': 'done', 'id': 'one', 'begin': 0, 'end': 0, 'error': None}).encode()",
        "json.dumps({'op': 'done', 'id': 1, 'begin': float('nan'), 'end': 0, 'error': None}).encode()",
        "json.dumps({'op': 'done', 'id': 1}).encode()",
    ],
)
@on_loop
async def test_code_that_writes_to_our_socket_itself_ends_its_process_and_no_other(packet: str, folder: Path) -> None:
    async with rig(folder, SPEAKS % packet) as one:
        np.testing.assert_array_equal(await one.run(), ROW * 2)
        assert ActionCode.CONTAINER_DIED in await one.run(-1 - ROW)
        assert "no message" in await one.news.get()
        assert await one.news.get() == ""
        np.testing.assert_array_equal(await one.run(), ROW * 2)


@on_loop
async def test_an_answer_to_a_batch_that_was_not_given_ends_the_process(folder: Path) -> None:
    done = "json.dumps({'op': 'done', 'id': 1, 'begin': 0, 'end': 0, 'error': None}).encode()"
    async with rig(folder, SPEAKS % done) as one:
        await one.run(-1 - ROW)  # it was answered by the code, and then by us
        assert "no message" in await one.news.get()
        assert await one.news.get() == ""
        np.testing.assert_array_equal(await one.run(), ROW * 2)
