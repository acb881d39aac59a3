"""Answers that may still get feedback: which models said what. Bounded in number, bytes and age. Pure."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import NamedTuple

import msgspec
import numpy as np

from selection.base import Array, Kind

BYTES_MAX = 256 << 20  # of predictions kept by one frontend
OVERHEAD_BYTES = 600  # of one decision, roughly
SEAL_BYTES = 8  # of an id: what nobody can guess who was not answered
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{1,16}-[0-9a-f]{16}")


class Predicted(msgspec.Struct, frozen=True, array_like=True):
    """What one model said: classes int64 [rows], or numbers float64 [rows, ...]."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Array) -> "Predicted":
        """Holds these values."""
        return cls(array.dtype.str, array.shape, array.tobytes())

    def array(self) -> Array:
        """The values."""
        return np.frombuffer(self.data, np.dtype(self.dtype)).reshape(self.shape)


class Decision(msgspec.Struct):
    """One answer of an application."""

    id: str
    app: str
    context: str
    created: int  # of the application: another one may have its name by now
    kind: Kind  # of what was said
    predictions: dict[str, Predicted]  # {model that answered: what it said}, shadows included
    shadows: list[str]
    chances: dict[str, float]  # {model: probability with which it was selected}
    made_s: float = 0.0  # this frontend's clock
    taken: str = ""  # "": no feedback yet; else what became of it
    parked: bool = False  # other frontends may get the feedback too

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return OVERHEAD_BYTES + sum(len(said.data) for said in self.predictions.values())


class Missing(NamedTuple):
    """Why there is no such decision here."""

    code: str  # late | unknown
    message: str


@dataclass(slots=True)
class DecisionTable:
    """Decisions of one frontend, oldest first. `incarnation`: 8 hexadecimal digits, other ones after a restart.

    An id is the incarnation, a number and a seal under `secret`: whoever was not answered cannot give the feedback.
    """

    incarnation: str
    decisions_max: int
    keep_s: float
    secret: bytes
    bytes_max: int = BYTES_MAX
    size: int = 0
    _kept: OrderedDict[str, Decision] = field(default_factory=OrderedDict)
    _made: int = 0

    def __len__(self) -> int:
        return len(self._kept)

    def next_id(self) -> str:
        """An id that no decision has had."""
        self._made += 1
        return self._sealed(f"{self.incarnation}-{self._made:x}")

    def _sealed(self, name: str) -> str:
        return f"{name}-{blake2b(name.encode(), digest_size=SEAL_BYTES, key=self.secret).hexdigest()}"

    def keep(self, decision: Decision, now: float) -> None:
        """The decision may get feedback from now on; the oldest ones make room."""
        decision.made_s = now
        self._kept[decision.id] = decision
        self.size += decision.size
        while self._kept and self._over(next(iter(self._kept.values())), now):
            _, old = self._kept.popitem(last=False)
            self.size -= old.size

    def add(self, decision_id: str, model: str, predicted: Predicted) -> None:
        """A shadow answered after the answer had left; it is credited too, if no feedback came before."""
        decision = self._kept.get(decision_id)
        if decision is not None and not decision.taken:
            self.size -= decision.size
            decision.predictions[model] = predicted
            self.size += decision.size

    def find(self, decision_id: str, now: float) -> Decision | Missing:
        """The decision, or why it is not here."""
        decision = self._kept.get(decision_id)
        if decision is not None and now - decision.made_s <= self.keep_s:
            return decision
        if not ID.fullmatch(decision_id):
            return Missing("unknown", "no answer ever carried this decision_id")
        name, _, _ = decision_id.rpartition("-")
        if name.startswith(self.incarnation):
            if not compare_digest(self._sealed(name), decision_id):
                return Missing("unknown", "no answer ever carried this decision_id")
            text = (
                f"feedback comes too late: it is taken for {self.keep_s:g} s, and the last {self.decisions_max} answers"
            )
            return Missing("late", text)
        text = "this frontend has made no such decision: another one has, or it was before a restart"
        return Missing("unknown", text)

    def _over(self, oldest: Decision, now: float) -> bool:
        crowded = len(self._kept) > self.decisions_max or self.size > self.bytes_max
        return crowded or now - oldest.made_s > self.keep_s

    def check(self) -> None:
        """Every invariant holds."""
        assert self.size == sum(decision.size for decision in self._kept.values())
        assert len(self._kept) <= self.decisions_max


def encoded(decision: Decision) -> bytes:
    """For another frontend."""
    return msgspec.msgpack.encode(decision)


def decoded(known: bytes) -> Decision:
    """As another frontend made it. Raises: msgspec.MsgspecError."""
    return msgspec.msgpack.decode(known, type=Decision)


def chances_of(decision: Decision) -> Mapping[str, float]:
    """{model that answered: chance with which it was selected}; shadows were certain to be."""
    return {model: decision.chances.get(model, 1.0) for model in decision.predictions}
