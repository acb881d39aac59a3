"""The applications of one frontend: events and the time go in, orders come out.

It reads no clock, waits for nothing and draws from the generator that it is given. Whoever drives it carries out the
orders in their order, and tells it of their outcomes as further events.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, assert_never

from frontend.core import protocol
from frontend.core.applications.administration import Administration
from frontend.core.applications.answering import Answering
from frontend.core.applications.decisions import DecisionTable
from frontend.core.applications.feedback import FeedbackDesk
from frontend.core.applications.learned import LearnedStates
from frontend.core.applications.messages import (
    BrokerUnreachable,
    Client,
    ClientAsked,
    ClientGone,
    DecisionClaimed,
    Event,
    FeedbackStored,
    ModelAnswered,
    ModelFailed,
    Order,
    QuestionCancelled,
    Refuse,
    StateRead,
    StoreChanged,
)
from frontend.core.applications.registry import ApplicationLimits, ApplicationRegistry
from frontend.core.protocol import RequestRefused
from mesh import wire


class Applications:
    """All applications at one frontend."""

    def __init__(self, limits: ApplicationLimits, decisions: DecisionTable, rng: random.Random) -> None:
        self._learned = LearnedStates()
        self._decisions = decisions
        self._registry = ApplicationRegistry(limits, self._learned)
        self._answering = Answering(limits, self._registry, self._learned, decisions, rng)
        self._feedback = FeedbackDesk(self._registry, self._learned, decisions)
        self._administration = Administration(limits, self._registry, self._learned)

    def __len__(self) -> int:
        """Questions that are open."""
        return len(self._answering.open)

    def holds(self, client: Client, request_id: int | str) -> bool:
        """True if a question with this id is open on this connection."""
        return self._answering.open.holds(client, request_id)

    def handle(self, event: Event, now: float) -> list[Order]:
        """The event has taken effect. Returns what is to be done, in this order."""
        match event:
            case ClientAsked():
                return self._client_asked(event, now)
            case QuestionCancelled():
                return self._answering.cancel(event.client, event.id)
            case ClientGone():
                return self._answering.client_gone(event.client)
            case ModelAnswered():
                return self._answering.model_answered(event.number, event.outputs, now, cached=event.cached)
            case ModelFailed():
                return self._answering.model_failed(event.number, event.failure, now)
            case StateRead():
                return self._state_read(event, now)
            case FeedbackStored():
                return self._feedback.stored(event, now)
            case DecisionClaimed():
                return self._feedback.claimed(event, now)
            case StoreChanged():
                self._learned.store = event
                return []
            case BrokerUnreachable():
                return self._administration.broker_unreachable(event.call)
            case wire.Table():
                return [*self._registry.table_changed(event)]
            case wire.CallReply():
                return self._administration.replied(event)
            case _:
                assert_never(event)

    def _state_read(self, read: StateRead, now: float) -> list[Order]:
        """The state is known to whoever it was read for."""
        if read.listing is not None:
            return self._administration.state_read(read.listing, read)
        self._learned.read(read.key, read.state, read.error, now)
        return self._answering.state_read(read.key, now)

    def _client_asked(self, asked: ClientAsked, now: float) -> list[Order]:
        """The request is under way, or refused."""
        request = asked.request
        try:
            match request:
                case protocol.InferRequest():
                    return self._answering.infer(asked, request, now)
                case protocol.FeedbackRequest():
                    return self._feedback.take(asked.client, request, now)
                case protocol.AppsRequest() | protocol.CreateApp() | protocol.UpdateApp() | protocol.DeleteApp():
                    return self._administration.handle(asked.client, request, now)
                case _:
                    assert_never(request)
        except RequestRefused as invalid:
            invalid.id = request.id
            question = request if isinstance(request, protocol.InferRequest) else None
            return [Refuse(asked.client, invalid, question)]

    def wake(self, now: float) -> list[Order]:
        """What was due by now is done, or `wake_at` is still not after `now`. Calling early is harmless."""
        return [*self._answering.wake(now), *self._administration.wake(now)]

    def wake_at(self) -> float | None:
        """The instant from which `wake` has something to do; None: nothing waits for the time."""
        instants = [at for at in (self._answering.wake_at(), self._administration.wake_at()) if at is not None]
        return min(instants, default=None)

    def stop(self, now: float) -> list[Order]:
        """Every open question is answered."""
        return self._answering.stop(now)

    def report(self) -> Mapping[str, Any]:
        """For `status`."""
        return {
            "open": len(self),
            "decisions": len(self._decisions),
            "learning": self._learned.learning,
            "apps": {name: asdict(app.counts) for name, app in self._registry.apps.items()},
        }

    def check(self) -> None:
        """Raises: AssertionError unless every invariant holds."""
        self._answering.check()
        self._registry.check()
        self._decisions.check()
