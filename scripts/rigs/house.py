"""The project's own structure, read from its import statements: rooms, floors, circles, and what pure code imports.

A *room* is a folder of the product; its *floor* says what it may import: rooms on lower floors, and what lies in its
own top-level folder. Imports inside functions and under TYPE_CHECKING count like all others.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FLOORS = {  # {top-level folder: floor}
    "mesh": 0,
    "broker": 1,
    "controller": 1,
    "gpu_worker": 1,
    "selection": 1,
    "frontend": 2,
    "gearmesh": 3,
    "scripts": 4,
    "tests": 5,
}
PRODUCT = tuple(name for name, floor in FLOORS.items() if floor < FLOORS["scripts"])
PURE = re.compile(
    r"(broker|controller|frontend|gpu_worker)/core/|mesh/(?!net/|process/|__init__)|selection/(?!stores/|__init__)"
)  # as the linter's rules in pyproject.toml say; a package that is imported first sees to it that its compiled form is
# found
MAY_WAIT = frozenset(("asyncio", "logging", "os", "socket", "structlog", "subprocess", "threading", "time", "zmq"))


@dataclass(frozen=True, slots=True)
class Module:
    """One file."""

    name: str  # dotted, without __init__
    file: str  # from the root
    lines: int
    ours: tuple[str, ...]  # modules of the project that it imports, sorted
    others: tuple[str, ...]  # top-level names of all else that it imports, sorted

    @property
    def room(self) -> str:
        """The folder that it lies in."""
        return self.file.rpartition("/")[0]

    @property
    def top(self) -> str:
        """The top-level folder that it lies in."""
        return self.name.partition(".")[0]

    @property
    def is_pure(self) -> bool:
        """It lies where nothing may wait."""
        return PURE.match(self.file) is not None


def read(root: Path) -> dict[str, Module]:
    """{name: module} of every Python file in the project's folders."""
    files = {}
    for top in FLOORS:
        for path in sorted((root / top).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            files[file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = file
    return {name: _module(root, name, file, files) for name, file in files.items()}


def _module(root: Path, name: str, file: str, files: Mapping[str, str]) -> Module:
    text = (root / file).read_text()
    ours, others = set(), set()
    for found in _imported(ast.parse(text), file):
        known = found
        while known and known not in files:
            known = known.rpartition(".")[0]
        if known:
            ours.add(known)
        elif found.partition(".")[0] not in FLOORS:
            others.add(found.partition(".")[0])
    return Module(name, file, text.count("\n"), tuple(sorted(ours - {name})), tuple(sorted(others)))


def _imported(tree: ast.AST, file: str) -> Iterator[str]:
    """Dotted names; of `from a import b`, "a.b", whether b is a module or something in one."""
    folders = file.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folders[: len(folders) - node.level + 1] if node.level else []  # of a relative import
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def circles(modules: Mapping[str, Module]) -> list[list[str]]:
    """Every set of files that import each other, directly or through others. Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in modules[name].ours:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for name in modules:
        if name not in index:
            visit(name)
    return sorted(found)


def upward(modules: Mapping[str, Module]) -> list[tuple[str, str]]:
    """(file, module that it imports) where an import leads to a higher floor, or to another folder on the same one."""
    return [
        (module.file, other)
        for module in modules.values()
        for other in module.ours
        if other.partition(".")[0] != module.top and FLOORS[other.partition(".")[0]] >= FLOORS[module.top]
    ]


def impure(modules: Mapping[str, Module]) -> list[tuple[str, str]]:
    """(file, what it imports) where code that may not wait imports what does."""
    found = []
    for module in modules.values():
        if not module.is_pure:
            continue
        found += [(module.file, other) for other in module.others if other in MAY_WAIT]
        found += [
            (module.file, other)
            for other in module.ours
            if not modules[other].is_pure and not modules[other].file.endswith("__init__.py")
        ]
    return found
