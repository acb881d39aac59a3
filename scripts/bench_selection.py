"""Clipper's selection experiments on real digits models: learning, contexts, stragglers, cache, feedback.

    .venv/bin/python -m scripts.bench_selection [--only learning contexts stragglers cache feedback] [--queries 20000]

Learning and contexts run the production policies on the recorded answers of five and eight real classifiers to the test
split. The other three run against a mesh of real processes. Plots go to docs/.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from gearmesh.operations.meshes import Mesh, mesh
from gearmesh.telemetry.machine import describe
from scripts.build_models import build_digits, digits, linear, mlp
from scripts.rigs.selection_learning import DOCS, SEED, contexts, learning, without_the_slow

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
