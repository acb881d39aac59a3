"""setup.py: what a wheel of a little project holds, whether or not it could be compiled."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mesh.process.compiled import MANIFEST, PURE, REASON, CompiledFinder, Form, Why
from scripts import ROOT

FILES = {
    "mesh/__init__.py": "",
    "mesh/given.py": "from typing import Final\n\nFACTOR: Final = 2\n",
    "mesh/process/__init__.py": "",
    "pyproject.toml": '[project]\nname = "a"\nversion = "1"\n[tool.setuptools]\npackages = ["mesh", "mesh.process"]\n',
}
COPIED = ("setup.py", "scripts/__init__.py", "scripts/compiling.py", "mesh/process/compiled.py")
KILLER = "#!/bin/sh\nkill -9 $PPID\n"  # a compiler of C that ends the build

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")


class Project:
    """Its files, and the wheel that was built last."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._folder = folder / "project", folder
        for name, text in FILES.items():
            self.write(name, text)
        for name in COPIED:
            self.write(name, (ROOT / name).read_text())

    def write(self, name: str, text: str) -> Path:
        """One of its files."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def build(self, **environment: str) -> int:
        """Builds the wheel, and returns the exit code."""
        kept = {key: value for key, value in os.environ.items() if key != PURE}
        command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", "dist"]
        shutil.rmtree(self.folder / "dist", ignore_errors=True)
        return subprocess.run(
            command, cwd=self.folder, env=kept | environment, capture_output=True, check=False
        ).returncode

    @property
    def wheel(self) -> Path:
        """The file."""
        (found,) = (self.folder / "dist").glob("*.whl")
        return found

    def names(self) -> set[str]:
        """Of the files in the wheel, but for what describes it."""
        return {name for name in zipfile.ZipFile(self.wheel).namelist() if ".dist-info/" not in name}

    def installed(self) -> Form:
        """What a process learns where the wheel is installed."""
        root = self._folder / "installed"
        zipfile.ZipFile(self.wheel).extractall(root)
        return CompiledFinder(str(root), str(root / "mesh" / "compiled"), str(self._folder / "store")).form()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv(PURE, raising=False)
    return Project(tmp_path)


SOURCES = {"mesh/__init__.py", "mesh/given.py", "mesh/process/__init__.py", "mesh/process/compiled.py"}


def test_a_wheel_that_was_asked_to_be_pure_holds_the_sources(project: Project) -> None:
    assert project.build(**{PURE: "1"}) == 0
    assert (project.names(), project.installed()) == (SOURCES, Form(False, Why.NOT_BUILT))
    assert project.wheel.name.endswith("-none-any.whl")


def test_a_wheel_for_which_there_was_no_compiler_says_so(project: Project, tmp_path: Path) -> None:
    without = {"CC": "no-such-compiler", "PATH": str(tmp_path)}
    assert project.build(**without) == 0
    assert (project.names(), project.installed()) == (
        SOURCES | {f"mesh/compiled/{REASON}"},
        Form(False, Why.NO_COMPILER),
    )
    assert project.wheel.name.endswith("-none-any.whl")
    assert project.build(**without, **{PURE: "0"}) != 0


def test_what_the_system_refuses_to_a_build_is_a_wheel_that_says_that_it_failed(project: Project) -> None:
    project.write("setup.cfg", "[build]\nbuild_temp = /dev/null/scratch\n")
    assert project.build() == 0
    assert project.installed() == Form(False, Why.FAILED)


@needs_compiler
def test_what_a_killed_build_has_left_is_in_no_wheel(project: Project) -> None:
    compiler = project.write("killer", KILLER)
    compiler.chmod(0o700)
    assert project.build(CC=str(compiler)) == -signal.SIGKILL
    assert list(project.folder.glob("build/**/.building-*"))
    assert project.build(**{PURE: "1"}) == 0
    assert project.names() == SOURCES


@needs_compiler
def test_a_compiled_wheel_matches_the_very_files_in_it_whatever_the_checkout_holds_by_then(project: Project) -> None:
    assert project.build(**{PURE: "1"}) == 0
    older = project.write("mesh/given.py", FILES["mesh/given.py"].replace("2", "3"))
    os.utime(older, (1, 1))  # setuptools does not copy what is older than its copy
    assert project.build() == 0
    assert project.installed() == Form(True, Why.MATCHES)
    assert SOURCES | {f"mesh/compiled/{MANIFEST}"} < project.names()
    assert {name for name in project.names() if not name.startswith("mesh/compiled/")} == SOURCES
    assert not project.wheel.name.endswith("-none-any.whl")
