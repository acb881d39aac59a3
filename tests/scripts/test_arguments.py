"""Every script reads its arguments before it does anything: --help explains, and writes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import ROOT
from scripts.zoo import UnknownName, check_names

PROGRAMS = sorted(
    path for path in (ROOT / "scripts").glob("*.py") if '\nif __name__ == "__main__":' in path.read_text()
)
WRITERS = ("document_codes", "document_settings", "draw_house", "trace_statistics")  # their arguments are few or none


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_script_has_a_parser_of_arguments(program: Path) -> None:
    assert any(parser in program.read_text() for parser in ("ArgumentParser(", "typer."))


@pytest.mark.parametrize("name", WRITERS)
def test_help_explains_and_nothing_is_written(name: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "docs").rglob("*")}
    told = subprocess.run(
        [sys.executable, ROOT / f"scripts/{name}.py", "--help"],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.startswith("usage: ")
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "docs").rglob("*")} == before


def test_the_zoo_refuses_a_name_that_it_does_not_have_and_says_which_it_has() -> None:
    families = {"norms": ["conv_bn", "batch"], "rows": ["sorted"]}
    check_names(["conv_bn", "rows"], families)
    check_names([], families)
    with pytest.raises(UnknownName) as refused:
        check_names(["conv_bn", "norms.py"], families)
    assert all(name in str(refused.value) for name in ("norms.py", "norms", "conv_bn", "sorted"))
