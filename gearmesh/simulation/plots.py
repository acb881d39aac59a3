"""Plots of simulation results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gearmesh.simulation.scenario import Scenario

PANELS = (("attainment", "answered in time / offered"), ("p99_ms", "p99 latency, ms"), ("rejected", "rejected"))


def draw(
    scenario: Scenario,
    policies: Sequence[str],
    results: Sequence[dict[str, Any]],
    bounds: Sequence[dict[str, Any]],
    file: Path,
) -> None:
    """One panel per quantity: a bar for each policy (mean over seeds), a dot for each seed, a line for the bound."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for panel, (key, label) in zip(axes, PANELS, strict=True):
        _bars(panel, policies, results, key, label)
    axes[0].set_ylim(0, 1.05)
    if bounds:
        most = sum(bound["attainment"] for bound in bounds) / len(bounds)
        axes[0].axhline(most, color="black", linestyle="--", linewidth=1, label=f"bound {most:.3f}")
        axes[0].legend(loc="lower right", fontsize="small")
    offered = sum(record["offered"] for record in results) / len(results)
    seeds = len({record["seed"] for record in results})
    figure.suptitle(f"{scenario.name}: {scenario.devices.count} devices, {offered:,.0f} requests, {seeds} seeds")
    figure.savefig(file, dpi=130)


def _bars(panel: Axes, policies: Sequence[str], results: Sequence[dict[str, Any]], key: str, label: str) -> None:
    for place, policy in enumerate(policies):
        values = [record[key] for record in results if record["policy"] == policy and record[key] is not None]
        if values:
            panel.bar(place, sum(values) / len(values), width=0.6, color=f"C{place}", alpha=0.7)
            panel.scatter([place] * len(values), values, color="black", s=8, zorder=3)
    panel.set_xticks(range(len(policies)), policies)
    panel.set_ylabel(label)
