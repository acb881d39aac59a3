"""Feedback: joined with the decision it is about, turned into losses, learned, and told what became of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from frontend.core import protocol
from frontend.core.applications.decisions import Decision, DecisionTable, Missing, chances_of, decoded
from frontend.core.applications.definitions import Application
from frontend.core.protocol import Invalid
from frontend.keeper import Claim, Learn, StateKeeper
from selection.base import Observation, State
from selection.contexts import Key, check_context
from selection.losses import FeedbackError, check_label, check_loss, losses_of

log = structlog.get_logger("applications")
HELD = "the state store is down: the feedback is kept, and will be taken in when it is back"


@dataclass(slots=True)
class Given:
    """One feedback, until what becomes of it is known; that may be long after it was answered."""

    client: Any
    request: protocol.Feedback
    answered: bool = False


class FeedbackDesk:
    """Shell around the table of decisions."""

    def __init__(
        self,
        keeper: StateKeeper,
        decisions: DecisionTable,
        apps: Mapping[str, Application],
        learned: Callable[[Key, State], None],
        send: Callable[[Any, dict[str, Any]], None],
        refuse: Callable[[Any, Invalid], None],
        now: Callable[[], float],
    ) -> None:
        self._now = now
        self._keeper, self._decisions, self._apps = keeper, decisions, apps
        self._learned, self._send, self._refuse = learned, send, refuse

    def take(self, client: Any, request: protocol.Feedback, now: float) -> None:
        """The feedback is learned and then answered; or refused at once. Raises: Invalid."""
        if (request.label is None) == (request.loss is None):
            raise Invalid("bad_feedback", "give either label or loss", "label", request.id)
        fault = check_context(request.context) if request.context is not None else None
        if fault is not None:
            raise Invalid("bad_context", fault, "context", request.id)
        if self._keeper.full:
            text = "more feedback came than can be learned; this one was not taken in"
            raise Invalid("busy", text, None, request.id, "rejected", 1000.0)
        given = Given(client, request)
        decision = self._decisions.find(request.decision_id, now)
        if isinstance(decision, Decision) and not decision.parked:
            self._take(given, decision)
        elif isinstance(decision, Decision):
            if decision.taken or self._observation(request, decision) is None:
                self._take(given, decision)
                return
            decision.taken = "being taken in"
            self._claim(given, decision)
        elif decision.code == "unknown" and "no answer ever" not in decision.message:
            self._claim(given, decision)
        else:
            self._not_applied(given, *decision)

    def _claim(self, given: Given, found: Decision | Missing) -> None:
        """Only one frontend may take feedback for a decision that several know of."""
        mine = found if isinstance(found, Decision) else None

        def done(known: bytes | None, outcome: str) -> None:
            if outcome == "held" and mine is not None:
                mine.taken = "held back"
                self._not_applied(given, "store_down", HELD)
                return
            if mine is not None:
                mine.taken = "applied" if known == b"" else ""
            if outcome:
                text = f"{outcome.removeprefix('refused: ')}; give the feedback again later"
                self._not_applied(given, "store_down", text)
            elif known == b"":
                self._not_applied(given, "duplicate", "feedback for this decision was given already")
            elif known is None and isinstance(found, Missing):
                self._not_applied(given, *found)
            else:
                self._take_claimed(given, mine, known or b"")

        self._keeper.submit(Claim(given.request.decision_id, done, hold=mine is not None))

    def _take_claimed(self, given: Given, mine: Decision | None, known: bytes) -> None:
        try:
            self._take(given, mine if mine is not None else self._adopted(known))
        except Invalid as invalid:  # only now, if the decision is another frontend's, or the application has changed
            invalid.id = given.request.id
            if given.answered:
                log.warning("held_feedback_refused", decision=given.request.decision_id, why=invalid.message)
            else:
                self._refuse(given.client, invalid)
        except msgspec.MsgspecError as error:
            self._not_applied(given, "unknown", f"the decision cannot be read: {error}")

    def _adopted(self, known: bytes) -> Decision:
        """Another frontend's decision, now ours: feedback that has to be corrected can come again."""
        decision = decoded(known)
        decision.taken, decision.parked = "", False
        self._decisions.keep(decision, self._now())
        return decision

    def _take(self, given: Given, decision: Decision) -> None:
        if decision.taken:
            text = f"feedback for this decision was given already, and is {decision.taken}"
            self._not_applied(given, "duplicate", text)
            return
        observation = self._observation(given.request, decision)
        if observation is None:
            self._nothing_to_learn(given, decision)
            return
        app = self._apps[decision.app]
        decision.taken = "being taken in"
        key = (decision.app, decision.context)

        def done(state: State | None, outcome: str) -> None:
            if outcome == "applied" and state is not None:
                if self._app(decision) is not None:
                    self._learned(key, state)
                decision.taken = "applied"
                app.counts.feedback += 1
                self._answer(given, {"applied": True})
            elif outcome == "held":
                decision.taken = "held back"
                self._not_applied(given, "store_down", HELD)
            else:
                decision.taken = ""
                self._not_applied(given, "not_learned", outcome.removeprefix("refused: "))

        self._keeper.submit(Learn(key, app.policy, tuple(app.models), observation, done))

    def _app(self, decision: Decision) -> Application | None:
        """The application that decided; None if it is gone, though another one may have its name."""
        app = self._apps.get(decision.app)
        return app if app is not None and app.created == decision.created else None

    def _nothing_to_learn(self, given: Given, decision: Decision) -> None:
        app = self._app(decision)
        if app is None:
            other = "; another one has its name now" if decision.app in self._apps else ""
            text = f"the application {decision.app!r} that gave this answer is gone{other}"
            self._not_applied(given, "unknown_app", text)
            return
        if not decision.predictions:
            text = "no model answered in time, so that there is nothing to learn"
        elif app.kind != decision.kind:
            text = f"the application's models gave {decision.kind} then, and give {app.kind} now"
        elif not any(model in app.models for model in decision.predictions):
            text = f"those that answered are no models of the application any more: {', '.join(decision.predictions)}"
        else:
            text = "only shadows answered: they learn from a label, not from the loss of an answer"
        self._not_applied(given, "nothing_to_learn", text)

    def _observation(self, request: protocol.Feedback, decision: Decision) -> Observation | None:
        """Losses of the models that answered; None if there are none to be learned. Raises: Invalid."""
        if request.context is not None and request.context != decision.context:
            text = f"the decision was made in the context {decision.context!r}; got {request.context[:40]!r}"
            raise Invalid("bad_context", text, "context", request.id)
        app = self._app(decision)
        if app is None or app.kind != decision.kind:
            return None
        said = {model: predicted for model, predicted in decision.predictions.items() if model in app.models}
        try:
            if request.loss is not None:
                loss = check_loss(request.loss, app.common.loss_max)
                losses = {model: loss for model in said if model not in decision.shadows}
            else:
                losses = self._losses(request.label, app, said)
        except FeedbackError as error:
            raise Invalid("bad_feedback", error.message, error.field, request.id) from None
        return Observation(losses, chances_of(decision)) if losses else None

    def _losses(self, label: Any, app: Application, said: Mapping[str, Any]) -> dict[str, float]:
        losses: dict[str, float] = {}
        truth: Any = None
        for model, predicted in said.items():
            array = predicted.array()
            if truth is None:
                truth = check_label(label, app.kind, array.shape, app.classes, app.spec.labels)
            losses[model] = losses_of(app.common.loss, app.kind, truth, array, app.common.loss_max)
        return losses

    def _not_applied(self, given: Given, reason: str, message: str) -> None:
        if given.answered and message != HELD:
            log.warning("held_feedback_lost", decision=given.request.decision_id, reason=reason, why=message)
        self._answer(given, {"applied": False, "reason": reason, "message": message})

    def _answer(self, given: Given, outcome: Mapping[str, Any]) -> None:
        """Once; what becomes of feedback that was held back is in the counts, and in the log where it is lost."""
        if not given.answered:
            given.answered = True
            self._send(given.client, {"id": given.request.id, "status": "ok", **outcome})
