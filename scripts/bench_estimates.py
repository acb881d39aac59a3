"""How well durations are predicted: the controller's estimator, Clockwork's sliding quantile and a moving average.

    .venv/bin/python -m scripts.bench_estimates [--log FOLDER_OR_FILE] [--runs 2000] [--seeds 5]

Without a log, on synthetic durations: 10 ms with 1 % of noise; the same with one outlier of three times in 50; a step
up by 30 % half-way; a slow drift to twice the time. With a log, on the EXECs of a controller's action log
(docs/telemetry.md), each model, batch and device by itself. Every estimator predicts each duration before it sees it.
Source of the sliding quantile: Clockwork (OSDI'20) section 5.3 and its code: 99th percentile of the last 10. The
average is TCP's (RFC 6298), mean + deviation.
"""

import argparse
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from controller.core.estimation.estimates import Term, make_curve
from gearmesh.telemetry.journals import LogError, read_actions
from mesh import wire
from mesh.codes import ActionCode

WINDOW = 10
SETTLED = 20  # runs before errors are counted
INFLATED = 0.1  # a prediction counts as inflated if it exceeds the median by this share


class Estimator(Protocol):
    """Predicts a duration in seconds, then gets the actual one."""

    def predict(self) -> float:
        """The prediction for the next duration."""

    def learn(self, duration_s: float) -> None:
        """Takes in the actual duration."""


class Ours:
    """The estimator of controller/core/estimation/estimates.py, at batch 1."""

    def __init__(self, profile_s: float) -> None:
        self._curve = make_curve(wire.Profile(exec_s={1: profile_s}, load_s=0.01), 1, True, Term())

    def predict(self) -> float:
        """The prediction for the next duration."""
        return self._curve.exec_s(1)

    def learn(self, duration_s: float) -> None:
        """Takes in the actual duration."""
        self._curve.learn(1, duration_s)


class Window:
    """The 99th percentile of the last ten durations."""

    def __init__(self, profile_s: float) -> None:
        self._seen = deque([profile_s], maxlen=WINDOW)

    def predict(self) -> float:
        """The prediction for the next duration."""
        return float(np.percentile(self._seen, 99))

    def learn(self, duration_s: float) -> None:
        """Takes in the actual duration."""
        self._seen.append(duration_s)


class Average:
    """Mean + mean deviation, both exponentially decayed."""

    def __init__(self, profile_s: float) -> None:
        self._mean, self._deviation = profile_s, 0.0

    def predict(self) -> float:
        """The prediction for the next duration."""
        return self._mean + self._deviation

    def learn(self, duration_s: float) -> None:
        """Takes in the actual duration."""
        error = duration_s - self._mean
        self._mean += error / 8
        self._deviation += (abs(error) - self._deviation) / 4


ESTIMATORS: dict[str, Callable[[float], Estimator]] = {"gearmesh": Ours, "window of 10": Window, "average": Average}


def made_up(runs: int, seed: int) -> dict[str, list[float]]:
    """{name: synthetic durations}."""
    rng = random.Random(seed)
    steady = [0.01 * math.exp(rng.gauss(0.0, 0.01)) for _ in range(runs)]
    return {
        "steady, 1 % noise": steady,
        "1 in 50 takes 3 times": [value * (3.0 if rng.random() < 0.02 else 1.0) for value in steady],
        "30 % slower half-way": [value * (1.3 if i >= runs // 2 else 1.0) for i, value in enumerate(steady)],
        "drift to twice": [value * 2.0 ** (i / runs) for i, value in enumerate(steady)],
    }


def logged(source: Path) -> Iterator[tuple[str, list[float]]]:
    """Yields (model, batch and device; durations) of the EXECs of a log that ran often enough. Raises: LogError."""
    found: dict[str, list[float]] = {}
    for log in read_actions(source):
        for fact in log.facts:
            if fact.type == "infer" and fact.code == ActionCode.OK and fact.duration_s:
                found.setdefault(f"{fact.ref} x{fact.batch} on {fact.device}", []).append(fact.duration_s)
    yield from ((name, durations) for name, durations in found.items() if len(durations) >= 3 * SETTLED)


def errors(make: Callable[[float], Estimator], durations: Sequence[float]) -> tuple[list[float], float]:
    """(predicted / actual - 1 of every run once settled; share of predictions that are inflated)."""
    estimator = make(durations[0])
    found, inflated = [], 0
    for i, duration_s in enumerate(durations):
        predicted_s = estimator.predict()
        if i >= SETTLED:
            found.append(predicted_s / duration_s - 1)
            around = float(np.median(durations[max(0, i - 25) : i + 26]))
            inflated += predicted_s > (1 + INFLATED) * around
        estimator.learn(duration_s)
    return found, inflated / max(1, len(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison. Returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args(arguments)
    if asked.runs <= SETTLED or asked.seeds < 1:
        parser.error(f"--runs must be over {SETTLED}, --seeds at least 1")
    series: dict[str, list[list[float]]] = {}
    try:
        if asked.log is not None:
            series = {name: [durations] for name, durations in logged(asked.log)}
        else:
            for seed in range(asked.seeds):
                for name, durations in made_up(asked.runs, seed).items():
                    series.setdefault(name, []).append(durations)
    except LogError as fault:
        parser.error(str(fault))
    if not series:
        parser.error(f"{asked.log}: no EXEC ran {3 * SETTLED} times")
    table = Table(
        "durations", "n", "estimator", "|error| p50", "|error| p99", "too short by > 5 %", "over by > 10 %", box=None
    )
    for name, runs in series.items():
        for label, make in ESTIMATORS.items():
            each = [errors(make, durations) for durations in runs]
            error = np.concatenate([np.array(found) for found, _ in each])
            table.add_row(
                name, str(len(error)), label,
                *(f"{np.quantile(np.abs(error), share):.1%}" for share in (0.5, 0.99)),
                f"{np.mean(error < -0.05):.1%}", f"{np.mean([inflated for _, inflated in each]):.1%}",
            )  # fmt: skip
    Console(width=130).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
