"""Exponential weights: `exp3` asks one model, `exp4` and `linear` ask all and weight their answers."""

import random
from collections.abc import Sequence
from typing import Annotated

import msgspec

from selection.base import Answers, Combined, Observation, Selection, State, counted, one_of, reweighed, weights
from selection.combining import average, pass_on, vote

Rate = Annotated[float, msgspec.Meta(gt=0, le=10)]
Share = Annotated[float, msgspec.Meta(ge=0, le=0.5)]


class Exp3Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`eta`: learning rate. `gamma`: share of the queries that explores. `share`: the fixed share of `reweighed`."""

    eta: Rate = 0.05
    gamma: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    share: Share = 0.001


class Exp3:
    """Draws one model with p = (1 - gamma) s + gamma / k; then its weight falls by the factor exp(-eta loss / p).

    `s`: the model's share of the weights; `k`: number of models.
    Source: Auer et al., "The nonstochastic multiarmed bandit problem" (2002), Exp3 and Exp3.S; Clipper section 5.1.
    """

    def __init__(self, models: Sequence[str], args: Exp3Args) -> None:
        self.models, self.args = tuple(models), args

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """Draws one model by `shares`."""
        return one_of(self.shares(state), rng.random())

    def combine(self, state: State, answers: Answers) -> Combined:
        """The answer of the model that was asked."""
        return pass_on(answers)

    def observe(self, state: State, observation: Observation) -> State:
        """The state after the update.

        A loss is divided by the probability with which its model was drawn at that time.
        """
        floor = self.args.gamma / len(self.models)
        penalties = {
            model: self.args.eta * loss / max(observation.chances[model], floor)
            for model, loss in observation.losses.items()
            if model in observation.chances and model in self.models
        }
        return reweighed(counted(state, observation), penalties, self.models, self.args.share)

    def shares(self, state: State) -> dict[str, float]:
        """{model: probability of being drawn}."""
        even = self.args.gamma / len(self.models)
        return {model: (1 - self.args.gamma) * weight + even for model, weight in weights(state, self.models).items()}


class Exp4Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`eta`: learning rate. `share`: the fixed share of `reweighed`."""

    eta: Rate = 0.2
    share: Share = 0.001


class Exp4:
    """Asks all models, which vote by weight; every weight falls by the factor exp(-eta loss), since every loss is seen.

    Source: Clipper section 5.2. The update is Hedge's (Freund and Schapire 1997): dividing the loss by the weight, as
    Exp3 has to, would punish a model of low weight twice here.
    """

    def __init__(self, models: Sequence[str], args: Exp4Args) -> None:
        self.models, self.args = tuple(models), args

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """All models."""
        return Selection(self.models, dict.fromkeys(self.models, 1.0))

    def combine(self, state: State, answers: Answers) -> Combined:
        """The weighted vote."""
        return vote(answers, self.shares(state))

    def observe(self, state: State, observation: Observation) -> State:
        """The state after the update. A model that did not answer gets the mean penalty of those that did."""
        penalties = {model: self.args.eta * loss for model, loss in observation.losses.items() if model in self.models}
        if penalties and len(penalties) < len(self.models):
            middle = sum(penalties.values()) / len(penalties)  # an absent model is neither rewarded nor punished
            penalties = {model: penalties.get(model, middle) for model in self.models}
        return reweighed(counted(state, observation), penalties, self.models, self.args.share)

    def shares(self, state: State) -> dict[str, float]:
        """{model: its weight}, summing to 1."""
        return weights(state, self.models)


class Linear(Exp4):
    """As Exp4, but outputs are averaged by weight: for regression, and for scores on a common scale."""

    def combine(self, state: State, answers: Answers) -> Combined:
        """The weighted average."""
        return average(answers, self.shares(state))
