"""The report as a plot: latency CDF, goodput over time, stacked outcomes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gearmesh.load.plan import LoadTestPlan
from gearmesh.load.reporting.records import LATE, OK, OUTCOMES
from gearmesh.load.reporting.statistics import PhaseReport
from gearmesh.load.results import PhaseRun

COLOURS = ("#2a9d8f", "#e9c46a", "#8d99ae", "#f4a261", "#e63946", "#9b5de5", "#222222")  # of OUTCOMES
POINTS_MAX = 2000  # of one curve
LEGEND_MAX = 36  # curves in the legend


def draw(plan: LoadTestPlan, runs: Sequence[PhaseRun], found: Sequence[PhaseReport], file: Path) -> None:
    """Writes the plot to the file, a PNG. Raises: OSError."""
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
    from matplotlib import colormaps
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    for number, run in enumerate(runs):
        rows = run.records[(run.records["outcome"] <= LATE) & (run.records["due_s"] >= run.phase.warmup_s)]
        latency_ms = np.sort((rows["done_s"] - rows["due_s"]) * 1e3)
        if not len(latency_ms):
            continue
        ranks = np.unique(np.concatenate([
            np.linspace(0, len(latency_ms) - 1, POINTS_MAX),
            len(latency_ms) - np.geomspace(1, len(latency_ms), POINTS_MAX // 4),
        ]).astype(np.int64))  # fmt: skip
        beyond = 1.0 - (ranks + 1) / (len(latency_ms) + 1)
        colour = colormaps["turbo"](0.05 + 0.9 * number / max(1, len(runs) - 1))
        axes.plot(latency_ms[ranks], beyond, color=colour, label=f"{run.phase.name} ({len(latency_ms):,})")
    axes.set(xscale="log", yscale="log", xlabel="latency from due, ms", ylabel="share of served requests above")
    axes.set_title("latency of served requests (1 - CDF: the tail)")
    axes.xaxis.set_major_formatter("{x:g}")
    if len(axes.xaxis.get_ticklabels(minor=True)) < 20:
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="minor", labelsize=6)
    axes.grid(visible=True, alpha=0.3)
    if len(runs) <= LEGEND_MAX and axes.lines:
        axes.legend(fontsize=7 if len(runs) <= 8 else 5, loc="lower left", ncols=1 + len(runs) // 12)


def _draw_goodput(axes: "object", runs: Sequence[PhaseRun], found: Sequence[PhaseReport]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    begins_s = 0.0
    for run, one in zip(runs, found, strict=True):
        bins = one.goodput_over_time
        edges = [begins_s + run.phase.warmup_s, *(begins_s + end for end, _, _ in bins)]
        axes.stairs([offered for _, offered, _ in bins], edges, color="#999999", lw=0.8, baseline=None)
        axes.stairs([good for _, _, good in bins], edges, color=COLOURS[OK], lw=1.5, baseline=None)
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
    for outcome, colour in zip(OUTCOMES, COLOURS, strict=True):
        counts = [one.outcomes[outcome].n / max(1, one.n) if outcome in one.outcomes else 0.0 for one in found]
        if any(counts):
            axes.bar(at, counts, bottom=bottom, color=colour, label=outcome, width=0.8)
            bottom += counts
    axes.set_xticks(
        at,
        [one.name for one in found],
        rotation=40 if len(found) > 3 else 0,
        fontsize=7,
        ha="right" if len(found) > 3 else "center",
    )
    axes.set(ylabel="share of requests", ylim=(0, 1), title="outcomes")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=len(OUTCOMES), frameon=False)
