"""Where the commands print to: as wide as the terminal, and wide enough for whole names where there is none."""

import os
import sys

from rich.console import Console

WIDTH_PIPED = 160


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error. COLUMNS, if set, is obeyed."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, width=WIDTH_PIPED if piped else None)
