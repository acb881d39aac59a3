"""Models and requests: outcomes, waiting, prediction errors."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from frontend.admin import counts
from frontend.admin.observer import View
from gearmesh.cli.screens.changes import Change, change
from gearmesh.cli.screens.links import unwell_links
from gearmesh.cli.screens.members import silence
from gearmesh.cli.screens.tables import WIDE, add_columns, end_of, titled_table
from gearmesh.cli.terminal.consoles import text_of
from mesh.facts import ModelState, Snapshot, Spread
from mesh.wire import split_ref

SUSPECTS_SHOWN = 3
TURNED_AWAY = {
    "connections_refused": "their ROUTING_ID, key or protocol is none that is served (the log says why)",
    "accept_failed": "no file descriptors are left (ulimit -n)",
}


def models_table(before: View | None, after: View, width: int, count_max: int) -> Table:
    """The busiest versions: what the controllers hold of them, and how the frontends' clients fared."""
    total = sum(snapshot.models_total for snapshot in after.snapshots.values())
    found = [(model, s, name) for name, s in after.snapshots.items() for model in s.models]
    found.sort(key=lambda entry: (-entry[0].rate, -entry[0].waiting, entry[0].ref))
    found = found[:count_max]
    table = titled_table(f"models ({len(found)} busiest of {total})" if len(found) < total else f"models ({total})")
    heads = {
        "resident": 8, "waiting": 7, "req/s": 7, "good/s": 7, "in time": 7, "refused": 7, "timed_out": 9, "late": 4,
        "cold": 4,
    }  # fmt: skip
    if width < WIDE:
        del heads["good/s"]
    name_width = add_columns(table, width, "model", [model.ref for model, _, _ in found], heads)
    shown: set[str] = set()  # names whose requests are shown: two versions of one would show the same
    for model, snapshot, name in found:
        then = before.snapshots.get(name) if before is not None else None
        was = next((m for m in then.models if m.ref == model.ref), None) if then is not None else None
        seconds = after.at_s - before.at_s if before is not None else snapshot.uptime_s
        cells = _request_cells(model, before, after, max(seconds, 1e-9), shown)
        cold = model.cold - (was.cold if was is not None else 0)
        cells |= {"resident": f"{model.devices}/{model.ready}", "waiting": str(model.waiting), "cold": str(cold)}
        table.add_row(end_of(model.ref, name_width), *(cells[head] for head in heads))
    return table


def _request_cells(
    model: ModelState, before: View | None, after: View, seconds: float, shown: set[str]
) -> dict[str, str]:
    """{head: cell} of what the clients of this version's model saw; dashes where nobody knows."""
    name, _ = split_ref(model.ref)
    made = counts.of_model(name, after.frontends, before.frontends if before is not None else None)
    if made is None or not after.frontends or name in shown:
        return dict.fromkeys(("req/s", "good/s", "in time", "refused", "timed_out", "late"), "-")
    shown.add(name)
    return {
        "req/s": f"{made.offered / seconds:.1f}",
        "good/s": f"{made.in_time / seconds:.1f}",
        "in time": "-" if made.attainment is None else f"{made.attainment:.1%}",
        "refused": str(made.refused),
        "timed_out": str(made.timed_out),
        "late": str(made.late),
    }


class SummaryRows(list[tuple[str, str | Text]]):
    """Rows of two cells, what matters most first."""

    def add_row(self, what: str, told: str | Text) -> None:
        """One more, behind the others."""
        self.append((what, told))


def summary(before: View | None, after: View, width: int, *, cut: bool = False, rows_max: int | None = None) -> Table:
    """Outcomes of requests, and prediction errors.

    `cut`: lines that are too long are cut off. `rows_max`: so many rows, the first ones, if there are more.
    """
    made = change(before, after)
    span = f"last {made.seconds:.1f} s" if before is not None else f"{made.seconds:.0f} s since the start"
    rows = SummaryRows()
    _outcomes(rows, made, bool(after.frontends))
    rows.add_row("refused", _reasons(made.refused))
    if made.for_nobody:
        rows.add_row("for nobody", f"{made.for_nobody} computed though nobody waited any more")
    if made.apart or made.quarantines:
        rows.add_row("tried apart", _apart(made))
    _harm(rows, after.frontends.values())
    for controller, seconds in after.silent.items():
        told_of = text_of("controller ", silence(after, seconds), ": what it does is not known")
        rows.add_row(controller, told_of)
    if made.failed_actions:
        rows.add_row("failed actions", _reasons(made.failed_actions))
    if after.snapshots:
        mean = f"{made.batched_rows / made.batches:.1f} rows" if made.batches else "-"
        rows.add_row("mean batch", f"{mean}; {made.cold} requests found their model on no device")
        if made.elements_computed:
            wasted = 1 - made.elements / made.elements_computed
            rows.add_row("padding", f"{wasted:.0%} of what was computed, of models with open dimensions")
        waiting = sum(snapshot.waiting for snapshot in after.snapshots.values())
        rows.add_row("waiting", f"{waiting} in queues, {sum(s.open for s in after.snapshots.values())} not ended")
    for name, snapshot in after.snapshots.items():
        _predictions(rows, f" ({name})" if len(after.snapshots) > 1 else "", snapshot)
    for frontend, status in after.frontends.items():
        answers = ", ".join(f"{count} {kind}" for kind, count in sorted(status["answers"].items())) or "none yet"
        dropped = status.get("answers_dropped", 0)
        told = text_of(f"answers: {answers}; in flight: {status['in_flight']}")
        if dropped:
            told += text_of("; ", (f"{dropped} dropped: clients gone, or not reading", "red"))
        rows.add_row(frontend, told)
        for peer, how in unwell_links(status):
            rows.add_row(f"  to {peer}", how)
        _frontend(rows, status)
    table = titled_table(f"requests ({span})")
    table.show_header = False
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=cut, overflow="ellipsis")
    for row in rows[:rows_max]:
        table.add_row(*row)
    labels_width = max(len(str(label)) for label in table.columns[0].cells)
    table.columns[0].width, table.columns[1].max_width = labels_width, max(10, width - labels_width - 1)
    return table


def _apart(made: Change) -> str:
    """What it took to find out whose requests made batches fail."""
    refused = f"; {made.quarantines} times a client or input was refused" if made.quarantines else ""
    return f"{made.apart} times a request, {made.failed_s:.2f} s of devices lost to failures{refused}"


def _outcomes(rows: SummaryRows, made: Change, known: bool) -> None:
    """How requests ended for their clients; dashes if no frontend answers."""
    if not known:
        rows.add_row("goodput", "-: no frontend answers")
        rows.add_row("attainment", "-")
        return
    told = made.requests
    rows.add_row("goodput", f"{made.per_s(told.in_time):.1f}/s of {made.per_s(told.offered):.1f}/s offered")
    missed = {name: getattr(told, name) for name in ("timed_out", "rejected", "failed", "invalid", "late")}
    others = ", ".join(f"{count} {name}" for name, count in missed.items() if count)
    gone = f"; beside them {told.cancelled} cancelled by their clients" if told.cancelled else ""
    rows.add_row("attainment", f"{_share(told.attainment)}{'; ' if others else ''}{others}{gone}")


def _frontend(rows: SummaryRows, status: Mapping[str, Any]) -> None:
    cache, learning = status["cache"], status["applications"]["learning"]
    looked = cache["hits"] + cache["misses"] + cache["coalesced"]
    if looked:
        used = f"{cache['bytes'] / 2**20:.1f} of {cache['bytes_max'] / 2**20:.0f} MiB"
        shared = f"{cache['coalesced']} shared an evaluation"
        rows.add_row("  cache", f"{cache['hit_ratio']:.1%} hits of {looked}, {shared}; {used}")
    if learning != "on":
        held = status["applications"]["feedback_held"]
        rows.add_row("  learning", text_of((learning, "red"), f"; {held} feedback held"))


def _harm(rows: SummaryRows, frontends: Collection[Mapping[str, Any]]) -> None:
    """Clients whose requests fail alone or end processes, and connections that were closed."""
    suspects = [suspect for status in frontends for suspect in status.get("suspects", ())]
    if suspects:
        suspects.sort(key=lambda suspect: float(suspect["ago_s"]))
        more = f"; and {len(suspects) - SUSPECTS_SHOWN} more" if len(suspects) > SUSPECTS_SHOWN else ""
        rows.add_row("suspects", text_of("; ".join(map(_suspect, suspects[:SUSPECTS_SHOWN])) + more))
    for name, why in TURNED_AWAY.items():
        count = sum(status.get(name, 0) for status in frontends)
        if count:
            rows.add_row("turned away", text_of((f"{count} connections: {why}", "red")))


def _suspect(told: Mapping[str, Any]) -> str:
    who = [f"{name} {told[name]}" for name in ("source", "identity") if told.get(name)]
    at = f" at {told['peer']}" if told.get("peer") else ""
    what = f"refused for {told['pause_s']:.0f} s" if told["pause_s"] else "kept apart"
    named = f"client {told['client']}{at}" + (f" ({', '.join(who)})" if who else "")
    return f"{named}, {told['ref']}: {told['code']}, {what}, {told['ago_s']:.0f} s ago"


def _predictions(rows: SummaryRows, whose: str, snapshot: Snapshot) -> None:
    latency = snapshot.latency_s
    shown = "-" if latency.p50 is None else f"p50 {latency.p50 * 1e3:.2f} ms, p99 {(latency.p99 or 0) * 1e3:.2f} ms"
    rows.add_row(f"latency{whose}", f"{shown} (last {latency.count})")
    errors = {"EXEC": snapshot.exec_error, "LOAD": snapshot.load_error, "latency": snapshot.latency_error}
    text = ", ".join(f"{name} {_error(spread)}" for name, spread in errors.items())
    rows.add_row(f"error{whose}", f"p50/p99 of predictions: {text}")
    journal = snapshot.journal
    if not journal.on:
        rows.add_row(f"logs{whose}", "off (setting telemetry)")
        return
    told = text_of(f"{journal.written} lines in {journal.folder}")
    for fault in (f"{journal.dropped} dropped" if journal.dropped else "", journal.fault):
        if fault:
            told += text_of(", ", (fault, "red"))
    rows.add_row(f"logs{whose}", told)


def _error(errors: Spread) -> str:
    if errors.p50 is None or errors.p99 is None:
        return "-"
    return f"{errors.p50:.1%}/{errors.p99:.1%}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _reasons(counts: Mapping[str, int]) -> str:
    ordered: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {code}" for code, count in ordered) or "none"
