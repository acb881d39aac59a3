"""From a question to its answer: what was learned is looked up, models are selected, asked and combined."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frontend.core import checks, protocol
from frontend.core.applications.decisions import DecisionTable, Predicted, encoded
from frontend.core.applications.ensembles import (
    Conclusion,
    EnsembleRequest,
    OpenEnsembles,
    conclude,
    count,
    decision_of,
)
from frontend.core.applications.learned import LearnedStates
from frontend.core.applications.messages import (
    Ask,
    Client,
    ClientAsked,
    Failure,
    Order,
    Park,
    PolicyRaised,
    ReadState,
    SendAnswer,
    Withdraw,
)
from frontend.core.applications.registry import ApplicationLimits, ApplicationRegistry
from frontend.core.checking import checking
from frontend.core.protocol import CANCELLED, ClientAnswer, Error, RequestRefused
from mesh.codes import AnswerStatus, ErrorCode
from selection.base import unusable
from selection.combining import predictions
from selection.contexts import Key, check_context

STATE_WAIT_S = 0.02  # a context that is not read by then is served as a new one


@dataclass(slots=True)
class AwaitedState:
    """Questions that wait until the state of their context is read."""

    until_s: float
    requests: list[EnsembleRequest]


class Answering:
    """All open questions to applications."""

    def __init__(
        self,
        limits: ApplicationLimits,
        registry: ApplicationRegistry,
        learned: LearnedStates,
        decisions: DecisionTable,
        rng: random.Random,
    ) -> None:
        self._limits, self._registry, self._learned = limits, registry, learned
        self._decisions, self._rng = decisions, rng
        self.open = OpenEnsembles()
        self._awaited: dict[Key, AwaitedState] = {}
        self._asked: dict[int, tuple[EnsembleRequest, str]] = {}  # {number of an Ask without outcome: (for, model)}
        self._numbers = itertools.count(1)

    def infer(self, asked: ClientAsked, request: protocol.InferRequest, now: float) -> list[Order]:
        """The question is open. Models are asked now, or once the context's state is read. Raises: RequestRefused."""
        opened = self._checked(asked, request)
        opened.app.counts.asked += 1
        self.open.open(opened)
        return self._look_up(opened, now)

    @checking
    def _checked(self, asked: ClientAsked, request: protocol.InferRequest) -> EnsembleRequest:
        """The question, which can be answered. Raises: RequestRefused."""
        app, rules = self._registry.find(request)
        context = request.context or ""
        fault = check_context(context)
        if fault is not None:
            raise RequestRefused(ErrorCode.BAD_CONTEXT, fault, "context", request.id)
        budget_s = checks.check_budget(request, app.slo_ms, self._limits.slo_ms_max)
        weight = checks.check_weight(request)
        checked = rules.check(request, asked.frames)
        return EnsembleRequest(
            asked.client, request.id, app, context, checked.rows, checked.tensors, bool(asked.frames), weight,
            request.cache, asked.received_s, asked.received_s + budget_s, asked.asker, checked.extents,
        )  # fmt: skip

    def _look_up(self, request: EnsembleRequest, now: float) -> list[Order]:
        """Returns the read of the state, where it is due, and what to do meanwhile."""
        app, key, store = request.app, (request.app.name, request.context), self._learned.store
        unread = not store.full and self._learned.cache.get(key) is None
        orders: list[Order] = []
        if not store.full and self._learned.cache.begin_read(key, now):
            orders.append(ReadState(key))
        awaited = self._awaited.get(key)
        if not app.learns or store.down or (awaited is None and not unread):
            return [*orders, *self._ask(request, now)]
        if awaited is None:
            # from receipt on: before the first table, a request waits before it comes here
            budget_s = request.deadline_s - request.received_s
            until_s = request.received_s + min(STATE_WAIT_S, budget_s / 2)
            awaited = self._awaited[key] = AwaitedState(until_s, [])
        awaited.requests.append(request)
        return orders

    def state_read(self, key: Key, now: float) -> list[Order]:
        """The questions that waited for this state ask their models."""
        awaited = self._awaited.pop(key, None)
        waited = awaited.requests if awaited is not None else []
        return [order for request in waited if not request.answered for order in self._ask(request, now)]

    def _ask(self, request: EnsembleRequest, now: float) -> list[Order]:
        """The policy selects models, and all of them are asked."""
        app = request.app
        try:
            selection = app.policy.select(self._learned.of(app, request.context), self._rng, request.context)
            fault = unusable(selection, app.models)
            if fault is not None:
                raise ValueError(fault)
        except Exception as error:  # a user's policy may raise anything
            return self._policy_raised(request, error, now)
        orders: list[Order] = []
        for model in request.select(selection):
            failure = self._registry.why_not_asked(app, model)
            if failure is None:
                orders.append(self._ask_model(request, model))
            else:
                request.model_failed(model, failure)
        return [*orders, *self._conclude_if_complete(request, now)]

    def _ask_model(self, request: EnsembleRequest, model: str) -> Ask:
        number = next(self._numbers)
        self._asked[number] = (request, model)
        request.asks.append(number)
        return Ask(
            number, model, request.rows, request.tensors, request.received_s, request.deadline_s,
            request.weight, request.use_cache, request.asker, request.extents,
        )  # fmt: skip

    def model_answered(
        self, number: int, outputs: Sequence[bytes | memoryview], now: float, *, cached: bool
    ) -> list[Order]:
        """The outputs count; those of a shadow that come after the answer enter its decision."""
        request, model = self._asked.pop(number)
        arrays = [
            np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<")).reshape(shape)
            for spec, data, shape in zip(request.app.spec.outputs, outputs, request.shapes, strict=True)
        ]
        if request.answered:
            if model in request.shadows:
                self._decisions.add(request.decision_id, model, Predicted.of(predictions(request.app.kind, arrays)))
            return []
        request.from_cache += cached and model not in request.shadows
        request.model_answered(model, arrays)
        return self._conclude_if_complete(request, now)

    def model_failed(self, number: int, failure: Failure, now: float) -> list[Order]:
        """The model is not waited for any more."""
        request, model = self._asked.pop(number)
        if request.answered:
            return []
        request.model_failed(model, failure)
        return self._conclude_if_complete(request, now)

    def cancel(self, client: Client, request_id: int | str) -> list[Order]:
        """The question with this id is open no more. Returns its answer, and before it what is needed no more."""
        request = self.open.get(client, request_id)
        return [] if request is None else self._give_up(request, gone=False)

    def client_gone(self, client: Client) -> list[Order]:
        """No question of this connection is open any more."""
        return [order for request in self.open.of(client) for order in self._give_up(request, gone=True)]

    def _give_up(self, request: EnsembleRequest, *, gone: bool) -> list[Order]:
        """The question is closed without a decision: nobody could give feedback to it."""
        self.open.close(request)
        request.app.counts.cancelled += 1
        asked = [number for number in request.asks if self._asked.pop(number, None) is not None]
        answer = ClientAnswer(
            id=request.id, status=AnswerStatus.FAILED, app=request.app.name, error=Error(ErrorCode.CANCELLED, CANCELLED)
        )
        orders: list[Order] = [Withdraw(number) for number in asked]
        sent = SendAnswer(request.client, answer, (), request.framed, request.received_s, request.deadline_s, gone=gone)
        return [*orders, sent]

    def wake(self, now: float) -> list[Order]:
        """Contexts that are not read yet are served as new ones. Questions whose time is up are answered.

        The former goes first and alone: the prediction cache may have outputs that belong into an answer now due.
        """
        late = [key for key, awaited in self._awaited.items() if awaited.until_s <= now]
        orders = [order for key in late for order in self.state_read(key, now)]
        if orders:
            return orders
        return [order for request in self.open.due(now) for order in self._conclude(request, now)]

    def wake_at(self) -> float | None:
        """The instant from which `wake` has something to do."""
        instants = [awaited.until_s for awaited in self._awaited.values()]
        due_s = self.open.wake_at()
        return min([*instants, due_s] if due_s is not None else instants, default=None)

    def stop(self, now: float) -> list[Order]:
        """Every open question is answered: the frontend stops."""
        failure = Failure(AnswerStatus.FAILED, ErrorCode.STOPPING, "the frontend is being stopped")
        nothing = Conclusion(None, False, [], None, failure)
        return [order for request in self.open.all() for order in self._answer(request, nothing, now)]

    def _conclude_if_complete(self, request: EnsembleRequest, now: float) -> list[Order]:
        return self._conclude(request, now) if request.complete else []

    def _conclude(self, request: EnsembleRequest, now: float) -> list[Order]:
        try:
            conclusion = conclude(request, self._learned.of(request.app, request.context))
        except Exception as error:  # a user's policy may raise anything
            return self._policy_raised(request, error, now)
        return self._answer(request, conclusion, now)

    def _policy_raised(self, request: EnsembleRequest, error: Exception, now: float) -> list[Order]:
        text = f"the policy {request.app.definition.policy} raised {type(error).__name__}: {error}"
        conclusion = Conclusion(None, False, [], None, Failure(AnswerStatus.FAILED, ErrorCode.POLICY_ERROR, text))
        return [PolicyRaised(request.app.name, text), *self._answer(request, conclusion, now)]

    def _answer(self, request: EnsembleRequest, conclusion: Conclusion, now: float) -> list[Order]:
        """The question is closed and its decision kept. Returns what makes both known."""
        self.open.close(request)
        count(request, conclusion)
        decision = decision_of(request, self._decisions.next_id())
        request.decision_id = decision.id
        self._decisions.keep(decision, now)
        orders: list[Order] = []
        if self._registry.shared and not self._learned.store.full:
            decision.parked = True
            orders.append(Park(decision.id, encoded(decision)))
        outputs = list(zip(request.app.spec.outputs, conclusion.outputs or [], strict=False))
        answer = _answer_of(request, conclusion)
        return [
            *orders,
            SendAnswer(request.client, answer, outputs, request.framed, request.received_s, request.deadline_s),
        ]

    def check(self) -> None:
        """Raises: AssertionError unless every invariant holds."""
        self.open.check()
        asked = {(id(request), model) for request, model in self._asked.values()}
        for request in self.open.all():
            assert all((id(request), model) in asked for model in request.waiting)
            assert request.waiting or any(request in awaited.requests for awaited in self._awaited.values())


def _answer_of(request: EnsembleRequest, conclusion: Conclusion) -> ClientAnswer:
    """Returns the answer without its outputs and its latency."""
    failure, combined, used = conclusion.failure, conclusion.combined, conclusion.models_used
    answer = ClientAnswer(
        id=request.id,
        status=AnswerStatus.OK if conclusion.outputs is not None or failure is None else failure.status,
        app=request.app.name,
        cached=bool(used) and not conclusion.default_used and request.from_cache == len(used),
        default_used=conclusion.default_used,
        confidence=combined.confidence if combined is not None else 0.0,
        margin=combined.margin if combined is not None else None,
        disagreement=combined.disagreement if combined is not None else None,
        models_used=used,
        decision_id=request.decision_id,
    )
    if failure is not None:
        answer.predicted_ms = failure.predicted_ms
        answer.error = Error(failure.code, failure.message, None, failure.retry_after_ms)
    return answer
