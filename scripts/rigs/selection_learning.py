"""Selection policies on the recorded answers of real classifiers: learning, contexts, members left out."""

import itertools
import random
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scripts import ROOT
from scripts.build_models import cnn, digits, linear, mlp, train
from selection.base import Answers, Observation, fresh
from selection.registry import make_policy

Array = npt.NDArray[Any]
DOCS = ROOT / "docs"
POLICIES = ("single", "exp3", "exp4", "linear", "majority", "epsilon_greedy", "ucb1", "thompson")
SEED = 11

MAKERS = (
    ("linear", linear, 4),
    ("mlp", mlp, 3),
    ("cnn", cnn, 4),
    ("linear_short", linear, 1),
    ("cnn_short", cnn, 1),
    ("mlp_long", mlp, 6),
    ("linear_long", linear, 8),
    ("cnn_long", cnn, 8),
)


def trained(count: int = 5) -> tuple[dict[str, Array], Array]:
    """({model: scores float32 [images, 10]}, labels) of `count` classifiers of unequal quality on the test split."""
    _, images, _, labels = digits()
    torch.set_num_threads(1)
    said = {}
    for name, make, epochs in MAKERS[:count]:
        torch.manual_seed(SEED)
        module = make()
        train(module, epochs)
        with torch.no_grad():
            said[name] = module.eval()(torch.from_numpy(images)).numpy()
    return said, labels


def degraded(scores: Array, rng: np.random.Generator) -> Array:
    """Scores of a model that answers with another image's scores: it is right about one time in ten."""
    return scores[rng.permutation(len(scores))]


def learning(queries: int) -> dict[str, Any]:
    """Mean error per policy: before the best model degrades (at a quarter), until its repair (at half), and after."""
    said, labels = trained()
    rng = np.random.default_rng(SEED)
    best = min(said, key=lambda name: float((said[name].argmax(1) != labels).mean()))
    broken = {**said, best: degraded(said[best], rng)}
    order = rng.integers(0, len(labels), queries)
    falls, mended = queries // 4, queries // 2
    errors = {}
    for name in POLICIES:
        args = {"model": best} if name == "single" else {}
        policy, _ = make_policy(name, args, list(said))
        state, draws = fresh(list(said)), random.Random(SEED)
        wrong = np.zeros(queries)
        for i, image in enumerate(order):
            now = broken if falls <= i < mended else said
            selection = policy.select(state, draws, "")
            came = {model: [now[model][image : image + 1]] for model in selection.models}
            answer = policy.combine(state, Answers(selection.models, came, "scores"))
            wrong[i] = answer.outputs[0].argmax() != labels[image]
            losses = {model: float(out[0].argmax() != labels[image]) for model, out in came.items()}
            state = policy.observe(state, Observation(losses, selection.chances))
        errors[name] = wrong
    alone = {name: float((scores.argmax(1) != labels).mean()) for name, scores in said.items()}
    hindsight = in_hindsight(said, broken, labels, order, falls, mended)
    errors |= hindsight
    phases = {"before": slice(0, falls), "degraded": slice(falls, mended), "repaired": slice(mended, queries)}
    _plot_learning(errors, hindsight.keys(), falls, mended)
    return {
        "queries": queries, "best": best, "error_alone": alone,
        "error": {name: {phase: round(float(wrong[at].mean()), 4) for phase, at in phases.items()}
                  for name, wrong in errors.items()},
    }  # fmt: skip


def in_hindsight(
    said: dict[str, Array], broken: dict[str, Array], labels: Array, order: Array, falls: int, mended: int
) -> dict[str, Array]:
    """{baseline: wrong or not, per query} of the model and the equal-weight ensemble with the lowest overall error."""
    now = np.arange(len(order))
    degrades = (now >= falls) & (now < mended)
    shares = {
        at: {name: np.exp(scores - scores.max(1, keepdims=True)) for name, scores in source.items()}
        for at, source in ((False, said), (True, broken))
    }
    for source in shares.values():
        for name, scores in source.items():
            source[name] = scores / scores.sum(1, keepdims=True)
    found = {}
    for title, sizes in (("best model in hindsight", (1,)), ("best ensemble in hindsight", range(2, len(said) + 1))):
        candidates = []
        for members in (names for size in sizes for names in itertools.combinations(said, size)):
            wrong = {at: sum(source[name] for name in members).argmax(1) != labels for at, source in shares.items()}
            candidates.append(np.where(degrades, wrong[True][order], wrong[False][order]).astype(float))
        found[title] = min(candidates, key=lambda wrong: float(wrong.mean()))
    return found


def without_the_slow(sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Accuracy of majorities of these sizes: of all members, and when the best member is too late to count."""
    _, images, _, labels = digits()
    torch.set_num_threads(1)
    said = []
    for seed in range(max(sizes)):
        torch.manual_seed(seed)
        module = (mlp, linear, cnn, linear)[seed % 4]()
        train(module, 1)
        with torch.no_grad():
            said.append(module.eval()(torch.from_numpy(images)).numpy())
    found = {}
    for size in sizes:
        members = sorted(said[:size], key=lambda scores: float((scores.argmax(1) != labels).mean()))
        names = [f"member_{i}" for i in range(size)]
        policy, _ = make_policy("majority", {}, names)
        accuracy = {}
        for label, there in (("all members", names), ("without the best", names[1:])):
            came = {name: [scores] for name, scores in zip(names, members, strict=True) if name in there}
            answer = policy.combine(fresh(names), Answers(tuple(names), came, "scores"))
            accuracy[label] = round(float((answer.outputs[0].argmax(1) == labels).mean()), 4)
        found[str(size)] = accuracy
    return found


def _plot_learning(errors: dict[str, Array], dashed: Container[str], falls: int, mended: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    window = 500
    for name, wrong in errors.items():
        means = np.convolve(wrong, np.ones(window) / window, "valid")
        ends = np.arange(window - 1, len(wrong))  # each mean is drawn at the last of its queries
        axes.plot(ends, means, "--" if name in dashed else "-", label=name, linewidth=1)
    for at, text in ((falls, "best model degrades"), (mended, "repaired")):
        axes.axvline(at, color="grey", linewidth=0.8)
        axes.annotate(text, (at, axes.get_ylim()[1] * 0.96), (4, 0), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="query", ylabel=f"error, mean of the last {window}", title="Selection policies on real digits models"
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "selection_learning.png", dpi=110)
    pyplot.close(figure)


def contexts(queries: int) -> dict[str, Any]:
    """Eight groups and eight models, each best for one group: one shared state compared with one state per group."""
    said, labels = trained(8)
    names = list(said)
    rng = np.random.default_rng(SEED)
    broken = {name: degraded(said[name], rng) for name in names}
    accuracy = {}
    for shared in (True, False):
        policy, _ = make_policy("exp3", {}, names)
        states = {group: fresh(names) for group in range(8)}
        draws, right = random.Random(SEED), 0
        for image in rng.integers(0, len(labels), queries):
            group = draws.randrange(8)
            key = 0 if shared else group
            selection = policy.select(states[key], draws, str(key))
            model = selection.models[0]
            scores = (said if names[group] == model else broken)[model]
            hit = scores[image].argmax() == labels[image]
            right += int(hit)
            states[key] = policy.observe(states[key], Observation({model: float(not hit)}, selection.chances))
        accuracy["one shared state" if shared else "a state per group"] = round(right / queries, 4)
    return {"queries": queries, "groups": 8, "policy": "exp3", "accuracy": accuracy}
