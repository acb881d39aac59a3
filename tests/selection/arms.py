"""Models (arms) with known accuracy, and runs of policies on them."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from selection.base import Observation, Policy, State, fresh
from selection.registry import make_policy

Accuracy = Callable[[int], Mapping[str, float]]  # round -> {model: probability of being right}


@dataclass
class Played:
    """The results of a run."""

    state: State
    losses: list[float]  # of the chosen model, or the weighted mean of the ensemble, per round
    policy: Policy


def play(name: str, accuracy: Accuracy, rounds: int, seed: int = 1, **args: object) -> Played:
    """Runs the policy for so many rounds on arms that are right at random."""
    models = list(accuracy(0))
    policy, _ = make_policy(name, args, models)
    rng = random.Random(seed)
    state = fresh(models)
    losses = []
    for i in range(rounds):
        chances = accuracy(i)
        selection = policy.select(state, rng, "")
        wrong = {model: float(rng.random() >= chances[model]) for model in models}
        seen = {model: wrong[model] for model in selection.models}
        shares = policy.shares(state) if len(seen) > 1 else dict.fromkeys(seen, 1.0)
        losses.append(sum(shares[model] * loss for model, loss in seen.items()))
        state = policy.observe(state, Observation(seen, selection.chances))
    return Played(state, losses, policy)


def steady(**accuracies: float) -> Accuracy:
    """Arms with constant accuracy."""
    return lambda _: accuracies
