"""Puts the compiled set into a wheel, where a C compiler is. All else about the build is in pyproject.toml.

GEARMESH_PURE=1 makes a wheel without it, for any machine; with GEARMESH_PURE=0 the build fails if it cannot be made.
"""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from mesh.process.compiled import asked_for_pure  # noqa: E402
from scripts.compiling import CannotCompile, build, insisted, objects, say_why  # noqa: E402


class Gearmesh(Distribution):
    """Holds binaries as soon as they were made."""

    holds_binaries = False

    def has_ext_modules(self) -> bool:
        return self.holds_binaries


class BuildPy(build_py):
    """The packages' files, and then the set: made from the copies that go into the wheel."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        copies = Path(self.build_lib).resolve()
        target = copies / "mesh" / "compiled"
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        if asked_for_pure():
            return
        scratch = Path(self.get_finalized_command("build").build_temp).resolve()  # all in `build_lib` is installed
        try:
            build(copies, target, kept=objects(), scratch=scratch)
        except CannotCompile as error:
            if insisted():
                raise
            self.warn(f"not compiled, all will run interpreted: {error}")
            say_why(target, error.why)  # pip shows no warning
        else:
            self.distribution.holds_binaries = True

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        made = () if self.editable_mode else Path(self.build_lib, "mesh", "compiled").glob("*")
        return [*super().get_outputs(include_bytecode), *map(str, made)]


class BdistWheel(bdist_wheel):
    """Named for one Python and one kind of machine if it holds binaries, and for all otherwise."""

    @property
    def root_is_pure(self) -> bool:
        return not self.distribution.has_ext_modules()

    @root_is_pure.setter
    def root_is_pure(self, value: bool | None) -> None:
        """It is known only when the files were built."""


setup(distclass=Gearmesh, cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
