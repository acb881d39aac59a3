"""Versions from a model repository: prepared on a thread when the controller asks for them, and then measured."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

from gpu_worker import tuning
from gpu_worker.core.fitting import servable
from gpu_worker.core.fixed import fixed_rows
from gpu_worker.core.ledger import Ledger, News, ReadyVersion
from gpu_worker.core.pump import Pump
from gpu_worker.core.sharing import Means, MeasuredGroup
from gpu_worker.devices.base import Device
from gpu_worker.packages.package import Package
from gpu_worker.preparing import PreparedVersion, Preparer
from gpu_worker.profiling import write_profile
from gpu_worker.versions import Tell
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import NotWritten, PackageError
from mesh.versions import why_changed
from mesh.wire.ranges import cut_all

GIVE_UP_S = 2.0  # after the device is lost: a preparation that takes longer is stuck in the device
log = structlog.get_logger("worker")


class RepositoryVersions:
    """The `Versions` of a repository. One version is prepared at a time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        device: Device,
        repository: Path,
        factory_allow: tuple[str, ...],
    ) -> None:
        self.offer: wire.Offer | None = None
        self._loop = loop
        self._device = device
        self._preparer = Preparer(repository, factory_allow, device)
        self._thread = ThreadPoolExecutor(1, "prepare")
        self._packages: dict[str, Package] = {}  # {ref: package}, of the versions that are prepared
        self._preparing: dict[str, Future[None]] = {}  # {ref: the preparation whose end is waited for}
        self._ledger = Ledger()
        self._lost = False  # the device
        self._profiles_lost = 0  # measured, and not written
        self._pump: Pump | None = None
        self._tell: Tell | None = None

    def attach(self, pump: Pump, tell: Tell) -> None:
        """`pump` learns what can be executed, and reports go to `tell`. Called once, before everything else."""
        self._pump, self._tell = pump, tell

    def reports(self) -> tuple[wire.Prepared, ...]:
        """The last report of each version that is prepared: part of the worker's hello."""
        return self._ledger.reports()

    @property
    def pending(self) -> tuple[str, ...]:
        """Refs of the versions that are being prepared, in alphabetical order."""
        return tuple(sorted(self._preparing))

    def close(self) -> None:
        """Nothing is prepared any more. A preparation that has begun goes on; nobody hears of its end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- preparing ----------------------------------------------------------------------------------------------------

    def prepare(self, ref: str, content: str) -> None:
        """The version is being prepared, with this content if one is named. The controller will be told how it went."""
        report = self._ledger.report(ref)
        if report is not None and report.content and content not in ("", report.content):
            self.forget(ref)  # it was prepared with another content
            report = None
        if report is not None:
            self._send(report)
        elif ref not in self._preparing and not self._lost:
            future: Future[None] = Future()
            self._preparing[ref] = future
            self._thread.submit(self._prepare_there, ref, content, future)

    def _prepare_there(self, ref: str, content: str, future: "Future[None]") -> None:
        """Runs on the thread for preparations; the loop's thread hears of the end."""
        if not future.set_running_or_notify_cancel():
            return
        began_s = time.monotonic()
        try:
            made = self._preparer.prepare(ref, content)
        except PackageError as error:
            self._loop.call_soon_threadsafe(self._not_prepared, ref, future, tuple(error.faults), error.code)
        except (Exception, SystemExit) as error:  # a package must not end the worker, whatever it contains
            faults = (f"{type(error).__name__}: {error}",)
            self._loop.call_soon_threadsafe(self._not_prepared, ref, future, faults, PackageCode.BAD_PACKAGE)
        else:
            self._loop.call_soon_threadsafe(self._is_prepared, made, future, time.monotonic() - began_s)

    def _is_prepared(self, made: PreparedVersion, future: "Future[None]", took_s: float) -> None:
        assert self._pump is not None
        package, ref = made.package, made.package.ref
        if not self._is_wanted(ref, future):
            return
        if all(other.architecture != package.architecture for other in self._packages.values()):
            tuning.freeze()  # an executable consists of very many objects
        self._packages[ref] = package
        spec, pages = package.spec, package.pages(self._device.info.page_bytes)
        self._serve(package, made.profile)
        group, traits = None, self._device.traits(ref)
        if self._device.measured:
            slo_s = spec.slo_ms / 1e3 if spec.dims else 0.0
            group = MeasuredGroup(package.architecture, traits.load_from, spec.batch_max, spec.dims, slo_s)
        means = Means(traits.cells, traits.memory_bytes)
        ready = ReadyVersion(ref, spec, pages, package.image_bytes, made.content, made.profile, group, means)
        news = self._ledger.prepared(ready)
        profiled = news.reports[0].profile is not None
        log.info("prepared", ref=ref, took_s=round(took_s, 3), pages=pages, profiled=profiled)
        self._spread(news)

    def _serve(self, package: Package, profile: wire.Profile | None) -> None:
        """The lanes execute the version. `profile`: says which batches fit, if that is known."""
        assert self._pump is not None
        spec, pages = package.spec, package.pages(self._device.info.page_bytes)
        sizes = None if self._device.info.any_batch else frozenset(fixed_rows(spec))
        self._pump.lanes.prepared(package.ref, servable(spec, pages, sizes, profile))

    def _not_prepared(self, ref: str, future: "Future[None]", faults: Sequence[str], code: PackageCode) -> None:
        if not self._is_wanted(ref, future):
            return
        self._free(ref)
        log.warning("not_prepared", ref=ref, faults=list(faults), code=code)
        self._send(wire.Prepared(ref=ref, ok=False, faults=cut_all(faults), code=code))

    def _is_wanted(self, ref: str, future: "Future[None]") -> bool:
        """Whether the controller still waits for this preparation, which has ended. If not, what it made is freed."""
        if self._preparing.get(ref) is future:
            del self._preparing[ref]
            return True
        if ref not in self._preparing:  # a newer preparation replaces on the device what this one made
            self._free(ref)
        return False

    def _free(self, ref: str) -> None:
        """The device holds nothing of the version. A lost device cannot free anything."""
        if not self._lost:
            self._device.forget(ref)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def forget(self, ref: str) -> None:
        """The version is neither prepared nor measured here any more, and what it held on the device is given back."""
        assert self._pump is not None
        self._preparing.pop(ref, None)
        self._packages.pop(ref, None)
        self._spread(self._ledger.forget(ref))
        self._pump.forget(ref, now=time.monotonic())
        self._device.forget(ref)
        log.info("forgotten", ref=ref)

    def withdraw(self, ref: str, why: str) -> None:
        """The version, whose files have changed, is not served until the controller asks again; it is told why."""
        if self._ledger.report(ref) is None:
            return  # it was forgotten in the meantime
        log.warning("withdrawn", ref=ref, why=why, code=PackageCode.CONTENT_CHANGED)
        self.forget(ref)
        self._send(wire.Prepared(ref=ref, ok=False, faults=(why_changed(ref),), code=PackageCode.CONTENT_CHANGED))

    def device_lost(self, why: str) -> None:
        """No preparation begins. One that has begun has GIVE_UP_S to end: it may be what the device was lost by."""
        self._lost = True
        for ref, preparation in list(self._preparing.items()):
            if preparation.cancel():  # it has not begun: the next process prepares the version
                del self._preparing[ref]
        self._loop.call_later(GIVE_UP_S, self._give_up, why)

    def _give_up(self, why: str) -> None:
        """The preparations that are still under way will not end, and nobody waits for them."""
        for ref, future in list(self._preparing.items()):
            faults = (f"the device was lost while it was being prepared: {why}",)
            self._not_prepared(ref, future, faults, PackageCode.DEVICE_LOST)

    # -- measuring ----------------------------------------------------------------------------------------------------

    def executed(self, action: wire.Load | wire.Infer, duration_s: float, memory_bytes: int = 0) -> None:
        """The measurement of the version, if it is being measured, has one more duration."""
        if self._ledger.is_measured(action.ref):
            traits = self._device.traits(action.ref)
            self._spread(self._ledger.ended(action, duration_s, traits.engine, traits.load_from, memory_bytes))

    def did_not_fit(self, action: wire.Infer) -> None:
        """The measurement of the version, if it is being measured, goes on without such batches."""
        if self._ledger.is_measured(action.ref):
            traits = self._device.traits(action.ref)
            self._spread(self._ledger.did_not_fit(action, traits.engine, traits.load_from))

    def _spread(self, news: News) -> None:
        for ref, profile in news.profiles:
            self._keep(ref, profile)
        for report in news.reports:
            if report.profile is not None and report.profile.sizes:
                self._serve(self._packages[report.ref], report.profile)
            if report.ok:
                self._send(report)
            else:
                self._loop.call_soon(self._refused, report)  # the pump is at work

    def _refused(self, report: wire.Prepared) -> None:
        """Measuring showed that the version cannot be served here: what it has is given back, and it is told why."""
        if self._ledger.report(report.ref) is not None or report.ref in self._preparing:
            return  # it has been prepared anew since
        log.warning("not_served", ref=report.ref, faults=list(report.faults), code=report.code)
        self.forget(report.ref)
        self._send(report)

    def _keep(self, ref: str, profile: wire.Profile) -> None:
        try:
            package = self._packages[ref]
            write_profile(package.folder, self._preparer.kind(ref), profile, package.spec.slo_ms)
        except (OSError, NotWritten) as error:
            unheard = not self._profiles_lost
            self._profiles_lost += 1
            if unheard:  # a disk that takes none would be told of once per version
                advice = "versions are measured again next time; this is not said of further ones"
                log.warning("profile_not_kept", ref=ref, error=str(error), advice=advice)

    def _send(self, report: wire.Prepared) -> None:
        assert self._tell is not None
        self._tell(report)
