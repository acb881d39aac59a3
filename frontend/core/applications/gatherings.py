"""Questions to applications that are open: who was asked, who answered, and what is said when time is up. Pure.

Every member is asked at once; the answer is made when all have reported, or when the budget ends, of what is there.
Source: Clipper (NSDI'17), section 5.2.2: a late answer is worse than an inexact one.
"""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from frontend.core.applications.decisions import Decision, Predicted
from frontend.core.applications.definitions import Application
from selection.base import Answers, Array, Combined, Selection, State, finite
from selection.combining import predictions

KEPT_S_MAX = 0.002  # of the budget, for joining the answers and sending them
KEPT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no answer, of one model or of the application; or why it is the default."""

    status: str  # as in an answer
    code: str
    message: str
    predicted_ms: float | None = None
    retry_after_ms: float | None = None


LATE = Trouble("timed_out", "deadline", "no model answered within the budget")


@dataclass(slots=True, eq=False)
class Gathering:
    """One question to an application."""

    client: Hashable
    id: int | str
    app: Application
    context: str
    rows: int
    tensors: Sequence[bytes | memoryview]
    framed: bool
    weight: float
    use_cache: bool
    received_s: float
    deadline_s: float
    selection: Selection | None = None
    shadows: tuple[str, ...] = ()
    waiting: set[str] = field(default_factory=set)  # asked, not shadows, and not heard of
    came: dict[str, list[Array]] = field(default_factory=dict)  # {model: outputs}, shadows included
    troubles: dict[str, Trouble] = field(default_factory=dict)  # {model: why it did not answer}
    from_cache: int = 0  # members that the cache answered
    answered: bool = False
    decision_id: str = ""

    @property
    def answer_s(self) -> float:
        """When it is answered at the latest."""
        budget_s = self.deadline_s - self.received_s
        return self.deadline_s - min(KEPT_S_MAX, KEPT_SHARE * budget_s)


@dataclass(frozen=True, slots=True)
class Member:
    """One model's part of a gathering."""

    gathering: Gathering
    model: str


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What an application says."""

    outputs: list[Array] | None  # None: there is no answer, `trouble` says why
    default_used: bool
    models_used: list[str]  # that answered in time, shadows left out
    combined: Combined | None
    trouble: Trouble | None  # why the default is answered, or nothing


@dataclass(slots=True)
class Gatherings:
    """All that are open at one frontend."""

    _open: dict[tuple[Hashable, int | str], Gathering] = field(default_factory=dict)
    _deadlines: list[tuple[float, int, Gathering]] = field(default_factory=list)  # heap; answered ones leave it late
    _opened: int = 0

    def __len__(self) -> int:
        return len(self._open)

    def holds(self, client: Hashable, call_id: int | str) -> bool:
        """A question with this id is open on this connection."""
        return (client, call_id) in self._open

    def open(self, gathering: Gathering) -> None:
        """It waits for its answers."""
        self._open[(gathering.client, gathering.id)] = gathering
        self._opened += 1
        heapq.heappush(self._deadlines, (gathering.answer_s, self._opened, gathering))

    def asking(self, gathering: Gathering, selection: Selection) -> list[str]:
        """These models are to be asked: shadows, then those whose answers count."""
        shadows = tuple(model for model in gathering.app.common.shadow if model not in selection.models)
        gathering.selection, gathering.shadows = selection, shadows
        gathering.waiting = set(selection.models)
        return [*shadows, *selection.models]

    def came(self, member: Member, outputs: list[Array]) -> bool:
        """A member answered. True if nobody is waited for any more."""
        gathering = member.gathering
        if gathering.app.kind != "labels" and not finite(outputs):
            trouble = Trouble("failed", "bad_outputs", f"{member.model} answered with numbers that are not finite")
            return self.failed(member, trouble)
        gathering.came[member.model] = outputs
        return self._reported(member)

    def failed(self, member: Member, trouble: Trouble) -> bool:
        """A member will not answer. True if nobody is waited for any more."""
        member.gathering.troubles[member.model] = trouble
        return self._reported(member)

    def _reported(self, member: Member) -> bool:
        gathering = member.gathering
        gathering.waiting.discard(member.model)
        return not gathering.waiting and not gathering.answered

    def close(self, gathering: Gathering) -> None:
        """It is being answered."""
        gathering.answered = True
        gathering.tensors = ()  # it stays in the heap for a while
        del self._open[(gathering.client, gathering.id)]
        if len(self._deadlines) > 64 + 4 * len(self._open):
            self._deadlines = [entry for entry in self._deadlines if not entry[2].answered]
            heapq.heapify(self._deadlines)

    def due(self, now: float) -> list[Gathering]:
        """Those that are to be answered now, with what there is."""
        found = []
        heap = self._deadlines
        while heap and (heap[0][2].answered or heap[0][0] <= now):
            gathering = heapq.heappop(heap)[2]
            if not gathering.answered:
                found.append(gathering)
        return found

    def wake_at(self) -> float | None:
        """When the next one is due."""
        heap = self._deadlines
        while heap and heap[0][2].answered:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def all(self) -> list[Gathering]:
        """All open ones."""
        return list(self._open.values())

    def check(self) -> None:
        """Every invariant holds."""
        for key, gathering in self._open.items():
            assert key == (gathering.client, gathering.id)
            assert not gathering.answered
            assert not gathering.waiting & gathering.came.keys()
            assert not gathering.waiting & gathering.troubles.keys()
        assert not any(entry[2].tensors for entry in self._deadlines if entry[2].answered)
        assert sum(not entry[2].answered for entry in self._deadlines) == len(self._open)


def conclude(gathering: Gathering, state: State) -> Conclusion:
    """The answer of what is there. Raises: whatever a policy of the user's own raises."""
    app = gathering.app
    selection = gathering.selection
    asked = selection.models if selection is not None else ()
    came = {model: gathering.came[model] for model in asked if model in gathering.came}
    if not came:
        return _without(gathering, [], None, _why_nothing(gathering))
    answers = Answers(tuple(asked), came, app.kind, app.common.confidence, app.common.agree_within)
    combined = app.policy.combine(state, answers)
    _check_combined(combined, gathering)
    least = app.definition.confidence_min
    if combined.confidence < least:
        text = f"confidence {combined.confidence:.3g} is below the application's confidence_min, {least:g}"
        return _without(gathering, list(came), combined, Trouble("failed", "low_confidence", text))
    return Conclusion(combined.outputs, False, list(came), combined, None)


def _check_combined(combined: Combined, gathering: Gathering) -> None:
    """Raises: ValueError, where a policy of the user's own gave what no model would."""
    specs = gathering.app.spec.outputs
    outputs = combined.outputs
    if len(outputs) != len(specs):
        raise ValueError(f"combine gave {len(outputs)} outputs; the models give {len(specs)}")
    for spec, array in zip(specs, outputs, strict=True):
        shape = (gathering.rows, *spec.shape[1:])
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.dtype(spec.dtype):
            found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"combine gave {found} for {spec.name}, which is {spec.dtype} {list(shape)}")
    if not 0 <= combined.confidence <= 1:
        raise ValueError(f"combine gave a confidence of {combined.confidence}, which is not in 0 to 1")


def decision_of(gathering: Gathering, decision_id: str) -> Decision:
    """What feedback will need to know."""
    selection = gathering.selection
    said = {model: Predicted.of(predictions(gathering.app.kind, out)) for model, out in gathering.came.items()}
    return Decision(
        id=decision_id,
        app=gathering.app.name,
        context=gathering.context,
        created=gathering.app.created,
        kind=gathering.app.kind,
        predictions=said,
        shadows=list(gathering.shadows),
        chances=dict(selection.chances) if selection is not None else {},
    )


def _without(gathering: Gathering, used: list[str], combined: Combined | None, trouble: Trouble) -> Conclusion:
    default = [np.repeat(array, gathering.rows, axis=0) for array in gathering.app.default]
    return Conclusion(default or None, bool(default), used, combined, trouble)


def _why_nothing(gathering: Gathering) -> Trouble:
    """The trouble of all members in one: late if one was waited for; else the one that most can be done about."""
    if gathering.waiting or not gathering.troubles:
        return LATE
    order = {"rejected": 0, "timed_out": 1, "failed": 2, "invalid": 3}
    asked = gathering.selection.models if gathering.selection is not None else ()
    troubles = [gathering.troubles[model] for model in asked if model in gathering.troubles]
    return min(troubles, key=lambda trouble: order.get(trouble.status, 4)) if troubles else LATE
