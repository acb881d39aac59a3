"""mesh/process/extras.py: the extra that is named is one that brings the library."""

import re
import tomllib
from importlib.metadata import packages_distributions

import pytest

from mesh.process.extras import EXTRAS, advice
from scripts import ROOT

MANY = {"all", "demo", "dev"}  # extras that contain others, for other purposes


def brought() -> dict[str, set[str]]:
    """{extra: libraries that it brings, as they are installed} of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]

    def of(extra: str) -> set[str]:
        found = set()
        for need in extras[extra]:
            inner = re.fullmatch(r"gearmesh\[(.*)\]", need)
            if inner is None:
                found.add(re.split("[<>=]", need)[0])
            else:
                found |= {library for each in inner[1].split(",") for library in of(each)}
        return found

    return {extra: of(extra) for extra in extras if extra not in MANY}


def test_the_table_is_as_the_project_declares_its_extras() -> None:
    installed = {name: found[0] for name, found in packages_distributions().items() if name in EXTRAS}
    extras = brought()
    for library, bringing in EXTRAS.items():
        assert set(bringing) == {extra for extra, found in extras.items() if installed[library] in found}, library
    assert set(installed.values()) == set().union(*extras.values())


@pytest.mark.parametrize(
    ("library", "needed", "named"),
    [
        ("typer", "cli", "cli"),
        ("typer", "simulate", "simulate"),
        ("torch.nn", "serve", "serve"),
        ("torch", "load", "serve"),  # a scenario of `gearmesh load` brings its own mesh
        ("aiohttp", "serve", "http"),
        ("uvloop", "load", "load"),
    ],
)
def test_the_programs_own_extra_is_named_if_it_brings_the_library(library: str, needed: str, named: str) -> None:
    told = advice(ModuleNotFoundError(name=library), needed)
    assert told is not None
    assert f"'gearmesh[{named}]'" in told


def test_no_extra_is_named_for_what_none_brings() -> None:
    assert advice(ModuleNotFoundError(name="nothing_of_ours")) is None
