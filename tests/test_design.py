"""What docs/design says of the code is so: files, constants, links; and its lines fit on a screen."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs/design").glob("*.md"))
SOURCES = [
    path
    for folder in ("mesh", "broker", "controller", "gpu_worker", "frontend", "selection", "gearmesh")
    for path in (ROOT / folder).rglob("*.py")
]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`([a-z_]+/[A-Za-z_0-9/.]+)", page.read_text()))
    assert [
        name for name in sorted(named) if not (ROOT / name.rstrip("/")).exists() and not (ROOT / f"{name}.py").exists()
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_constants_that_a_page_names_exist(page: Path) -> None:
    code = "\n".join(path.read_text() for path in SOURCES)
    named = set(re.findall(r"`([A-Z][A-Z]+_[A-Z_]+)`", page.read_text()))
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_a_page_and_a_heading(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if link.startswith("http"):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_lines_are_shorter_than_100_columns(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if len(line) >= 100] == []
