"""Writes the lists of statuses and codes in the documents anew from mesh/codes.py.

.venv/bin/python scripts/document_codes.py
"""

import argparse
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mesh.codes import (
    CLIENTS_OWN,
    ActionCode,
    AnswerStatus,
    Coded,
    ErrorCode,
    FeedbackReason,
    HttpCode,
    PackageCode,
    ReplyCode,
    RequestOutcome,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
CONTROLLERS = (
    ErrorCode.DEADLINE, ErrorCode.OVERLOAD, ErrorCode.QUEUE_FULL, ErrorCode.NOT_READY, ErrorCode.NOT_DEPLOYED,
    ErrorCode.NO_WORKER, ErrorCode.NO_REPLICA, ErrorCode.BATCH_FAILED, ErrorCode.QUARANTINED,
)  # codes of requests that a controller refuses, in its request log  # fmt: skip
FAILED = (
    ActionCode.BAD_BATCH, ActionCode.BAD_INPUT, ActionCode.ROWS_CHANGED, ActionCode.BAD_OUTPUTS,
    ActionCode.DEVICE_ERROR, ActionCode.MODEL_ERROR, ActionCode.CONTAINER_DIED, ActionCode.DEVICE_LOST,
    ActionCode.WORKER_LOST,
)  # codes of actions that a request's line has, too  # fmt: skip

OUTCOMES = (AnswerStatus.REJECTED, AnswerStatus.FAILED)  # statuses that a controller gives
WIDTH = 98  # columns
BEGIN, END = "<!-- codes: {}; written by scripts/document_codes.py -->\n", "<!-- end of codes -->\n"


class Entry(NamedTuple):
    """One item of a list: `name` (notes): text."""

    name: str
    text: str
    notes: tuple[str, ...] = ()


def _named(codes: Iterable[str]) -> str:
    return ", ".join(f"`{code}`" for code in codes)


def _errors(codes: Iterable[ErrorCode]) -> list[Entry]:
    return [Entry(f"`{code}`", code.meaning, (*code.statuses, *(["retry"] if code.retry else []))) for code in codes]


def _meanings(group: Iterable[Coded]) -> list[Entry]:
    return [Entry(f"`{code}`", code.meaning) for code in group]


def _with_http(group: Iterable[Coded]) -> list[Entry]:
    return [Entry(f"`{code}`", code.meaning, (str(code.http),)) for code in group]


def _http() -> Iterator[Entry]:
    """Each of HTTP's statuses, the answers' statuses that become it, and the codes that do whatever their status."""
    found = [*AnswerStatus, *ErrorCode, *HttpCode]
    for number in sorted({code.http for code in found if code.http is not None}):
        statuses = [code for code in AnswerStatus if code.http == number]
        codes = sorted({code.value for group in (ErrorCode, HttpCode) for code in group if code.http == number})
        parts = [f"{kind} {_named(names)}" for kind, names in (("status", statuses), ("code", codes)) if names]
        yield Entry(str(number), "; ".join(parts))


def _actions() -> Iterator[Entry]:
    for code in ActionCode:
        yield Entry(f"`{code}`", f"{code.meaning}. *Then:* {code.follows}" if code.follows else code.meaning)


def _logged() -> Iterator[Entry]:
    """Codes in the logs of requests and actions."""
    for error in CONTROLLERS:
        yield Entry(f"`{error}`", error.meaning, tuple(status for status in error.statuses if status in OUTCOMES))
    for action in ActionCode:
        if action is not ActionCode.OK:
            yield Entry(
                f"`{action}`", action.meaning, (RequestOutcome.FAILED, "action") if action in FAILED else ("action",)
            )


LISTS: dict[str, dict[str, list[Entry]]] = {  # {document: {name of a list: its entries}}
    "protocol.md": {
        "statuses": _with_http(AnswerStatus),
        "errors": _errors(code for code in ErrorCode if code not in CLIENTS_OWN),
        "clients": _errors(CLIENTS_OWN),
        "feedback": _meanings(FeedbackReason),
    },
    "http.md": {"http": list(_http()), "gateway": _with_http(HttpCode)},
    "models.md": {"packages": _meanings(PackageCode)},
    "operations.md": {"actions": list(_actions()), "replies": _with_http(ReplyCode)},
    "telemetry.md": {"outcomes": _meanings(RequestOutcome), "logged": list(_logged())},
}


def _item(entry: Entry) -> str:
    """The entry as lines of at most WIDTH columns, never broken within a code."""
    notes = f" ({', '.join(entry.notes)})" if entry.notes else ""
    text = re.sub("`[^`]+`", lambda code: code.group().replace(" ", "\0"), f"* {entry.name}{notes}: {entry.text}")
    lines = textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ") + "\n"


def with_codes(name: str, text: str) -> str:
    """The document with its lists as the codes are. Raises: ValueError, naming a list that is not there once."""
    for title, entries in LISTS[name].items():
        begin = BEGIN.format(title)
        if text.count(begin) != 1:
            raise ValueError(f"{name} has {text.count(begin)} lists of: {title}")
        start = text.index(begin) + len(begin)
        text = text[:start] + "\n" + "".join(map(_item, entries)) + "\n" + text[text.index(END, start) :]
    return text


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in LISTS:
        document = DOCS / name
        document.write_text(with_codes(name, document.read_text()))
