"""Exponential weights: `exp3` asks one model, `exp4` and `linear` ask all and weigh their answers."""

import random
from collections.abc import Sequence
from typing import Annotated

import msgspec

from selection.base import Answers, Combined, Observation, Selection, State, counted, one_of, reweighed, weights
from selection.combining import average, pass_on, vote

Rate = Annotated[float, msgspec.Meta(gt=0, le=10)]
Share = Annotated[float, msgspec.Meta(ge=0, le=0.5)]


class Exp3Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`eta`: how fast it learns. `gamma`: share of the queries spent on exploring. `share`: see `reweighed`."""

    eta: Rate = 0.05
    gamma: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    share: Share = 0.001


class Exp3:
    """One model is drawn: p = (1 - gamma) s + gamma / k; its weight falls by exp(-eta loss / p).

    Source: Auer et al., "The nonstochastic multiarmed bandit problem" (2002), Exp3 and Exp3.S; Clipper section 5.1.
    """

    def __init__(self, models: Sequence[str], args: Exp3Args) -> None:
        self.models, self.args = tuple(models), args

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """One model, drawn by `shares`."""
        return one_of(self.shares(state), rng.random())

    def combine(self, state: State, answers: Answers) -> Combined:
        """That model's answer."""
        return pass_on(answers)

    def observe(self, state: State, observation: Observation) -> State:
        """Losses are divided by the chance with which the model was drawn, as it was then."""
        floor = self.args.gamma / len(self.models)
        penalties = {
            model: self.args.eta * loss / max(observation.chances[model], floor)
            for model, loss in observation.losses.items()
            if model in observation.chances and model in self.models
        }
        return reweighed(counted(state, observation), penalties, self.models, self.args.share)

    def shares(self, state: State) -> dict[str, float]:
        """Chances of being drawn."""
        even = self.args.gamma / len(self.models)
        return {model: (1 - self.args.gamma) * weight + even for model, weight in weights(state, self.models).items()}


class Exp4Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`eta`: how fast it learns. `share`: see `reweighed`."""

    eta: Rate = 0.2
    share: Share = 0.001


class Exp4:
    """All models are asked, and vote by weight; every weight falls by exp(-eta loss), since every loss is seen.

    Source: Clipper section 5.2. The update is Hedge's (Freund and Schapire 1997): dividing by the weight, as Exp3 must,
    would punish a light model twice here.
    """

    def __init__(self, models: Sequence[str], args: Exp4Args) -> None:
        self.models, self.args = tuple(models), args

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """All of them."""
        return Selection(self.models, dict.fromkeys(self.models, 1.0))

    def combine(self, state: State, answers: Answers) -> Combined:
        """Weighted vote."""
        return vote(answers, self.shares(state))

    def observe(self, state: State, observation: Observation) -> State:
        """A model that did not answer keeps its weight: relative to those that were right, it falls by nothing."""
        penalties = {model: self.args.eta * loss for model, loss in observation.losses.items() if model in self.models}
        if penalties and len(penalties) < len(self.models):
            middle = sum(penalties.values()) / len(penalties)  # neither rewarded nor punished for its absence
            penalties = {model: penalties.get(model, middle) for model in self.models}
        return reweighed(counted(state, observation), penalties, self.models, self.args.share)

    def shares(self, state: State) -> dict[str, float]:
        """The weights."""
        return weights(state, self.models)


class Linear(Exp4):
    """As Exp4, but outputs are averaged by weight: for regression, and for scores on one scale."""

    def combine(self, state: State, answers: Answers) -> Combined:
        """Weighted average."""
        return average(answers, self.shares(state))
