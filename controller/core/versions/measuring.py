"""Sends what prepares and measures versions on paged devices, in time that nothing else needs. Pure."""

from dataclasses import dataclass

from controller.core.actions import Actions
from controller.core.devices.base import RemoteDevice
from controller.core.orders import Order
from controller.core.state import ShardState
from controller.core.versions.contents import VersionContents
from controller.core.versions.ordering import VersionOrders
from controller.core.versions.preparation import Preparation

LOAD_GUESS_BYTES_PER_S = 1e9  # of a version that was never loaded
LOAD_GUESS_S = 1e-3  # ... and whatever its size


@dataclass(slots=True)
class Measuring:
    """Carries out what `Preparation` has left to do."""

    state: ShardState
    actions: Actions
    contents: VersionContents
    preparations: dict[str, Preparation]  # {worker: its versions}; the fleet's
    orders: VersionOrders

    def due(self, device: RemoteDevice, now: float) -> bool:
        """Whether `advance` may have something to send."""
        preparation = self.preparations[device.worker]
        return not preparation.complete or now >= preparation.again_at()

    def advance(self, device: RemoteDevice, now: float, orders: list[Order]) -> None:
        """PREPAREs that fit the worker's queue go out, and the next measuring run if the device has nothing to do."""
        preparation = self.preparations[device.worker]
        preparation.look_again(now)
        for ref in preparation.to_prepare():
            preparation.stages[ref].asked = content = self.contents.of(ref)
            orders.append(self.orders.prepare(device.worker, ref, content))
        if len(device.exec) or device.waiting:
            return
        run = preparation.to_measure(now, device.busy_until_s)
        if run is None:
            return
        ref = run.ref
        if ref not in device.residency.models and not self._load(device, ref, now, orders):
            return
        preparation.measuring(ref)
        start_s = device.start_s(ref, now)
        orders.append(
            self.actions.infer(
                device, ref, run.batch, [], start_s=start_s, expected_s=run.expected_s, latest_s=None, now=now,
                extents=run.extents,
            )
        )  # fmt: skip

    def _load(self, device: RemoteDevice, ref: str, now: float, orders: list[Order]) -> bool:
        """The version is loaded to be measured. False if there is no room, or a LOAD failed a short time ago."""
        report = self.preparations[device.worker].stages[ref].report
        if device.load_barred(ref, now) or report is None:
            return False
        evict = device.residency.victims(
            device.pages[ref], self.state.active.__contains__, lambda resident: float(resident in device.curves)
        )
        if evict is None:
            return False
        for resident in evict:
            orders.append(self.actions.unload(device, resident, now=now))
        expected_s = report.weights_bytes / LOAD_GUESS_BYTES_PER_S + LOAD_GUESS_S
        orders.append(self.actions.load(device, ref, expected_s=expected_s, now=now))
        return True
