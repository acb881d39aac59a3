"""The house stands: no circles, no import that runs up, and nothing that waits where nothing may."""

from pathlib import Path

import pytest

from scripts import ROOT
from scripts.draw_house import document
from scripts.rigs import house


@pytest.fixture(scope="module")
def modules() -> dict[str, house.Module]:
    return house.read(ROOT)


def test_no_files_import_each_other_in_a_circle(modules: dict[str, house.Module]) -> None:
    assert house.circles(modules) == []


def test_imports_lead_down(modules: dict[str, house.Module]) -> None:
    assert house.upward(modules) == []


def test_pure_code_imports_nothing_that_waits(modules: dict[str, house.Module]) -> None:
    assert house.impure(modules) == []


def test_the_drawn_house_is_the_one_that_stands(modules: dict[str, house.Module]) -> None:
    assert (ROOT / "docs/design/house.md").read_text() == document(modules), "run scripts/draw_house"


def made(root: Path, **files: str) -> dict[str, house.Module]:
    """A project of these files, {path with dots and underscores for slashes: text}."""
    for name, text in files.items():
        file = root / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return house.read(root)


def test_a_circle_is_found_however_long_and_wherever_the_import_stands(tmp_path: Path) -> None:
    modules = made(
        tmp_path,
        mesh__a="from .b import x",
        mesh__b="def f():\n    from mesh import c",
        mesh__c="import typing\nif typing.TYPE_CHECKING:\n    import mesh.a",
        mesh__d="import mesh.a",
    )
    assert house.circles(modules) == [["mesh.a", "mesh.b", "mesh.c"]]


def test_an_import_of_a_higher_floor_or_of_a_neighbour_is_found(tmp_path: Path) -> None:
    modules = made(
        tmp_path,
        mesh__a="",
        broker__b="from frontend.c import x",
        controller__c="import mesh.a\nimport broker.b",
        frontend__c="import selection.s",
        selection__s="",
    )
    assert house.upward(modules) == [("broker/b.py", "frontend.c"), ("controller/c.py", "broker.b")]


def test_pure_code_that_waits_by_itself_or_through_another_module_is_found(tmp_path: Path) -> None:
    modules = made(
        tmp_path,
        controller__core__a="import time",
        controller__core__b="from controller.shell import x",
        controller__shell="import asyncio",
        mesh__net__links="import zmq",
        mesh__wire="",
    )
    assert house.impure(modules) == [
        ("controller/core/a.py", "time"),
        ("controller/core/b.py", "controller.shell"),
    ]
