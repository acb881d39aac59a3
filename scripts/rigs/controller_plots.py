"""The picture of scripts/bench_controller.py: requests/s per core and decision latency, over models, for each number of
devices.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = (
    ("per_core", "requests/s per core, at the peak", 0),
    ("decision_p99_ms", "decision p99, ms, at half the peak", 1),
)


def draw(cells: Sequence[dict[str, Any]], file: Path) -> None:
    """Writes the picture. Cells without a peak are left out."""
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for axis, (key, title, at) in zip(axes, PANELS, strict=True):
        _panel(axis, cells, key, at)
        axis.set_title(title, fontsize=10)
    handles, names = axes[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.savefig(file, dpi=110)


def _panel(axis: Axes, cells: Sequence[dict[str, Any]], key: str, at: int) -> None:
    for devices in sorted({found["devices"] for found in cells}):
        points = sorted(
            (found["models"], found["at"][at][key])
            for found in cells
            if found["devices"] == devices and len(found["at"]) > at and found["at"][at].get(key) is not None
        )
        axis.plot(
            [models for models, _ in points], [value for _, value in points], marker="o", markersize=3,
            label=f"{devices} device{'s' if devices > 1 else ''}",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("models")
    axis.grid(alpha=0.3)
