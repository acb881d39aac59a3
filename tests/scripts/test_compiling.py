"""scripts/compiling.py: what is compiled, what it depends on, and what is said where it cannot be done."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mesh.process.compiled import MANIFEST, PURE, CompiledFinder, Form, Why, pointer
from scripts import ROOT, compiled_sets, compiling
from scripts.compiled_sets import set_up
from scripts.compiling import CannotCompile

BASE = """
class Base:
    def __init__(self, number: int) -> None:
        self.number = number
"""
DOUBLE = """
from controller.core.base import Base
from mesh.given import FACTOR


def doubled(of: Base) -> int:
    return of.number * FACTOR
"""
FILES = {
    "controller/__init__.py": "",
    "controller/core/__init__.py": "",
    "controller/core/base.py": BASE,
    "controller/core/double.py": DOUBLE,
    "controller/core/messages.py": "import msgspec\n\n\nclass Told(msgspec.Struct):\n    number: int\n",
    "controller/alone.py": "",
    "mesh/__init__.py": "",
    "mesh/given.py": "from typing import Final\n\nFACTOR: Final = 2\n",
}


def made(root: Path, changed: Mapping[str, str] | None = None) -> Path:
    """A little project of these files, and of those that are `changed`: {path: text}."""
    for name, text in (FILES | dict(changed or {})).items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_modules_of_cores_are_compiled_but_not_those_that_define_messages(tmp_path: Path) -> None:
    found = compiling.modules(made(tmp_path))
    assert found.keys() == {"controller.core.base", "controller.core.double", "mesh.given"}


def test_a_set_depends_on_what_its_modules_import_and_on_nothing_else(tmp_path: Path) -> None:
    late = "\n\ndef late() -> None:\n    import mesh.net.more\n"
    more = {"mesh/net/more.py": "from mesh.process import last", "mesh/process/last.py": ""}
    root = made(tmp_path, {"controller/core/double.py": DOUBLE + late, **more})
    found = compiling.sources(root, ["controller.core.double"])
    assert set(found) == {
        "controller/__init__.py", "controller/core/__init__.py", "controller/core/base.py", "controller/core/double.py",
        "mesh/__init__.py", "mesh/given.py", "mesh/net/more.py", "mesh/process/last.py",
    }  # fmt: skip


@pytest.mark.parametrize("file", ["controller/core/base.py", "mesh/given.py"])
def test_an_edit_of_a_file_that_matters_makes_another_set(tmp_path: Path, file: str) -> None:
    first, edited = made(tmp_path / "first"), made(tmp_path / "edited", {file: "A = 3\n"})
    digests = {compiling.digest(root, compiling.manifest_of(root)) for root in (first, edited)}
    assert len(digests) == 2


def test_equal_files_make_the_same_set_wherever_they_lie(tmp_path: Path) -> None:
    first, second = made(tmp_path / "first"), made(tmp_path / "second", {"controller/alone.py": "B = 1\n"})
    assert len({compiling.digest(root, compiling.manifest_of(root)) for root in (first, second)}) == 1


def told(root: Path, store: Path) -> Form:
    """What a process learns that runs the files at `root`."""
    return CompiledFinder(str(root), str(root / "mesh" / "compiled"), str(store)).form()


def test_without_a_c_compiler_it_is_said_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PURE, raising=False)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    root, store = made(tmp_path / "root"), tmp_path / "store"
    with pytest.raises(CannotCompile) as raised:
        set_up(root, store)
    assert (raised.value.why, told(root, store)) == (Why.NO_COMPILER, Form(False, Why.NO_COMPILER))
    assert "no-such-compiler" in str(raised.value)


def test_a_build_that_was_asked_to_be_pure_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PURE, "1")
    root, store = made(tmp_path / "root"), tmp_path / "store"
    assert set_up(root, store) is None
    monkeypatch.delenv(PURE)
    assert told(root, store) == Form(False, Why.ASKED)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment asks for neither form."""
    monkeypatch.delenv(PURE, raising=False)


def given(root: Path, store: Path) -> Path:
    """The set of the files at `root`, or what a finder takes for it, as if it had been compiled."""
    manifest = compiling.manifest_of(root)
    folder = store / compiling.digest(root, manifest)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(manifest.write())
    return folder


def note(root: Path, store: Path) -> Path:
    """The file that says what the checkout uses."""
    return Path(pointer(str(root), str(store)))


@pytest.mark.usefixtures("free")
def test_a_set_up_through_a_symbolic_link_is_one_of_the_checkout_itself(tmp_path: Path) -> None:
    root, store = made(tmp_path / "root"), tmp_path / "store"
    given(root, store)
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    set_up(tmp_path / "link", store)
    assert told(root, store) == told(tmp_path / "link", store) == Form(True, Why.MATCHES)


@pytest.fixture
def others(tmp_path: Path, free: None, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Checkouts that were set up one after another; a store holds fewer sets if it may."""
    monkeypatch.setattr(compiled_sets, "SETS_MAX", 2)
    found = [made(tmp_path / f"other{i}", {"mesh/given.py": f"A = {i}\n"}) for i in range(4)]
    for i, root in enumerate(found):
        folder = given(root, tmp_path / "store")
        set_up(root, tmp_path / "store")
        os.utime(folder, (i, i))
    return found


def test_a_store_keeps_the_sets_of_checkouts_that_are_there_and_forgets_those_that_are_gone(
    tmp_path: Path, others: list[Path]
) -> None:
    store, last = tmp_path / "store", others[-1]
    set_up(last, store)
    assert [told(root, store).why for root in others] == [Why.MATCHES] * 4
    shutil.rmtree(others[0])
    shutil.rmtree(others[2])
    (others[2] / "build").mkdir(parents=True)  # a folder that git does not know stays when a worktree is removed
    set_up(last, store)
    assert [note(root, store).exists() for root in others] == [False, True, False, True]
    assert [told(root, store).why for root in (others[1], last)] == [Why.MATCHES] * 2
    assert len(list(store.glob(f"*/{MANIFEST}"))) == 2
    assert not list(store.glob(".building-*"))


def test_a_note_that_names_no_checkout_keeps_no_set_and_goes_with_its_own(tmp_path: Path, others: list[Path]) -> None:
    store, last = tmp_path / "store", others[-1]
    for root in others[:3]:  # as earlier versions wrote them
        note(root, store).write_text(note(root, store).read_text().partition("\n")[0] + "\n")
    set_up(last, store)
    assert [told(root, store).why for root in others] == [Why.NOT_BUILT] * 2 + [Why.MATCHES] * 2
    set_up(last, store)
    assert [note(root, store).exists() for root in others] == [False, False, True, True]


def test_what_killed_set_ups_have_left_is_removed_when_it_is_old(tmp_path: Path, others: list[Path]) -> None:
    store, last = tmp_path / "store", others[-1]
    (store / "gone").mkdir()
    left = [note(others[0], store).with_suffix(".123"), store / ".gone.lock", store / ".0123abcd.lock"]
    for file in left:  # the first is a scratch of earlier versions, which kept whatever set was named in it
        file.write_text("gone\n")
    set_up(last, store)
    assert all(file.exists() for file in left)
    for file in left:
        os.utime(file, (1, 1))
    set_up(last, store)
    assert [file.exists() for file in left] == [False, True, False]
    assert all(note(root, store).exists() for root in others)


@pytest.mark.usefixtures("free")
def test_a_store_that_cannot_be_written_is_a_build_that_failed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    root = made(tmp_path / "root")
    store = tmp_path / "file" / "store"
    with pytest.raises(CannotCompile) as set_up_raised:
        set_up(root, store)
    with pytest.raises(CannotCompile) as build_raised:
        compiling.build(root, store / "set")
    for raised in (set_up_raised.value, build_raised.value):
        assert (raised.why, str(store) in str(raised)) == (Why.FAILED, True)


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")


@needs_compiler
def test_what_mypyc_does_not_take_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PURE, raising=False)
    wrong = "from typing import Final\n\nFACTOR: Final[int] = 'x'\n"
    root, store = made(tmp_path / "root", {"mesh/given.py": wrong}), tmp_path
    with pytest.raises(CannotCompile) as raised:
        set_up(root, store)
    assert raised.value.why == Why.FAILED
    assert "mesh/given.py:3" in str(raised.value)
    assert told(root, store) == Form(False, Why.FAILED)
    assert not list(store.glob("*building*"))


RUN = "from controller.core import base, double as d; print(type(d.doubled).__name__, d.doubled(base.Base(21)))"
INSTALL = "from mesh.process.compiled import install\n\ninstall()\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little project that lies as a wheel does: its set is in it."""
    files = {"mesh/__init__.py": INSTALL, "controller/__init__.py": INSTALL, "mesh/process/__init__.py": ""}
    files["mesh/process/compiled.py"] = (ROOT / "mesh/process/compiled.py").read_text()
    root = made(tmp_path_factory.mktemp("installed"), files)
    before = {file.name for file in root.iterdir()}
    compiling.build(root, root / "mesh" / "compiled")
    assert {file.name for file in root.iterdir()} == before
    return root


def run(root: Path, program: str = RUN, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that imports the files at `root`."""
    kept = {key: value for key, value in os.environ.items() if key != PURE}
    return subprocess.run(
        [sys.executable, "-P", "-c", program], env=kept | {"PYTHONPATH": str(root)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def says(root: Path, **environment: str) -> list[str]:
    """The kind of a function, and what it returns."""
    ended = run(root, **environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@needs_compiler
def test_compiled_modules_run_until_one_is_asked_not_to(installed: Path) -> None:
    assert says(installed) == ["builtin_function_or_method", "42"]
    assert says(installed, **{PURE: "1"}) == ["function", "42"]


@needs_compiler
@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("controller/core/double.py", "* FACTOR", "* FACTOR + 1", "43"),
        ("mesh/given.py", "= 2", "= 3", "63"),  # which the compiled code of another module has in it
        ("controller/core/base.py", "= number", "= -number", "-42"),
        ("controller/__init__.py", "install()", "install()\nTOLD = 1", "42"),
    ],
)
def test_an_edited_file_is_what_runs(
    installed: Path, tmp_path: Path, file: str, old: str, new: str, expected: str
) -> None:
    root = Path(shutil.copytree(installed, tmp_path / "copy"))
    text = (root / file).read_text()
    (root / file).write_text(text.replace(old, new))
    assert says(root) == ["function", expected]
    (root / file).write_text(text)
    assert says(root) == ["builtin_function_or_method", "42"]


@needs_compiler
def test_a_traceback_names_the_line_of_the_source(installed: Path) -> None:
    ended = run(installed, "import controller.core.double as d; d.doubled(None)")
    assert ended.returncode == 1
    assert "controller/core/double.py" in ended.stderr


@needs_compiler
def test_a_compiled_module_knows_where_its_source_lies(installed: Path) -> None:
    told = run(installed, "import controller.core.double as d, os; print(os.path.dirname(d.__file__))")
    assert told.stdout.strip() == str(installed / "controller" / "core"), told.stderr


@needs_compiler
def test_a_set_is_made_once_and_what_ended_builds_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PURE, raising=False)
    root, store = made(tmp_path / "root"), tmp_path / "store"
    for name in ("old", "new"):
        (store / f".building-{name}").mkdir(parents=True)
    os.utime(store / ".building-old", (1, 1))
    first = set_up(root, store)
    assert first is not None
    made_at = (first / MANIFEST).stat().st_mtime_ns
    assert set_up(root, store) == first
    assert (first / MANIFEST).stat().st_mtime_ns == made_at
    assert [folder.name for folder in store.glob(".building-*")] == [".building-new"]
    assert told(root, store) == Form(True, Why.MATCHES)


@needs_compiler
@pytest.mark.usefixtures("free")
def test_whatever_lies_where_a_set_belongs_the_next_set_up_puts_it_there(tmp_path: Path) -> None:
    root, store = made(tmp_path / "root"), tmp_path / "store"
    target = set_up(root, store)
    assert target is not None
    whole = {file.name: file.read_bytes() for file in target.iterdir()}
    library = next(name for name in whole if name != MANIFEST)
    for left in ({library: b"half"}, {MANIFEST: b""}, None):  # None: a file that has the name of the set
        shutil.rmtree(target)
        if left is None:
            target.touch()
        else:
            target.mkdir()
            for name, content in left.items():
                (target / name).write_bytes(content)
        assert set_up(root, store) == target
        assert {file.name for file in target.iterdir()} == whole.keys()
        assert told(root, store) == Form(True, Why.MATCHES)
    assert not list(store.glob(".building-*"))


@needs_compiler
@pytest.mark.usefixtures("free")
def test_a_set_that_somebody_removes_before_it_is_noted_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, store = made(tmp_path / "root"), tmp_path / "store"
    target = given(root, store)
    locks = []
    real = fcntl.flock

    def removing(file: object, operation: int) -> None:
        """Somebody else had the second lock before, and has removed the set."""
        locks.append(file)
        if len(locks) == 2:
            shutil.rmtree(target)
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", removing)
    assert set_up(root, store) == target
    assert (target / MANIFEST).exists()
    assert told(root, store) == Form(True, Why.MATCHES)


@needs_compiler
def test_a_build_needs_no_call_that_only_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    compiling.build(made(tmp_path / "root"), tmp_path / "set")
    assert (tmp_path / "set" / MANIFEST).exists()
