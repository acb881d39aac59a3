"""How a command tells its outcome: as text for people, or with --json as one JSON document on standard output.

What went wrong goes to standard error: a sentence, or with --json ``{"error": {"message", "code", "faults"}}``. Then
nothing is on standard output, and the exit code is not 0.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import RenderableType
from rich.text import Text

from gearmesh.cli.terminal.consoles import console

out = console()
err = console(stderr=True)
_json_wanted: ContextVar[bool] = ContextVar("_json_wanted", default=False)


def want_json(wanted: bool) -> None:
    """From now on, what is told is JSON, or is not."""
    _json_wanted.set(wanted)


def _asked(given: bool) -> bool:
    if given:  # of a group's --json and that of its command, one is enough
        want_json(True)
    return given


AsJson = Annotated[bool, typer.Option("--json", callback=_asked, help="One JSON document, and nothing else.")]


def tell(document: Any, *shown: RenderableType) -> None:
    """Prints the outcome: `shown`, each on lines of its own; or the document, if JSON is wanted."""
    if _json_wanted.get():
        sys.stdout.write(json.dumps(_finite(msgspec.to_builtins(document)), indent=1, allow_nan=False) + "\n")
        return
    for one in shown:
        out.print(one, soft_wrap=isinstance(one, str | Text))


def _finite(value: Any) -> Any:
    """The document with null for NaN and infinity, which JSON does not have; over HTTP it is the same."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list():
            return [_finite(inner) for inner in value]
        case _:
            return value


def remark(text: str) -> None:
    """Tells people something beside the outcome; not where JSON is wanted."""
    if not _json_wanted.get():
        out.print(text, soft_wrap=True)


def progress(line: str | None) -> None:
    """Tells people what is waited for, on standard error; nothing if there is no line, or where JSON is wanted."""
    if line is not None and not _json_wanted.get():
        err.print(line, soft_wrap=True)


def warn(text: str) -> None:
    """Tells what is doubtful about the outcome, on standard error."""
    err.print(f"gearmesh: {text}", style="yellow", soft_wrap=True)


def refuse(message: str, *, code: str = "", faults: Sequence[str] = (), exit_code: int = 1) -> NoReturn:
    """Tells what went wrong, and exits."""
    if _json_wanted.get():
        error: Mapping[str, Any] = {"message": message, "code": code or None, "faults": list(faults)}
        sys.stderr.write(json.dumps({"error": error}) + "\n")
    else:
        err.print(message, style="red", soft_wrap=True)
        for fault in faults:
            err.print(f"  - {fault}", soft_wrap=True)
    raise typer.Exit(exit_code)


def usage(message: str) -> NoReturn:
    """Tells what is wrong with the arguments, the settings or the mesh, and exits with 2."""
    refuse(message if _json_wanted.get() else f"gearmesh: {message}", exit_code=2)
