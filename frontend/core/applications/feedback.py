"""Feedback: matched with the decision that it is about, turned into losses, learned, and answered.

A decision of this frontend alone is learned from at once. A decision that other frontends know of is claimed first, so
that only one of them takes its feedback.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from frontend.core import protocol
from frontend.core.applications.decisions import Decision, DecisionTable, NotApplied, Predicted, chances_of, decoded
from frontend.core.applications.definitions import Application
from frontend.core.applications.learned import LearnedStates
from frontend.core.applications.messages import (
    Claim,
    Client,
    DecisionClaimed,
    FeedbackStored,
    HeldFeedbackLost,
    Learn,
    Order,
    Refuse,
    StoreOutcome,
    Tell,
)
from frontend.core.applications.registry import ApplicationRegistry
from frontend.core.checking import checking
from frontend.core.protocol import RequestRefused
from mesh.codes import AnswerStatus, ErrorCode, FeedbackReason
from selection.base import Observation
from selection.contexts import check_context
from selection.losses import FeedbackError, check_label, check_loss, losses_of

BEING_APPLIED, HELD_BACK, APPLIED = "being taken in", "held back", "applied"  # in answers to further feedback
HELD = "the state store is down: the feedback is kept, and will be taken in when it is back"


@dataclass(slots=True)
class PendingFeedback:
    """One feedback until its outcome is known, which may be long after it was answered."""

    client: Client
    request: protocol.FeedbackRequest
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one `Learn` is for."""

    feedback: PendingFeedback
    decision: Decision
    app: Application  # as it was when the feedback came


class FeedbackDesk:
    """Takes feedback, and knows all that is waiting for the store."""

    def __init__(self, registry: ApplicationRegistry, learned: LearnedStates, decisions: DecisionTable) -> None:
        self._registry, self._learned, self._decisions = registry, learned, decisions
        self._claims: dict[int, tuple[PendingFeedback, Decision | NotApplied]] = {}  # {number: (for, as found here)}
        self._lessons: dict[int, Lesson] = {}  # {number: what it is for}
        self._numbers = itertools.count(1)

    def take(self, client: Client, request: protocol.FeedbackRequest, now: float) -> list[Order]:
        """The feedback is learned and then answered, or answered at once. Raises: RequestRefused."""
        if (request.label is None) == (request.loss is None):
            raise RequestRefused(ErrorCode.BAD_FEEDBACK, "give either label or loss", "label", request.id)
        fault = check_context(request.context) if request.context is not None else None
        if fault is not None:
            raise RequestRefused(ErrorCode.BAD_CONTEXT, fault, "context", request.id)
        if self._learned.store.full:
            text = "more feedback came than can be learned; this one was not taken in"
            raise RequestRefused(ErrorCode.BUSY, text, None, request.id, AnswerStatus.REJECTED, 1000.0)
        feedback = PendingFeedback(client, request)
        found = self._decisions.find(request.decision_id, now)
        if isinstance(found, NotApplied):
            return self._claim(feedback, found) if found.elsewhere else self._not_applied(feedback, found)
        if not found.parked or found.taken or self._observation(request, found) is None:
            return self._learn(feedback, found)
        found.taken = BEING_APPLIED
        return self._claim(feedback, found)

    # -- decisions that several frontends know of ---------------------------------------------------------------------

    def _claim(self, feedback: PendingFeedback, found: Decision | NotApplied) -> list[Order]:
        number = next(self._numbers)
        self._claims[number] = (feedback, found)
        return [Claim(number, feedback.request.decision_id, hold=isinstance(found, Decision))]

    def claimed(self, event: DecisionClaimed, now: float) -> list[Order]:
        """The feedback goes on to be learned if this frontend got the decision; otherwise it is answered."""
        feedback, found = self._claims[event.number]
        mine = found if isinstance(found, Decision) else None
        if event.outcome == StoreOutcome.HELD:
            if mine is not None:
                mine.taken = HELD_BACK
            return self._held(feedback)
        del self._claims[event.number]
        taken_elsewhere = event.known == b""
        if mine is not None:
            mine.taken = APPLIED if taken_elsewhere else ""
        if event.outcome == StoreOutcome.REFUSED:
            text = f"{event.why}; give the feedback again later"
            return self._not_applied(feedback, NotApplied(FeedbackReason.STORE_DOWN, text))
        if taken_elsewhere:
            text = "feedback for this decision was given already"
            return self._not_applied(feedback, NotApplied(FeedbackReason.DUPLICATE, text))
        if event.known is None and isinstance(found, NotApplied):
            return self._not_applied(feedback, found)
        return self._learn_claimed(feedback, mine, event.known or b"", now)

    def _learn_claimed(self, feedback: PendingFeedback, mine: Decision | None, known: bytes, now: float) -> list[Order]:
        try:
            return self._learn(feedback, mine if mine is not None else self._adopted(known, now))
        except (
            RequestRefused
        ) as invalid:  # only now, as the decision was another frontend's or the application has changed
            invalid.id = feedback.request.id
            if feedback.answered:
                return [HeldFeedbackLost(feedback.request.decision_id, invalid.code, invalid.message)]
            return [Refuse(feedback.client, invalid)]
        except msgspec.MsgspecError as error:
            text = f"the decision cannot be read: {error}"
            return self._not_applied(feedback, NotApplied(FeedbackReason.UNKNOWN, text))

    def _adopted(self, known: bytes, now: float) -> Decision:
        """Another frontend's decision is this one's now, and accepts feedback that comes again, corrected."""
        decision = decoded(known)
        decision.taken, decision.parked = "", False
        self._decisions.keep(decision, now)
        return decision

    # -- learning -----------------------------------------------------------------------------------------------------

    def _learn(self, feedback: PendingFeedback, decision: Decision) -> list[Order]:
        """The store learns from the feedback, if there is anything to learn. Raises: RequestRefused."""
        if decision.taken:
            text = f"feedback for this decision was given already, and is {decision.taken}"
            return self._not_applied(feedback, NotApplied(FeedbackReason.DUPLICATE, text))
        observation = self._observation(feedback.request, decision)
        if observation is None:
            return self._not_applied(feedback, self._why_nothing(decision))
        app = self._registry.apps[decision.app]
        decision.taken = BEING_APPLIED
        number = next(self._numbers)
        self._lessons[number] = Lesson(feedback, decision, app)
        return [Learn(number, (decision.app, decision.context), app.policy, tuple(app.models), observation)]

    def stored(self, event: FeedbackStored, now: float) -> list[Order]:
        """The feedback is answered; once it is applied, this frontend knows what was learned."""
        lesson = self._lessons[event.number]
        feedback, decision = lesson.feedback, lesson.decision
        if event.outcome == StoreOutcome.HELD:
            decision.taken = HELD_BACK
            return self._held(feedback)
        del self._lessons[event.number]
        if event.outcome == StoreOutcome.REFUSED or event.state is None:
            decision.taken = ""
            return self._not_applied(feedback, NotApplied(FeedbackReason.NOT_LEARNED, event.why))
        if self._app(decision) is not None:
            self._learned.cache.refreshed((decision.app, decision.context), event.state, now)
        decision.taken = APPLIED
        lesson.app.counts.feedback += 1
        return self._answer(feedback, {"applied": True})

    def _app(self, decision: Decision) -> Application | None:
        """Returns the application that decided; None if it is gone, though another one may have its name."""
        app = self._registry.apps.get(decision.app)
        return app if app is not None and app.created == decision.created else None

    def _why_nothing(self, decision: Decision) -> NotApplied:
        """Returns why the feedback teaches nothing."""
        app = self._app(decision)
        if app is None:
            other = "; another one has its name now" if decision.app in self._registry.apps else ""
            text = f"the application {decision.app!r} that gave this answer is gone{other}"
            return NotApplied(FeedbackReason.UNKNOWN_APP, text)
        if not decision.predictions:
            text = "no model answered in time, so that there is nothing to learn"
        elif app.kind != decision.kind:
            text = f"the application's models gave {decision.kind} then, and give {app.kind} now"
        elif not any(model in app.models for model in decision.predictions):
            text = f"those that answered are no models of the application any more: {', '.join(decision.predictions)}"
        else:
            text = "only shadows answered: they learn from a label, not from the loss of an answer"
        return NotApplied(FeedbackReason.NOTHING_TO_LEARN, text)

    @checking
    def _observation(self, request: protocol.FeedbackRequest, decision: Decision) -> Observation | None:
        """The losses, 0 to 1, of the models that answered; None if none can be learned. Raises: RequestRefused."""
        if request.context is not None and request.context != decision.context:
            text = f"the decision was made in the context {decision.context!r}; got {request.context[:40]!r}"
            raise RequestRefused(ErrorCode.BAD_CONTEXT, text, "context", request.id)
        app = self._app(decision)
        if app is None or app.kind != decision.kind:
            return None
        said = {model: predicted for model, predicted in decision.predictions.items() if model in app.models}
        try:
            if request.loss is not None:
                loss = check_loss(request.loss, app.common.loss_max)
                losses = {model: loss for model in said if model not in decision.shadows}
            else:
                losses = _losses(request.label, app, said)
        except FeedbackError as error:
            raise RequestRefused(ErrorCode.BAD_FEEDBACK, error.message, error.field, request.id) from None
        return Observation(losses, chances_of(decision)) if losses else None

    # -- answers ------------------------------------------------------------------------------------------------------

    def _held(self, feedback: PendingFeedback) -> list[Order]:
        """The store is down: the feedback is answered now, and applied later."""
        return self._answer(feedback, _outcome(FeedbackReason.STORE_DOWN, HELD))

    def _not_applied(self, feedback: PendingFeedback, why: NotApplied) -> list[Order]:
        """The feedback is answered with the reason; if it was answered before, a fact tells of its loss."""
        if feedback.answered:
            return [HeldFeedbackLost(feedback.request.decision_id, why.code, why.message)]
        return self._answer(feedback, _outcome(why.code, why.message))

    def _answer(self, feedback: PendingFeedback, outcome: Mapping[str, Any]) -> list[Order]:
        """The feedback has exactly one answer."""
        if feedback.answered:
            return []
        feedback.answered = True
        return [Tell(feedback.client, {"id": feedback.request.id, "status": AnswerStatus.OK, **outcome})]


def _outcome(reason: FeedbackReason, message: str) -> dict[str, Any]:
    return {"applied": False, "reason": reason, "message": message}


def _losses(label: Any, app: Application, said: Mapping[str, Predicted]) -> dict[str, float]:
    """Returns {model: loss, 0 to 1} of what they said, given the truth. Raises: FeedbackError."""
    losses: dict[str, float] = {}
    truth: Any = None
    for model, predicted in said.items():
        array = predicted.array()
        if truth is None:
            truth = check_label(label, app.kind, array.shape, app.classes, app.spec.labels)
        losses[model] = losses_of(app.common.loss, app.kind, truth, array, app.common.loss_max)
    return losses
