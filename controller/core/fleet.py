"""Devices and the versions on them: who is there, what is prepared, what is served, what is let go. Pure.

A version of files is served only in the content that the catalogue names (`contents.py`). What is prepared before the
catalogue has one is proposed to it, and waits; a device that read other files forgets them, and reads them again.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from controller.core.actions import Actions
from controller.core.batching import BlackBoxCurve, make_black_box
from controller.core.estimation.estimates import LoadEstimate, make_curve
from controller.core.orders import Order, ToWorker
from controller.core.residency import Residency
from controller.core.state import Action, Device, Model, State
from controller.core.versions.contents import NO_TERMS, Contents, Verdict
from controller.core.versions.preparation import FAULTS_MAX, Preparation, Terms
from controller.core.versions.reporting import Reporting
from mesh import wire
from mesh.versions import CHANGED, why_changed

CONTAINER_PROFILE = wire.Profile(exec_s={}, load_s=0.0)  # nothing is measured of it, and nothing loaded
LOAD_GUESS_BYTES_PER_S = 1e9  # of a LOAD never seen
LET_GO_S = 2.0  # a version not wanted any more is served so long: not all frontends hear of it at once
LOAD_FAULTS_MAX = 5  # LOADs in a row that another would follow: the version cannot be served from the device
LOAD_FINAL = ("device_error", CHANGED)  # codes of a LOAD that will fail again
BLACK_BOX_NOISE = 0.3  # a container's times scatter more than a device's, until it is learned how much


@dataclass(slots=True)
class Fleet:
    """All devices of the shard, and the versions they are to have ready."""

    state: State
    actions: Actions
    name: str = ""  # member id of this controller
    wanted: list[str] = field(default_factory=list)  # refs that every device is to have ready, in the catalogue's order
    draining: dict[str, float] = field(
        default_factory=dict
    )  # {ref wanted before: kept until then, and its last request}
    preparations: dict[str, Preparation] = field(default_factory=dict)  # {worker: its versions}, one for each device
    contained: frozenset[str] = frozenset()  # refs that containers serve, and devices do not
    known: dict[str, tuple[str, BlackBoxCurve]] = field(default_factory=dict)  # {worker: (ref, what it had learned)}
    contents: Contents = field(init=False)
    reporting: Reporting = field(init=False)

    def __post_init__(self) -> None:
        self.contents = Contents(self.preparations)
        self.reporting = Reporting(self.state, self.contents, self.name)

    # -- who is there -------------------------------------------------------------------------------------------------

    def join(self, hello: wire.WorkerHello, *, now: float) -> list[Order]:
        """A worker is there, with what it has prepared and loaded. It was not, or `leave` was called."""
        orders: list[Order] = []
        device = Device(hello.member, hello.device, Residency(hello.device.pages, hello.device.pages))
        device.exec.free_s = device.load.free_s = now
        device.dispatch.value_s = self.state.dispatch_s
        device.noise.value_s = BLACK_BOX_NOISE if hello.device.container else self.state.noise
        self.state.devices[hello.member] = device
        preparation = self.preparations[hello.member] = Preparation()
        preparation.want(self._wanted_of(device))
        for report in hello.prepared:
            if report.ref in preparation.stages:
                self._take_report(device, report, orders, now)
            elif not hello.device.container:  # a container keeps what it has, and is asked when that is wanted
                orders.append(ToWorker(hello.member, wire.Forget(ref=report.ref)))
        for ref in () if hello.device.container else hello.resident:
            self._found_resident(device, ref, orders, now)
        if hello.free_pages < device.residency.free:  # of a LOAD under way, which we know nothing of
            unknown = [ref for ref in device.pages if ref not in device.residency.models]
            orders.extend(ToWorker(hello.member, wire.Unload(action=0, ref=ref)) for ref in unknown)
        return orders

    def leaving(self, worker: str) -> list[Order]:
        """A worker finishes what it has and takes nothing more."""
        orders: list[Order] = []
        device = self.state.devices.get(worker)
        if device is not None:
            device.leaving = True
            self._nothing_ready(device)
            self.reporting.tell_serving(orders)
        return orders

    def leave(self, worker: str) -> tuple[list[Action], list[Order]]:
        """A worker is gone. Returns the actions that it had."""
        orders: list[Order] = []
        device = self.state.devices.pop(worker, None)
        if device is None:
            return [], orders
        self._nothing_ready(device)
        self.known.pop(worker, None)
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

        Requests for them may still be on their way, from frontends that do not know yet. `contained`: those that
        containers serve. `terms`: what the catalogue says of these versions.
        """
        orders: list[Order] = []
        self.contained = frozenset(contained) | (self.contained & {*self.wanted, *self.draining} - {*refs})
        for ref in self.wanted:
            if ref not in refs:
                self.draining[ref] = now + LET_GO_S
        for ref in refs:
            self.draining.pop(ref, None)
            if ref not in self.wanted:
                self.reporting.forget(ref)
        self.wanted = list(refs)
        known = self.contents.terms
        named = {ref: (terms or {}).get(ref, NO_TERMS) for ref in refs}
        self._agree({**{ref: known[ref] for ref in self.draining}, **named}, orders)
        self._rewant(orders)
        orders.extend(self.drain(still_used, now))
        return orders

    def _agree(self, terms: dict[str, Terms], orders: list[Order]) -> None:
        """The catalogue's word holds: for what is served, for what is tried again, for what it is to be told again."""
        before, self.contents.terms = self.contents.terms, terms
        for ref, new in terms.items():
            old = before.get(ref, new)
            if new.tries != old.tries:
                self._try_again(ref)
            if new.content != old.content:
                self._judge_all(ref, orders)
            self.reporting.compare(ref, new)

    def drain(self, still_used: Callable[[str], bool], now: float) -> list[Order]:
        """Versions that are not wanted and have no request left are let go."""
        orders: list[Order] = []
        ended = [ref for ref, until_s in self.draining.items() if now >= until_s and not still_used(ref)]
        for ref in ended:
            del self.draining[ref], self.contents.terms[ref]
        if ended:
            self._rewant(orders)
        return orders

    def _rewant(self, orders: list[Order]) -> None:
        for worker, preparation in self.preparations.items():
            device = self.state.devices[worker]
            for ref in preparation.want(self._wanted_of(device)):
                self._forget(device, ref, orders)
        self._drop_idle_models()
        for ref in self.wanted:
            self.reporting.report(ref, orders)
        self.reporting.tell_serving(orders)

    def _forget(self, device: Device, ref: str, orders: list[Order]) -> None:
        """The version is not on the device any more."""
        self._gone(device, ref)
        orders.append(ToWorker(device.worker, wire.Forget(ref=ref)))

    def _gone(self, device: Device, ref: str) -> None:
        self._not_ready(device, ref)
        device.residency.gone(ref)
        device.pages.pop(ref, None)
        device.load_faults.pop(ref, None)
        device.room_for_more = True

    def _wanted_of(self, device: Device) -> list[str]:
        """What this device is to have ready: its one version, or all that no container serves."""
        wanted = [*self.wanted, *self.draining]
        if device.info.container:
            return [ref for ref in wanted if ref == device.info.container]
        return [ref for ref in wanted if ref not in self.contained]

    def _drop_idle_models(self) -> None:
        for ref in [ref for ref, model in self.state.models.items() if not model.ready and not len(model.queue)]:
            del self.state.models[ref]

    # -- preparation --------------------------------------------------------------------------------------------------

    def prepared(self, worker: str, report: wire.Prepared, *, now: float) -> list[Order]:
        """A worker says how far a version is."""
        orders: list[Order] = []
        device = self.state.devices.get(worker)
        if device is not None and report.ref in self.preparations[worker].stages:
            self._take_report(device, report, orders, now)
        return orders

    def prepare(self, device: Device, now: float, orders: list[Order]) -> None:
        """PREPAREs that fit the worker's queue go out, and the next measuring run if the device has slack for it."""
        preparation = self.preparations[device.worker]
        preparation.look_again(now)
        for ref in preparation.to_prepare():
            preparation.stages[ref].asked = content = self.contents.of(ref)
            orders.append(ToWorker(device.worker, wire.Prepare(ref=ref, content=content)))
        if len(device.exec) or device.waiting:
            return
        run = preparation.to_measure(now, device.busy_until_s)
        if run is None:
            return
        ref, batch, expected_s = run
        if ref not in device.residency.models and not self._load_to_measure(device, ref, now, orders):
            return
        preparation.measuring(ref)
        start_s = device.start_s(ref, now)
        orders.append(
            self.actions.infer(device, ref, batch, [], start_s=start_s, expected_s=expected_s, latest_s=None, now=now)
        )

    def _load_to_measure(self, device: Device, ref: str, now: float, orders: list[Order]) -> bool:
        def busy(resident: str) -> bool:
            model = self.state.models.get(resident)
            return model is not None and len(model.queue) > 0

        if device.load_barred(ref, now):
            return False
        evict = device.residency.victims(device.pages[ref], busy, lambda resident: float(resident in device.curves))
        report = self.preparations[device.worker].stages[ref].report
        if evict is None or report is None:
            return False
        for resident in evict:
            self.unload(device, resident, now, orders)
        expected_s = report.weights_bytes / LOAD_GUESS_BYTES_PER_S + 1e-3
        orders.append(self.actions.load(device, ref, expected_s=expected_s, now=now))
        return True

    def not_measurable(self, device: Device, ref: str, result: wire.ActionResult, now: float) -> list[Order]:
        """A measuring run ended so that another would, too: after a few of them the version cannot be served there."""
        if self.preparations[device.worker].faulted(ref, now):
            return self._give_up(device, ref, "it fails where it is measured", result, now)
        return []

    def not_loadable(self, device: Device, ref: str, result: wire.ActionResult, now: float) -> list[Order]:
        """A LOAD failed: it is tried again, and after a few that ended so that another would, too, it is not."""
        device.load_failed(ref, now, final=result.code in LOAD_FINAL)
        stage = self.preparations[device.worker].stages.get(ref)
        limit = LOAD_FAULTS_MAX if ref in device.curves else FAULTS_MAX
        if stage is None or stage.failed or device.load_faults[ref].final < limit:
            return []
        return self._give_up(device, ref, "its weights cannot be loaded", result, now)

    def _give_up(self, device: Device, ref: str, what: str, result: wire.ActionResult, now: float) -> list[Order]:
        """The version is not served from the device, with this reason; what it was is forgotten there."""
        orders: list[Order] = []
        name, version = wire.split_ref(ref)
        why = (
            f"{what}: {result.message or result.code}. Mend that and `gearmesh deploy {name} --version {version}`, or "
            "deploy another version"
        )
        orders.append(ToWorker(device.worker, wire.Forget(ref=ref)))
        self._take_report(device, wire.Prepared(ref=ref, ok=False, faults=(why,), code=result.code), orders, now)
        return orders

    def unload(self, device: Device, ref: str, now: float, orders: list[Order]) -> None:
        """The model leaves the device's memory."""
        model = self.state.models.get(ref)
        if model is not None:
            self.state.drop_host(model, device)
        orders.append(self.actions.unload(device, ref, now=now))

    def not_resident(self, device: Device, ref: str) -> None:
        """The model turned out not to be in the device's memory."""
        model = self.state.models.get(ref)
        if model is not None:
            self.state.drop_host(model, device)
        device.residency.gone(ref)
        device.room_for_more = True

    def _take_report(self, device: Device, report: wire.Prepared, orders: list[Order], now: float) -> None:
        ref = report.ref
        preparation = self.preparations[device.worker]
        had = bool(preparation.stages[ref].content)
        preparation.reported(report)
        if report.ok:
            device.pages[ref] = report.pages
            self._judge(device, report, orders)
        elif device.info.container:
            self._container_stopped(device, ref)
        else:
            self._failed(device, ref, now)
            if had:
                self.contents.free(ref)
        self.reporting.report(ref, orders)
        self.reporting.tell_serving(orders, [ref])

    def _failed(self, device: Device, ref: str, now: float) -> None:
        """The version is not served from the device; if it was, it may be again."""
        preparation = self.preparations[device.worker]
        if ref in device.curves or preparation.stages[ref].given_up:
            preparation.give_up(ref, now)
        self._gone(device, ref)

    def _judge(self, device: Device, report: wire.Prepared, orders: list[Order]) -> None:
        """What the device has prepared is served, or waits for the catalogue, or is not what the version is."""
        ref = report.ref
        verdict = self.contents.judge(device.worker, report)
        if verdict in (Verdict.REFUSED, Verdict.PREPARED_AGAIN):
            self._forget(device, ref, orders)
            preparation = self.preparations[device.worker]
            preparation.again(ref)
            if verdict is Verdict.REFUSED:
                preparation.reported(wire.Prepared(ref=ref, ok=False, faults=(why_changed(ref),), code=CHANGED))
        elif _is_whole(report) and not device.leaving:
            if verdict is Verdict.SERVED:
                self._make_ready(device, report)
            else:
                self.contents.hold(device.worker, ref)

    def _judge_all(self, ref: str, orders: list[Order]) -> None:
        """The catalogue says what the version is, and did not before, or said otherwise."""
        for worker, preparation in self.preparations.items():
            stage = preparation.stages.get(ref)
            if stage is not None and stage.report is not None and stage.content:
                self._not_ready(self.state.devices[worker], ref)
                self._judge(self.state.devices[worker], stage.report, orders)
            elif stage is not None and stage.failed and stage.code == CHANGED:
                preparation.again(ref)

    def _try_again(self, ref: str) -> None:
        """Whatever kept devices from preparing the version may have been mended."""
        self.reporting.forget(ref)
        for preparation, stage in self.contents.stages(ref):
            if stage.failed and ref not in self.contained:
                preparation.again(ref)

    def _make_ready(self, device: Device, report: wire.Prepared) -> None:
        ref, spec = report.ref, report.spec
        assert spec is not None
        profile = report.profile or CONTAINER_PROFILE
        if report.batching is not None:
            device.curves[ref] = self._black_box(device, ref, report.batching, spec.batch_max)
            if ref not in device.residency.models:
                device.residency.loading(ref, report.pages, 0, 0.0, 0.0)
                device.residency.loaded(ref, 0, 0.0)
        else:
            device.curves[ref] = make_curve(
                profile, spec.batch_max, device.info.any_batch, device.exec_term, device.pace
            )
        device.loads[ref] = LoadEstimate(max(profile.load_s, 1e-6), device.load_term)
        model = self.state.models.get(ref)
        if model is None:
            model = self.state.models[ref] = Model(ref, spec)
        model.ready[device.worker] = device
        if ref in device.residency.models:
            self.state.add_host(model, device)
        device.room_for_more = True

    def _black_box(self, device: Device, ref: str, batching: wire.Batching, rows_max: int) -> BlackBoxCurve:
        """The curve of a container, which starts from what it, or another of the same code, has shown already."""
        curve = make_black_box(batching, rows_max)
        model = self.state.models.get(ref)
        known_ref, known = self.known.get(device.worker, ("", None))
        others = [other.curves[ref] for other in model.ready.values()] if model is not None else []
        if known is None or known_ref != ref:
            known = next((other for other in others if isinstance(other, BlackBoxCurve)), None)
        if known is not None:
            curve.inherit(known)
        return curve

    def _container_stopped(self, device: Device, ref: str) -> None:
        """The container's code died, or was made to: it is being started again."""
        curve = device.curves.get(ref)
        if isinstance(curve, BlackBoxCurve):
            self.known[device.worker] = (ref, curve)
        self._not_ready(device, ref)
        if not any(action.ref == ref for action in device.actions.values()):
            device.residency.gone(ref)

    def _found_resident(self, device: Device, ref: str, orders: list[Order], now: float) -> None:
        """The worker came with this in its arena."""
        pages = device.pages.get(ref)
        if pages is None or pages > device.residency.free:
            orders.append(ToWorker(device.worker, wire.Unload(action=0, ref=ref)))
            return
        device.residency.loading(ref, pages, 0, now, now)
        device.residency.loaded(ref, 0, now)
        model = self.state.models.get(ref)
        if model is not None and device.worker in model.ready:
            self.state.add_host(model, device)

    def _nothing_ready(self, device: Device) -> None:
        for ref in [*device.curves, *self.contents.held_by(device.worker)]:
            self._not_ready(device, ref)

    def _not_ready(self, device: Device, ref: str) -> None:
        model = self.state.models.get(ref)
        if model is not None:
            self.state.drop_host(model, device)
            model.ready.pop(device.worker, None)
        self.contents.drop(device.worker, ref)
        device.curves.pop(ref, None)
        device.loads.pop(ref, None)

    def check(self) -> None:
        """Every invariant holds."""
        assert self.preparations.keys() == self.state.devices.keys()
        for preparation in self.preparations.values():
            preparation.check()
        assert not set(self.wanted) & self.draining.keys()
        assert self.contents.terms.keys() == {*self.wanted, *self.draining}
        self.contents.check()
        for worker, device in self.state.devices.items():
            for ref in device.curves:
                content = self.preparations[worker].stages[ref].content
                assert content in ("", self.contents.terms[ref].content), (worker, ref)
                assert worker not in self.contents.held.get(ref, ())


def _is_whole(report: wire.Prepared) -> bool:
    """All is known that is needed to plan with it."""
    return report.ok and report.spec is not None and (report.profile is not None or report.batching is not None)
