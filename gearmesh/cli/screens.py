"""The tables of `gearmesh status` and `gearmesh top`, made from two views of a mesh, for the terminal's width."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from frontend.admin.observer import View
from mesh.facts import DeviceState, ModelState, Snapshot, Spread

PLACES_SHOWN = 6  # models named per device, if there is room
MODELS_SHOWN = 20  # by status
WIDE = 110  # from this width on, lanes have bars and devices the names of their models
SILENT_S = 1.0  # a worker silent for longer is marked


@dataclass(slots=True)
class Change:
    """What happened between two views, over all controllers. With one view: since the controllers started."""

    seconds: float
    in_time: int = 0
    late: int = 0
    cancelled: int = 0
    cold: int = 0
    submitted: int = 0
    batches: int = 0
    batched_rows: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # {code: requests}
    failed_actions: dict[str, int] = field(default_factory=dict)  # {code: actions}

    @property
    def ended(self) -> int:
        """Requests that were answered or refused."""
        return self.in_time + self.late + sum(self.refused.values())

    @property
    def attainment(self) -> float | None:
        """Share of those that were answered in time."""
        return self.in_time / self.ended if self.ended else None

    def per_s(self, count: float) -> float:
        """The count as a rate per second."""
        return count / self.seconds if self.seconds > 0 else 0.0


def change(before: View | None, after: View) -> Change:
    """The difference of two views. A controller that is missing in the first one counts from its start."""
    old = before.snapshots if before is not None else {}
    seconds = after.at_s - before.at_s if before is not None else _uptime_s(after)
    made = Change(seconds)
    for name, now in after.snapshots.items():
        then = old.get(name)
        for count in ("in_time", "late", "cancelled", "cold", "submitted", "batches", "batched_rows"):
            setattr(made, count, getattr(made, count) + getattr(now, count) - (getattr(then, count) if then else 0))
        _add(made.refused, now.refused, then.refused if then else {})
        _add(made.failed_actions, now.failed_actions, then.failed_actions if then else {})
    return made


def _uptime_s(view: View) -> float:
    return max((snapshot.uptime_s for snapshot in view.snapshots.values()), default=0.0)


def _add(totals: dict[str, int], now: Mapping[str, int], then: Mapping[str, int]) -> None:
    for code, count in now.items():
        grown = count - then.get(code, 0)
        if grown:
            totals[code] = totals.get(code, 0) + grown


class Screen:
    """The whole screen: requests, devices, models, members. Live: as many rows as the terminal has."""

    def __init__(self, before: View | None, after: View, *, live: bool = False) -> None:
        self._before, self._after, self._live = before, after, live

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self._live:
            yield from self._fitting(width, options.height or console.height)
            return
        yield members_table(self._after)
        if self._after.snapshots:
            yield devices_table(self._before, self._after, width)
            yield models_table(self._before, self._after, width, MODELS_SHOWN)
            yield summary(self._before, self._after, width)

    def _fitting(self, width: int, height: int) -> Iterator[RenderableType]:
        yield members_line(self._after)
        if not self._after.snapshots:
            return
        told = summary(self._before, self._after, width, cut=True)
        yield told
        left = height - told.row_count - 6  # the line above, a title for each table, and a head for two
        devices = sum(len(snapshot.devices) for snapshot in self._after.snapshots.values())
        devices_shown = min(devices, max(1, left // 2))
        yield devices_table(self._before, self._after, width, devices_shown)
        yield models_table(self._before, self._after, width, max(1, left - devices_shown))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, collapse_padding=True)


def _columns(table: Table, width: int, first: str, names: Iterable[str], heads: Mapping[str, int]) -> int:
    """Adds columns that fit into `width`: `first` with names, and those with numbers, {head: width}.

    A name gets the width of the longest if the numbers leave it; returns the width.
    """
    left = width - sum(columns + 1 for columns in heads.values())
    longest = max((len(name) for name in names), default=0)
    name_width = max(6, min(left, max(longest, len(first))))
    table.add_column(first, width=name_width, no_wrap=True)
    for head, columns in heads.items():
        table.add_column(head, width=columns, justify="right", no_wrap=True, overflow="ellipsis")
    return name_width


def _end(name: str, width: int) -> str:
    """The name cut at its front, because names of one kind differ at their ends."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


class Health(NamedTuple):
    """How a member is."""

    told: str  # in rich's markup
    good: bool = False


GOOD = Health("[green]ok[/]", good=True)


def _members(view: View) -> Iterator[tuple[str, str, str, Health, str]]:
    """Yields (id, role, process id, health, address) of the broker and of each member."""
    yield "broker", "broker", "", _health(view.broker, "serving goes on with the last table"), ""
    devices = {device.worker: device for snapshot in view.snapshots.values() for device in snapshot.devices}
    for member in view.members:
        health = Health("")
        if member.role == "controller":
            health = _health(member.id in view.snapshots)
        elif member.role == "frontend":
            health = _health(member.id in view.frontends)
        elif member.role == "gpu_worker":
            health = _worker_health(devices.get(member.id))
        endpoint = member.endpoints.get("clients") or member.endpoints.get("control") or ("",)
        yield member.id, member.role, str(member.pid), health, endpoint[-1]


def members_table(view: View) -> Table:
    """All members and their states."""
    epoch = "unknown" if view.epoch is None else str(view.epoch)
    table = Table("member", "role", "pid", "health", "address", title=f"members (table {epoch})", title_justify="left")
    for name, role, pid, health, address in _members(view):
        table.add_row(name, role, pid, health.told, address)
    return table


def members_line(view: View) -> Text:
    """The number of members, and those that are not well."""
    healths = [(name, health) for name, _, _, health, _ in _members(view)]
    ill = [f"{name} {Text.from_markup(health.told).plain}" for name, health in healths if not health.good]
    line = Text(f"{len(healths)} members, ", no_wrap=True, overflow="ellipsis")
    return line.append("; ".join(ill), style="red") if ill else line.append("all ok", style="green")


def _health(answers: bool, advice: str = "") -> Health:
    return GOOD if answers else Health(f"[red]silent[/] {advice}".rstrip())


def _worker_health(device: DeviceState | None) -> Health:
    if device is None:
        return Health("[red]no controller has it[/]")
    if device.leaving:
        return Health("[yellow]leaving[/]")
    if device.heard_ago_s > SILENT_S:
        return Health(f"[yellow]silent for {device.heard_ago_s:.1f} s[/]")
    return GOOD


def devices_table(before: View | None, after: View, width: int, count_max: int | None = None) -> Table:
    """Every device, or the busiest: how busy its lanes are, and what it holds."""
    old = {device.worker: device for s in before.snapshots.values() for device in s.devices} if before else {}
    found = []
    for name, snapshot in after.snapshots.items():
        then = before.snapshots.get(name) if before is not None else None
        seconds = max(snapshot.now_s - then.now_s if then is not None else snapshot.uptime_s, 1e-9)
        found += [DeviceChange(device, old.get(device.worker), seconds) for device in snapshot.devices]
    title = "devices"
    if count_max is not None and count_max < len(found):
        title = f"devices ({count_max} busiest of {len(found)})"
        found = sorted(found, key=lambda one: -one.exec_share)[:count_max]
    table = _table(title)
    wide = width >= WIDE
    bar = 13 if wide else 4
    heads = {
        "worker": 8, "EXEC": bar, "LOAD": bar, "flying": 6, "batch/s": 7, "load/s": 6, "pages": 9, "models": 7,
        "failed": 6,
    }  # fmt: skip
    name_width = _columns(table, width, "device", [one.now.name for one in found], heads)
    if wide:
        left = width - name_width - sum(columns + 1 for columns in heads.values()) - 1
        table.add_column("most recent models", width=left, no_wrap=True, overflow="ellipsis")
    for one in found:
        table.add_row(_end(one.now.name, name_width), *_device_cells(one, wide))
    return table


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """A device now and `seconds` ago; None: since it joined."""

    now: DeviceState
    then: DeviceState | None
    seconds: float

    def per_s(self, count: str) -> float:
        """The growth of a count of the device, per second."""
        grown = getattr(self.now, count) - (getattr(self.then, count) if self.then else 0)
        return float(grown) / self.seconds

    @property
    def exec_share(self) -> float:
        """Share of the time in which EXEC was busy."""
        return self.per_s("exec_busy_s")


def _device_cells(one: DeviceChange, wide: bool) -> list[str]:
    device = one.now
    cells = [
        device.worker.rpartition("-")[2],
        _busy(one.exec_share, wide),
        _busy(one.per_s("load_busy_s"), wide),
        f"{device.exec_pending}+{device.load_pending}",
        f"{one.per_s('batches'):.1f}",
        f"{one.per_s('loads'):.1f}",
        f"{device.pages - device.free_pages}/{device.pages}",
        f"{device.resident}/{device.prepared}",
        str(device.failed),
    ]
    if wide:
        shown = [f"{place.ref}{_mark(place.state)}" for place in device.places[:PLACES_SHOWN]]
        cells.append(" ".join([*shown, *(["..."] if device.resident > len(shown) else [])]))
    return cells


def _mark(state: str) -> str:
    return {"loading": " (loading)", "running": "*"}.get(state, "")


def _busy(share: float, bar: bool) -> str:
    share = min(1.0, max(0.0, share))
    colour = "green" if share < 0.7 else "yellow" if share < 0.95 else "red"
    drawn = f"{'█' * round(share * 8):<8} " if bar else ""
    return f"[{colour}]{drawn}{share:4.0%}[/]"


def models_table(before: View | None, after: View, width: int, count_max: int) -> Table:
    """The busiest versions."""
    total = sum(snapshot.models_total for snapshot in after.snapshots.values())
    found = [(model, s, name) for name, s in after.snapshots.items() for model in s.models]
    found.sort(key=lambda entry: (-entry[0].rate, -entry[0].waiting, entry[0].ref))
    found = found[:count_max]
    table = _table(f"models ({len(found)} busiest of {total})" if len(found) < total else f"models ({total})")
    heads = {
        "resident": 8, "waiting": 7, "req/s": 8, "good/s": 8, "in time": 7, "refused": 7, "late": 5, "cold": 5,
    }  # fmt: skip
    name_width = _columns(table, width, "model", [model.ref for model, _, _ in found], heads)
    for model, snapshot, name in found:
        then = before.snapshots.get(name) if before is not None else None
        was = next((m for m in then.models if m.ref == model.ref), None) if then is not None else None
        counts_from = then if was is not None else None  # a model missing in the earlier view counts from the start
        seconds = snapshot.now_s - counts_from.now_s if counts_from is not None else snapshot.uptime_s
        table.add_row(_end(model.ref, name_width), *_model_cells(model, was, max(seconds, 1e-9)))
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
    table = _table(f"requests ({span})")
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
        lost = f"; [red]{dropped} dropped: clients gone, or not reading[/]" if dropped else ""
        table.add_row(frontend, f"answers: {answers}; in flight: {status['in_flight']}{lost}")
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
        table.add_row("  learning", f"[red]{escape(learning)}[/]; {held} feedback held")


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
    lost = f", [red]{journal.dropped} dropped[/]" if journal.dropped else ""
    fault = f", [red]{journal.fault}[/]" if journal.fault else ""
    table.add_row(f"logs{whose}", f"{journal.written} lines in {journal.folder}{lost}{fault}")


def _error(errors: Spread) -> str:
    if errors.p50 is None or errors.p99 is None:
        return "-"
    return f"{errors.p50:.1%}/{errors.p99:.1%}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _reasons(counts: Mapping[str, int]) -> str:
    ordered: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {code}" for code, count in ordered) or "none"
