"""Open questions to applications: which models were asked, which answered, and what the application answers.

All selected models are asked at once. The application answers when all have reported, or when its time is up, with
what is there by then.
Source: Clipper (NSDI'17), section 5.2.2: a late answer is worse than an inexact one.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from frontend.core.applications.decisions import Decision, Predicted
from frontend.core.applications.definitions import Application
from frontend.core.applications.messages import Client, Failure
from frontend.core.by_client import OpenByClient
from mesh.codes import AnswerStatus, ErrorCode
from mesh.sizes import Extents, row_shape
from selection.base import Answers, Array, Combined, Selection, State, finite
from selection.combining import predictions

MARGIN_S_MAX = 0.002  # part of the budget that is left for combining the answers and sending the result
MARGIN_SHARE = 0.05
NO_ANSWER = Failure(AnswerStatus.TIMED_OUT, ErrorCode.DEADLINE, "no model answered within the budget")


@dataclass(slots=True, eq=False)
class EnsembleRequest:
    """One question to an application."""

    client: Client
    id: int | str
    app: Application
    context: str
    rows: int
    tensors: Sequence[bytes | memoryview]  # inputs, in the order of the spec; empty once it is answered
    framed: bool  # the answer's tensors travel as frames
    weight: float
    use_cache: bool
    received_s: float
    deadline_s: float
    asker: int = 0  # who asks, as the controller tells clients apart
    extents: Extents = ()  # of the inputs, in the models' open dimensions
    selection: Selection | None = None  # None until models are asked
    shadows: tuple[str, ...] = ()  # models that are asked beside those, and never waited for
    waiting: set[str] = field(default_factory=set)  # selected models that have not reported
    outputs: dict[str, list[Array]] = field(default_factory=dict)  # {model that answered: outputs}, with shadows
    failures: dict[str, Failure] = field(default_factory=dict)  # {model that failed: why}, with shadows
    asks: list[int] = field(default_factory=list)  # numbers of its Asks
    from_cache: int = 0  # selected models whose outputs the prediction cache had
    answered: bool = False
    decision_id: str = ""  # empty until it is answered

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those of the outputs, the same of all its models."""
        spec = self.app.spec
        return [(self.rows, *row_shape(tensor, spec.dims, self.extents)) for tensor in spec.outputs]

    @property
    def answer_s(self) -> float:
        """The latest instant at which it is answered."""
        budget_s = self.deadline_s - self.received_s
        return self.deadline_s - min(MARGIN_S_MAX, MARGIN_SHARE * budget_s)

    @property
    def selected(self) -> tuple[str, ...]:
        """The models whose answers count."""
        return self.selection.models if self.selection is not None else ()

    def select(self, selection: Selection) -> list[str]:
        """The selected models are waited for. Returns whom to ask: shadows, then the selected models."""
        self.shadows = tuple(model for model in self.app.common.shadow if model not in selection.models)
        self.selection = selection
        self.waiting = set(selection.models)
        return [*self.shadows, *selection.models]

    def model_answered(self, model: str, outputs: list[Array]) -> None:
        """The outputs count, if they are finite numbers; otherwise the model has failed."""
        if self.app.kind != "labels" and not finite(outputs):
            text = f"{model} answered with numbers that are not finite"
            self.model_failed(model, Failure(AnswerStatus.FAILED, ErrorCode.BAD_OUTPUTS, text))
            return
        self.outputs[model] = outputs
        self.waiting.discard(model)

    def model_failed(self, model: str, failure: Failure) -> None:
        """The model is not waited for any more."""
        self.failures[model] = failure
        self.waiting.discard(model)

    @property
    def complete(self) -> bool:
        """True if it is to be answered now: every selected model has reported."""
        return self.selection is not None and not self.waiting and not self.answered


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What an application answers."""

    outputs: list[Array] | None  # one array [rows, ...] per output; None: `failure` is the answer
    default_used: bool
    models_used: list[str]  # selected models that answered in time
    combined: Combined | None
    failure: Failure | None  # why the default or nothing is answered


@dataclass(slots=True)
class OpenEnsembles:
    """All questions of one frontend that are not answered yet."""

    _open: OpenByClient[EnsembleRequest] = field(default_factory=OpenByClient)
    _deadlines: list[tuple[float, int, EnsembleRequest]] = field(default_factory=list)  # heap of (answer_s, count, it)
    _opened: int = 0  # questions so far

    def __len__(self) -> int:
        return len(self._open)

    def holds(self, client: Client, request_id: int | str) -> bool:
        """True if a question with this id is open on this connection."""
        return self._open.get(client, request_id) is not None

    def get(self, client: Client, request_id: int | str) -> EnsembleRequest | None:
        """The question with this id on this connection; None if it is not open."""
        return self._open.get(client, request_id)

    def of(self, client: Client) -> list[EnsembleRequest]:
        """The questions that are open on this connection, oldest first."""
        return self._open.of(client)

    def open(self, request: EnsembleRequest) -> None:
        """The question is open."""
        self._open.add(request.client, request.id, request)
        self._opened += 1
        heapq.heappush(self._deadlines, (request.answer_s, self._opened, request))

    def close(self, request: EnsembleRequest) -> None:
        """The question is answered, and its inputs are free. It leaves the heap later."""
        request.answered = True
        request.tensors = ()
        self._open.remove(request.client, request.id)
        if len(self._deadlines) > 64 + 4 * len(self._open):
            self._deadlines = [entry for entry in self._deadlines if not entry[2].answered]
            heapq.heapify(self._deadlines)

    def due(self, now: float) -> list[EnsembleRequest]:
        """Returns the questions whose time is up, earliest first. They leave the heap, and stay open."""
        found = []
        heap = self._deadlines
        while heap and (heap[0][2].answered or heap[0][0] <= now):
            request = heapq.heappop(heap)[2]
            if not request.answered:
                found.append(request)
        return found

    def wake_at(self) -> float | None:
        """The instant from which `due` returns something."""
        heap = self._deadlines
        while heap and heap[0][2].answered:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def all(self) -> list[EnsembleRequest]:
        """All open questions, those of one connection oldest first."""
        return self._open.all()

    def check(self) -> None:
        """Raises: AssertionError unless every invariant holds."""
        self._open.check()
        for request in self._open.all():
            assert self._open.get(request.client, request.id) is request
            assert not request.answered
            assert not request.waiting & request.outputs.keys()
            assert not request.waiting & request.failures.keys()
        assert not any(entry[2].tensors for entry in self._deadlines if entry[2].answered)
        assert sum(not entry[2].answered for entry in self._deadlines) == len(self._open)


def conclude(request: EnsembleRequest, state: State) -> Conclusion:
    """Returns the answer that follows from the outputs so far. Raises: whatever a user's policy raises."""
    app = request.app
    outputs = {model: request.outputs[model] for model in request.selected if model in request.outputs}
    if not outputs:
        return _default(request, [], None, _why_no_answer(request))
    answers = Answers(request.selected, outputs, app.kind, app.common.confidence, app.common.agree_within)
    combined = app.policy.combine(state, answers)
    _check_combined(combined, request)
    least = app.definition.confidence_min
    if combined.confidence < least:
        text = f"confidence {combined.confidence:.3g} is below the application's confidence_min, {least:g}"
        return _default(request, list(outputs), combined, Failure(AnswerStatus.FAILED, ErrorCode.LOW_CONFIDENCE, text))
    return Conclusion(combined.outputs, False, list(outputs), combined, None)


def decision_of(request: EnsembleRequest, decision_id: str) -> Decision:
    """Returns what feedback for the answer will need."""
    said = {model: Predicted.of(predictions(request.app.kind, outputs)) for model, outputs in request.outputs.items()}
    return Decision(
        id=decision_id,
        app=request.app.name,
        context=request.context,
        created=request.app.created,
        kind=request.app.kind,
        predictions=said,
        shadows=list(request.shadows),
        chances=dict(request.selection.chances) if request.selection is not None else {},
    )


def count(request: EnsembleRequest, conclusion: Conclusion) -> None:
    """The application's counts include this answer."""
    counts = request.app.counts
    failure, combined = conclusion.failure, conclusion.combined
    if conclusion.default_used and failure is not None:
        counts.defaults[failure.code] = counts.defaults.get(failure.code, 0) + 1
    elif conclusion.outputs is None:
        counts.refused += 1
    else:
        counts.answered += 1
        counts.partial += len(conclusion.models_used) < len(request.selected)
    if combined is not None and combined.disagreement > 0:
        counts.disagreed += 1


def _check_combined(combined: Combined, request: EnsembleRequest) -> None:
    """Returns if the outputs are of the models' shapes and dtypes. Raises: ValueError; a user's policy may err."""
    specs = request.app.spec.outputs
    outputs = combined.outputs
    if len(outputs) != len(specs):
        raise ValueError(f"combine gave {len(outputs)} outputs; the models give {len(specs)}")
    for spec, array, shape in zip(specs, outputs, request.shapes, strict=True):
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.dtype(spec.dtype):
            found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"combine gave {found} for {spec.name}, which is {spec.dtype} {list(shape)}")
    if not 0 <= combined.confidence <= 1:
        raise ValueError(f"combine gave a confidence of {combined.confidence}, which is not in 0 to 1")


def _default(request: EnsembleRequest, used: list[str], combined: Combined | None, failure: Failure) -> Conclusion:
    """Returns the default for every row, or the failure where the application has no default."""
    default = [np.repeat(array, request.rows, axis=0) for array in request.app.default]
    return Conclusion(default or None, bool(default), used, combined, failure)


def _why_no_answer(request: EnsembleRequest) -> Failure:
    """Returns one failure for all models: late if one was still waited for, else the one easiest to act on."""
    if request.waiting or not request.failures:
        return NO_ANSWER
    order = {AnswerStatus.REJECTED: 0, AnswerStatus.TIMED_OUT: 1, AnswerStatus.FAILED: 2, AnswerStatus.INVALID: 3}
    failures = [request.failures[model] for model in request.selected if model in request.failures]
    return min(failures, key=lambda failure: order.get(failure.status, 4)) if failures else NO_ANSWER
