"""Writes the tables of statuses and codes in the documents anew from mesh/codes.py.

.venv/bin/python scripts/document_codes.py
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

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
    ErrorCode.NO_WORKER, ErrorCode.NO_REPLICA,
)  # codes of requests that a controller refuses, in its request log  # fmt: skip
FAILED = (
    ActionCode.BAD_BATCH, ActionCode.BAD_INPUT, ActionCode.ROWS_CHANGED, ActionCode.BAD_OUTPUTS,
    ActionCode.DEVICE_ERROR, ActionCode.MODEL_ERROR, ActionCode.WORKER_LOST,
)  # codes of actions that a request's line has, too  # fmt: skip

Row = tuple[str, ...]
Table = tuple[Row, list[Row]]  # (titles, rows)


def _named(codes: Iterable[str]) -> str:
    return ", ".join(f"`{code}`" for code in codes)


def _errors(codes: Iterable[ErrorCode]) -> list[Row]:
    return [(f"`{code}`", ", ".join(code.statuses), "yes" if code.retry else "", code.meaning) for code in codes]


def _meanings(group: Iterable[Coded]) -> list[Row]:
    return [(f"`{code}`", code.meaning) for code in group]


def _http() -> Iterator[Row]:
    """Each of HTTP's statuses, the answers' statuses that become it, and the codes that do whatever their status."""
    found = [*AnswerStatus, *ErrorCode, *HttpCode]
    for number in sorted({code.http for code in found if code.http is not None}):
        statuses = [code for code in AnswerStatus if code.http == number]
        codes = sorted({code.value for group in (ErrorCode, HttpCode) for code in group if code.http == number})
        yield str(number), _named(statuses), _named(codes)


def _logged() -> Iterator[Row]:
    """Codes in the logs of requests and actions."""
    for error in CONTROLLERS:
        yield f"`{error}`", RequestOutcome.REJECTED, error.meaning
    for action in ActionCode:
        if action is not ActionCode.OK:
            yield f"`{action}`", f"{RequestOutcome.FAILED}, action" if action in FAILED else "action", action.meaning


TABLES: dict[str, list[Table]] = {  # {document: its tables}
    "protocol.md": [
        (("status", "HTTP", "meaning"), [
            (f"`{status}`", str(status.http), status.meaning) for status in AnswerStatus
        ]),
        (("code", "status", "retry", "meaning"), _errors(code for code in ErrorCode if code not in CLIENTS_OWN)),
        (("code of a Python client", "status", "retry", "meaning"), _errors(CLIENTS_OWN)),
        (("reason", "meaning"), _meanings(FeedbackReason)),
    ],
    "http.md": [
        (("HTTP", "status", "code"), list(_http())),
        (("code of the gateway", "HTTP", "meaning"), [
            (f"`{code}`", str(code.http), code.meaning) for code in HttpCode
        ]),
    ],
    "models.md": [(("code of a package", "meaning"), _meanings(PackageCode))],
    "operations.md": [
        (("code of an action", "meaning", "what follows"), [
            (f"`{code}`", code.meaning, code.follows) for code in ActionCode
        ]),
        (("code of a reply", "HTTP", "meaning"), [(f"`{code}`", str(code.http), code.meaning) for code in ReplyCode]),
    ],
    "telemetry.md": [
        (("outcome", "meaning"), _meanings(RequestOutcome)),
        (("code", "of", "meaning"), list(_logged())),
    ],
}  # fmt: skip


def _line(cells: Row) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells).replace("|  |", "| |").rstrip() + " |\n"


def head(titles: Row) -> str:
    """The first two lines of a table, by which it is found."""
    return f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}\n"


def with_codes(name: str, text: str) -> str:
    """The document with its tables as the codes are. Raises: ValueError, naming a table that is not there once."""
    for titles, rows in TABLES[name]:
        first = head(titles)
        if text.count(first) != 1:
            raise ValueError(f"{name} has {text.count(first)} tables of: {', '.join(titles)}")
        found = re.compile(re.escape(first) + r"(\|.*\n)*").search(text)
        assert found is not None
        text = text[: found.start()] + first + "".join(_line(row) for row in rows) + text[found.end() :]
    return text


if __name__ == "__main__":
    for name in TABLES:
        document = DOCS / name
        document.write_text(with_codes(name, document.read_text()))
