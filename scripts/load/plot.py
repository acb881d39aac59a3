"""The report as a picture: latency CDF, goodput over time, outcomes as a stack."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.load.plan import Plan
from scripts.load.records import LATE, OUTCOMES
from scripts.load.runner import PhaseRun
from scripts.load.statistics import PhaseReport

COLOURS = {
    "ok": "#2a9d8f", "late": "#e9c46a", "rejected": "#8d99ae", "timed_out": "#f4a261", "failed": "#e63946",
    "invalid": "#9b5de5", "no_answer": "#222222",
}  # fmt: skip
POINTS_MAX = 2000  # of one curve


def draw(plan: Plan, runs: Sequence[PhaseRun], found: Sequence[PhaseReport], file: Path) -> None:
    """The picture is in the file, a PNG. Raises: OSError."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (cdf, time, stack) = plt.subplots(1, 3, figsize=(18, 5.2), layout="constrained")
    figure.suptitle(plan.name)
    _draw_cdf(cdf, runs)
    _draw_goodput(time, runs, found)
    _draw_outcomes(stack, found)
    figure.savefig(file, dpi=120, format="png")
    plt.close(figure)


def _draw_cdf(axes: "object", runs: Sequence[PhaseRun]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    for run in runs:
        rows = run.records[(run.records["outcome"] <= LATE) & (run.records["due_s"] >= run.phase.warmup_s)]
        latency_ms = np.sort((rows["done_s"] - rows["due_s"]) * 1e3)
        if not len(latency_ms):
            continue
        ranks = np.unique(np.concatenate([
            np.linspace(0, len(latency_ms) - 1, POINTS_MAX),
            len(latency_ms) - np.geomspace(1, len(latency_ms), POINTS_MAX // 4),
        ]).astype(np.int64))  # fmt: skip
        beyond = 1.0 - (ranks + 1) / (len(latency_ms) + 1)
        axes.plot(latency_ms[ranks], beyond, label=f"{run.phase.name} ({len(latency_ms):,})")
    axes.set(xscale="log", yscale="log", xlabel="latency from due, ms", ylabel="share of served requests above")
    axes.set_title("latency of served requests (CDF, its tail)")
    axes.grid(visible=True, alpha=0.3)
    if len(runs) <= 12 and axes.lines:
        axes.legend(fontsize=7)


def _draw_goodput(axes: "object", runs: Sequence[PhaseRun], found: Sequence[PhaseReport]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    begins_s = 0.0
    for run, one in zip(runs, found, strict=True):
        at = [begins_s + end for end, _, _ in one.goodput_over_time]
        axes.step(at, [offered for _, offered, _ in one.goodput_over_time], color="#999999", lw=0.8, where="pre")
        axes.step(at, [good for _, _, good in one.goodput_over_time], color=COLOURS["ok"], where="pre")
        begins_s += run.phase.seconds
        if len(runs) > 1:
            axes.axvline(begins_s, color="#cccccc", lw=0.6)
    axes.set(xlabel="time, s (phases joined)", ylabel="requests/s", title="offered (grey) and goodput, by when due")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)


def _draw_outcomes(axes: "object", found: Sequence[PhaseReport]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    at = np.arange(len(found))
    bottom = np.zeros(len(found))
    for outcome in OUTCOMES:
        counts = [one.outcomes[outcome].n / max(1, one.n) if outcome in one.outcomes else 0.0 for one in found]
        if any(counts):
            axes.bar(at, counts, bottom=bottom, color=COLOURS[outcome], label=outcome, width=0.8)
            bottom += counts
    axes.set_xticks(
        at,
        [one.name for one in found],
        rotation=40 if len(found) > 3 else 0,
        fontsize=7,
        ha="right" if len(found) > 3 else "center",
    )
    axes.set(ylabel="share of requests", ylim=(0, 1), title="outcomes")
    axes.legend(fontsize=8, loc="lower right")
