"""A plot of the goodput of all systems."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from scripts.peers.tables import Runs, goodput

WIDTH = 0.8  # of a group of bars


def draw(runs: Runs, cells: Sequence[str], slos: Sequence[float], file: Path) -> None:
    """One panel per load, one group of bars per SLO, one bar per system: the median over the rounds."""
    figure = Figure(figsize=(5 * len(cells), 3.6), layout="constrained")
    axes = figure.subplots(1, len(cells), squeeze=False)[0]
    for axis, cell in zip(axes, cells, strict=True):
        for number, (system, by_cell) in enumerate(runs.items()):
            each = [by_cell.get(f"{cell}@{slo:g}") or by_cell.get(cell) for slo in slos]
            heights = [goodput(found, f"{slo:g}")[1] if found else 0.0 for slo, found in zip(slos, each, strict=True)]
            width = WIDTH / len(runs)
            places = [group + (number + 0.5) * width - WIDTH / 2 for group in range(len(slos))]
            axis.bar(places, heights, width, color=f"C{number}", label=system)
        axis.set_xticks(range(len(slos)), [f"≤{slo:g} ms" for slo in slos])
        axis.set_title(cell, fontsize="medium")
        axis.set_ylabel("answered in time, requests/s")
        axis.grid(axis="y", alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.savefig(file, dpi=110)
