"""What the broker and the frontends are told of versions: which are served, which no device can prepare. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.orders import Order, ToBroker, ToFrontend
from controller.core.state import ShardState
from controller.core.versions.contents import NO_TERMS, VersionContents
from controller.core.versions.preparation import Terms
from mesh import wire
from mesh.codes import PackageCode
from mesh.wire.ranges import cut_all


@dataclass(slots=True)
class Reporting:
    """Tells everybody each change once."""

    state: ShardState
    contents: VersionContents
    name: str = ""  # member id of this controller
    frontends: dict[str, None] = field(default_factory=dict)  # those that are to hear what is served
    _serving: dict[str, None] = field(default_factory=dict)  # refs that frontends were told are served
    _last_reports: dict[str, wire.PrepareReport] = field(default_factory=dict)  # {ref: what the broker was told last}

    # -- frontends ----------------------------------------------------------------------------------------------------

    def frontend_joined(self, frontend: str) -> list[Order]:
        """A frontend is there; it is told what is served."""
        self.frontends[frontend] = None
        message = wire.Serving(added=tuple(self._serving), removed=(), reset=True, controller=self.name)
        return [ToFrontend(frontend, message)]

    def frontend_lost(self, frontend: str) -> None:
        """A frontend is gone; it is told nothing more."""
        self.frontends.pop(frontend, None)

    def tell_serving(self, orders: list[Order], changed: Iterable[str] | None = None) -> None:
        """Frontends hear what has changed. `changed`: the only versions that can have; None: any can."""
        looked = dict.fromkeys([*self.state.models, *self._serving]) if changed is None else changed
        added = tuple(ref for ref in looked if ref not in self._serving and self._is_served(ref))
        removed = tuple(ref for ref in looked if ref in self._serving and not self._is_served(ref))
        if not added and not removed:
            return
        self._serving.update(dict.fromkeys(added))
        for ref in removed:
            del self._serving[ref]
        message = wire.Serving(added=added, removed=removed, controller=self.name)
        orders.extend(ToFrontend(frontend, message) for frontend in self.frontends)

    def _is_served(self, ref: str) -> bool:
        model = self.state.models.get(ref)
        return model is not None and bool(model.ready)

    # -- the broker ---------------------------------------------------------------------------------------------------

    def forget(self, ref: str) -> None:
        """The next report of this version goes to the broker, even if it says what the last one said."""
        self._last_reports.pop(ref, None)

    def compare(self, ref: str, terms: Terms) -> None:
        """If the catalogue waits for word of the version, or does not know what it was told, it is told again."""
        told = self._last_reports.get(ref)
        if told is not None and (terms.pending or not _is_heard(told, terms)):
            del self._last_reports[ref]

    def report(self, ref: str, orders: list[Order]) -> None:
        """The broker hears of a version that is ready somewhere, or would be, or that no device can prepare."""
        terms = self.contents.terms.get(ref, NO_TERMS)
        held = self.contents.first_held(ref)
        ready = self._is_served(ref)
        if held is not None:
            spec, content = held.spec, held.content
        elif ready:
            spec, content = self.state.models[ref].spec, terms.content
        else:
            self._report_failed(ref, terms, orders)
            return
        report = wire.PrepareReport(ref=ref, ok=True, spec=spec, content=content, ready=ready, tries=terms.tries)
        self._tell_broker(report, orders)

    def _report_failed(self, ref: str, terms: Terms, orders: list[Order]) -> None:
        codes = [stage.code for stage in self.contents.failed_everywhere(ref)]
        if codes:
            code = PackageCode.CONTENT_CHANGED if PackageCode.CONTENT_CHANGED in codes else codes[0]
            faults = cut_all(self.contents.faults(ref))
            self._tell_broker(
                wire.PrepareReport(ref=ref, ok=False, faults=faults, code=code, tries=terms.tries), orders
            )

    def _tell_broker(self, report: wire.PrepareReport, orders: list[Order]) -> None:
        told = self._last_reports.get(report.ref)
        if told is None or (told.ok, told.ready, told.content) != (report.ok, report.ready, report.content):
            self._last_reports[report.ref] = report
            orders.append(ToBroker(report))


def _is_heard(told: wire.PrepareReport, terms: Terms) -> bool:
    """Whether the catalogue knows what it was told."""
    if told.ok and told.content != terms.content:
        return False
    return terms.unserved is None or terms.unserved is not told.ok
