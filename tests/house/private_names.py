"""Where a file reaches for what is private to the product: names with a leading underscore that the product defines."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

REACHERS = {"setattr", "getattr", "delattr", "hasattr", "object"}  # called with a name: also monkeypatch's, and mock's


def is_private(name: str) -> bool:
    """`_name`, and neither `_` nor `__name__`."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(tree: ast.AST) -> Iterator[str]:
    """Private names that the file defines: functions, classes, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
            names = [node.attr]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]  # __slots__
        else:
            continue
        yield from filter(is_private, names)


def reached(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of each private name that the file takes from something else than its own object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not _is_own(node.value):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Call) and _called(node.func) in REACHERS:
            texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            parts = [part for text in texts if isinstance(text, str) for part in text.split(".")]
            yield from ((node.lineno, part) for part in parts if is_private(part))


def _is_own(value: ast.expr) -> bool:
    """self, cls or super()."""
    if isinstance(value, ast.Call):
        value = value.func
    return isinstance(value, ast.Name) and value.id in ("self", "cls", "super")


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def private_names(files: Iterable[Path]) -> set[str]:
    """All that the files define."""
    return {name for file in files for name in defined(ast.parse(file.read_text()))}


def pokes(files: Iterable[Path], private: set[str]) -> list[str]:
    """`file:line: name` for each of these names that a file reaches for."""
    return [
        f"{file}:{line}: {name}"
        for file in sorted(files)
        for line, name in reached(ast.parse(file.read_text()))
        if name in private
    ]
