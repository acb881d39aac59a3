"""Imports the target from its source as it is now, and knows the digest of that."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from typing import Any

from .faults import CannotServe, SourceChanged


def load_as_it_is(target: str) -> tuple[Any, str]:
    """Returns what the target names, and the digest of its code. Raises: CannotServe; SourceChanged if written to."""
    compiled = FromSource(target.partition(":")[0], os.getcwd())
    sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder), compiled)
    file = source_file(target)
    source = read(file)
    found = load(target)
    if read(file) != source or compiled.sources.get(file, source) != source:
        raise SourceChanged(f"{file} changed while it was imported: start it again")
    return found, hashlib.sha256(target.encode() + b"\0" + source).hexdigest()[:32]


class FromSource:
    """Imports the target, and the modules in its folder, from their source as it is now.

    Python accepts old bytecode for a new source of the same second and size, and would run the old code. Packages
    installed with pip are imported as usual: compiling a library takes longer than importing it.
    """

    def __init__(self, target: str, folder: str) -> None:
        """`target`: name of its module; `folder`: where modules are compiled from source."""
        self.target, self.folder = target, folder
        self.sources: dict[str | None, bytes] = {}  # {file: the source that was compiled}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Returns the module's spec, with a loader that compiles its source if the module is compiled here."""
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader and self.holds(spec):
            spec.loader = SourceLoader(spec.name, spec.loader.path, self.sources)
        return spec

    def holds(self, spec: Any) -> bool:
        """Returns whether the module is compiled here."""
        within = os.path.relpath(os.path.realpath(spec.origin), os.path.realpath(self.folder)).split(os.sep)
        return spec.name == self.target or not {os.pardir, "site-packages", "dist-packages"} & set(within)


class SourceLoader(importlib.machinery.SourceFileLoader):
    """A loader that neither reads nor writes bytecode."""

    def __init__(self, name: str, path: str, sources: dict[str | None, bytes]) -> None:
        super().__init__(name, path)
        self.sources = sources

    def get_code(self, fullname: str) -> Any:
        """Returns the code object, compiled from the source as it is now."""
        source = self.sources[self.path] = self.get_data(self.path)
        return self.source_to_code(source, self.path)


def source_file(target: str) -> str | None:
    """Returns the file of the target module's source; None if it has none, as extension modules."""
    # importing the module will raise the error again
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        found = importlib.util.find_spec(target.partition(":")[0])
        if found is not None and found.origin is not None and found.origin.endswith(".py"):
            return found.origin
    return None


def read(file: str | None) -> bytes:
    """Returns the contents of the file as they are now; empty without a file."""
    if file is None:
        return b""
    with open(file, "rb") as opened:
        return opened.read()


def load(target: str) -> Any:
    """Returns what MODULE:ATTRIBUTE names. Raises: CannotServe, or whatever the module raises."""
    module, colon, path = target.partition(":")
    if not colon or not module or not path:
        raise CannotServe(f"--predict takes MODULE:FUNCTION, as in my_model:predict; got {target!r}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module != missing and not module.startswith(f"{missing}."):
            raise  # a module that the target imports
        raise CannotServe(f"--predict {target}: there is no module {missing!r} in {os.getcwd()}") from error
    for i, name in enumerate(path.split(".")):
        if not hasattr(found, name):
            owner = ".".join([module, *path.split(".")[:i]])
            there = [other for other in dir(found) if not other.startswith("_") and callable(getattr(found, other))]
            others = f"; it has {', '.join(there[:10])}" if there else ""
            raise CannotServe(f"--predict {target}: {owner} has no {name!r}{others}")
        found = getattr(found, name)
    return found
