"""Bandits on mean losses: epsilon-greedy, UCB1 and Thompson sampling. Each asks one model.

All of them discount: with every later observation, an older one counts `discount` times as much as before. So a model
that became worse, or was repaired, is noticed. A discount of 1 is the textbook's stationary form.
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
    """`epsilon`: share of the queries that go to a model drawn uniformly."""

    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    discount: Discount = 0.998


class Ucb1Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`exploration`: the factor under the square root, 2 in the paper; a smaller one explores less."""

    exploration: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.2
    discount: Discount = 0.998


class ThompsonArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The discount only."""

    discount: Discount = 0.998


def mean_loss(arm: Arm) -> float:
    """Mean of the discounted losses; 0 for a model that was never tried, so that it gets tried."""
    return arm.loss / arm.pulls if arm.pulls > 1e-9 else 0.0


def _even(models: Sequence[str], among: Sequence[str]) -> dict[str, float]:
    return {model: 1 / len(among) if model in among else 0.0 for model in models}


class _OneOf:
    """Asks one model, drawn by `shares`, and counts its losses."""

    models: tuple[str, ...]
    discount: float

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """Draws one model by `shares`."""
        return one_of(self.shares(state), rng.random())

    def combine(self, state: State, answers: Answers) -> Combined:
        """The answer of the model that was asked."""
        return pass_on(answers)

    def observe(self, state: State, observation: Observation) -> State:
        """The state with the discounted counts of pulls and losses."""
        return counted(state, observation, self.discount)

    def shares(self, state: State) -> dict[str, float]:
        """{model: probability of being drawn}."""
        raise NotImplementedError


class EpsilonGreedy(_OneOf):
    """Asks the model with the lowest mean loss, except for a share `epsilon` of the queries, which explores."""

    def __init__(self, models: Sequence[str], args: EpsilonGreedyArgs) -> None:
        self.models, self.discount, self.epsilon = tuple(models), args.discount, args.epsilon

    def shares(self, state: State) -> dict[str, float]:
        """epsilon is spread evenly over all models, 1 - epsilon over the best ones."""
        losses = {model: mean_loss(state.arms[model]) for model in self.models}
        least = min(losses.values())
        best = _even(self.models, [model for model, loss in losses.items() if loss <= least])
        explored = self.epsilon / len(self.models)
        return {model: (1 - self.epsilon) * share + explored for model, share in best.items()}


class Ucb1(_OneOf):
    """Asks the model with the lowest optimistic bound, mean loss - sqrt(c ln n / n_i).

    `n_i`: pulls of the model; `n`: of all; `c`: `exploration`.
    Source: Auer et al., "Finite-time analysis of the multiarmed bandit problem" (2002); discounted as in Garivier and
    Moulines (2011).
    """

    def __init__(self, models: Sequence[str], args: Ucb1Args) -> None:
        self.models, self.discount, self.exploration = tuple(models), args.discount, args.exploration

    def shares(self, state: State) -> dict[str, float]:
        """All on the lowest bound, split evenly among ties; as long as models are untried, evenly among those."""
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
    """Draws each model as often as it is likely to be the best, by Beta(1 + gains, 1 + losses) posteriors.

    Source: Thompson (1933); for losses between 0 and 1 Agrawal and Goyal (2012), here with fractional counts.
    """

    def __init__(self, models: Sequence[str], args: ThompsonArgs) -> None:
        self.models, self.discount = tuple(models), args.discount

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """The model with the lowest of one draw from each posterior."""
        drawn = {}
        for model in self.models:
            arm = state.arms[model]
            drawn[model] = rng.betavariate(1 + arm.loss, 1 + max(0.0, arm.pulls - arm.loss))
        model = min(drawn, key=lambda name: drawn[name])
        return Selection((model,), {model: 1.0})  # the chance is never used, since `observe` does not divide by it

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
