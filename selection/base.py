"""The interface of a selection policy: pure functions on a state, which is a value.

A policy has three functions. `select` chooses the models that get a query; `combine` makes one answer of those that
arrived; `observe` returns the state after feedback. The caller passes a seeded source of randomness; time plays no
part.
Source: Clipper (NSDI'17), section 5, whose `observe` takes outputs and label where this one takes losses (losses.py).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Outputs = Sequence[Array]  # one array [rows, ...] per output of a model, in the order of its spec
Kind = Literal["scores", "labels", "numeric"]  # what the first output holds: a score per class, a class, or numbers


class PolicyError(Exception):
    """A policy cannot be made. `field`: the key at fault in the application's definition."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.message, self.field = message, field


class Arm(msgspec.Struct, frozen=True):
    """What a policy has learned about one model."""

    log_weight: float = 0.0  # natural logarithm; the weights of all arms sum to 1
    pulls: float = 0.0  # observations; discounted by policies that forget
    loss: float = 0.0  # sum of their losses, discounted in the same way
    seen: int = 0  # observations, never discounted
    lost: float = 0.0  # sum of their losses, never discounted
    extra: dict[str, float] = {}  # further values of a user-written policy


class State(msgspec.Struct, frozen=True):
    """All that a policy has learned in one context. Arms are in the order of the application's models."""

    arms: dict[str, Arm]
    rounds: int = 0  # observations so far


@dataclass(frozen=True, slots=True)
class Selection:
    """The models to be asked."""

    models: tuple[str, ...]
    chances: Mapping[str, float]  # {model: probability with which it was chosen, > 0}


@dataclass(frozen=True, slots=True)
class Observation:
    """The feedback for one decision."""

    losses: Mapping[str, float]  # {model that answered: loss, 0 to 1}
    chances: Mapping[str, float]  # of the selection, as they were when it was made


@dataclass(frozen=True, slots=True)
class Combined:
    """One answer combined from several."""

    outputs: list[Array]
    confidence: float  # 0 to 1; of the row with the lowest
    margin: float | None  # lowest difference of the two highest class probabilities of a row; None: no classes
    disagreement: float  # 0: all that answered agree; at most 1 - 1/members; the highest over the rows


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers that arrived from the models that were asked."""

    asked: tuple[str, ...]
    came: Mapping[str, Outputs]  # {model: its outputs}, at least one
    kind: Kind
    confidence: Literal["agreement", "margin"] = "agreement"
    agree_within: float = 0.1  # numbers closer than this agree


class Policy(Protocol):
    """What a user-written policy has to implement. `models` are the candidates, in the application's order."""

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """The models to be asked, at least one."""

    def combine(self, state: State, answers: Answers) -> Combined:
        """One answer, with the shapes and dtypes of the models' outputs."""

    def observe(self, state: State, observation: Observation) -> State:
        """The state after this observation."""

    def shares(self, state: State) -> dict[str, float]:
        """{model: its share in the answers}, summing to 1."""


def fresh(models: Sequence[str]) -> State:
    """The state before any observation."""
    even = -math.log(len(models))
    return State({model: Arm(log_weight=even) for model in models})


def adapt(state: State, models: Sequence[str]) -> State:
    """The state for these models: a model that stays keeps what was learned, a new one gets the mean weight."""
    if list(state.arms) == list(models):
        return state
    staying = [state.arms[model].log_weight for model in models if model in state.arms]
    enters = log_sum(staying) - math.log(len(staying)) if staying else 0.0
    arms = {model: state.arms.get(model) or Arm(log_weight=enters) for model in models}
    return State(normalised(arms), state.rounds)


def checked(state: Any, before: State) -> State:
    """The state that a policy returned, if it has the same models and only finite numbers. Raises: ValueError."""
    if not isinstance(state, State):
        raise ValueError(f"observe gave {type(state).__name__}, which is no State")
    if state.arms.keys() != before.arms.keys():
        raise ValueError("observe gave a State of other models")
    for model, arm in state.arms.items():
        if not math.isfinite(arm.log_weight + arm.pulls + arm.loss + arm.lost):
            raise ValueError(f"observe gave {model} a weight or a loss that is no number")
    return state


def log_sum(logs: Sequence[float]) -> float:
    """log(sum(exp(logs))), without overflow."""
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))


def normalised(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """The same arms with weights that sum to 1."""
    total = log_sum([arm.log_weight for arm in arms.values()])
    return {name: msgspec.structs.replace(arm, log_weight=arm.log_weight - total) for name, arm in arms.items()}


def weights(state: State, models: Sequence[str]) -> dict[str, float]:
    """{model: weight}, summing to 1 over `models`."""
    logs = [state.arms[model].log_weight for model in models]
    total = log_sum(logs)
    return {model: math.exp(log - total) for model, log in zip(models, logs, strict=True)}


def one_of(shares: Mapping[str, float], at: float) -> Selection:
    """The one model in whose share the number `at`, 0 to 1, falls."""
    chosen = ""
    for model, share in shares.items():
        if share > 0:
            chosen = model
            at -= share
            if at < 0:
                break
    return Selection((chosen,), {chosen: shares[chosen]})


def counted(state: State, observation: Observation, discount: float = 1.0) -> State:
    """The state with the observation added to pulls and losses; the older ones are first multiplied by `discount`."""
    arms = {}
    for name, arm in state.arms.items():
        loss = observation.losses.get(name)
        came = loss is not None
        arms[name] = msgspec.structs.replace(
            arm,
            pulls=arm.pulls * discount + came,
            loss=arm.loss * discount + (loss or 0.0),
            seen=arm.seen + came,
            lost=arm.lost + (loss or 0.0),
        )
    return State(arms, state.rounds + 1)


def reweighed(state: State, penalties: Mapping[str, float], models: Sequence[str], share: float) -> State:
    """Weights times exp(-penalty); then `share` of their sum is spread evenly, so that every arm can recover.

    Source: multiplicative weights in log space, with the fixed share of Herbster and Warmuth (1998).
    """
    logs = [state.arms[model].log_weight - penalties.get(model, 0.0) for model in models]
    total = log_sum(logs)
    even = share / len(models)
    arms = dict(state.arms)
    for model, log in zip(models, logs, strict=True):
        mixed = (1 - share) * math.exp(log - total) + even
        arms[model] = msgspec.structs.replace(arms[model], log_weight=math.log(max(mixed, 1e-300)))
    return State(arms, state.rounds)


def unusable(selection: Any, models: Sequence[str]) -> str | None:
    """Why a policy's selection cannot be used; None if it can."""
    if not isinstance(selection, Selection) or not selection.models:
        return f"it selected {'nothing' if isinstance(selection, Selection) else type(selection).__name__}"
    strangers = [model for model in selection.models if model not in models]
    if strangers:
        return f"it selected {strangers}, which it does not have"
    if len(set(selection.models)) < len(selection.models):
        return f"it selected a model twice: {', '.join(selection.models)}"
    if not all(isinstance(chance, (int, float)) and chance > 0 for chance in selection.chances.values()):
        return f"its chances are {dict(selection.chances)}, and must be above 0"
    return None


def finite(outputs: Outputs) -> bool:
    """Whether no output holds a NaN or an infinity."""
    return all(bool(np.isfinite(array).all()) for array in outputs if array.dtype.kind == "f")
