"""Members and whether they are well."""

from collections.abc import Iterator
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from frontend.admin.observer import View
from gearmesh.cli.terminal.consoles import text_of
from mesh.facts import DeviceState
from mesh.starting import deaths_text, starting_text

SILENT_S = 1.0  # a worker silent for longer is marked


class Health(NamedTuple):
    """How a member is."""

    told: Text
    good: bool = False


GOOD = Health(text_of(("ok", "green")), good=True)


def _members(view: View) -> Iterator[tuple[str, str, str, Health, str]]:
    """Yields (id, role, process id, health, address) of the broker and of each member."""
    yield "broker", "broker", "", _health(view.broker, view.why or "serving goes on with the last table"), ""
    devices = {device.worker: device for snapshot in view.snapshots.values() for device in snapshot.devices}
    named = {member.id for member in view.members}
    for controller, seconds in view.silent.items():
        if controller not in named:  # the broker has given it up
            yield controller, "controller", "", _silent(view, seconds), ""
    for member in view.members:
        health = Health(text_of())
        if member.role == "controller":
            health = GOOD if member.id in view.snapshots else _silent(view, view.silent.get(member.id))
        elif member.role == "frontend":
            health = _health(member.id in view.frontends)
        elif member.child is not None and (member.role == "container" or not member.child.serves):
            health = Health(text_of((starting_text(member.child), "yellow")))
        elif member.role == "gpu_worker":
            health = _worker_health(devices.get(member.id), view)
            if member.child is not None and (deaths := deaths_text(member.child)):
                health = health._replace(told=text_of(health.told.plain, "; ", (deaths, "yellow")))
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
    ill = [f"{name} {health.told.plain}" for name, health in healths if not health.good]
    line = text_of(f"{len(healths)} members, ", ("; ".join(ill), "red") if ill else ("all ok", "green"))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def silence(view: View, seconds: float | None) -> tuple[str, str]:
    """(what is known of a controller that does not answer us, its colour). `seconds`: since it was heard, if known.

    Who is not let in by the broker is not let in by controllers either, and knows of those that frontends hear only
    that they are there.
    """
    if view.why and seconds is not None and seconds < SILENT_S:
        return "unknown: it does not let us in", "yellow"
    return "silent" if seconds is None else f"silent for {seconds:.0f} s", "red"


def _silent(view: View, seconds: float | None) -> Health:
    return Health(text_of(silence(view, seconds)))


def _health(answers: bool, advice: str = "") -> Health:
    return GOOD if answers else Health(text_of(("silent", "red"), f": {advice}" if advice else ""))


def _worker_health(device: DeviceState | None, view: View) -> Health:
    if device is None and view.silent:
        why = "no controller lets us in" if view.why else "a controller is silent"
        return Health(text_of((f"unknown: {why}", "yellow")))
    if device is None:
        return Health(text_of(("no controller has it", "red")))
    if device.leaving:
        return Health(text_of(("leaving", "yellow")))
    if device.heard_ago_s > SILENT_S:
        return Health(text_of((f"silent for {device.heard_ago_s:.1f} s", "yellow")))
    return GOOD
