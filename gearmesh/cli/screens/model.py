"""One model in detail: what it takes and gives, where it is, and what is wrong with it."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from frontend.admin.observer import NoMesh, Observer, View
from gearmesh.cli.screens.tables import dims_text, tensor_text, titled_table
from gearmesh.cli.terminal.consoles import text_of
from mesh import wire
from mesh.names import listed
from mesh.process.settings import Settings

LABELS_SHOWN = 10


def placed(settings: Settings, model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the current version is, by controller, as far as the controllers tell; empty if none answers."""
    try:
        with Observer(settings) as observer:
            return places(observer.look(), wire.ref_of(model["name"], model["version"] or ""))
    except NoMesh:
        return []


def places(view: View, ref: str) -> list[dict[str, Any]]:
    """For each controller that schedules the version: devices that have it prepared, those that hold it, its queue.

    Controllers tell of their busiest versions, and of the most recent ones on a device.
    """
    found = []
    for controller, snapshot in view.snapshots.items():
        state = next((state for state in snapshot.models if state.ref == ref), None)
        held = [
            {"device": device.name, "worker": device.worker, "state": place.state}
            for device in snapshot.devices
            for place in device.places
            if place.ref == ref
        ]
        if state is not None or held:
            prepared, waiting = (state.ready, state.waiting) if state is not None else (None, None)
            found.append({"controller": controller, "prepared": prepared, "waiting": waiting, "devices": held})
    return found


def model_table(model: Mapping[str, Any]) -> Table:
    """Everything that is known of the model, a line for each fact."""
    table = titled_table(model["name"])
    table.show_header = False
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("version", f"{model['version'] or 'none is current'}; there are: {listed(model['versions'])}")
    table.add_row("ready", text_of(("yes", "green") if model["ready"] else ("no", "red")))
    if model["preparing"]:
        table.add_row("preparing", f"version {model['preparing']}")
    if not model["fault"] and model.get("unserved"):
        table.add_row("why not", model["unserved"])
    if model["fault"]:
        code = f" ({model['fault_code']})" if model["fault_code"] else ""
        table.add_row("why not" if not model["ready"] else "fault", f"{model['fault']}{code}")
    for kind in ("inputs", "outputs"):
        for tensor in model[kind]:
            table.add_row(kind.removesuffix("s"), f"{tensor['name']}: {tensor_text(tensor)}")
    if model.get("dims"):
        table.add_row("open dimensions", dims_text(model))
    if model["labels"]:
        more = len(model["labels"]) - LABELS_SHOWN
        shown = ", ".join(model["labels"][:LABELS_SHOWN]) + (f" and {more} more" if more > 0 else "")
        table.add_row("labels", f"{len(model['labels'])}: {shown}")
    if model["batch_sizes"]:
        table.add_row("batch sizes", ", ".join(map(str, model["batch_sizes"])))
    if model["slo_ms"]:
        table.add_row("budget", f"{model['slo_ms']:g} ms, of a request that names none")
    for place in model["placed"]:
        count = place["prepared"]
        prepared = "" if count is None else f"prepared on {count} {'device' if count == 1 else 'devices'}, "
        held = ", ".join(f"{one['device']} of {one['worker']} ({one['state']})" for one in place["devices"])
        table.add_row("where", f"{place['controller']}: {prepared}in the memory of: {held or 'none'}")
    return table
