"""Compiles the cores, the simulator's inner loops and the hot shells with mypyc, and what is written in C.

The result is a set, as `mesh/process/compiled.py` describes it. `scripts/compiled_sets.py` makes those of checkouts,
`setup.py` that of a wheel.

mypy reads the sources without the libraries that they use, whose types are then unknown: what comes out depends on
nothing but the sources, mypy and Python.
"""

import ast
import contextlib
import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # of this checkout, and before all others

from mesh.process import compiled  # noqa: E402
from mesh.process.compiled import (  # noqa: E402
    LIBRARY,
    MANIFEST,
    PURE,
    REASON,
    STORE,
    SUFFIX,
    Manifest,
    Why,
)

COMPILED = (  # patterns of what is compiled, but for INTERPRETED and modules that define messages
    "broker/core/**/*.py",
    "controller/core/**/*.py",
    "controller/service.py",
    "frontend/core/**/*.py",
    "frontend/*.py",
    "gearmesh/simulation/*.py",
    "gpu_worker/core/**/*.py",
    "gpu_worker/answering.py",
    "gpu_worker/service.py",
    "mesh/*.py",
    "mesh/net/*.py",
    "selection/*.py",
)
INTERPRETED = {  # {file that stays as it is: why}
    "frontend/awake.py": "asks the kernel",
    "frontend/keeper.py": "a thread that waits for a database",
    "frontend/main.py": "begins",
    "gearmesh/simulation/parts.py": "goes to other processes; a frozen dataclass that mypyc makes cannot be unpickled",
    "gearmesh/simulation/plots.py": "draws",
    "gearmesh/simulation/study.py": "scipy does the work",
    "mesh/codes.py": "clients import it",
    "mesh/errors.py": "clients import it",
    "mesh/printable.py": "mypyc takes no surrogates in literals",
    "mesh/repeats.py": "mypyc takes no dataclass that is Generic",
    "mesh/strings.py": "clients import it",
}
EXTENSIONS = {"mesh.net._channel": ["mesh/net/_channel.c"]}  # {module: its sources in C}; built where they are
FLAGS = ("-O2", "-g0", "-w")  # and those of the variable CFLAGS, which come last
SCRATCH = ".building-"  # what the names of folders begin with that nobody but their maker uses
MYPY = """
[mypy]
python_version = {}.{}
cache_dir = {}
no_site_packages = True
ignore_missing_imports = True
follow_imports = silent
disable_error_code = var-annotated
"""  # an unknown library gives no type from which one could be inferred; scripts/check checks types with all of them


TRY = """
import importlib, sys
root, folder = sys.argv[1:]
sys.path.insert(0, root)
from mesh.process import compiled
sys.meta_path.insert(0, compiled.CompiledFinder(root, folder, folder))
with open(f"{folder}/{compiled.MANIFEST}", encoding="utf-8") as file:
    manifest = compiled.Manifest.read(file.read())
for name in [*manifest.extensions, *manifest.modules]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in compiled.PACKAGES:
            raise
"""  # a build on its own has no libraries: what needs them is not tried there


class CannotCompile(Exception):
    """No set could be made: `why`, and what was found."""

    def __init__(self, why: Why, found: str) -> None:
        super().__init__(why, found)
        self.why, self.found = why, found

    def __str__(self) -> str:
        return self.found


def modules(root: Path) -> dict[str, str]:
    """{name: file} of the modules that are compiled, sorted."""
    files = {file.relative_to(root).as_posix() for pattern in COMPILED for file in root.glob(pattern)}
    files = {file for file in files if not file.endswith(("__init__.py", "__main__.py"))} - INTERPRETED.keys()
    return {name_of(file): file for file in sorted(files) if not _defines_messages(root / file)}


def extensions(root: Path) -> dict[str, list[str]]:
    """{name: files in C} of the modules that are written in C."""
    return {name: files for name, files in EXTENSIONS.items() if all((root / file).exists() for file in files)}


def name_of(file: str) -> str:
    """The module's name."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _defines_messages(file: Path) -> bool:
    """Whether a class in it is one of msgspec's, which makes its own methods."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef) and any("Struct" in ast.unparse(base) for base in node.bases):
            return True
    return False


def sources(root: Path, names: Iterable[str]) -> list[str]:
    """The files of these modules and of all of ours that they import, at whatever place, sorted."""
    found: set[str] = set()
    seen: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name in seen or name.partition(".")[0] not in compiled.PACKAGES:
            continue
        seen.add(name)
        place = _file(root, name)
        for file in (place, place.with_suffix(".pyi")):
            if file.exists():
                found.add(file.relative_to(root).as_posix())
                left += _imported(ast.parse(file.read_text()), file.relative_to(root).parts[:-1])
    for name in seen:  # a package around one of them is imported first; what it imports has no part in their types
        while name := name.rpartition(".")[0]:
            found |= {file.relative_to(root).as_posix() for file in [_file(root, name)] if file.exists()}
    return sorted(found)


def _file(root: Path, name: str) -> Path:
    place = root / name.replace(".", "/")
    package = place / "__init__.py"
    return package if package.exists() else place.with_suffix(".py")


def _imported(tree: ast.AST, folders: Sequence[str]) -> Iterator[str]:
    """Names that may be modules: of `from a import b`, a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folders[: len(folders) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def manifest_of(root: Path) -> Manifest:
    """What is compiled of the sources at `root`, and from what."""
    found = modules(root)
    written = extensions(root)
    needed = [*sources(root, found), *(file for files in written.values() for file in files)]
    return Manifest(
        SUFFIX,
        {file: compiled.hash_of((root / file).read_bytes()) for file in needed},
        found,
        {name: name.rpartition(".")[2] + SUFFIX for name in written},
    )


def digest(root: Path, manifest: Manifest) -> str:
    """Names the set: of all sources, of what compiles them, and for whom."""
    told = hashlib.sha256(manifest.write().encode())
    told.update(Path(__file__).read_bytes())
    told.update(repr((sys.version, _version("mypy"), os.environ.get("CC"), os.environ.get("CFLAGS"))).encode())
    for file in manifest.sources:
        told.update((root / file).read_bytes())
    return told.hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def c_compiler() -> list[str]:
    """The command that compiles C. Raises: CannotCompile."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    found = next((name for name in (command[0], "cc", "gcc", "clang") if shutil.which(name)), None)
    if found is None:
        raise CannotCompile(Why.NO_COMPILER, f"there is no C compiler: {command[0]} is not installed")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise CannotCompile(Why.NO_COMPILER, f"Python's headers are not installed: there is no {header}")
    return [found, *command[1:]] if found == command[0] else [found]


def build(
    root: Path, target: Path, manifest: Manifest | None = None, kept: Path | None = None, scratch: Path | None = None
) -> None:
    """Compiles the sources at `root` into the folder `target`, which is there afterwards, whole.

    `kept`: a folder of object files, from which those are taken whose C has not changed. `scratch`: where that is made
    which is not whole yet, on the same disk; if not given, beside `target`. Raises: CannotCompile.
    """
    manifest = manifest or manifest_of(root)
    scratch = scratch or target.parent
    try:
        for folder in (scratch, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with scratch_in(scratch) as here:
            made = _made(root, here, manifest, kept or here / "objects")
            _place(made, target, manifest)
    except OSError as error:
        raise CannotCompile(Why.FAILED, str(error)) from error


@contextlib.contextmanager
def scratch_in(place: Path) -> Iterator[Path]:
    """A folder in `place` that is gone afterwards; or later, if the process is killed (scripts/compiled_sets.py)."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=place, ignore_cleanup_errors=True) as made:
        yield Path(made)


def _made(root: Path, scratch: Path, manifest: Manifest, kept: Path) -> Path:
    """The set, in a folder in `scratch`. Raises: CannotCompile, OSError."""
    command = c_compiler()
    if not _version("mypy"):
        raise CannotCompile(Why.FAILED, "mypy is not installed: pip install 'gearmesh[dev]'")
    translated, made = scratch / "c", scratch / "set"
    made.mkdir()
    files = _translate(root, translated, manifest.modules)
    _check_unedited(root, manifest)
    entries = translated / "entries.c"
    entries.write_text(_entries(manifest.modules))
    objects_of = Objects(command, _include_paths(translated), kept)
    written = [root / file for name in manifest.extensions for file in EXTENSIONS[name]]
    with ThreadPoolExecutor(_processors()) as pool:
        objects = list(pool.map(objects_of.made, [*files, entries, *written]))
    ours = len(files) + 1
    _link(command, objects[:ours], made / f"{LIBRARY}{SUFFIX}")
    rest = iter(objects[ours:])
    for name, file in manifest.extensions.items():
        _link(command, [next(rest) for _ in EXTENSIONS[name]], made / file)
    (made / MANIFEST).write_text(manifest.write())
    _check_unedited(root, manifest)  # a set that is stale cannot be tried; the objects are kept
    _try(root, made)
    return made


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_whole(target: Path, manifest: Manifest) -> bool:
    """Whether the set is whole: its manifest is the last that is written, and it comes to its place with all of it."""
    try:
        return (target / MANIFEST).read_text() == manifest.write()
    except OSError:
        return False


def _place(made: Path, target: Path, manifest: Manifest) -> None:
    """The set lies at `target`: this one, or the equal one of somebody who was quicker. Raises: OSError."""
    if is_whole(target, manifest):
        return
    with contextlib.suppress(FileNotFoundError):  # what an interrupted removal has left would be in the way for good
        target.rename(made.with_name("left"))
    try:
        made.rename(target)
    except OSError:
        if not is_whole(target, manifest):
            raise


def _check_unedited(root: Path, manifest: Manifest) -> None:
    if edited := compiled.changed(manifest, str(root)):
        raise CannotCompile(Why.FAILED, f"files were edited meanwhile, begin again: {', '.join(edited)}")


def _translate(root: Path, target: Path, found: dict[str, str]) -> list[Path]:
    """The modules in C, and mypyc's own library, in the folder `target`. Raises: CannotCompile."""
    from mypyc import build as mypyc  # here: it takes a second
    from mypyc.common import RUNTIME_C_FILES
    from mypyc.options import CompilerOptions

    target.mkdir(parents=True)
    settings = target / "mypy.ini"
    settings.write_text(MYPY.format(*sys.version_info[:2], os.devnull))
    told = io.StringIO()
    options = CompilerOptions(multi_file=True, target_dir=str(target), group_name=LIBRARY.removesuffix("__mypyc"))
    try:
        with contextlib.chdir(root), contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            _, groups, needed = mypyc.mypyc_build([f"--config-file={settings}", *found.values()], options)
    except SystemExit as error:
        lines = [line for line in told.getvalue().splitlines() if not line.startswith("Compiling ")]
        raise CannotCompile(Why.FAILED, "\n".join(["mypyc cannot compile it:", *lines[-30:]])) from error
    library = Path(mypyc.include_dir())
    names = [*RUNTIME_C_FILES, *(dependency.path for dependency in needed)]
    ((files, _),) = groups
    return [*map(Path, files), *(library / name for name in names if name.endswith(".c"))]


def _include_paths(translated: Path) -> list[str]:
    from mypyc import build as mypyc

    library = Path(mypyc.include_dir())
    return [str(translated), str(library), *(str(folder) for folder in library.iterdir() if folder.is_dir())]


def _entries(found: Iterable[str]) -> str:
    """C: for each module a function that Python's loader of extensions can call."""
    lines = ["#include <Python.h>"]
    for name in found:
        init = f"CPyInit_{name.replace('.', '___')}"
        lines += [
            f"extern PyObject *{init}(void);",
            f"PyMODINIT_FUNC PyInit_{compiled.entry(name)}(void) {{ return {init}(); }}",
        ]
    return "".join(f"{line}\n" for line in lines)


def _try(root: Path, made: Path) -> None:
    """Every module of the set can be imported, where the libraries are that it needs. Raises: CannotCompile."""
    if not (root / "mesh/process/compiled.py").exists():
        return
    kept = {name: value for name, value in os.environ.items() if name != PURE}
    command = [sys.executable, "-P", "-c", TRY, str(root), str(made)]
    ended = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise CannotCompile(Why.FAILED, f"what was compiled cannot be imported:\n{ended.stderr[-3000:]}")


class Objects:
    """Compiles C, each file once: its object is kept under the digest of all that it was made from."""

    def __init__(self, command: list[str], include: list[str], kept: Path) -> None:
        folders = [*include, sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
        ours = shlex.split(os.environ.get("CFLAGS", ""))
        flags = [*shlex.split(sysconfig.get_config_var("CCSHARED") or "-fPIC"), "-fwrapv", "-DNDEBUG", *FLAGS, *ours]
        self._command, self._include, self._kept = [*command, *flags], [f"-I{folder}" for folder in folders], kept
        kept.mkdir(parents=True, exist_ok=True)
        told = subprocess.run([*command, "--version"], capture_output=True, check=False).stdout
        self._digest = hashlib.sha256(repr((self._command, told, sys.version, _version("mypy"))).encode())
        for header in sorted(Path(include[0]).glob("*.h")):
            self._digest.update(header.read_bytes())

    def made(self, source: Path) -> Path:
        """The object file. Raises: CannotCompile."""
        told = self._digest.copy()
        told.update(source.name.encode() + source.read_bytes())
        made = self._kept / f"{told.hexdigest()[:32]}.o"
        with contextlib.suppress(FileNotFoundError):  # not `touch`: it would make what somebody has just removed
            os.utime(made)
            return made
        scratch = made.with_suffix(f".{os.getpid()}.o")
        _run([*self._command, *self._include, "-c", str(source), "-o", str(scratch)])
        return scratch.replace(made)


def _link(command: list[str], objects: Iterable[Path], target: Path) -> None:
    shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    _run([*command, *shared, *map(str, objects), "-o", str(target)])


def _run(command: Sequence[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise CannotCompile(Why.FAILED, f"{shlex.join(command)}\n{ended.stderr[-3000:]}")


def objects(store: Path = Path(STORE)) -> Path | None:
    """The folder of objects that set-ups of checkouts have kept; None: there is none that this process may write to."""
    found = store / "objects"
    return found if os.access(found, os.W_OK) else None


def insisted() -> bool:
    """Whether a build that makes nothing is to fail."""
    return os.environ.get(PURE) == "0"


def say_why(target: Path, why: Why) -> None:
    """In place of a set there is what a process is told that looks for it there."""
    target.mkdir(parents=True, exist_ok=True)
    (target / REASON).write_text(f"{why}\n")
