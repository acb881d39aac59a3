"""Rewrites the table of settings in docs/operations.md from mesh/process/settings.py.

.venv/bin/python scripts/document_settings.py
"""

import argparse
import re

from mesh.process.settings import documentation
from scripts import ROOT

MANUAL = ROOT / "docs/operations.md"
PIPE = "\\|"  # one in a cell
HEAD = "| setting | default | meaning |\n|---|---|---|\n"


def with_settings(manual: str) -> str:
    """The manual with the table of the present settings."""
    rows = [
        f"| `{key}` | {f'`{default}`' if default else '(empty)'} | {text.replace('|', PIPE)} |\n"
        for key, default, text in documentation()
    ]
    return re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: HEAD + "".join(rows), manual)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    MANUAL.write_text(with_settings(MANUAL.read_text()))
