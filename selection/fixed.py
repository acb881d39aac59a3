"""Policies that do not learn: one model, an unweighted majority, a split of the traffic. They still count losses."""

import hashlib
import random
from collections.abc import Mapping, Sequence

import msgspec

from selection.base import Answers, Combined, Observation, PolicyError, Selection, State, counted, one_of
from selection.combining import median, pass_on


class SingleArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`model`: the model to ask; by default the first."""

    model: str | None = None


class MajorityArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No arguments."""


class SplitArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`shares`: {model: its share of the traffic}, in any unit."""

    shares: dict[str, float] = {}


class _Counting:
    """Base of policies that count losses but do not learn from them."""

    learns = False  # selecting needs no state
    models: tuple[str, ...]

    def observe(self, state: State, observation: Observation) -> State:
        """The state with pulls and losses counted."""
        return counted(state, observation)


class Single(_Counting):
    """Always the same model."""

    def __init__(self, models: Sequence[str], args: SingleArgs) -> None:
        self.models = tuple(models)
        self.model = args.model if args.model is not None else self.models[0]
        if self.model not in self.models:
            text = f"model must be one of the application's: {', '.join(models)}; got {self.model[:64]!r}"
            raise PolicyError(text, "policy_args.model")

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """The fixed model."""
        return Selection((self.model,), {self.model: 1.0})

    def combine(self, state: State, answers: Answers) -> Combined:
        """The answer of the fixed model."""
        return pass_on(answers)

    def shares(self, state: State) -> dict[str, float]:
        """1 for the fixed model, 0 for the others."""
        return {model: float(model == self.model) for model in self.models}


class Majority(_Counting):
    """All models have one vote each; numeric answers are combined by their median."""

    def __init__(self, models: Sequence[str], args: MajorityArgs) -> None:
        self.models = tuple(models)

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """All models."""
        return Selection(self.models, dict.fromkeys(self.models, 1.0))

    def combine(self, state: State, answers: Answers) -> Combined:
        """The unweighted vote, or the median."""
        return median(answers)

    def shares(self, state: State) -> dict[str, float]:
        """Equal shares."""
        return dict.fromkeys(self.models, 1 / len(self.models))


class Split(_Counting):
    """Sends each query to one model, by share (A/B test). The same context always goes to the same model."""

    def __init__(self, models: Sequence[str], args: SplitArgs) -> None:
        self.models = tuple(models)
        given = args.shares or dict.fromkeys(models, 1.0)
        _check_shares(given, models)
        total = sum(given.values())
        self._shares = {model: given.get(model, 0.0) / total for model in models}

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """The model in whose share the context falls."""
        if context:
            digest = hashlib.blake2b(context.encode(), digest_size=8).digest()
            at = int.from_bytes(digest, "big") / 2**64
        else:
            at = rng.random()
        return one_of(self._shares, at)

    def combine(self, state: State, answers: Answers) -> Combined:
        """The answer of the model that was asked."""
        return pass_on(answers)

    def shares(self, state: State) -> dict[str, float]:
        """The shares of the definition."""
        return dict(self._shares)


def _check_shares(given: Mapping[str, float], models: Sequence[str]) -> None:
    unknown = [model for model in given if model not in models]
    if unknown:
        text = f"shares names {unknown[0][:64]!r}, which is none of the application's models: {', '.join(models)}"
        raise PolicyError(text, "policy_args.shares")
    if any(not share >= 0 for share in given.values()) or not 0 < sum(given.values()) < float("inf"):
        raise PolicyError("shares must be numbers from 0 up, not all 0, of a finite sum", "policy_args.shares")
