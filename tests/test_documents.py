"""What the documents say is so."""

import re
from pathlib import Path

import pytest

from broker.config import documentation

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_every_setting_is_in_the_operations_manual_with_its_default() -> None:
    manual = (ROOT / "docs/operations.md").read_text()
    missing = [
        key
        for key, default, text in documentation()
        if f"| `{key}` | {f'`{default}`' if default else '(empty)'} | {text} |" not in manual
    ]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_scripts_that_are_named_exist(document: Path) -> None:
    named = set(re.findall(r"scripts/[a-z_]+(?:\.py)?", document.read_text()))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
