"""Finds the compiled form of gearmesh's modules, if it was made from the very files that are here.

`scripts/setup` and the wheel's build compile the cores with mypyc (`scripts/compiling.py`). All that was compiled at
one time is a *set*: one folder with a library and a manifest, which names every source that the library depends on with
its hash. A set is used as a whole or not at all: compiled modules know each other's memory layout. So all sources are
hashed when the first of the modules is imported, and if one differs, every module runs interpreted.

Python imports this before all else of gearmesh, so it needs little of the standard library.
"""

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import source_hash, spec_from_file_location
from types import ModuleType
from typing import NamedTuple

PURE = "GEARMESH_PURE"  # variable of the environment: 1 asks for the interpreted form
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # where gearmesh's packages lie
PACKAGES = frozenset(("broker", "controller", "frontend", "gearmesh", "gpu_worker", "mesh", "selection"))
INSTALLED = os.path.join(ROOT, "mesh", "compiled")  # the set of a wheel
STORE = os.path.join(sys.prefix, "share", "gearmesh", "compiled")  # sets of checkouts, and what each of them uses
MANIFEST = "manifest.txt"
REASON = "why.txt"  # in a wheel in which nothing could be compiled: why
LIBRARY = "gearmesh__mypyc"  # name of the module that holds all others
SUFFIX = EXTENSION_SUFFIXES[0]


class Why(StrEnum):
    """Why modules run in the form that they run in."""

    MATCHES = "matches"  # the compiled set was made from these files
    ASKED = "asked"  # GEARMESH_PURE=1, at run time or when it was set up
    NOT_BUILT = "not_built"  # nothing was compiled here
    NO_COMPILER = "no_compiler"  # there was no C compiler, or Python's headers were missing
    FAILED = "failed"  # compiling failed
    STALE = "stale"  # files were edited since, or it was compiled for another Python


class Form(NamedTuple):
    """The form in which this process runs what can be compiled."""

    compiled: bool
    why: Why
    changed: tuple[str, ...] = ()  # files that differ from what was compiled, sorted

    @property
    def name(self) -> str:
        """What it is called in logs and answers."""
        return "compiled" if self.compiled else "pure"


class Manifest(NamedTuple):
    """What a set was made from, and holds."""

    suffix: str  # of its files: says for which Python and machine they are
    sources: dict[str, str]  # {path from the root: hash of its content}
    modules: dict[str, str]  # {name of a module in the library: path of its source}
    extensions: dict[str, str]  # {name of a module written in C: its file in the set}

    def write(self) -> str:
        """The text of its file."""
        lines = [f"suffix {self.suffix}"]
        lines += [f"source {found} {path}" for path, found in sorted(self.sources.items())]
        lines += [f"module {name} {path}" for name, path in sorted(self.modules.items())]
        lines += [f"extension {name} {path}" for name, path in sorted(self.extensions.items())]
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def read(cls, text: str) -> "Manifest":
        """What `write` wrote."""
        found = cls("", {}, {}, {})
        for line in text.splitlines():
            kind, first, *rest = line.split(" ", 2)
            if kind == "suffix":
                found = found._replace(suffix=first)
            elif kind == "source":
                found.sources[rest[0]] = first
            elif kind == "module":
                found.modules[first] = rest[0]
            elif kind == "extension":
                found.extensions[first] = rest[0]
        return found


def asked_for_pure() -> bool:
    """Whether the environment asks for the interpreted form."""
    return os.environ.get(PURE, "0") not in ("", "0")


def hash_of(content: bytes) -> str:
    """The hash by which an edited source is known: Python's own for such a purpose, 64 bits, in hexadecimal."""
    return source_hash(content).hex()


def pointer(root: str, store: str = STORE) -> str:
    """The file that says which set the checkout at `root` uses, or why it has none; and after that where `root` is.

    A checkout is the same one by whatever symbolic links it is reached.
    """
    return os.path.join(store, f"of-{hash_of(os.fsencode(os.path.realpath(root)))}")


def first_line(path: str) -> str:
    """Of the file; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n")
    except OSError:
        return ""


def changed(manifest: Manifest, root: str) -> tuple[str, ...]:
    """The sources that are not as they were when the set was made, sorted."""
    found = []
    for path, wanted in manifest.sources.items():
        try:
            with open(os.path.join(root, path), "rb") as file:
                if hash_of(file.read()) != wanted:
                    found.append(path)
        except OSError:
            found.append(path)
    return tuple(sorted(found))


class CompiledLoader(ExtensionFileLoader):
    """Loads one of the modules that a library holds. Each has an entry of its own there (PEP 489), named by `entry`."""

    def __init__(self, name: str, library: str, source: str) -> None:
        super().__init__(name, library)
        self.source = source

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, whose body has run."""
        if LIBRARY not in sys.modules:
            _load_library(self.path)
        name = entry(spec.name)
        try:
            return super().create_module(ModuleSpec(name, self, origin=self.path))
        finally:
            sys.modules.pop(name, None)

    def exec_module(self, module: ModuleType) -> None:
        """The module names its source as its file, as the interpreted one does."""
        super().exec_module(module)
        module.__file__ = self.source


def entry(name: str) -> str:
    """The name under which a library exports a module: `PyInit_` before it is the C function."""
    return "gearmesh_" + name.replace("_", "_1").replace(".", "_2")


def _load_library(path: str) -> None:
    """Loads the module that holds all others. It says that it lies at the root: they derive `__file__` from its own."""
    spec = ModuleSpec(LIBRARY, ExtensionFileLoader(LIBRARY, path), origin=path)
    assert spec.loader is not None
    module = spec.loader.create_module(spec)
    assert module is not None
    spec.loader.exec_module(module)
    module.__file__ = os.path.join(ROOT, LIBRARY + SUFFIX)
    sys.modules[LIBRARY] = module


def _same(one: str, other: str) -> bool:
    """Whether both are the same place, by whatever symbolic links."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)


class CompiledFinder:
    """On `sys.meta_path`: hands out the modules of a set whose sources are unchanged."""

    def __init__(self, root: str = ROOT, installed: str = INSTALLED, store: str = STORE) -> None:
        self._root, self._installed, self._store = root, installed, store
        self._folder = ""  # of the set; empty: there is none
        self._manifest = Manifest("", {}, {}, {})
        self._why = Why.NOT_BUILT
        self._read = False
        self._form: Form | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where the compiled module is; None: whoever comes after this finds it."""
        if name.partition(".")[0] not in PACKAGES:
            return None
        self._look()
        extension = self._manifest.extensions.get(name)
        source = self._manifest.modules.get(name)
        if (source is None and extension is None) or not self.form().compiled:
            return None
        if extension is not None:
            return spec_from_file_location(name, os.path.join(self._folder, extension))
        assert source is not None
        whole = os.path.join(self._root, source)
        if not path or not _same(os.path.join(next(iter(path)), os.path.basename(source)), whole):
            return None  # a package of this name lies somewhere else, too
        loader = CompiledLoader(name, os.path.join(self._folder, LIBRARY + SUFFIX), whole)
        return spec_from_file_location(name, whole, loader=loader)

    def form(self) -> Form:
        """Whether the compiled form is used, and why. Hashes the sources at the first call."""
        if self._form is None:
            self._look()
            self._form = self._judge()
        return self._form

    def _judge(self) -> Form:
        if not self._folder:
            return Form(False, self._why)
        found = changed(self._manifest, self._root)
        if found or self._manifest.suffix != SUFFIX:
            return Form(False, Why.STALE, found)
        return Form(True, Why.MATCHES)

    def _look(self) -> None:
        """Reads the manifest, once."""
        if self._read:
            return
        self._read = True
        if asked_for_pure():
            self._why = Why.ASKED
            return
        folder = self._installed
        if not os.path.exists(os.path.join(folder, MANIFEST)):
            told = first_line(os.path.join(folder, REASON)) or first_line(pointer(self._root, self._store))
            if told in tuple(Why):
                self._why = Why(told)
                return
            folder = os.path.join(self._store, told)
        try:
            with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
                self._manifest = Manifest.read(file.read())
        except OSError:  # the set is gone, or half gone
            return
        self._folder = folder


FINDER = CompiledFinder()


def install() -> None:
    """The compiled modules are found from now on. Calling again is harmless."""
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)


def form() -> Form:
    """The form in which this process runs what can be compiled."""
    return FINDER.form()
