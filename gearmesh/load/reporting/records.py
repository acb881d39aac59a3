"""The outcome of every request as the generator saw it. Pure."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mesh.codes import AnswerStatus, ErrorCode, RequestOutcome

OUTCOMES = (
    AnswerStatus.OK, RequestOutcome.LATE, AnswerStatus.REJECTED, AnswerStatus.TIMED_OUT, AnswerStatus.FAILED,
    AnswerStatus.INVALID, ErrorCode.NO_ANSWER,
)  # fmt: skip
_INDEX: dict[str, int] = {outcome: index for index, outcome in enumerate(OUTCOMES)}
OK, LATE, REJECTED, _, FAILED, _, NO_ANSWER = _INDEX.values()
NOT_SENT = "not_sent"  # code: the generator's queue to the mesh was full
NOT_TOLD = 255  # value of cold: the answer did not say

RECORD = np.dtype(
    [
        ("due_s", "f8"),  # when the request was due, from the start of the phase; latency counts from here
        ("sent_s", "f8"),  # when it was sent
        ("done_s", "f8"),  # when it was answered; nan: never
        ("slo_s", "f8"),
        ("predicted_ms", "f8"),  # latency at the frontend, predicted by admission; nan: unknown
        ("latency_ms", "f8"),  # at the frontend; nan: unknown
        ("unread_ms", "f4"),  # longest time that the answer can have lain unread; nan: never answered
        ("model", "i4"),  # index into the plan's models
        ("stream", "i2"),
        ("outcome", "u1"),  # index into OUTCOMES
        ("code", "u1"),  # index into the error codes; 0: none
        ("batch", "u2"),  # 0: unknown
        ("cold", "u1"),  # 1: no device held its model when it arrived; NOT_TOLD: unknown
        ("size", "i4"),  # product of its extents in the model's open dimensions; 0: the model has none
    ]
)
Records = npt.NDArray[np.void]  # [requests] of RECORD
_KINDS = {"f8": "d", "f4": "f", "i4": "i", "i2": "h", "u1": "B", "u2": "H"}


class Recorder:
    """Records of requests: one row for each request sent, filled in when it is answered."""

    def __init__(self) -> None:
        fields = {name: kind.str[1:] for name, (kind, *_) in (RECORD.fields or {}).items()}
        self._columns: dict[str, Any] = {name: array(_KINDS[kind]) for name, kind in fields.items()}
        self.codes: dict[str, int] = {"": 0}  # {error code: its index}
        (
            self._due_s, self._sent_s, self._done_s, self._slo_s, self._predicted_ms, self._latency_ms,
            self._unread_ms, self._model, self._stream, self._outcome, self._code, self._batch, self._cold,
            self._size,
        ) = self._columns.values()  # fmt: skip

    def __len__(self) -> int:
        return len(self._due_s)

    def sent(self, due_s: float, sent_s: float, slo_s: float, model: int, stream: int, size: int = 0) -> int:
        """Adds a row for a request that was just sent. Returns the row's index."""
        self._due_s.append(due_s)
        self._sent_s.append(sent_s)
        self._done_s.append(np.nan)
        self._slo_s.append(slo_s)
        self._predicted_ms.append(np.nan)
        self._latency_ms.append(np.nan)
        self._unread_ms.append(np.nan)
        self._model.append(model)
        self._stream.append(stream)
        self._outcome.append(NO_ANSWER)
        self._code.append(0)
        self._batch.append(0)
        self._cold.append(NOT_TOLD)
        self._size.append(size)
        return len(self._due_s) - 1

    def answered(
        self,
        row: int,
        done_s: float,
        status: str,
        *,
        code: str = "",
        unread_ms: float = 0.0,
        predicted_ms: float | None = None,
        latency_ms: float | None = None,
        batch: int | None = None,
        cold: bool | None = None,
    ) -> int:
        """Fills in the row's answer and returns its outcome.

        An ok answer after the budget, counted from `due_s`, is late.
        """
        outcome = _INDEX.get(status, FAILED)
        if outcome == OK and done_s - self._due_s[row] > self._slo_s[row]:
            outcome = LATE
        self._done_s[row] = done_s
        self._unread_ms[row] = unread_ms
        self._outcome[row] = outcome
        if code:
            self._code[row] = self._code_of(code)
        if predicted_ms is not None:
            self._predicted_ms[row] = predicted_ms
        if latency_ms is not None:
            self._latency_ms[row] = latency_ms
        if batch is not None:
            self._batch[row] = min(batch, 65535)
        if cold is not None:
            self._cold[row] = cold
        return outcome

    def not_sent(self, row: int) -> None:
        """Records that the row's request was not sent after all."""
        self._code[row] = self._code_of(NOT_SENT)

    def _code_of(self, code: str) -> int:
        return self.codes.setdefault(code, min(len(self.codes), 255))

    def records(self) -> Records:
        """All rows, in the order in which they were sent."""
        rows = np.empty(len(self), RECORD)
        for name, column in self._columns.items():
            rows[name] = np.frombuffer(column, RECORD[name]) if len(column) else 0
        return rows


def merge(parts: Sequence[tuple[Records, Sequence[str]]]) -> tuple[Records, list[str]]:
    """The rows of several generators in order of due time, and their common list of codes."""
    codes: dict[str, int] = {"": 0}
    merged = []
    for rows, own in parts:
        translate = np.array([codes.setdefault(code, min(len(codes), 255)) for code in own], np.uint8)
        rows = rows.copy()
        rows["code"] = translate[rows["code"]]
        merged.append(rows)
    together = np.concatenate(merged) if merged else np.empty(0, RECORD)
    return together[np.argsort(together["due_s"], kind="stable")], list(codes)
