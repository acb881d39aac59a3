"""What leaves for clients: answers in the public protocol, encoded and counted."""

import time
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np

from frontend.core.answers import error_answer, ok_answer
from frontend.core.applications.messages import SendAnswer
from frontend.core.protocol import AnswerTensor, RequestRefused
from frontend.core.requests import Call, Completed
from frontend.transport import ClientId, ClientPort
from mesh.codes import AnswerStatus, ErrorCode

OK = AnswerStatus.OK  # for what runs for every request
CANCELLED = ErrorCode.CANCELLED
_encode = msgspec.msgpack.Encoder().encode


class Replies:
    """Answers to clients, by way of their port. All that ends a request is told here, also where nobody is answered.

    `gone`: the client is, so the answer is counted, and not sent.
    """

    def __init__(self, clients: ClientPort) -> None:
        self._clients = clients
        self.answers: dict[str, int] = {}  # {status: answers so far}
        self.refusals: dict[str, int] = {}  # {code: refusals by the frontend itself}
        self.cancelled = 0  # requests that their clients ended, or whose clients are gone

    def outputs(
        self,
        call: Call,
        outputs: Sequence[Any],
        now: float,
        completed: Completed | None = None,
        *,
        cached: bool = False,
    ) -> None:
        """Answers a client's call of a model with these outputs, in the form of the request."""
        self._count(OK)
        answer = ok_answer(call, outputs, now, completed, cached=cached)
        client: Any = call.client
        self._clients.answer(client, _encode(answer), outputs if call.framed else ())

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
        answer = error_answer(call, status, code, message, now, predicted_ms, retry_after_ms)
        client: Any = call.client
        self._clients.answer(client, _encode(answer))

    def abandoned(self, call: Call) -> None:
        """A client's call of a model has ended because the client is gone: nobody is answered."""
        self._count(AnswerStatus.FAILED, CANCELLED, gone=True)

    def application(self, order: SendAnswer) -> None:
        """Sends an application's answer, in the form of the request."""
        answer = order.answer
        self._count(answer.status, answer.error.code if answer.error is not None else "", gone=order.gone)
        if order.gone:
            return
        data = [np.ascontiguousarray(array).tobytes() for _, array in order.outputs]
        if data:
            answer.outputs = [
                AnswerTensor(spec.name, spec.dtype, array.shape, None if order.framed else buffer)
                for (spec, array), buffer in zip(order.outputs, data, strict=True)
            ]
        answer.latency_ms = (time.monotonic() - order.received_s) * 1e3
        self._clients.answer(cast(ClientId, order.client), _encode(answer), data if order.framed else ())

    def refuse(self, client: ClientId, invalid: RequestRefused, *, gone: bool = False) -> None:
        """Answers a request that is not valid, or ended before it was looked at."""
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
