"""Devices: how busy their lanes are, and what they hold."""

from rich.table import Table
from rich.text import Text

from frontend.admin.observer import View
from gearmesh.cli.screens.changes import DeviceChange
from gearmesh.cli.screens.tables import WIDE, add_columns, end_of, titled_table
from gearmesh.cli.terminal.consoles import text_of

PLACES_SHOWN = 6  # models named per device, if there is room


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
    table = titled_table(title)
    wide = width >= WIDE
    bar = 13 if wide else 4
    heads = {
        "worker": 8, "EXEC": bar, "LOAD": bar, "flying": 6, "batch/s": 7, "load/s": 6, "pages": 9, "models": 7,
        "failed": 6,
    }  # fmt: skip
    name_width = add_columns(table, width, "device", [one.now.name for one in found], heads)
    if wide:
        left = width - name_width - sum(columns + 1 for columns in heads.values()) - 1
        table.add_column("most recent models", width=left, no_wrap=True, overflow="ellipsis")
    for one in found:
        table.add_row(end_of(one.now.name, name_width), *_device_cells(one, wide))
    return table


def _device_cells(one: DeviceChange, wide: bool) -> list[str | Text]:
    device = one.now
    cells: list[str | Text] = [
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


def _busy(share: float, bar: bool) -> Text:
    share = min(1.0, max(0.0, share))
    colour = "green" if share < 0.7 else "yellow" if share < 0.95 else "red"
    drawn = f"{'█' * round(share * 8):<8} " if bar else ""
    return text_of((f"{drawn}{share:4.0%}", colour))
