"""Policies as a user might write them, valid and invalid ones."""

import random
from collections.abc import Sequence

from selection.base import Answers, Combined, Observation, Selection, State, counted
from selection.combining import pass_on


class Second:
    """Always the model at `place`."""

    def __init__(self, models: Sequence[str], place: int = 1) -> None:
        self.models, self.model = models, models[place]

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """The model at `place`."""
        return Selection((self.model,), {self.model: 1.0})

    def combine(self, state: State, answers: Answers) -> Combined:
        """The answer of that model."""
        return pass_on(answers)

    def observe(self, state: State, observation: Observation) -> State:
        """The state with pulls and losses counted."""
        return counted(state, observation)

    def shares(self, state: State) -> dict[str, float]:
        """1 for that model."""
        return {model: float(model == self.model) for model in self.models}


class Crashes(Second):
    """Raises in `select`."""

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """Raises."""
        raise RuntimeError("out of ideas")


class Twice(Second):
    """Selects a model twice."""

    def select(self, state: State, rng: random.Random, context: str) -> Selection:
        """The same model twice."""
        return Selection((self.model, self.model), {self.model: 1.0})


class Shapeless(Second):
    """Combines to outputs of a shape that no model has."""

    def combine(self, state: State, answers: Answers) -> Combined:
        """Half of a row."""
        combined = pass_on(answers)
        return Combined([array[:, :2] for array in combined.outputs], 1.0, None, 0.0)


class Forgetful(Second):
    """Returns no state, and raises in `shares`."""

    def observe(self, state: State, observation: Observation) -> State:
        """Returns None."""
        return None  # type: ignore[return-value]

    def shares(self, state: State) -> dict[str, float]:
        """Raises."""
        raise RuntimeError("no shares")


class Broken:
    """Lacks every method of a policy but `observe` and `shares`."""

    def __init__(self, models: Sequence[str]) -> None:
        self.observe = self.shares = lambda: None


class Raises:
    """Raises when it is made."""

    def __init__(self, models: Sequence[str]) -> None:
        raise ValueError("no")
