"""The consoles that commands print to: as wide as the terminal; without one, wide enough for whole names.

What is printed is shown as it is: a model called `container:pill`, a message with `[brackets]`. Colours are arguments.
"""

import os
import sys
from typing import Any

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from mesh.printable import printable

WIDTH_PIPED = 160


class PlainConsole(Console):
    """A console without markup, emoji codes and highlighting, whose text does not steer the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is: everything printed, and every cell and title of a table, comes through here."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False, "highlight": False})

    def status(self, status: RenderableType, **options: Any) -> Status:
        """As rich's, which would take a string for markup."""
        return super().status(text_of(status) if isinstance(status, str) else status, **options)


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error. COLUMNS sets the width if it is defined."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return PlainConsole(stderr=stderr, width=WIDTH_PIPED if piped else None)


def text_of(*parts: str | tuple[str, str]) -> Text:
    """The parts in one line: each is a text, or a text and its style."""
    found = Text()
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else part
        found.append(printable(text), style)
    return found
