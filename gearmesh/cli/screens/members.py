"""Members and whether they are well."""

from rich.table import Table
from rich.text import Text

from frontend.admin.observer import View
from mesh.facts import DeviceState

SILENT_S = 1.0  # a worker silent for longer is marked


def members_table(view: View) -> Table:
    """All members and their states."""
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


def members_line(view: View) -> Text:
    """The number of members, and those that are not well."""
    told = members_table(view)
    names, healths = ([Text.from_markup(str(cell)).plain for cell in told.columns[i].cells] for i in (0, 3))
    ill = [f"{name} {health}" for name, health in zip(names, healths, strict=True) if health != "ok"]
    line = Text(f"{len(names)} members, ", no_wrap=True, overflow="ellipsis")
    return line.append("; ".join(ill), style="red") if ill else line.append("all ok", style="green")


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
