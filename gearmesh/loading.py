"""Finds gearmesh's own packages, though a program may have files of the same names.

gearmesh installs several top-level packages (`frontend`, `mesh`, ...). A project with a package `frontend` or a file
`mesh.py` comes before them on Python's path. The Python client has to work there all the same: it is then loaded under
a name of its own. Everything else says which file is in the way. Needs the standard library alone.
"""

import importlib.util
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent  # where gearmesh is installed
PACKAGES = ("broker", "controller", "frontend", "gpu_worker", "mesh", "selection")
CLIENT = "frontend.client"
OWN_CLIENT = "gearmesh.own_client"  # the same files, where another `frontend` or `mesh` is in the way


def shadowing() -> dict[str, str]:
    """{package of gearmesh: the file or folder of the same name that Python finds in its place}; usually empty."""
    found = {name: _place(name) for name in PACKAGES}
    return {name: place for name, place in found.items() if place and Path(place).resolve() != ROOT / name}


def _place(name: str) -> str:
    """The folder of the package, or the file of the module, that `import name` gives; empty: there is none."""
    known = sys.modules.get(name)
    spec = known.__spec__ if known is not None else importlib.util.find_spec(name)
    if spec is None:
        return ""
    if spec.submodule_search_locations:
        return str(next(iter(spec.submodule_search_locations)))
    return spec.origin or ""


def advice(found: Mapping[str, str]) -> str:
    """What is in the way, and what to do."""
    places = ", ".join(f"{place} (for {name!r})" for name, place in sorted(found.items()))
    return (
        f"files take the place of gearmesh's own packages: {places}; rename them, or keep their folder off PYTHONPATH "
        "and start Python with -P"
    )


def load(module: str) -> ModuleType:
    """The module of gearmesh. Raises: ImportError; its message names the files that are in the way, if there are some.

    The client's modules are loaded whatever is in the way.
    """
    found = shadowing()
    if not found:
        return import_module(module)
    if module.startswith(CLIENT):
        return _load_own_client(module)
    raise ImportError(advice(found), name=module)


def _load_own_client(module: str) -> ModuleType:
    """The client's module, by its file. Its package uses relative imports only."""
    if OWN_CLIENT not in sys.modules:
        folder = ROOT.joinpath(*CLIENT.split("."))
        spec = importlib.util.spec_from_file_location(
            OWN_CLIENT, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[OWN_CLIENT] = package
        spec.loader.exec_module(package)
    return import_module(OWN_CLIENT + module.removeprefix(CLIENT))
