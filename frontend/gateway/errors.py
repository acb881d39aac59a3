"""Refusals by the gateway, and the HTTP status of every answer that is not ok. Pure.

Refused    a request that the gateway itself cannot pass on; `status` is HTTP's
"""

import math
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from frontend.client.conversation import RequestError
from mesh.codes import AnswerStatus, Coded, ErrorCode, HttpCode, http_of

RETRY_AFTER_S = 1  # if no better time is known
RETRIED = {429, 503}  # answers with a Retry-After header, where asking again may help
SAY_WHEN = (ErrorCode.NOT_READY, ErrorCode.NO_REPLICA)  # without retry_after_ms these never end otherwise
PLAIN = {404: HttpCode.NO_SUCH_PATH, 405: HttpCode.BAD_METHOD, 413: ErrorCode.TOO_LARGE}


@dataclass(slots=True)
class HttpRefusal(Exception):
    """A request that the gateway cannot serve."""

    message: str
    code: str
    field: str | None = None
    retry_after_ms: float | None = dataclass_field(default=None, kw_only=True)
    http: int | None = dataclass_field(default=None, kw_only=True)  # where it is not the code's own

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        """HTTP's; 400 where neither the code nor anybody else says."""
        return self.http or (self.code.http if isinstance(self.code, Coded) else None) or 400


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An answer that is not ok."""

    status: int  # of HTTP
    body: dict[str, Any]  # `error` is the message; fields that do not apply are absent
    headers: dict[str, str]


def refusal(refused: HttpRefusal) -> ErrorAnswer:
    """The answer for a refusal by the gateway."""
    body = {
        "error": refused.message,
        "code": refused.code,
        "status": AnswerStatus.REJECTED if refused.status >= 429 else AnswerStatus.INVALID,
    }
    return _answer(refused.status, body, refused.field, refused.retry_after_ms)


def error_answer(error: RequestError) -> ErrorAnswer:
    """The answer for an error of the mesh."""
    body: dict[str, Any] = {"error": error.message or error.code, "code": error.code, "status": error.status}
    for name in ("predicted_ms", "latency_ms", "request"):
        value = getattr(error, name)
        if value is not None:
            body[name] = value
    return _answer(http_of(error.status, error.code), body, _field(error.field), error.retry_after_ms)


def plain_error(status: int, message: str) -> ErrorAnswer:
    """The answer for an error of HTTP: unknown path, wrong method."""
    return _answer(status, {"error": message, "code": PLAIN.get(status, HttpCode.BAD_REQUEST)}, None, None)


def _field(field: str | None) -> str | None:
    """The field's name in the HTTP protocol."""
    return field.replace(".dtype", ".datatype") if field is not None else None


def _answer(status: int, body: dict[str, Any], field: str | None, retry_after_ms: float | None) -> ErrorAnswer:
    if field is not None:
        body["field"] = field
    headers = {}
    if retry_after_ms is not None:
        body["retry_after_ms"] = retry_after_ms
    if status in RETRIED and (retry_after_ms is not None or _may_end_otherwise(body["code"])):
        headers["Retry-After"] = str(
            RETRY_AFTER_S if retry_after_ms is None else max(1, math.ceil(retry_after_ms / 1e3))
        )
    return ErrorAnswer(status, body, headers)


def _may_end_otherwise(code: str) -> bool:
    """Whether the same request may be served later, though nobody says when."""
    named = ErrorCode.named(code) or HttpCode.named(code)
    return named is not None and named.retry and named not in SAY_WHEN
