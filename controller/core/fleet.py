"""The devices of the shard, and the versions that each is to have: who comes and goes, what is wanted. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.devices.factory import make_device
from controller.core.orders import Order, ToWorker
from controller.core.state import ShardState
from controller.core.versions.contents import NO_TERMS, VersionContents
from controller.core.versions.ordering import VersionOrders
from controller.core.versions.preparation import Preparation, Terms
from controller.core.versions.readiness import Readiness
from controller.core.versions.reporting import Reporting
from controller.core.versions.unclaimed import UnclaimedVersions
from controller.core.versions.wanted import WantedVersions
from mesh import wire


@dataclass(slots=True)
class Fleet:
    """Keeps what devices have in line with what is wanted."""

    state: ShardState
    versions: WantedVersions
    preparations: dict[str, Preparation]  # {worker: its versions}, one for each device
    contents: VersionContents
    readiness: Readiness
    reporting: Reporting
    orders: VersionOrders
    unclaimed: UnclaimedVersions

    # -- who is there -------------------------------------------------------------------------------------------------

    def join(self, hello: wire.WorkerHello, *, now: float) -> list[Order]:
        """A worker is there, with what it has prepared and loaded. It is new, or `leave` was called before."""
        orders: list[Order] = []
        worker = hello.member
        device = make_device(hello, dispatch_s=self.state.dispatch_s, noise=self.state.noise, now=now)
        self.state.devices[worker] = device
        self.orders.joined(worker)
        preparation = self.preparations[worker] = Preparation()
        preparation.want(self._wanted_of(device))
        for report in hello.prepared:
            if self.orders.is_over(worker, report):
                continue  # it will answer the order that crossed with this; what is wanted is ordered once more
            if report.ref in preparation.stages:
                self.readiness.take(device, report, orders, now)
            elif not device.keeps_unwanted():
                device.prepared(report.ref, report.pages)
                self.unclaimed.keep(worker, report, now)
        for ref in device.found_resident(hello):
            self._found_resident(device, ref, orders, now)
        if hello.free_pages < device.residency.free:  # a LOAD of which we know nothing is under way there
            unknown = [ref for ref in device.pages if ref not in device.residency.models]
            orders.extend(ToWorker(worker, wire.Unload(action=0, ref=ref)) for ref in unknown)
        return orders

    def _found_resident(self, device: RemoteDevice, ref: str, orders: list[Order], now: float) -> None:
        """The worker came with this version in its memory: it has its place, or is unloaded if it is not wanted."""
        pages = device.pages.get(ref)
        if pages is None or pages > device.residency.free:
            orders.append(ToWorker(device.worker, wire.Unload(action=0, ref=ref)))
            return
        self.state.found_resident(device, ref, now)

    def leaving(self, worker: str) -> list[Order]:
        """A worker finishes what it has and takes nothing more."""
        orders: list[Order] = []
        device = self.state.devices.get(worker)
        if device is not None:
            self.readiness.leaving(device, orders)
        return orders

    def leave(self, worker: str) -> tuple[list[Action], list[Order]]:
        """A worker is gone. Returns the actions that it had, and what others are told."""
        orders: list[Order] = []
        device = self.state.drop_device(worker)
        if device is None:
            return [], orders
        self.readiness.nothing_ready(device)
        self.unclaimed.leave(worker)
        self.orders.gone(worker)
        for ref, stage in self.preparations.pop(worker).stages.items():
            if stage.content:
                self.contents.free(ref)
            self.reporting.report(ref, orders)
        self.reporting.tell_serving(orders)
        return list(device.actions.values()), orders

    # -- what is wanted -----------------------------------------------------------------------------------------------

    def want(
        self,
        refs: list[str],
        still_used: Callable[[str], bool],
        contained: Iterable[str] = (),
        terms: Mapping[str, Terms] | None = None,
        *,
        now: float,
    ) -> list[Order]:
        """These versions are to be ready; others are let go when their last request has ended.

        Requests for those others may still be on their way, from frontends that do not know yet. `contained`: the
        versions that containers serve. `terms`: what the catalogue says of the versions.
        """
        orders: list[Order] = []
        for ref in self.versions.want(refs, contained, now):
            self.reporting.forget(ref)
        known = self.contents.terms
        named = {ref: (terms or {}).get(ref, NO_TERMS) for ref in refs}
        self._agree({**{ref: known[ref] for ref in self.versions.draining}, **named}, orders)
        self._rewant(orders, now)
        orders.extend(self.drain(still_used, now))
        return orders

    def drain(self, still_used: Callable[[str], bool], now: float) -> list[Order]:
        """Versions that are not wanted and have no request left are let go, and those that nobody came to want."""
        orders: list[Order] = []
        ended = self.versions.drained(still_used, now)
        for ref in ended:
            del self.contents.terms[ref]
        if ended:
            self._rewant(orders, now)
            self.state.touch_all()
        for worker, ref in self.unclaimed.due(now):
            self.readiness.forget(self.state.devices[worker], ref, orders)
        return orders

    def _agree(self, terms: dict[str, Terms], orders: list[Order]) -> None:
        """The catalogue's word holds: on contents, on what is tried again, on what the broker has to hear again."""
        before, self.contents.terms = self.contents.terms, terms
        for ref, new in terms.items():
            old = before.get(ref, new)
            if new.tries != old.tries:
                self.readiness.try_again(ref)
            if new.content != old.content:
                self.readiness.content_changed(ref, orders)
            self.reporting.compare(ref, new)

    def _rewant(self, orders: list[Order], now: float) -> None:
        """Every device is to have what is kept now, and forgets what is not."""
        for worker, preparation in self.preparations.items():
            device = self.state.devices[worker]
            for ref in preparation.want(self._wanted_of(device)):
                self.readiness.forget(device, ref, orders)
            for ref in self.unclaimed.of(worker):
                report = self.unclaimed.claim(worker, ref) if ref in preparation.stages else None
                if report is not None:
                    self.readiness.take(device, report, orders, now)
        self.state.drop_idle_models(self.versions.contained)
        for ref in self.versions.wanted:
            self.reporting.report(ref, orders)
        self.reporting.tell_serving(orders)

    def _wanted_of(self, device: RemoteDevice) -> list[str]:
        """What this device is to have ready."""
        contained = self.versions.contained
        return [ref for ref in self.versions.kept() if device.may_hold(ref, contained=ref in contained)]

    def check(self) -> None:
        """Every invariant holds."""
        assert self.preparations.keys() == self.state.devices.keys()
        for worker, preparation in self.preparations.items():
            preparation.check()
            assert not preparation.stages.keys() & set(self.unclaimed.of(worker)), worker
        self.versions.check()
        assert self.contents.terms.keys() == set(self.versions.kept())
        self.contents.check()
        for worker, device in self.state.devices.items():
            for ref in device.curves:
                content = self.preparations[worker].stages[ref].content
                assert content in ("", self.contents.terms[ref].content), (worker, ref)
                assert worker not in self.contents.held.get(ref, ())
