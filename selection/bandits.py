"""Bandits on mean losses: epsilon-greedy, UCB1 and Thompson sampling. Each asks one model.

All of them discount: an observation counts `discount` times less for every later one, so that a model that degraded, or
was repaired, is found out. A discount of 1 gives the textbook's stationary form.
"""

import math
import random
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from selection.base import Answers, Arm, Combined, Observation, Selection, State, counted, one_of
from selection.combining import pass_on

Discount = Annotated[float, msgspec.Meta(ge=0.5, le=1)]
GRID = (np.arange(400) + 0.5) / 400


class EpsilonGreedyArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`epsilon`: share of the queries that go to a model drawn evenly."""

    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    discount: Discount = 0.998


class Ucb1Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`exploration`: the constant under the root, 2 in the paper; less explores less."""

    exploration: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.2
    discount: Discount = 0.998


class ThompsonArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing but the discount."""

    discount: Discount = 0.998


def mean_loss(arm: Arm) -> float:
    """Mean of the discounted losses; 0 for a model that was never tried, so that it will be."""
    return arm.loss / arm.pulls if arm.pulls > 1e-9 else 0.0


def _even(models: Sequence[str], among: Sequence[str]) -> dict[str, float]:
    return {model: 1 / len(among) if model in among else 0.0 for model in models}


class _OneOf:
    """Asks one model, drawn by `shares`; counts its losses."""

    models: tuple[str, ...]
    discount: float

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """One model."""
        return one_of(self.shares(state), rng.random())

    def combine(self, state: State, answers: Answers) -> Combined:
        """That model's answer."""
        return pass_on(answers)

    def observe(self, state: State, observation: Observation) -> State:
        """Counts."""
        return counted(state, observation, self.discount)

    def shares(self, state: State) -> dict[str, float]:
        """Chances of being drawn."""
        raise NotImplementedError


class EpsilonGreedy(_OneOf):
    """The model with the least mean loss, but for a share of the queries that explores."""

    def __init__(self, models: Sequence[str], args: EpsilonGreedyArgs) -> None:
        self.models, self.discount, self.epsilon = tuple(models), args.discount, args.epsilon

    def shares(self, state: State) -> dict[str, float]:
        """1 - epsilon goes to the best, evenly among equals."""
        losses = {model: mean_loss(state.arms[model]) for model in self.models}
        least = min(losses.values())
        best = _even(self.models, [model for model, loss in losses.items() if loss <= least])
        explored = self.epsilon / len(self.models)
        return {model: (1 - self.epsilon) * share + explored for model, share in best.items()}


class Ucb1(_OneOf):
    """The model with the least optimistic bound, mean loss - sqrt(c ln n / n_i).

    Source: Auer et al., "Finite-time analysis of the multiarmed bandit problem" (2002); discounted as in Garivier and
    Moulines (2011).
    """

    def __init__(self, models: Sequence[str], args: Ucb1Args) -> None:
        self.models, self.discount, self.exploration = tuple(models), args.discount, args.exploration

    def shares(self, state: State) -> dict[str, float]:
        """All goes to the least bound, evenly among equals and among models that were never tried."""
        untried = [model for model in self.models if state.arms[model].pulls < 1e-9]
        if untried:
            return _even(self.models, untried)
        total = math.log(max(math.e, sum(state.arms[model].pulls for model in self.models)))
        bounds = {}
        for model in self.models:
            arm = state.arms[model]
            bounds[model] = mean_loss(arm) - math.sqrt(self.exploration * total / arm.pulls)
        least = min(bounds.values())
        return _even(self.models, [model for model, bound in bounds.items() if bound <= least])


class Thompson(_OneOf):
    """Each model is drawn as often as it is likely to be the best: Beta(1 + gains, 1 + losses) posteriors.

    Source: Thompson (1933); for losses between 0 and 1 Agrawal and Goyal (2012), here with fractional counts.
    """

    def __init__(self, models: Sequence[str], args: ThompsonArgs) -> None:
        self.models, self.discount = tuple(models), args.discount

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """The model with the least of one draw from each posterior."""
        drawn = {}
        for model in self.models:
            arm = state.arms[model]
            drawn[model] = rng.betavariate(1 + arm.loss, 1 + max(0.0, arm.pulls - arm.loss))
        model = min(drawn, key=lambda name: drawn[name])
        return Selection((model,), {model: 1.0})  # no chance is needed: nothing is divided by it

    def shares(self, state: State) -> dict[str, float]:
        """Each model's probability of being the best, integrated on a grid of 400 points."""
        densities = []
        for model in self.models:
            arm = state.arms[model]
            log = arm.loss * np.log(GRID) + max(0.0, arm.pulls - arm.loss) * np.log1p(-GRID)
            density = np.exp(log - log.max())
            densities.append(density / density.sum())
        above = [1 - np.cumsum(density) + density / 2 for density in densities]
        best = []
        for i, density in enumerate(densities):
            others = [tail for j, tail in enumerate(above) if j != i]
            best.append(float((density * np.prod(others, axis=0)).sum() if others else 1.0))
        total = sum(best)
        if total <= 0:
            return _even(self.models, self.models)
        return {model: chance / total for model, chance in zip(self.models, best, strict=True)}
