"""scripts/compiling.py: what is compiled, what it depends on, and what is said where it cannot be done."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mesh.process.compiled import MANIFEST, PURE, CompiledFinder, Form, Why
from scripts import ROOT, compiling
from scripts.compiling import CannotCompile, set_up

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
    compiling.build(root, root / "mesh" / "compiled")
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
