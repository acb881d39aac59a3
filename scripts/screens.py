"""What `gearmesh status` and `gearmesh top` show: tables made from two looks at a mesh."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table

from broker.facts import DeviceState, ModelState, Snapshot, Spread
from frontend.observer import View

PLACES_SHOWN = 6  # models of a device that are named
SILENT_S = 1.0  # a worker not heard for so long is marked


@dataclass(slots=True)
class Change:
    """What happened between two looks, all controllers together. One look alone: since the controllers started."""

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
        """As a rate."""
        return count / self.seconds if self.seconds > 0 else 0.0


def change(before: View | None, after: View) -> Change:
    """The difference of two looks. A controller that was not there before counts from its start."""
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


def screen(before: View | None, after: View, *, models_max: int = 20) -> RenderableType:
    """Everything: members, devices, models, and how requests fare."""
    parts: list[RenderableType] = [members_table(after)]
    if after.snapshots:
        parts += [devices_table(before, after), models_table(before, after, models_max), summary(before, after)]
    return Group(*parts)


def members_table(view: View) -> Table:
    """Who is there, and how each is."""
    epoch = "unknown" if view.epoch is None else str(view.epoch)
    table = Table("member", "role", "pid", "health", "address", title=f"members (table {epoch})", title_justify="left")
    table.add_row("broker", "broker", "", _health(view.broker, "serving goes on with the last table"), "")
    devices = {device.worker: device for snapshot in view.snapshots.values() for device in snapshot.devices}
    for member in view.members:
        health = ""
        if member.role == "controller":
            health = _health(member.id in view.snapshots)
        elif member.role == "frontend":
            health = _health(member.id in view.frontends)
        elif member.role == "gpu_worker":
            health = _worker_health(devices.get(member.id))
        endpoint = member.endpoints.get("clients") or member.endpoints.get("control") or ("",)
        table.add_row(member.id, member.role, str(member.pid), health, endpoint[-1])
    return table


def _health(answers: bool, advice: str = "") -> str:
    return "[green]ok[/]" if answers else f"[red]silent[/] {advice}".rstrip()


def _worker_health(device: DeviceState | None) -> str:
    if device is None:
        return "[red]no controller has it[/]"
    if device.leaving:
        return "[yellow]leaving[/]"
    if device.heard_ago_s > SILENT_S:
        return f"[yellow]silent for {device.heard_ago_s:.1f} s[/]"
    return "[green]ok[/]"


def devices_table(before: View | None, after: View) -> Table:
    """Every device: how busy its lanes are, and what it holds."""
    table = Table(
        "device", "worker", "EXEC busy", "LOAD busy", "in flight", "batches/s", "loads/s", "pages", "models", "failed",
        "most recent models", title="devices", title_justify="left",
    )  # fmt: skip
    old = {device.worker: device for s in before.snapshots.values() for device in s.devices} if before else {}
    for name, snapshot in after.snapshots.items():
        then = before.snapshots.get(name) if before is not None else None
        seconds = snapshot.now_s - then.now_s if then is not None else snapshot.uptime_s
        for device in snapshot.devices:
            _device_row(table, device, old.get(device.worker), max(seconds, 1e-9))
    return table


def _device_row(table: Table, device: DeviceState, then: DeviceState | None, seconds: float) -> None:
    exec_s = device.exec_busy_s - (then.exec_busy_s if then else 0.0)
    load_s = device.load_busy_s - (then.load_busy_s if then else 0.0)
    shown = [f"{place.ref}{_mark(place.state)}" for place in device.places[:PLACES_SHOWN]]
    if device.resident > len(shown):
        shown.append("...")
    table.add_row(
        device.name,
        device.worker,
        _busy(exec_s / seconds),
        _busy(load_s / seconds),
        f"{device.exec_pending} + {device.load_pending}",
        f"{(device.batches - (then.batches if then else 0)) / seconds:.1f}",
        f"{(device.loads - (then.loads if then else 0)) / seconds:.1f}",
        f"{device.pages - device.free_pages} of {device.pages}",
        f"{device.resident} of {device.prepared}",
        str(device.failed),
        " ".join(shown),
    )


def _mark(state: str) -> str:
    return {"loading": " (loading)", "running": "*"}.get(state, "")


def _busy(share: float) -> str:
    share = min(1.0, max(0.0, share))
    colour = "green" if share < 0.7 else "yellow" if share < 0.95 else "red"
    return f"[{colour}]{'█' * round(share * 8):<8}[/] {share:4.0%}"


def models_table(before: View | None, after: View, count_max: int) -> Table:
    """The busiest versions."""
    total = sum(snapshot.models_total for snapshot in after.snapshots.values())
    found = [(model, s, name) for name, s in after.snapshots.items() for model in s.models]
    found.sort(key=lambda entry: (-entry[0].rate, -entry[0].waiting, entry[0].ref))
    table = Table(
        "model", "resident", "waiting", "requests/s", "goodput/s", "attainment", "refused", "late", "cold",
        title=f"models ({min(count_max, len(found))} busiest of {total})", title_justify="left",
    )  # fmt: skip
    for model, snapshot, name in found[:count_max]:
        then = before.snapshots.get(name) if before is not None else None
        was = next((m for m in then.models if m.ref == model.ref), None) if then is not None else None
        counts_from = then if was is not None else None  # one that was not named before counts from the start
        seconds = snapshot.now_s - counts_from.now_s if counts_from is not None else snapshot.uptime_s
        _model_row(table, model, was, max(seconds, 1e-9))
    return table


def _model_row(table: Table, model: ModelState, was: ModelState | None, seconds: float) -> None:
    in_time, late, refused, cold = (
        getattr(model, name) - (getattr(was, name) if was else 0) for name in ("in_time", "late", "refused", "cold")
    )
    ended = in_time + late + refused
    table.add_row(
        model.ref,
        f"{model.devices} of {model.ready}",
        str(model.waiting),
        f"{ended / seconds:.1f}",
        f"{in_time / seconds:.1f}",
        _share(in_time / ended if ended else None),
        str(refused),
        str(late),
        str(cold),
    )


def summary(before: View | None, after: View) -> Table:
    """How requests fare, and how well times are predicted."""
    made = change(before, after)
    span = f"last {made.seconds:.1f} s" if before is not None else f"{made.seconds:.0f} s since the start"
    table = Table(show_header=False, title=f"requests ({span})", title_justify="left")
    table.add_column(style="bold")
    table.add_column()
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
        table.add_row(frontend, f"answers: {answers}; in flight: {status['in_flight']}")
    return table


def _predictions(table: Table, whose: str, snapshot: Snapshot) -> None:
    latency = snapshot.latency_s
    shown = "-" if latency.p50 is None else f"p50 {latency.p50 * 1e3:.2f} ms, p99 {(latency.p99 or 0) * 1e3:.2f} ms"
    table.add_row(f"latency{whose}", f"{shown} (last {latency.count})")
    errors = {"EXEC": snapshot.exec_error, "LOAD": snapshot.load_error, "latency": snapshot.latency_error}
    text = "; ".join(f"{name} {_error(spread)}" for name, spread in errors.items())
    table.add_row(f"prediction error{whose}", text)
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
    return f"p50 {errors.p50:.1%} p99 {errors.p99:.1%}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _reasons(counts: Mapping[str, int]) -> str:
    ordered: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {code}" for code, count in ordered) or "none"
