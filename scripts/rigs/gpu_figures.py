"""What the probes of a GPU share: the room on it, spreads of durations, and drivers."""

from typing import Any

from gearmesh.telemetry.machine import quantile
from gpu_worker.devices.cuda.driver import Driver
from gpu_worker.devices.cuda.host import HostDriver
from gpu_worker.devices.cuda.nvidia import NvidiaDriver
from gpu_worker.devices.cuda.plans import MIB, Room
from gpu_worker.devices.cuda.threads import Helper

PAGE = 16 * MIB
ROOM = Room(page_bytes=PAGE, pages=16, buffer_pages=8)
Figures = dict[str, Any]


def spread(values_s: list[float], unit_s: float) -> Figures:
    """{n, p50, p99, p999, max} in this unit."""
    ordered = sorted(values_s)
    found: Figures = {"n": len(ordered)}
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
        value = quantile(ordered, share)
        found[name] = None if value is None else round(value / unit_s, 4)
    found["max"] = round(ordered[-1] / unit_s, 4)
    return found


def open_driver(name: str) -> tuple[Driver, Helper]:
    """A driver, and the helper for its device."""
    helper = Helper("helper")
    return (NvidiaDriver(0, helper.do) if name == "cuda" else HostDriver(memory_bytes=4 << 30)), helper
