"""What leaves for clients: answers in the public protocol, encoded and counted.

A request for an answer ends here, and nowhere else: with `outputs`, `error`, `application` or `refuse`, or, where its
client has gone, with `abandoned`.
"""

import time
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np
import structlog

from frontend.core.answers import encoded_ok, error_answer
from frontend.core.applications.messages import SendAnswer
from frontend.core.connections import ClientId
from frontend.core.open_calls import Call, Completed
from frontend.core.outcomes import Outcomes
from frontend.core.output_rules import Shapes
from frontend.core.protocol import AnswerTensor, Brief, InferRequest, Request, RequestRefused, busy_answer
from frontend.outbox import Outbox
from mesh.codes import AnswerStatus, ErrorCode

OK = AnswerStatus.OK  # for what runs for every request
CANCELLED = ErrorCode.CANCELLED
INTERNAL_ERROR = ErrorCode.INTERNAL_ERROR
REJECTED, BUSY = str(AnswerStatus.REJECTED), str(ErrorCode.FRONTEND_BUSY)
INFER = "infer"
UNCOUNTED_MAX = 100  # models and applications whose refusals are counted later, all together
log = structlog.get_logger("frontend")
_encode = msgspec.msgpack.Encoder().encode


class Replies:
    """Answers to clients, by way of the outbox. All that ends a request is told here, also where nobody is answered.

    `gone`: the client is, so the answer is counted, and not sent.
    """

    def __init__(self, clients: Outbox, outcomes: Outcomes) -> None:
        self._clients = clients
        self._outcomes = outcomes
        self.answers: dict[str, int] = {}  # {status: answers so far}
        self.refusals: dict[str, int] = {}  # {code: refusals by the frontend itself}
        self._busy: dict[tuple[str, str | None, str | None], int] = {}  # {(op, model, app): not counted yet}
        self.cancelled = 0  # requests that their clients ended, or whose clients are gone

    def outputs(
        self,
        call: Call,
        outputs: Sequence[Any],
        completed: Completed | None,
        cached: bool,
        shapes: Shapes,
    ) -> bool:
        """Answers a client's call of a model with these outputs, in the form of the request.

        `shapes`: of the outputs; (): those of the spec.

        Returns whether that was by its deadline.
        """
        self.answers[OK] = self.answers.get(OK, 0) + 1
        now = time.monotonic()
        in_time = self._outcomes.served(call, now, cached=cached, cold=completed is not None and completed.cold)
        client: Any = call.client
        self._clients.answer(
            client, encoded_ok(call, outputs, now, completed, cached, shapes), outputs if call.framed else ()
        )
        return in_time

    def error(
        self,
        call: Call,
        status: str,
        code: str,
        message: str,
        now: float,
        predicted_ms: float | None = None,
        retry_after_ms: float | None = None,
    ) -> None:
        """Answers a client's call of a model that ended without outputs."""
        self._count(status, code)
        self._outcomes.ended(call, status, code)
        answer = error_answer(call, status, code, message, now, predicted_ms, retry_after_ms)
        client: Any = call.client
        self._clients.answer(client, _encode(answer))

    def abandoned(self, call: Call) -> None:
        """A client's call of a model has ended because the client is gone: nobody is answered."""
        self._count(AnswerStatus.FAILED, CANCELLED, gone=True)
        self._outcomes.abandoned(call)

    def application(self, order: SendAnswer) -> None:
        """Sends an application's answer, in the form of the request."""
        answer = order.answer
        self._count(answer.status, answer.error.code if answer.error is not None else "", gone=order.gone)
        now = time.monotonic()
        self._outcomes.application(answer, order.received_s, order.deadline_s, now)
        if order.gone:
            return
        data = [np.ascontiguousarray(array).tobytes() for _, array in order.outputs]
        if data:
            answer.outputs = [
                AnswerTensor(spec.name, spec.dtype, array.shape, None if order.framed else buffer)
                for (spec, array), buffer in zip(order.outputs, data, strict=True)
            ]
        answer.latency_ms = (now - order.received_s) * 1e3
        self._clients.answer(cast(ClientId, order.client), _encode(answer), data if order.framed else ())

    def refuse_unread(self, client: ClientId, invalid: RequestRefused, brief: Brief | None = None) -> None:
        """Answers a request of which no more is known than what is wrong with it, and this."""
        self._outcomes.refused(brief, invalid.status, invalid.code)
        self.refuse(client, invalid)

    def busy(self, client: ClientId, brief: Brief, waited_s: float) -> None:
        """Refuses a request that nobody has looked at, as more comes than can be taken in. It costs little."""
        key = brief.op, brief.model, brief.app
        self._busy[key] = self._busy.get(key, 0) + 1
        if len(self._busy) > UNCOUNTED_MAX:
            self.count_busy()
        self._clients.answer(client, busy_answer(brief.id, waited_s * 1e3))

    def count_busy(self) -> None:
        """All that were refused by `busy` are counted. To be called before anybody looks at the counts."""
        busy, self._busy = self._busy, {}
        for (op, model, app), count in busy.items():
            if op == INFER:
                self._outcomes.refused(Brief(0, op, model, app), REJECTED, BUSY, count)
            self.answers[REJECTED] = self.answers.get(REJECTED, 0) + count
            self.refusals[BUSY] = self.refusals.get(BUSY, 0) + count

    def refuse(
        self, client: ClientId, invalid: RequestRefused, request: Request | None = None, *, gone: bool = False
    ) -> None:
        """Answers a request that is not valid, or ended before it was looked at.

        If `request` is one for an answer, that is its outcome.
        """
        if invalid.code is INTERNAL_ERROR:
            log.error("request_error", op=type(request).__name__, exc_info=invalid.__cause__)
        if isinstance(request, InferRequest):
            self._outcomes.refused(request, invalid.status, invalid.code)
        self._count(invalid.status, invalid.code, gone=gone)
        if gone:
            return
        if invalid.code != CANCELLED:
            self.refusals[invalid.code] = self.refusals.get(invalid.code, 0) + 1
        self._clients.answer(client, _encode(invalid.answer()))

    def tell(self, client: ClientId, message: dict[str, Any]) -> None:
        """Answers a request that is no inference."""
        self._clients.answer(client, _encode(message))

    def _count(self, status: str, code: str = "", *, gone: bool = False) -> None:
        if code == CANCELLED:
            self.cancelled += 1
        if not gone:
            self.answers[status] = self.answers.get(status, 0) + 1
