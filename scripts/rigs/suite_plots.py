"""A plot of many scenarios: attainment of each policy over the swept parameter, and the bound."""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 3
TITLE_CHARS = 50  # per line
LIMIT = "bound"  # the line that no policy can exceed


@dataclass(frozen=True, slots=True)
class Panel:
    """One suite of scenarios."""

    title: str
    column: str  # the swept parameter
    labels: tuple[str, ...]  # of its values
    attainments: Mapping[str, Sequence[Sequence[float]]]  # {policy or LIMIT: for each value, one of each seed}


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Writes the plot: lines are means over the seeds, bands their least and greatest."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _lines(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.savefig(file, dpi=110)


def _lines(axis: Axes, panel: Panel) -> None:
    places = range(len(panel.labels))
    for number, (name, points) in enumerate(panel.attainments.items()):
        means = [statistics.mean(values) for values in points]
        if name == LIMIT:
            axis.plot(places, means, color="black", linestyle="--", linewidth=1, label=name)
            continue
        axis.plot(places, means, color=f"C{number}", marker="o", markersize=3, label=name)
        least, most = [min(values) for values in points], [max(values) for values in points]
        axis.fill_between(places, least, most, color=f"C{number}", alpha=0.2, linewidth=0)
    axis.set_xticks(places, panel.labels, rotation=60 if max(map(len, panel.labels)) > 5 else 0, fontsize="x-small")
    axis.set_xlabel(panel.column, fontsize="small")
    axis.set_ylim(0, 1.05)
    axis.set_title(textwrap.fill(panel.title, TITLE_CHARS), fontsize="small")
    axis.grid(alpha=0.3)
