"""What the documents say is so."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from gearmesh.cli.main import app
from scripts import ROOT
from scripts.document_codes import DOCS, TABLES, with_codes
from scripts.document_settings import HEAD, MANUAL, with_settings

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_table_of_settings_is_up_to_date() -> None:
    manual = MANUAL.read_text()
    assert HEAD in manual
    assert manual == with_settings(manual), "run scripts/document_settings.py"


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_codes_are_up_to_date(name: str) -> None:
    text = (DOCS / name).read_text()
    assert text == with_codes(name, text), "run scripts/document_codes.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_scripts_that_are_named_exist(document: Path) -> None:
    named = set(re.findall(r"scripts/[a-z_]+(?:\.py)?", document.read_text()))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


SERVICES = ("mesh", "broker", "controller", "frontend", "gpu_worker", "selection")


def logged() -> set[str]:
    """Events that the services log."""
    found = set()
    for path in (path for service in SERVICES for path in (ROOT / service).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            said = node.args[0]
            if (
                isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.func.attr in ("debug", "info", "warning", "error")
                and isinstance(said, ast.Constant)
            ):
                found.add(str(said.value))
    return found


def test_every_log_event_is_explained_and_none_that_there_is_not() -> None:
    table = MANUAL.read_text().partition("## Log events")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert logged() - explained == set()
    sources = "".join(path.read_text() for service in SERVICES for path in (ROOT / service).rglob("*.py"))
    assert [name for name in sorted(explained) if f'"{name}"' not in sources] == []


def commands() -> dict[str, set[str]]:
    """{command of gearmesh, with its group: its options}."""
    found: dict[str, set[str]] = {}

    def visit(command: Any, name: str) -> None:
        if hasattr(command, "commands"):
            for each, inner in command.commands.items():
                visit(inner, f"{name} {each}".strip())
            return
        found[name] = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }

    visit(typer.main.get_command(app), "")
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_can_be_typed(document: Path) -> None:
    known = commands()
    groups = {name.partition(" ")[0] for name in known}
    wrong = []
    text = document.read_text()
    blocks = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    inline = re.findall(r"`gearmesh ([a-z][^`\n]*)", text)
    for words in [*inline, *re.findall(r"^gearmesh ([a-z][^#\n]*)", blocks, re.MULTILINE)]:
        shown = words.partition("   ")[0]  # what it does is said behind
        first, *rest = shown.split()
        name = f"{first} {rest[0]}" if rest and f"{first} {rest[0]}" in known else first
        if name not in known and first not in groups:
            wrong.append(f"no such command: gearmesh {shown}")
            continue
        given = re.findall(r"(?<!\S)\[?(-[a-z]\b|--[a-z-]+)", shown)
        wrong += [f"{option}: gearmesh {shown}" for option in given if option not in known.get(name, set())]
    assert wrong == []
