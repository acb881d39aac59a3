"""Models and requests: outcomes, waiting, prediction errors."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from frontend.admin.observer import View
from gearmesh.cli.screens.changes import change
from gearmesh.cli.screens.tables import add_columns, end_of, titled_table
from gearmesh.cli.terminal.consoles import text_of
from mesh.facts import ModelState, Snapshot, Spread


def models_table(before: View | None, after: View, width: int, count_max: int) -> Table:
    """The busiest versions."""
    total = sum(snapshot.models_total for snapshot in after.snapshots.values())
    found = [(model, s, name) for name, s in after.snapshots.items() for model in s.models]
    found.sort(key=lambda entry: (-entry[0].rate, -entry[0].waiting, entry[0].ref))
    found = found[:count_max]
    table = titled_table(f"models ({len(found)} busiest of {total})" if len(found) < total else f"models ({total})")
    heads = {
        "resident": 8, "waiting": 7, "req/s": 8, "good/s": 8, "in time": 7, "refused": 7, "late": 5, "cold": 5,
    }  # fmt: skip
    name_width = add_columns(table, width, "model", [model.ref for model, _, _ in found], heads)
    for model, snapshot, name in found:
        then = before.snapshots.get(name) if before is not None else None
        was = next((m for m in then.models if m.ref == model.ref), None) if then is not None else None
        counts_from = then if was is not None else None  # a model missing in the earlier view counts from the start
        seconds = snapshot.now_s - counts_from.now_s if counts_from is not None else snapshot.uptime_s
        table.add_row(end_of(model.ref, name_width), *_model_cells(model, was, max(seconds, 1e-9)))
    return table


def _model_cells(model: ModelState, was: ModelState | None, seconds: float) -> list[str]:
    in_time, late, refused, cold = (
        getattr(model, name) - (getattr(was, name) if was else 0) for name in ("in_time", "late", "refused", "cold")
    )
    ended = in_time + late + refused
    return [
        f"{model.devices}/{model.ready}",
        str(model.waiting),
        f"{ended / seconds:.1f}",
        f"{in_time / seconds:.1f}",
        "-" if not ended else f"{in_time / ended:.1%}",
        str(refused),
        str(late),
        str(cold),
    ]


def summary(before: View | None, after: View, width: int, *, cut: bool = False) -> Table:
    """Outcomes of requests, and prediction errors. `cut`: lines that are too long are cut off."""
    made = change(before, after)
    span = f"last {made.seconds:.1f} s" if before is not None else f"{made.seconds:.0f} s since the start"
    table = titled_table(f"requests ({span})")
    table.show_header = False
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=cut, overflow="ellipsis")
    table.add_row("goodput", f"{made.per_s(made.in_time):.1f}/s of {made.per_s(made.submitted):.1f}/s offered")
    late = f"; {made.late} late, {made.cancelled} cancelled" if made.late or made.cancelled else ""
    table.add_row("attainment", f"{_share(made.attainment)}{late}")
    table.add_row("refused", _reasons(made.refused))
    if made.failed_actions:
        table.add_row("failed actions", _reasons(made.failed_actions))
    mean = f"{made.batched_rows / made.batches:.1f} rows" if made.batches else "-"
    table.add_row("mean batch", f"{mean}; {made.cold} requests found their model on no device")
    waiting = sum(snapshot.waiting for snapshot in after.snapshots.values())
    table.add_row("waiting", f"{waiting} in queues, {sum(s.open for s in after.snapshots.values())} not ended")
    for name, snapshot in after.snapshots.items():
        _predictions(table, f" ({name})" if len(after.snapshots) > 1 else "", snapshot)
    for frontend, status in after.frontends.items():
        answers = ", ".join(f"{count} {kind}" for kind, count in sorted(status["answers"].items())) or "none yet"
        dropped = status.get("answers_dropped", 0)
        told = text_of(f"answers: {answers}; in flight: {status['in_flight']}")
        if dropped:
            told += text_of("; ", (f"{dropped} dropped: clients gone, or not reading", "red"))
        table.add_row(frontend, told)
        _frontend(table, status)
    labels_width = max(len(str(label)) for label in table.columns[0].cells)
    table.columns[0].width, table.columns[1].max_width = labels_width, max(10, width - labels_width - 1)
    return table


def _frontend(table: Table, status: Mapping[str, Any]) -> None:
    cache, learning = status["cache"], status["applications"]["learning"]
    looked = cache["hits"] + cache["misses"] + cache["coalesced"]
    if looked:
        used = f"{cache['bytes'] / 2**20:.1f} of {cache['bytes_max'] / 2**20:.0f} MiB"
        shared = f"{cache['coalesced']} shared an evaluation"
        table.add_row("  cache", f"{cache['hit_ratio']:.1%} hits of {looked}, {shared}; {used}")
    if learning != "on":
        held = status["applications"]["feedback_held"]
        table.add_row("  learning", text_of((learning, "red"), f"; {held} feedback held"))


def _predictions(table: Table, whose: str, snapshot: Snapshot) -> None:
    latency = snapshot.latency_s
    shown = "-" if latency.p50 is None else f"p50 {latency.p50 * 1e3:.2f} ms, p99 {(latency.p99 or 0) * 1e3:.2f} ms"
    table.add_row(f"latency{whose}", f"{shown} (last {latency.count})")
    errors = {"EXEC": snapshot.exec_error, "LOAD": snapshot.load_error, "latency": snapshot.latency_error}
    text = ", ".join(f"{name} {_error(spread)}" for name, spread in errors.items())
    table.add_row(f"error{whose}", f"p50/p99 of predictions: {text}")
    journal = snapshot.journal
    if not journal.on:
        table.add_row(f"logs{whose}", "off (setting telemetry)")
        return
    told = text_of(f"{journal.written} lines in {journal.folder}")
    for fault in (f"{journal.dropped} dropped" if journal.dropped else "", journal.fault):
        if fault:
            told += text_of(", ", (fault, "red"))
    table.add_row(f"logs{whose}", told)


def _error(errors: Spread) -> str:
    if errors.p50 is None or errors.p99 is None:
        return "-"
    return f"{errors.p50:.1%}/{errors.p99:.1%}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _reasons(counts: Mapping[str, int]) -> str:
    ordered: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {code}" for code, count in ordered) or "none"
