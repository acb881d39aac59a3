"""The results of the comparison by length as Markdown tables, with ratios, and as a picture. Pure but for the file."""

import argparse
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gearmesh.telemetry.machine import median

Runs = dict[tuple[str, str, str], dict[float, list[dict[str, Any]]]]  # {(mix, load, system): {objective: runs}}
OURS, PADDED = "gearmesh", "padded to 512"
ITS_OWN = (OURS, PADDED, "fifo to longest")
BELOW = 0.97  # a cell in which gearmesh serves less than this share of another's goodput is named


def runs_of(runs: Runs, mix: str, load: str, system: str, slo_ms: float) -> list[dict[str, Any]]:
    """The runs of a cell; a peer's are the same for every objective."""
    found = runs.get((mix, load, system), {})
    return found.get(slo_ms) or found.get(0.0) or []


def goodput(runs: Runs, mix: str, load: str, system: str, slo_ms: float) -> tuple[float, float] | None:
    """(share of the requests in time, goodput per second), medians over the rounds; None if it was not measured."""
    found = runs_of(runs, mix, load, system, slo_ms)
    if not found:
        return None
    each = [run["goodput"][f"{slo_ms:g}"] for run in found]
    return median(one["share"] for one in each), median(one["per_s"] for one in each)


def report(
    runs: Runs,
    systems: Sequence[str],
    loads: Sequence[str],
    arguments: argparse.Namespace,
    capacity: Mapping[str, float],
    longest_ms: float,
) -> str:
    """All tables."""
    parts = [f"A lone text of the greatest length takes the bare encoder {longest_ms:.0f} ms.\n"]
    for mix in arguments.mixes:
        parts.append(f"### {mix}: load 1 is {capacity[mix]:,.0f} texts/s\n")
        for load in loads:
            parts.append(_table_of(runs, mix, load, systems, arguments.slos))
    parts.append(ratios(runs, systems, loads, arguments))
    return "\n".join(parts)


def _table_of(runs: Runs, mix: str, load: str, systems: Sequence[str], slos: Sequence[float]) -> str:
    head = ["system", *(f"≤{slo:g} ms" for slo in slos), "p99 ms", "refused", "refused p99 ms", "padding", "failed"]
    lines = [f"{mix}, load {load}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for system in systems:
        cells = [goodput(runs, mix, load, system, slo) for slo in slos]
        found = [run for slo in slos for run in runs_of(runs, mix, load, system, slo)]
        if not found:
            continue
        middle = runs_of(runs, mix, load, system, sorted(slos)[len(slos) // 2])
        row = [
            system,
            *("-" if cell is None else f"{cell[0]:.0%} ({cell[1]:,.0f}/s)" for cell in cells),
            _number(_middle(middle, "p99_ms"), 0),
            f"{sum(run['refused'] for run in middle) / max(1, sum(run['n'] for run in middle)):.0%}",
            _number(_middle(middle, "refused_p99_ms"), 0),
            "-" if (padding := _middle(middle, "padding")) is None else f"{padding:.0%}",
            str(sum(run["failed"] for run in middle)),
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def ratios(runs: Runs, systems: Sequence[str], loads: Sequence[str], arguments: argparse.Namespace) -> str:
    """gearmesh's goodput over that of each other system: geometric mean, least and greatest, and where it is below."""
    cells = [(mix, load, slo) for mix in arguments.mixes for load in loads for slo in arguments.slos]
    lines = ["### gearmesh's goodput over others'", "", "| over | geometric mean | least | greatest | cells |"]
    lines.append("|---|---|---|---|---|")
    below, found_any = [], False
    peers = [system for system in systems if system not in ITS_OWN]
    for other in (*(system for system in systems if system != OURS), "the best peer"):
        names = peers if other == "the best peer" else [other]
        found = [
            (ratio, cell) for cell in cells if (ratio := _ratio(runs, *cell, names, arguments.seconds)) is not None
        ]
        if not found:
            continue
        found_any = True
        each = [ratio for ratio, _ in found]
        lines.append(f"| {other} | {_geometric(each):.2f} | {min(each):.2f} | {max(each):.2f} | {len(each)} |")
        if other in (PADDED, "the best peer"):
            below += [
                f"{' '.join(map(str, cell))} ms: {ratio:.2f} of {other}" for ratio, cell in found if ratio < BELOW
            ]
    if not found_any:
        return ""
    lines += ["", *(f"* below: {line}" for line in below)] if below else ["", "Nowhere below either by more than 3 %."]
    return "\n".join([*lines, ""])


def _ratio(runs: Runs, mix: str, load: str, slo_ms: float, others: Iterable[str], seconds: float) -> float | None:
    """A system that had nothing in time counts as if it had one request in time."""
    ours = goodput(runs, mix, load, OURS, slo_ms)
    theirs = [found[1] for other in others if (found := goodput(runs, mix, load, other, slo_ms)) is not None]
    if ours is None or not theirs:
        return None
    least = 1 / seconds
    return max(ours[1], least) / max(*theirs, least)


def _geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _middle(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run[key] is not None]
    return median(values) if values else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def draw(runs: Runs, systems: Sequence[str], loads: Sequence[str], arguments: argparse.Namespace, file: Path) -> None:
    """One panel per mix and objective: the share in time by load, a line for each system."""
    slos, mixes = arguments.slos, arguments.mixes
    shown = [load for load in loads if load.replace(".", "").isdigit()]
    figure = Figure(figsize=(3.8 * len(slos), 2.8 * len(mixes)), layout="constrained")
    axes = figure.subplots(len(mixes), len(slos), squeeze=False)
    for row, mix in zip(axes, mixes, strict=True):
        for axis, slo in zip(row, slos, strict=True):
            for number, system in enumerate(systems):
                points = [(float(load), found[0]) for load in shown if (found := goodput(runs, mix, load, system, slo))]
                if points:
                    x, y = zip(*points, strict=True)
                    axis.plot(x, y, color=f"C{number}", marker="o", markersize=3, label=system)
            axis.set_title(f"{mix}, {slo:g} ms", fontsize="medium")
            axis.set_ylim(0, 1.02)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("load, in capacities")
    for row in axes:
        row[0].set_ylabel("answered in time")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.savefig(file, dpi=110)
