"""gpu_worker/container/keeper.py: what is tried again, after which pauses, and what others hear of it."""

import asyncio
import errno
import os
import signal
from pathlib import Path

import pytest

from gpu_worker.container import keeper
from gpu_worker.container.child.faults import PASSING, SourceChanged, may_pass
from gpu_worker.container.endings import MIB, MemoryLook, how_it_ended, look, resident_bytes
from gpu_worker.container.keeper import LINE_MAX, PAUSES_S
from gpu_worker.container.specs import ContainerError
from tests.gpu_worker.container.container_builders import ROW, Rig, Starting
from tests.loops import on_loop
from tests.messages import names

LIVES = "with open('lives', 'a') as lives: lives.write('.')\nlives = os.path.getsize('lives')\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds the code."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "PAUSES_S", tuple(pause_s / 100 for pause_s in PAUSES_S))


# -- tried again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("if lives < 4: os.kill(os.getpid(), 9)", ("SIGKILL", "imported", "out of memory?")),
        ("if lives < 4: os.abort()", ("SIGABRT", "imported")),
        ("if lives < 4: raise MemoryError('no more')", ("MemoryError: no more",)),
        ("if lives < 4: raise ConnectionResetError('gone')", ("ConnectionResetError: gone",)),
        ("if lives < 4: raise OSError(28, 'No space left on device')", ("No space left on device",)),
    ],
)
@pytest.mark.usefixtures("short_pauses")
@on_loop
async def test_what_may_pass_is_tried_again_at_the_first_start_too(
    code: str, why: tuple[str, ...], folder: Path
) -> None:
    starting = Starting(folder, f"{LIVES}{code}\ndef f(x): return x * 2")
    device = await starting.device
    state = starting.keeper.state()
    assert (state.serves, state.starts) == (True, 4)
    assert names(state.why, *why)
    assert (await Rig(device).run() == ROW * 2).all()
    device.close()


@pytest.mark.usefixtures("short_pauses")
@on_loop
async def test_code_that_is_not_ready_in_time_is_ended_and_tried_again(folder: Path) -> None:
    code = f"import time\n{LIVES}if lives == 1: time.sleep(3600)\ndef f(x): return x"
    starting = Starting(folder, code, start_s=3.0)
    state = await starting.state(lambda state: state.why)
    assert not state.serves
    assert names(state.why, "--start-s")
    device = await starting.device
    assert starting.keeper.state().starts == 2
    device.close()


@pytest.mark.usefixtures("short_pauses")
@on_loop
async def test_code_that_holds_too_much_while_it_is_imported_is_ended_and_says_so(folder: Path) -> None:
    code = f"import time\n{LIVES}if lives == 1:\n    held = np.ones(200 << 20, np.uint8)\n    time.sleep(3600)\n"
    starting = Starting(folder, code + "def f(x): return x", memory_mb=150)
    state = await starting.state(lambda state: state.why)
    assert names(state.why, "150 MiB", "--memory-mb")
    (await starting.device).close()


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before starts that were meant, as they come; none is made."""
    loop = asyncio.get_running_loop()
    meant: list[float] = []
    usual = loop.call_later

    def call_later(delay_s: float, call: object, *args: object) -> object:
        if getattr(call, "__name__", "") == "_begin":
            meant.append(delay_s)
            delay_s = 0.0
        return usual(delay_s, call, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", call_later)
    return meant


@on_loop
async def test_the_pauses_grow_from_a_fifth_of_a_second_to_a_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = without_pauses(monkeypatch)
    starting = Starting(folder, f"{LIVES}if lives < 13: os.kill(os.getpid(), 9)\ndef f(x): return x")
    device = await starting.device
    assert pauses == [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0]
    assert device.pid is not None
    monkeypatch.setattr(keeper, "HEALTHY_S", 0.0)
    rig = Rig(device)
    os.kill(device.pid, signal.SIGKILL)
    assert names(await rig.news.get(), "SIGKILL", "served")
    assert pauses[-1] == 0.0  # it had served long enough
    device.close()


@on_loop
async def test_the_pauses_stay_short_for_code_that_executes_batches_well_until_an_input_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = without_pauses(monkeypatch)
    device = await Starting(folder, "def f(x): return x * 2").device
    rig = Rig(device)
    for _ in range(5):
        assert (await rig.run() == ROW * 2).all()
        assert device.pid is not None
        os.kill(device.pid, signal.SIGKILL)
        assert names(await rig.news.get(), "SIGKILL")
        assert await rig.news.get() == "", "it serves again"
    assert pauses == [0.2, 0.5, 0.5, 0.5, 0.5]
    device.close()


# -- not tried again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["ValueError('x')", "FileNotFoundError(2, 'x')", "ImportError('x')", "SystemExit(0)"])
@on_loop
async def test_what_lies_in_the_code_is_final_at_the_first_start(error: str, folder: Path) -> None:
    starting = Starting(folder, f"raise {error}")
    with pytest.raises(ContainerError):
        await starting.device
    assert starting.keeper.pid is None


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        *((OSError(number, "x"), True) for number in sorted(PASSING)),
        (OSError(errno.ENOENT, "x"), False),
        (OSError(errno.EACCES, "x"), False),
        (OSError("no number"), False),
        (MemoryError(), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), True),
        (TimeoutError(), True),
        (ConnectionRefusedError(), True),
        (SourceChanged(), True),
        (ImportError(), False),
        (SyntaxError(), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_an_error_passes_where_the_machine_was_out_of_something(error: BaseException, passes: bool) -> None:
    assert may_pass(error) is passes
    wrapped = RuntimeError("as urllib does")
    wrapped.reason = error  # type: ignore[attr-defined]
    assert may_pass(wrapped) is (passes and isinstance(error, OSError))


# -- what others hear -------------------------------------------------------------------------------------------------


@on_loop
async def test_the_last_line_is_told_cut_and_at_most_once_a_second(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LOOK_S", 0.01)
    monkeypatch.setattr(keeper, "LINE_S", 0.2)
    code = (
        "import time\nfor i in range(100):\n    print('line', i, 'x' * 300, flush=True); time.sleep(0.01)\n"
        "sys.stdout.write('10 %\\r20 %\\r30 %'); sys.stdout.flush()\n"
        "while not os.path.exists('go'): time.sleep(0.01)\ndef f(x): return x"
    )
    starting = Starting(folder, code)
    began_s = asyncio.get_running_loop().time()
    await starting.state(lambda state: state.line == "30 %")
    took_s = asyncio.get_running_loop().time() - began_s
    lines = [state.line for state in starting.states.items]
    assert all(len(line) <= LINE_MAX for line in lines)
    assert 2 <= len(lines) <= 2 + took_s / 0.2
    (folder / "go").touch()
    device = await starting.device
    assert starting.keeper.state().line == ""
    device.close()


@on_loop
async def test_a_keeper_that_is_closed_leaves_no_process_and_starts_none(folder: Path) -> None:
    starting = Starting(folder, "import time; time.sleep(3600)")
    pid = starting.keeper.pid
    assert pid is not None
    starting.keeper.close()
    starting.keeper.close()
    assert starting.keeper.pid is None
    assert resident_bytes(pid) is None


# -- in words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "last", "now", "says"),
    [
        (3, MemoryLook(), MemoryLook(), "its code ended with exit code 3 while it served"),
        (-11, MemoryLook(5 * MIB, 7 * MIB, 0), MemoryLook(), "its code was killed by SIGSEGV while it served"),
        (-40, MemoryLook(), MemoryLook(), "its code was killed by signal 40 while it served"),
        (-9, MemoryLook(), MemoryLook(), "its code was killed by SIGKILL while it served: out of memory?"),
        (
            -9,
            MemoryLook(5 * MIB, 7 * MIB, 2),
            MemoryLook(None, 900 * MIB, 3),
            "its code was killed by SIGKILL while it served: out of memory? (it held 5 MiB a moment before, the "
            "machine had 7 MiB left, the kernel killed 1 of this control group for memory)",
        ),
    ],
)
def test_an_end_is_named(code: int, last: MemoryLook, now: MemoryLook, says: str) -> None:
    assert how_it_ended(code, "served", last, now) == says


def test_memory_is_looked_at_where_the_system_tells() -> None:
    seen = look(os.getpid())
    assert seen.held_bytes is not None
    assert seen.held_bytes > MIB
    assert seen.left_bytes is not None
    assert look(2**22 + 1).held_bytes is None  # beyond the largest process id
