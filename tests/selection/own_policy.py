"""Policies that a user might write, well and badly."""

import random
from collections.abc import Sequence

from selection.base import Answers, Combined, Observation, Selection, State, counted
from selection.combining import pass_on


class Second:
    """Always the model at `place`."""

    def __init__(self, models: Sequence[str], place: int = 1) -> None:
        self.models, self.model = models, models[place]

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """That one."""
        return Selection((self.model,), {self.model: 1.0})

    def combine(self, state: State, answers: Answers) -> Combined:
        """Its answer."""
        return pass_on(answers)

    def observe(self, state: State, observation: Observation) -> State:
        """Counts."""
        return counted(state, observation)

    def shares(self, state: State) -> dict[str, float]:
        """1 for that one."""
        return {model: float(model == self.model) for model in self.models}


class Crashes(Second):
    """Raises when it is asked."""

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """Raises."""
        raise RuntimeError("out of ideas")


class Twice(Second):
    """Selects a model twice."""

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """The same one, and again."""
        return Selection((self.model, self.model), {self.model: 1.0})


class Shapeless(Second):
    """Answers what no model would."""

    def combine(self, state: State, answers: Answers) -> Combined:
        """Half of a row."""
        combined = pass_on(answers)
        return Combined([array[:, :2] for array in combined.outputs], 1.0, None, 0.0)


class Forgetful(Second):
    """Gives no state, and cannot tell its shares."""

    def observe(self, state: State, observation: Observation) -> State:
        """Nothing."""
        return None  # type: ignore[return-value]

    def shares(self, state: State) -> dict[str, float]:
        """Raises."""
        raise RuntimeError("no shares")


class Broken:
    """Has nothing that a policy needs, but `observe` and `shares`."""

    def __init__(self, models: Sequence[str]) -> None:
        self.observe = self.shares = lambda: None


class Raises:
    """Cannot be made."""

    def __init__(self, models: Sequence[str]) -> None:
        raise ValueError("no")
