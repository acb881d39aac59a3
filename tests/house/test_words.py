"""One word per thing: no class name stands for two things, and every docstring says something itself."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from scripts import ROOT
from scripts.rigs.house import PRODUCT

ONLY_SEE = re.compile(r"See [^.]*(\.[^. ]+)*\.?")


def trees(*tops: str) -> Iterator[tuple[Path, ast.Module]]:
    for top in tops:
        for path in sorted((ROOT / top).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_no_class_name_stands_for_two_things() -> None:
    where = defaultdict(list)
    for path, tree in trees(*PRODUCT):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                where[node.name].append(str(path))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


def test_no_docstring_only_points_elsewhere() -> None:
    found = []
    for path, tree in trees(*PRODUCT, "scripts", "tests"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if ONLY_SEE.fullmatch(text.strip()):
                    found.append(f"{path}:{getattr(node, 'lineno', 1)}: {text}")
    assert found == []
