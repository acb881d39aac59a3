"""What the documents say is so, they fit on a screen, and their tables are tables."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gearmesh.cli.main import app
from mesh.process.configuration import NOT_SETTINGS, PREFIX
from mesh.process.settings import Settings
from scripts import ROOT
from scripts.document_codes import DOCS, LISTS, with_codes
from scripts.document_settings import HEAD, MANUAL, with_settings
from tests.house.examples import RUN, TYPED, examples

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("gearmesh/**/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
USERS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in
    ("guide", "models", "containers", "applications", "protocol", "http", "operations"))]  # fmt: skip
COLUMNS = 100  # every line is shorter
CELL = 30  # a row of a table may be longer if none of its cells is: figures of many columns
WRITTEN_LATER = {"docs/results/", "mesh/compiled/"}  # folders that a script, or the build of a wheel, makes
FOREIGN = {"ZMQ_IMMEDIATE"}  # constants of libraries
CODE = [
    path
    for folder in ("mesh", "broker", "controller", "gpu_worker", "frontend", "selection", "gearmesh")
    for path in (ROOT / folder).rglob("*.py")
]

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)


def prose(document: Path) -> Iterator[str]:
    """The lines outside blocks of code."""
    inside = False
    for line in document.read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield line


def cells(row: str) -> list[str]:
    """The cells of a table's row. A pipe ends a cell even within code, unless it is escaped."""
    return re.split(r"(?<!\\)\|", row.strip())[1:-1]


def tables(document: Path) -> Iterator[list[str]]:
    """The rows of each table, the titles first."""
    rows: list[str] = []
    for line in [*prose(document), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            yield rows
            rows = []


def anchors(document: Path) -> set[str]:
    """What a link to a heading of the document may name."""
    headings = [line.lstrip("#").strip().lower() for line in prose(document) if re.match("#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@each_document
def test_lines_fit_on_a_screen(document: Path) -> None:
    def may_be_longer(line: str) -> bool:
        return line.startswith("|") and all(len(cell.strip()) <= CELL for cell in cells(line))

    lines = [line for line in document.read_text().splitlines() if len(line) >= COLUMNS]
    if document.parent.name == "design":
        assert lines == []
    assert [line for line in lines if not may_be_longer(line)] == []


@each_document
def test_every_row_of_a_table_has_as_many_cells_as_its_titles(document: Path) -> None:
    wrong = []
    for rows in tables(document):
        titles, rule, *_ = rows
        assert re.fullmatch(r"\|(:?-+:?\|)+", rule), f"no line of dashes below {titles}"
        wrong += [row for row in rows if len(cells(row)) != len(cells(titles))]
    assert wrong == []


def test_a_pipe_within_code_ends_a_cell_unless_it_is_escaped() -> None:
    assert cells("| `a | b` | c |") == [" `a ", " b` ", " c "]
    assert cells("| `a \\| b` | c |") == [" `a \\| b` ", " c "]


def test_the_table_of_settings_is_up_to_date() -> None:
    manual = MANUAL.read_text()
    assert HEAD in manual
    assert manual == with_settings(manual), "run scripts/document_settings.py"


@pytest.mark.parametrize("name", LISTS)
def test_the_lists_of_codes_are_up_to_date(name: str) -> None:
    text = (DOCS / name).read_text()
    assert text == with_codes(name, text), "run scripts/document_codes.py"


@each_document
def test_links_lead_to_a_file_and_a_heading(document: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        if re.match("https?:", link):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@each_document
def test_files_that_are_named_exist(document: Path) -> None:
    named = set(re.findall(r"`([a-z_]+/[A-Za-z_0-9/.]+)", document.read_text())) - WRITTEN_LATER
    assert [
        name for name in sorted(named) if not (ROOT / name.rstrip("/")).exists() and not (ROOT / f"{name}.py").exists()
    ] == []


@each_document
def test_constants_that_are_named_exist(document: Path) -> None:
    code = "\n".join(path.read_text() for path in CODE)
    named = set(re.findall(r"`([A-Z][A-Z]+_[A-Z_]+)`", document.read_text()))
    named = {name for name in named - FOREIGN if not name.startswith("GEARMESH_")}
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", code)] == []


@each_document
def test_settings_that_are_named_exist(document: Path) -> None:
    named = set(re.findall(r"\bGEARMESH_([A-Z][A-Z0-9_]+)", document.read_text()))
    assert sorted(name for name in named if name.lower() not in Settings.model_fields) == sorted(
        named & {name.removeprefix(PREFIX) for name in NOT_SETTINGS}
    )


@each_document
def test_scripts_that_are_named_exist(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(r"scripts/[a-z_]+(?:\.py)?", text))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@each_document
def test_modules_that_are_run_exist(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        return  # it names those that moved
    named = {name.replace(".", "/") for name in re.findall(r"python3? -m ([a-z_.]+[a-z])", document.read_text())}
    ours = {name for name in named if (ROOT / name.partition("/")[0]).is_dir()}
    assert [
        name for name in sorted(ours) if not any((ROOT / name).with_suffix(end).exists() for end in ("", ".py"))
    ] == []


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
    listed = MANUAL.read_text().partition("## Log events")[2].partition("\n## ")[0]
    heads = re.findall(r"^\* ((?:`[a-z_]+`(?:, )?)+):", listed, re.MULTILINE)
    assert len(heads) == len(re.findall(r"^\* ", listed, re.MULTILINE))
    explained = {name for head in heads for name in re.findall(r"`([a-z_]+)`", head)}
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


@each_document
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


def test_every_block_that_may_be_typed_runs_or_says_why_it_does_not() -> None:
    """tests/end_to_end/test_examples_end_to_end.py runs those of the documents for users."""
    silent, excused = [], 0
    for document in USERS:
        for example in examples(document):
            typed = any(TYPED.match(line) for line in example.text.splitlines())
            if typed and example.kind not in RUN:
                silent.append(f"{document.name}:{example.line} has commands: call the block sh or console")
            if example.kind and example.kind not in RUN and not example.why:
                silent.append(f"{document.name}:{example.line}: is neither run, nor says why")
            excused += bool(example.why)
    assert silent == []
    assert excused == 3, "each is one that a reader has to take our word for"
