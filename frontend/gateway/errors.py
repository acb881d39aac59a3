"""What the gateway refuses, and HTTP's status for every answer that is not ok. Pure.

Refused    a request that the gateway itself cannot pass on; `status` is HTTP's
"""

import math
from dataclasses import dataclass
from typing import Any

from frontend.client.conversation import RequestError

RETRY_AFTER_S = 1  # where nobody knows better
NOT_FOUND = {"unknown_model", "unknown_version", "unknown_app", "not_deployed"}
UNAVAILABLE = {"not_ready", "no_worker", "no_replica", "no_frontend", "no_broker", "stopping", "closed"}
STATUSES = {"invalid": 400, "rejected": 429, "timed_out": 504, "failed": 500}
RETRIED = {429, 503}  # answers that say when to come back


@dataclass(slots=True)
class Refused(Exception):
    """A request that cannot be obeyed."""

    message: str
    code: str
    field: str | None = None
    status: int = 400
    retry_after_ms: float | None = None

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An answer that is not ok."""

    status: int  # HTTP's
    body: dict[str, Any]  # `error` is a sentence; fields that do not apply are absent
    headers: dict[str, str]


def refusal(refused: Refused) -> ErrorAnswer:
    """The gateway's own answer."""
    body = {
        "error": refused.message,
        "code": refused.code,
        "status": "rejected" if refused.status >= 429 else "invalid",
    }
    return _answer(refused.status, body, refused.field, refused.retry_after_ms)


def error_answer(error: RequestError) -> ErrorAnswer:
    """The mesh's answer, in HTTP's terms."""
    body: dict[str, Any] = {"error": error.message or error.code, "code": error.code, "status": error.status}
    for name in ("predicted_ms", "latency_ms"):
        value = getattr(error, name)
        if value is not None:
            body[name] = value
    return _answer(_status(error), body, _field(error.field), error.retry_after_ms)


def plain_error(status: int, message: str) -> ErrorAnswer:
    """HTTP's own: no such path, not this method."""
    codes = {404: "no_such_path", 405: "bad_method", 413: "too_large"}
    return _answer(status, {"error": message, "code": codes.get(status, "bad_request")}, None, None)


def _status(error: RequestError) -> int:
    if error.code in NOT_FOUND:
        return 404
    if error.code in UNAVAILABLE:
        return 503
    return STATUSES.get(error.status, 500)


def _field(field: str | None) -> str | None:
    """As HTTP clients name it."""
    return field.replace(".dtype", ".datatype") if field is not None else None


def _answer(status: int, body: dict[str, Any], field: str | None, retry_after_ms: float | None) -> ErrorAnswer:
    if field is not None:
        body["field"] = field
    headers = {}
    if retry_after_ms is not None:
        body["retry_after_ms"] = retry_after_ms
    if status in RETRIED:
        headers["Retry-After"] = str(
            RETRY_AFTER_S if retry_after_ms is None else max(1, math.ceil(retry_after_ms / 1e3))
        )
    return ErrorAnswer(status, body, headers)
