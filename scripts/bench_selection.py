"""Clipper's selection experiments on real digits models: learning, contexts, stragglers, cache, feedback.

    .venv/bin/python -m scripts.bench_selection [--only learning contexts stragglers cache feedback] [--queries 20000]

Learning and contexts run the production policies on the recorded answers of five and eight real classifiers to the test
split. The other three run against a mesh of real processes. Plots go to docs/.
"""

import argparse
import asyncio
import itertools
import json
import random
import shutil
import tempfile
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from frontend.client.client import AsyncClient, Prediction
from gearmesh.operations.meshes import Mesh, mesh
from gearmesh.telemetry.machine import describe
from scripts import ROOT
from scripts.build_models import build_digits, cnn, digits, linear, mlp, train
from selection.base import Answers, Observation, fresh
from selection.registry import make_policy

Array = npt.NDArray[Any]
DOCS = ROOT / "docs"
POLICIES = ("single", "exp3", "exp4", "linear", "majority", "epsilon_greedy", "ucb1", "thompson")
SEED = 11
SIZES = (2, 4, 8, 16)  # of ensembles with a slow member
STRAGGLING = {"waits for all": 2000.0, "answers by 25 ms": 25.0}  # {label: budget, ms}
SURPRISE = """
import itertools
import time
import numpy as np

calls = itertools.count(1)

def one(x):
    if next(calls) % 10 == 0:
        time.sleep(0.06)
    return np.zeros((len(x), 2), np.float32)
"""
EXPERIMENTS = ("learning", "contexts", "stragglers", "cache", "feedback")


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


async def stragglers(folder: Path, queries: int) -> dict[str, Any]:
    """Ensembles of 2 to 16 with one slow member: p99 under a tight budget, and under a wide one."""
    from scripts.rigs.meshes import emulated_model

    repository = folder / "emulated"
    for i in range(16):
        emulated_model(repository, f"member_{i}")
    profile = {
        "name": "bench", "memory_mb": 1024, "page_mb": 1, "load_gb_per_s": 10.0,
        "default": {"exec_ms": {"intercept": 0.2, "slope": 0.02}},
        "models": {"member_0": {"exec_ms": {"intercept": 60.0, "slope": 0.1}}},
    }  # fmt: skip
    file = folder / "device.json"
    file.write_text(json.dumps(profile))
    found = {}
    default = {"y": np.zeros((1, 2), np.float32)}
    device = f"emulated:{file}"
    async with (
        mesh(repository, folder / "emulated-data", device=device, emulated_count=4, cache_mb=0) as running,
        AsyncClient(running.address) as session,
    ):
        for size in SIZES:
            await session.create_app(
                "all", [f"member_{i}" for i in range(size)], "majority", slo_ms=2000, default=default
            )
            await session.apps()
            for label, slo_ms in (("waits for all", 2000.0), ("answers by 25 ms", 25.0)):
                found[f"{size} members, {label}"] = await _asked(session, queries, slo_ms)
            await session.delete_app("all")
        surprise = await _surprises(running, session, folder, queries)
    accuracy = without_the_slow(SIZES)
    _plot_stragglers(found, accuracy)
    return {"queries": queries, "slow_member_ms": 60.0, "ensembles": found, "surprise": surprise, "accuracy": accuracy}


async def _surprises(running: Mesh, session: AsyncClient, folder: Path, queries: int) -> dict[str, Any]:
    """Four emulated members, and a container that takes 60 ms for every tenth query, which cannot be predicted."""
    from scripts.rigs.containers import container

    (folder / "surprise.py").write_text(SURPRISE)
    found = {}
    specs = ("--input", "x:float32:-1,4", "--output", "y:float32:-1,2")
    async with container(running, folder, "surprise:one", *specs, model="surprise"):
        await session.create_app("all", ["surprise", *(f"member_{i}" for i in range(1, 5))], "majority", slo_ms=2000)
        await session.apps()
        for label, slo_ms in STRAGGLING.items():
            found[label] = await _asked(session, queries, slo_ms)
        await session.delete_app("all")
    return found


async def _asked(session: AsyncClient, queries: int, slo_ms: float) -> dict[str, float]:
    """Sends `queries` queries to the application `all`, one at a time."""
    took, sure, defaults = [], [], 0
    for _ in range(queries):
        answer = await session.infer(app="all", x=np.zeros((1, 4), np.float32), slo_ms=slo_ms)
        took.append(answer.latency_ms)
        sure.append(answer.confidence or 0.0)
        defaults += answer.default_used
    return {
        "p50_ms": round(float(np.percentile(took, 50)), 2),
        "p99_ms": round(float(np.percentile(took, 99)), 2),
        "mean_confidence": round(float(np.mean(sure)), 3),
        "defaults": defaults,
    }


def _plot_stragglers(found: dict[str, dict[str, float]], accuracy: dict[str, dict[str, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for label in STRAGGLING:
        left.plot(SIZES, [found[f"{size} members, {label}"]["p99_ms"] for size in SIZES], marker="o", label=label)
    for label in ("all members", "without the best"):
        right.plot(SIZES, [accuracy[str(size)][label] for size in SIZES], marker="o", label=label)
    left.set(xlabel="members, one of which is slow", ylabel="p99 latency, ms", ylim=(0, None))
    right.set(xlabel="members", ylabel="accuracy of a majority")
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "selection_stragglers.png", dpi=110)
    pyplot.close(figure)


async def cache(folder: Path, queries: int) -> dict[str, Any]:
    """The same queries with the cache and without: throughput with 64 in flight, latency one at a time."""
    found: dict[str, Any] = {"queries": queries}
    x = digits()[1][:1]
    async with _digits_mesh(folder) as running, AsyncClient(running.address) as session:
        await session.infer("digits_mlp", x, slo_ms=2000)
        for label, cached in (("cached", True), ("uncached", False)):
            took = [(await session.infer("digits_mlp", x, slo_ms=2000, cache=cached)).latency_ms for _ in range(300)]
            began_s = time.monotonic()

            async def ask(count: int, cached: bool = cached) -> None:
                for _ in range(count):
                    await session.infer("digits_mlp", x, slo_ms=5000, cache=cached)

            await asyncio.gather(*(ask(queries // 64) for _ in range(64)))
            rate = queries // 64 * 64 / (time.monotonic() - began_s)
            found[label] = {"per_s": round(rate), "p50_ms": round(float(np.median(took)), 3)}
        found["cache"] = (await session.call("status"))["cache"]
    return found


async def feedback(folder: Path, queries: int) -> dict[str, Any]:
    """Feedback per second, made durable in SQLite, for decisions of a two-model ensemble."""
    _, images, _, labels = digits()
    async with _digits_mesh(folder) as running, AsyncClient(running.address) as session:
        await session.create_app("digits", ["digits_linear", "digits_mlp"], "exp4", slo_ms=5000)
        await session.apps()
        decisions: list[tuple[str, int]] = []
        for start in range(0, queries, 200):
            places = [i % len(images) for i in range(start, start + 200)]
            answers = await asyncio.gather(*(session.submit(app="digits", x=images[i : i + 1]) for i in places))
            decisions += [
                (str(answer.decision_id), int(labels[i]))
                for i, answer in zip(places, answers, strict=True) if isinstance(answer, Prediction)
            ]  # fmt: skip
        began_s = time.monotonic()
        applied = 0
        for start in range(0, len(decisions), 500):
            told = await asyncio.gather(
                *(session.feedback(decision, label=label) for decision, label in decisions[start : start + 500])
            )
            applied += sum(bool(each["applied"]) for each in told)
        took_s = time.monotonic() - began_s
        weights = (await session.apps())[0]["weights"]
    return {"decisions": len(decisions), "applied": applied, "per_s": round(applied / took_s), "weights": weights}


def _digits_mesh(folder: Path) -> Any:
    repository = folder / "digits"
    for name, make in (("digits_linear", linear), ("digits_mlp", mlp)):
        if not (repository / name).exists():
            build_digits(repository, name, make, 5)
    return mesh(repository, folder / "digits-data", device="cpu")


def main() -> int:
    """Runs the chosen experiments and prints the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--queries", type=int, default=20_000, help="of learning and contexts; a tenth in a mesh")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-selection-"))
    few = max(200, arguments.queries // 10)
    runs: dict[str, Any] = {
        "learning": lambda: learning(arguments.queries),
        "contexts": lambda: contexts(arguments.queries),
        "stragglers": lambda: asyncio.run(stragglers(folder, few // 4)),
        "cache": lambda: asyncio.run(cache(folder, few)),
        "feedback": lambda: asyncio.run(feedback(folder, few)),
    }
    try:
        print(json.dumps({"machine": describe(), "seed": SEED}))
        for name in arguments.only:
            print(json.dumps({name: runs[name]()}, indent=1), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
