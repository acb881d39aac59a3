"""The consoles that commands print to: as wide as the terminal; without one, wide enough for whole names."""

import os
import sys

from rich.console import Console

WIDTH_PIPED = 160


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error. COLUMNS sets the width if it is defined."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, width=WIDTH_PIPED if piped else None)
