"""Draws some milliseconds of a trace as a picture for documents, similar to Perfetto's view.

    .venv/bin/python -m gearmesh.telemetry.draw_trace TRACE.json PICTURE.png [--from MS] [--length MS]

TRACE.json is written by `gearmesh trace`. By default the 60 ms in the middle are drawn. From top to bottom: the
requests, the lanes of every device (the action's window, the plan, and what happened), arrows from requests to their
EXEC, counters.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gearmesh.telemetry.timeline import FAILED_COLOUR, RowKind

FAILED = "#d62728"
Events = list[dict[str, Any]]
ROW_MAX = 60  # most rows of a picture
SHADES = {RowKind.REQUESTS: 1.0, RowKind.WINDOWS: 0.25, RowKind.PLANS: 0.55, RowKind.ACTIONS: 1.0}


class Row(NamedTuple):
    """One row of the picture. Rows come in order of process and thread."""

    number: int  # from the top
    title: str
    shade: float  # opacity of its bars, 0 to 1


def rows_of(events: Events) -> dict[tuple[int, int], Row]:
    """{(process, thread): its row} of these bars, from the top, by the trace's metadata."""
    devices = devices_of(events)
    threads = {(event["pid"], event["tid"]): event["args"] for event in events if event["name"] == "thread_name"}
    used = sorted({(event["pid"], event["tid"]) for event in events if event["ph"] == "X"})
    return {
        place: Row(number, f"{devices[place[0]]}  {threads[place]['name']}".strip(), SHADES[threads[place]["kind"]])
        for number, place in enumerate(used)
    }


def devices_of(events: Events) -> dict[int, str]:
    """{process: the device that it stands for}; empty for one that stands for a controller."""
    return {event["pid"]: event["args"]["device"] for event in events if event["name"] == "process_name"}


def visible(events: Events, begin_us: float, end_us: float) -> Events:
    """Metadata, and the events that overlap the interval."""
    return [
        event for event in events
        if event["ph"] == "M" or (event["ts"] <= end_us and event["ts"] + event.get("dur", 0) >= begin_us)
    ]  # fmt: skip


def draw(trace: dict[str, Any], file: Path, from_ms: float | None, length_ms: float) -> None:
    """Writes the picture to the file. Raises: ValueError, if the interval is empty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    everything: Events = trace["traceEvents"]
    bars = [event for event in everything if event["ph"] == "X"]
    if not bars:
        raise ValueError("the trace holds no bars")
    ends_us = max(event["ts"] + event["dur"] for event in bars)
    begin_us = from_ms * 1e3 if from_ms is not None else max(0.0, ends_us / 2 - length_ms * 500)
    events = visible(everything, begin_us, begin_us + length_ms * 1e3)
    rows = rows_of(events)
    if not rows:
        raise ValueError(f"nothing happened in the {length_ms:g} ms from {begin_us / 1e3:g} ms on")
    if len(rows) > ROW_MAX:
        raise ValueError(f"{len(rows)} rows at once; choose a shorter --length")
    counters = _counters(everything, begin_us, begin_us + length_ms * 1e3)
    figure, (axes, *below) = pyplot.subplots(
        1 + len(counters), 1, sharex=True, squeeze=True, layout="constrained",
        figsize=(13, 0.8 + 0.24 * len(rows) + 0.8 * len(counters)),
        height_ratios=[0.24 * len(rows) + 0.4, *[0.8] * len(counters)],
    )  # fmt: skip
    _bars(axes, events, rows, begin_us, length_ms)
    _arrows(axes, events, rows, begin_us)
    axes.set(yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6), xlim=(0, length_ms))
    axes.set_yticklabels([row.title for row in rows.values()], fontsize=7)
    for lower, (name, points) in zip(below, counters.items(), strict=True):
        lower.step(*zip(*points, strict=True), where="post", linewidth=1, color="black")
        most = max(value for _, value in points)
        lower.set(ylim=(0, max(1.0, 1.15 * most)))
        lower.set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
        lower.tick_params(labelsize=7)
    (below[-1] if below else axes).set_xlabel("ms")
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _bars(axes: Any, events: Events, rows: Mapping[tuple[int, int], Row], begin_us: float, length_ms: float) -> None:
    """Draws each bar in its model's colour: pale for windows and plans, red for failed actions and refused requests."""
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    names = sorted({event["name"] for event in events if event["ph"] == "X"})
    palette = pyplot.get_cmap("Dark2")
    colours = {name: palette(i % 8) for i, name in enumerate(names)}
    for event in events:
        if event["ph"] != "X":
            continue
        row, _, shade = rows[event["pid"], event["tid"]]
        colour = FAILED if event["cname"] == FAILED_COLOUR else colours[event["name"]]
        at_ms, took_ms = (event["ts"] - begin_us) / 1e3, event["dur"] / 1e3
        axes.barh(row, max(took_ms, length_ms / 800), left=at_ms, height=0.8, color=colour, alpha=shade)
        batch = event.get("args", {}).get("batch")
        if shade == 1.0 and batch and took_ms > length_ms / 60:
            axes.text(at_ms + took_ms / 2, row, f"x{batch}", ha="center", va="center", fontsize=7, color="white")
    handles = [Patch(color=colours[name], label=name) for name in names]
    if any(event["ph"] == "X" and event["cname"] == FAILED_COLOUR for event in events):
        handles.append(Patch(color=FAILED, label="refused, late or failed"))
    axes.legend(handles=handles, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, frameon=False)


def _counters(events: Events, begin_us: float, end_us: float) -> dict[str, list[tuple[float, float]]]:
    """{counter: (ms from the beginning, value)}, in order, starting with the value at the beginning."""
    devices = devices_of(events)
    found: dict[str, list[tuple[float, float]]] = {}
    for event in sorted((event for event in events if event["ph"] == "C"), key=lambda event: event["ts"]):
        points = found.setdefault(f"{event['name']}\n{devices[event['pid']]}".rstrip(), [])
        point = (event["ts"] - begin_us) / 1e3, float(next(iter(event["args"].values())))
        if point[0] <= 0:
            points[:] = [(0.0, point[1])]
        elif event["ts"] <= end_us:
            points.append(point)
    for points in found.values():
        if points:
            points.append(((end_us - begin_us) / 1e3, points[-1][1]))
    return {name: points for name, points in found.items() if points}


def _arrows(axes: Any, events: Events, rows: Mapping[tuple[int, int], Row], begin_us: float) -> None:
    """Draws an arrow from every request to the EXEC that served it, if both are visible."""
    begins = {event["id"]: event for event in events if event["ph"] == "s"}
    for event in events:
        start = begins.get(event.get("id")) if event["ph"] == "f" else None
        if start is None:
            continue
        places = [(each["pid"], each["tid"]) for each in (start, event)]
        if all(place in rows for place in places):
            xs = [(each["ts"] - begin_us) / 1e3 for each in (start, event)]
            axes.plot(xs, [rows[place].number for place in places], color="black", linewidth=0.4, alpha=0.4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the picture. Returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--from", type=float, dest="from_ms", metavar="MS")
    parser.add_argument("--length", type=float, default=60.0, metavar="MS")
    asked = parser.parse_args(arguments)
    if not asked.length > 0:
        parser.error(f"--length must be above 0; got {asked.length:g}")
    try:
        draw(json.loads(asked.trace.read_text()), asked.picture, asked.from_ms, asked.length)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{asked.trace}: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
