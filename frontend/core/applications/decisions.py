"""Decisions: which models said what for each answer, kept for the feedback. Bounded in number, bytes and age."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import NamedTuple

import msgspec
import numpy as np

from mesh.codes import FeedbackReason
from selection.base import Array, Kind

BYTES_MAX = 256 << 20  # that the decisions of one frontend may take
OVERHEAD_BYTES = 600  # that one decision takes beside its predictions, roughly
SEAL_BYTES = 8  # last part of an id; only who got the answer knows it
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{1,16}-[0-9a-f]{16}")


class Predicted(msgspec.Struct, frozen=True, array_like=True):
    """What one model said: classes, int64 [rows], or numbers, float64 [rows, ...]."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Array) -> "Predicted":
        """Returns a copy of these values."""
        return cls(array.dtype.str, array.shape, array.tobytes())

    def array(self) -> Array:
        """Returns the values, not writable."""
        return np.frombuffer(self.data, np.dtype(self.dtype)).reshape(self.shape)


class Decision(msgspec.Struct):
    """One answer of an application, as feedback needs to know it."""

    id: str
    app: str
    context: str
    created: int  # see wire.AppEntry: another application may have this name by now
    kind: Kind  # of the predictions
    predictions: dict[str, Predicted]  # {model that answered: what it said}, shadows included
    shadows: list[str]
    chances: dict[str, float]  # {model: probability with which it was selected}
    made_s: float = 0.0  # clock of the frontend that keeps it
    taken: str = ""  # what became of the feedback, for a sentence; empty: there was none, and there may be
    parked: bool = False  # the store has it too, for the frontend that gets the feedback

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return OVERHEAD_BYTES + sum(len(said.data) for said in self.predictions.values())


class NotApplied(NamedTuple):
    """Why feedback is not applied."""

    code: FeedbackReason
    message: str
    elsewhere: bool = False  # the decision may be another frontend's


@dataclass(slots=True)
class DecisionTable:
    """The decisions of one frontend.

    An id consists of the incarnation, a counter and a seal, which is a keyed hash of the two. So nobody can give
    feedback who did not get the answer.
    """

    incarnation: str  # 8 hexadecimal digits; a restarted frontend has others
    decisions_max: int
    keep_s: float  # how long feedback is accepted
    secret: bytes  # key of the seals
    bytes_max: int = BYTES_MAX
    size: int = 0  # bytes that all decisions take, roughly
    _kept: OrderedDict[str, Decision] = field(default_factory=OrderedDict)  # {id: decision}, oldest first
    _made: int = 0  # ids so far

    def __len__(self) -> int:
        return len(self._kept)

    def next_id(self) -> str:
        """Returns an id that no decision has had."""
        self._made += 1
        return self._sealed(f"{self.incarnation}-{self._made:x}")

    def _sealed(self, name: str) -> str:
        return f"{name}-{blake2b(name.encode(), digest_size=SEAL_BYTES, key=self.secret).hexdigest()}"

    def keep(self, decision: Decision, now: float) -> None:
        """The decision accepts feedback from now on. The oldest decisions leave if there are too many."""
        decision.made_s = now
        self._kept[decision.id] = decision
        self.size += decision.size
        while self._kept and self._over(next(iter(self._kept.values())), now):
            _, old = self._kept.popitem(last=False)
            self.size -= old.size

    def add(self, decision_id: str, model: str, predicted: Predicted) -> None:
        """The decision holds what this model said, too: a shadow may answer late. Does nothing after the feedback."""
        decision = self._kept.get(decision_id)
        if decision is not None and not decision.taken:
            self.size -= decision.size
            decision.predictions[model] = predicted
            self.size += decision.size

    def find(self, decision_id: str, now: float) -> Decision | NotApplied:
        """Returns the decision, or why it is not here."""
        decision = self._kept.get(decision_id)
        if decision is not None and now - decision.made_s <= self.keep_s:
            return decision
        if not ID.fullmatch(decision_id):
            return NotApplied(FeedbackReason.UNKNOWN, "no answer ever carried this decision_id")
        name, _, _ = decision_id.rpartition("-")
        if name.startswith(self.incarnation):
            if not compare_digest(self._sealed(name), decision_id):
                return NotApplied(FeedbackReason.UNKNOWN, "no answer ever carried this decision_id")
            text = (
                f"feedback comes too late: it is taken for {self.keep_s:g} s, and the last {self.decisions_max} answers"
            )
            return NotApplied(FeedbackReason.LATE, text)
        text = "this frontend has made no such decision: another one has, or it was before a restart"
        return NotApplied(FeedbackReason.UNKNOWN, text, elsewhere=True)

    def _over(self, oldest: Decision, now: float) -> bool:
        crowded = len(self._kept) > self.decisions_max or self.size > self.bytes_max
        return crowded or now - oldest.made_s > self.keep_s

    def check(self) -> None:
        """Every invariant holds."""
        assert self.size == sum(decision.size for decision in self._kept.values())
        assert len(self._kept) <= self.decisions_max


def encoded(decision: Decision) -> bytes:
    """Returns the decision as bytes that another frontend can read."""
    return msgspec.msgpack.encode(decision)


def decoded(known: bytes) -> Decision:
    """Returns the decision that another frontend encoded. Raises: msgspec.MsgspecError."""
    return msgspec.msgpack.decode(known, type=Decision)


def chances_of(decision: Decision) -> Mapping[str, float]:
    """{model that answered: probability with which it was asked}; 1 for shadows."""
    return {model: decision.chances.get(model, 1.0) for model in decision.predictions}
