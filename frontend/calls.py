"""Requests of models: from where they enter to their answers, by way of controllers and workers. Shell."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from frontend.controllers import Controllers
from frontend.core.applications.messages import Failure, ModelAnswered, ModelFailed
from frontend.core.evaluations import Evaluations
from frontend.core.open_calls import Call, CallPart, Completed
from frontend.core.outcomes import Outcomes
from frontend.core.output_rules import OutputFault, Shapes
from frontend.core.starting import StartingContainers
from frontend.core.targets import Targets
from frontend.core.window import Window
from frontend.inputs import LargeInputs
from frontend.replies import Replies
from frontend.results import ResultsPort
from mesh import wire
from mesh.codes import ActionCode, AnswerStatus, ErrorCode, RequestOutcome
from mesh.process.runtime import Runtime
from mesh.process.segments import SegmentWriter
from mesh.wire import Buffer

TRIM_S = 5.0  # between two times that shared memory is looked at which may not be in use any more
TOO_LARGE = frozenset({ActionCode.BAD_BATCH})  # fewer rows of these extents fit together
log = structlog.get_logger("frontend")


class ModelCalls:
    """Submits calls to controllers, takes refusals and outputs, and ends each call once.

    Clients are answered, and applications told, who ask models as clients do.
    """

    def __init__(
        self,
        runtime: Runtime,
        evaluations: Evaluations,
        targets: Targets,
        starting: StartingContainers,
        replies: Replies,
        outcomes: Outcomes,
        hello: Callable[[], wire.FrontendHello],
        suspected: Callable[[wire.ClientSuspected], None],
        tell_applications: Callable[[ModelAnswered | ModelFailed], None],
    ) -> None:
        self._hub = runtime.hub
        self._requests = evaluations.table
        self._evaluations = evaluations
        self._targets = targets
        self._starting = starting
        self._replies = replies
        self._outcomes = outcomes
        self._tell_applications = tell_applications
        self._trim_s = 0.0  # when it is looked at again
        self.window = Window(self._requests.in_flight_max)
        me = hello()
        self.inputs = LargeInputs(SegmentWriter(runtime.settings.shared_mb << 20), me.host)
        self.results = ResultsPort(
            runtime.transport, me.member, self._requests, self._answer_ok, self._outputs_malformed
        )
        self.controllers = Controllers(
            runtime.transport,
            hello,
            self._refused,
            suspected,
            self.window.told,
            self._controller_lost,
            self._submit_waiting,
        )

    def stop(self) -> None:
        """Every open call is answered, and the controllers are told that we leave."""
        for call in self._evaluations.close_all():
            self._answer_error(call, AnswerStatus.FAILED, ErrorCode.STOPPING, "the frontend is being stopped", None)
        self.controllers.stop()
        self.inputs.free(self._requests.released)

    def close(self) -> None:
        """Nobody is heard any more, and shared memory is given up."""
        self.results.close()
        self.inputs.close()

    # -- calls --------------------------------------------------------------------------------------------------------

    def enter(self, call: Call, tensors: Sequence[Buffer], use_cache: bool) -> None:
        """Answers the call from the cache, lets it wait for an identical one, or submits it."""
        self.window.opened(call.deadline_s - call.received_s)
        parts: Sequence[CallPart]
        if use_cache and call.spec.cacheable and self._evaluations.cache.on:
            entered = self._evaluations.enter(call, tensors)
            if entered.outputs is not None:
                self._answer_call(call, entered.outputs, time.monotonic(), None, True, entered.shapes)
            parts = entered.parts
        else:
            parts = self._requests.open(call, tensors)
        for part in parts:
            self._submit(part, time.monotonic())

    def _submit(self, part: CallPart, now: float) -> None:
        """Submits the part to its model's controller. Without one it waits, as long as its budget lasts."""
        call = part.call
        model, _ = wire.split_ref(call.ref)
        owner = self.controllers.owner(model)
        if owner is None:
            return
        tensors = part.tensors
        large = (len(tensors[0]) if len(tensors) == 1 else sum(map(len, tensors))) > wire.INLINE_BYTES_MAX
        message = wire.Submit(
            request=part.number,
            attempt=self._requests.submitted(part, owner),
            ref=call.ref,
            rows=part.rows,
            budget_s=call.deadline_s - now,
            weight=call.weight,
            inline=() if large else tuple(part.tensors),  # type: ignore[arg-type]  # bytes will do as well
            client=call.asker,
            asked_id=str(call.asked_id or call.id)[: wire.ASKED_ID_MAX] if call.ask is None else "",
            call=0 if part.number == call.first else call.first or 0,
            extents=call.extents,
            kept=self._keep(part) if large else None,
        )
        self.controllers.submit(model, message)

    def _keep(self, part: CallPart) -> wire.Kept:
        self.inputs.free(self._requests.released)  # there may be no room without that
        return self.inputs.keep(part)

    def turn(self, now: float) -> None:
        """At the end of each turn: memory is given back."""
        if self._requests.released:
            self.inputs.free(self._requests.released)
        if now >= self._trim_s:
            self._trim_s = now + TRIM_S
            self.inputs.trim()
            self.results.forget_gone()

    def _submit_waiting(self) -> None:
        now = time.monotonic()
        for part in self._requests.unsubmitted():
            self._submit(part, now)
        self._hub.schedule_turn()

    def expire(self, now: float) -> None:
        """Calls whose deadline has passed are answered."""
        for given_up in self._evaluations.expire(now):
            if given_up.reached:
                self.window.heard(given_up.call.deadline_s - given_up.call.received_s)
            self.drop(given_up.needless, RequestOutcome.TIMED_OUT)
            text = "no answer came within the budget" if given_up.reached else "no controller could be reached"
            self._answer_error(given_up.call, AnswerStatus.TIMED_OUT, ErrorCode.DEADLINE, text)

    def drop(self, parts: Iterable[CallPart], outcome: RequestOutcome) -> None:
        """Controllers are told which of these parts, whose calls have ended, nobody waits for any more.

        `outcome`: how the calls ended for their clients; WITHDRAWN, if that is told of other parts.
        """
        for part in parts:
            if part.controller is not None and part.outputs is None:
                self.controllers.cancel(part.controller, part.number, outcome)

    # -- from controllers and workers ---------------------------------------------------------------------------------

    def _controller_lost(self, controller: str) -> None:
        parts = self._requests.controller_lost(controller)
        if parts:
            log.warning("resubmitting", requests=len(parts), controller=controller)
        self._submit_waiting()

    def _refused(self, refused: wire.Refused, controller: str) -> None:
        if not self._requests.is_at(refused.request, controller):
            return  # it has gone to another one since
        again = None if refused.alone else self._requests.refused_before(refused.request, refused.attempt)
        if again is not None:
            self._submit(again, time.monotonic())
            return
        if refused.code in TOO_LARGE:
            halves = self._requests.halve(refused.request, refused.attempt)
            for half in halves:
                self._submit(half, time.monotonic())
            if halves:
                self.controllers.cancel(
                    controller, refused.request, RequestOutcome.IN_TIME
                )  # the halves' outcome counts
                return
        call = self._requests.refused(refused.request, refused.attempt)
        if call is None:
            if self._requests.ended(refused.request) and not self.controllers.told(refused.request):
                # its outputs came, though the controller never heard of them: their worker died in between
                self.controllers.cancel(controller, refused.request, RequestOutcome.IN_TIME)
            return
        others = (part for part in call.parts if part.number != refused.request)
        self.drop(others, RequestOutcome.WITHDRAWN)
        predicted_ms = None if refused.predicted_s is None else refused.predicted_s * 1e3
        retry_ms = None if refused.retry_after_s is None else max(1.0, refused.retry_after_s * 1e3)
        message = refused.message
        if self._starting.some:
            message = self._starting.added(message, refused.code, call.ref, now=time.monotonic())
        waited = self._evaluations.failed(call) if refused.alone else ()
        for each in (call, *waited):
            self._answer_error(each, refused.status, refused.code, message, predicted_ms, retry_ms)

    def _outputs_malformed(self, call: Call, device: str) -> None:
        text = f"{device} sent outputs that are not those of {call.ref}"
        if call.malformed:
            text = f"{text}: {call.malformed}"
        self._amend(call, RequestOutcome.FAILED)
        for each in (call, *self._evaluations.failed(call)):
            self._answer_error(each, AnswerStatus.FAILED, ErrorCode.BAD_OUTPUTS, text)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answer_ok(self, completed: Completed, now: float) -> None:
        call = completed.call
        self.window.heard(now - call.received_s - completed.predicted_s)
        try:
            outputs, shapes = completed.joined()
        except OutputFault as fault:
            call.malformed = str(fault)
            self._outputs_malformed(call, completed.device)
            return
        if call.flight is not None:
            current = self._targets.current(call.ref, call.spec)
            for waited in self._evaluations.succeeded(completed, outputs, current, shapes):
                self._answer_call(waited, outputs, now, completed, False, shapes)
        self._answer_call(call, outputs, now, completed, False, shapes)

    def _answer_call(
        self,
        call: Call,
        outputs: Sequence[Any],
        now: float,
        completed: Completed | None,
        cached: bool,
        shapes: Shapes,
    ) -> None:
        if call.ask is not None:
            self._outcomes.served(call, now, cached=cached, cold=completed is not None and completed.cold)
            self._tell_applications(ModelAnswered(call.ask, outputs, cached))
        elif not self._replies.outputs(call, outputs, completed, cached, shapes):
            self._amend(call, RequestOutcome.LATE)

    def _answer_error(
        self,
        call: Call,
        status: str,
        code: str,
        message: str,
        predicted_ms: float | None = None,
        retry_after_ms: float | None = None,
    ) -> None:
        now = time.monotonic()
        for part in self._evaluations.ended(call):
            self._submit(part, now)
        if call.ask is not None:
            self._outcomes.ended(call, status, code)
            failure = Failure.of(status, code, message, predicted_ms, retry_after_ms)
            self._tell_applications(ModelFailed(call.ask, failure))
            return
        self._replies.error(call, status, code, message, now, predicted_ms, retry_after_ms)

    def _amend(self, call: Call, outcome: RequestOutcome) -> None:
        """Controllers, who took the call for done, learn how it ended for its client."""
        for part in call.parts:
            if part.controller is not None:
                self.controllers.cancel(part.controller, part.number, outcome)
