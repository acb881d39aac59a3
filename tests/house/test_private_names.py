"""Tests use what the product offers to everybody: no attribute, function or constant that is private to it."""

import ast
import subprocess
from pathlib import Path

import pytest

from tests.house.private_names import pokes, private_names, reached

ROOT = Path(__file__).parent.parent.parent


def python_files() -> list[Path]:
    """All that are in the repository, or will be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_test_reaches_for_what_is_private_to_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tests = [file for file in python_files() if file.parts[0] == "tests"]
    private = private_names(file for file in python_files() if file.parts[0] != "tests")
    assert len(private) > 100
    assert pokes(tests, private) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("made._x", ["_x"]),
        ("made.one._x.two._y()", ["_x", "_y"]),
        ("made().all[0]._x = 1", ["_x"]),
        ("from a._b import _c", ["_c"]),
        ("import a._b", ["_b"]),
        ("monkeypatch.setattr(made, '_x', 1)", ["_x"]),
        ("monkeypatch.setattr('a.b._x', 1)", ["_x"]),
        ("getattr(made, '_x')", ["_x"]),
        ("self._x; cls._y; super()._z()", []),
        ("made.__class__; _x = 1; say('_x')", []),
    ],
)
def test_a_reach_is_an_attribute_an_import_or_a_name_that_is_set(code: str, found: list[str]) -> None:
    assert sorted(name for _, name in reached(ast.parse(code))) == found
