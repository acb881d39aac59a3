"""Requests that end before their time: their clients ended them, or are gone."""

import time

from frontend.applications import ApplicationsShell
from frontend.calls import ModelCalls
from frontend.core import protocol
from frontend.core.applications.messages import ClientGone, QuestionCancelled
from frontend.core.connections import ClientId
from frontend.core.early import EarlyRequests
from frontend.core.evaluations import Evaluations
from frontend.replies import Replies
from mesh.codes import AnswerStatus, ErrorCode, RequestOutcome

FAILED, CANCELLED = AnswerStatus.FAILED, ErrorCode.CANCELLED


class Cancellation:
    """Shell. It knows everywhere that a request can be open, and whom to tell that nobody waits for it."""

    def __init__(
        self,
        evaluations: Evaluations,
        early: EarlyRequests,
        applications: ApplicationsShell,
        calls: ModelCalls,
        replies: Replies,
    ) -> None:
        self._evaluations = evaluations
        self._early = early
        self._applications = applications
        self._calls = calls
        self._replies = replies

    def cancel(self, client: ClientId, request_id: int | str) -> None:
        """The open request with this id is answered, and what has not begun for it is dropped; or there is none."""
        given_up = self._evaluations.cancel(client, request_id)
        if given_up is not None:
            self._calls.drop(given_up.needless, RequestOutcome.CANCELLED)
            self._replies.error(given_up.call, FAILED, CANCELLED, protocol.CANCELLED, time.monotonic())
        elif (early := self._early.cancel(client, request_id)) is not None:
            self._replies.refuse(client, protocol.cancelled(request_id), early.request)
        else:
            self._applications.handle(QuestionCancelled(client, request_id))

    def client_gone(self, client: ClientId) -> None:
        """Nothing is open on this connection any more. Nobody is answered."""
        for given_up in self._evaluations.client_gone(client):
            self._calls.drop(given_up.needless, RequestOutcome.CANCELLED)
            self._replies.abandoned(given_up.call)
        for early in self._early.client_gone(client):
            self._replies.refuse(client, protocol.cancelled(early.request.id), early.request, gone=True)
        self._applications.handle(ClientGone(client))
