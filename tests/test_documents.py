"""What the documents say is so."""

import re
from pathlib import Path

import pytest

from scripts.document_settings import HEAD, MANUAL, with_settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_table_of_settings_is_up_to_date() -> None:
    manual = MANUAL.read_text()
    assert HEAD in manual
    assert manual == with_settings(manual), "run scripts/document_settings.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_scripts_that_are_named_exist(document: Path) -> None:
    named = set(re.findall(r"scripts/[a-z_]+(?:\.py)?", document.read_text()))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
