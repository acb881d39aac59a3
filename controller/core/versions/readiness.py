"""Which devices can serve which versions: what they report, what is made of it, and what is given up. Pure.

A version of files is served only in the content that the catalogue names (`contents.py`). What is prepared before the
catalogue has one is proposed to it, and waits. A device that read other files forgets them and reads them again.
"""

from dataclasses import dataclass

from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.failures import INFER_FINAL, LOAD_FINAL
from controller.core.orders import Order
from controller.core.state import ShardState
from controller.core.versions.contents import ContentDecision, VersionContents
from controller.core.versions.ordering import VersionOrders
from controller.core.versions.preparation import FAULTS_MAX, Preparation
from controller.core.versions.reporting import Reporting
from controller.core.versions.unclaimed import UnclaimedVersions
from controller.core.versions.wanted import WantedVersions
from mesh import wire
from mesh.codes import ActionCode, PackageCode
from mesh.versions import why_changed

OK = ActionCode.OK  # for what runs for every action
LOAD_FAULTS_MAX = 5  # final failures of LOADs in a row after which a version cannot be served from the device


@dataclass(slots=True)
class Readiness:
    """Takes in what becomes of versions on devices."""

    state: ShardState
    versions: WantedVersions
    preparations: dict[str, Preparation]  # {worker: its versions}; the fleet's
    contents: VersionContents
    reporting: Reporting
    orders: VersionOrders
    unclaimed: UnclaimedVersions

    # -- what workers report ------------------------------------------------------------------------------------------

    def reported(self, worker: str, report: wire.Prepared, *, now: float) -> list[Order]:
        """A worker says how far a version is.

        Ignored if the worker is not known, the version not wanted there, or the report made before our last order.
        """
        orders: list[Order] = []
        device = self.state.devices.get(worker)
        if device is None or self.orders.is_over(worker, report):
            return orders
        if report.ref in self.preparations[worker].stages:
            self.take(device, report, orders, now)
        else:
            self.unclaimed.changed(worker, report)
        return orders

    def take(self, device: RemoteDevice, report: wire.Prepared, orders: list[Order], now: float) -> None:
        """The report of a version that the device is to have counts, and whom it concerns is told."""
        ref = report.ref
        fault = report.spec.fault() if report.ok and report.spec is not None else ""
        code = PackageCode.BAD_PACKAGE
        if report.ok and not fault:
            fault, code = device.fault_of(report), PackageCode.DEVICE_ERROR
        if fault:
            report = wire.Prepared(ref=ref, ok=False, faults=(fault,), code=code, order=report.order)
        preparation = self.preparations[device.worker]
        stage = preparation.stages[ref]
        had = bool(stage.content)
        preparation.reported(report)
        if report.ok:
            device.prepared(ref, report.pages)
            self._decide(device, report, orders)
        elif device.failed(ref):
            if ref in device.curves or stage.given_up:
                preparation.give_up(ref, now)
            self._gone(device, ref)
            if had:
                self._free(ref)
        else:
            self._not_ready(device, ref)
        self.reporting.report(ref, orders)
        self.reporting.tell_serving(orders, [ref])

    def _decide(self, device: RemoteDevice, report: wire.Prepared, orders: list[Order]) -> None:
        """What the device has prepared is served, or waits for the catalogue, or is not what the version is."""
        ref = report.ref
        decision = self.contents.decide(device.worker, report)
        if decision in (ContentDecision.REFUSED, ContentDecision.PREPARED_AGAIN):
            self.forget(device, ref, orders)
            preparation = self.preparations[device.worker]
            preparation.again(ref)
            if decision is ContentDecision.REFUSED:
                preparation.reported(
                    wire.Prepared(ref=ref, ok=False, faults=(why_changed(ref),), code=PackageCode.CONTENT_CHANGED)
                )
        elif report.ok and report.spec is not None and device.is_whole(report) and not device.leaving:
            if decision is ContentDecision.SERVED:
                self.state.add_ready(device, report, report.spec)
            else:
                self.contents.hold(device.worker, ref)

    # -- what the catalogue says --------------------------------------------------------------------------------------

    def content_changed(self, ref: str, orders: list[Order]) -> None:
        """The catalogue says what the content of the version is, and did not before or said otherwise."""
        for worker, preparation in self.preparations.items():
            stage = preparation.stages.get(ref)
            if stage is not None and stage.report is not None and stage.content:
                self._not_ready(self.state.devices[worker], ref)
                self._decide(self.state.devices[worker], stage.report, orders)
            elif stage is not None and stage.failed and stage.code == PackageCode.CONTENT_CHANGED:
                preparation.again(ref)

    def try_again(self, ref: str) -> None:
        """An operator asks: whatever kept devices from preparing the version may have been mended."""
        self.reporting.forget(ref)
        if ref not in self.versions.contained:  # a container starts its code again of itself
            for preparation, stage in self.contents.stages(ref):
                if stage.failed:
                    preparation.again(ref)

    # -- what results show --------------------------------------------------------------------------------------------

    def measured(self, device: RemoteDevice, action: Action, result: wire.ActionResult, now: float) -> list[Order]:
        """A measuring run has ended. After a few that another one would repeat, the version is not served from here."""
        preparation = self.preparations[device.worker]
        if result.code == ActionCode.NO_MEMORY and action.extents:
            preparation.did_not_fit(action.ref, action.batch, action.extents, now)
        elif result.code not in INFER_FINAL:
            duration_s = result.duration_s if result.code == ActionCode.OK else None
            preparation.measured(action.ref, action.batch, duration_s, now, action.extents)
        elif preparation.faulted(action.ref, now):
            return self._give_up(device, action.ref, "it fails where it is measured", result, now)
        return []

    def loaded(self, device: RemoteDevice, ref: str) -> None:
        """A LOAD of the version has ended well."""
        self.preparations[device.worker].loaded(ref)

    def load_failed(self, device: RemoteDevice, ref: str, result: wire.ActionResult, now: float) -> list[Order]:
        """A LOAD failed and is tried again. After a few that another one would repeat, it is not."""
        self.state.not_resident(device, ref)
        final = device.load_failed(ref, now, final=result.code in LOAD_FINAL)
        stage = self.preparations[device.worker].stages.get(ref)
        limit = LOAD_FAULTS_MAX if ref in device.curves else FAULTS_MAX
        if stage is None or stage.failed or final < limit:
            return []
        return self._give_up(device, ref, "its weights cannot be loaded", result, now)

    def contradicted(self, device: RemoteDevice, ref: str, now: float) -> list[Order]:
        """A result shows that the version is not prepared there: it is prepared again, at once the first time."""
        orders: list[Order] = []
        preparation = self.preparations[device.worker]
        self._gone(device, ref)
        stage = preparation.stages.get(ref)
        if stage is not None:
            had = bool(stage.content)
            preparation.doubted(ref, now)
            if had:
                self._free(ref)
            self.reporting.report(ref, orders)
        self.reporting.tell_serving(orders, [ref])
        return orders

    def _give_up(self, device: RemoteDevice, ref: str, what: str, result: wire.ActionResult, now: float) -> list[Order]:
        """The version is not served from the device, with this reason; the worker forgets what it has of it."""
        orders: list[Order] = []
        name, version = wire.split_ref(ref)
        why = (
            f"{what}: {result.message or result.code}. Mend that and `gearmesh deploy {name} --version {version}`, or "
            "deploy another version"
        )
        orders.append(self.orders.forget(device.worker, ref))
        self.take(device, wire.Prepared(ref=ref, ok=False, faults=(why,), code=result.code), orders, now)
        return orders

    # -- what is let go -----------------------------------------------------------------------------------------------

    def forget(self, device: RemoteDevice, ref: str, orders: list[Order]) -> None:
        """The version is not on the device any more; its worker is told."""
        self._gone(device, ref)
        orders.append(self.orders.forget(device.worker, ref))

    def leaving(self, device: RemoteDevice, orders: list[Order]) -> None:
        """The device finishes what it has, and is given nothing new."""
        device.leave()
        self.nothing_ready(device)
        self.reporting.tell_serving(orders)

    def nothing_ready(self, device: RemoteDevice) -> None:
        """The device serves no version any more, and none waits there for the catalogue."""
        for ref in [*device.curves, *self.contents.held_by(device.worker)]:
            self._not_ready(device, ref)

    def _free(self, ref: str) -> None:
        """A device that had the version has it no more, and others may prepare it again."""
        if self.contents.free(ref):
            self.state.touch_all()

    def _gone(self, device: RemoteDevice, ref: str) -> None:
        self._not_ready(device, ref)
        device.forget(ref)

    def _not_ready(self, device: RemoteDevice, ref: str) -> None:
        self.state.drop_ready(device, ref)
        self.contents.drop(device.worker, ref)
