"""What the controller was told of each version that is prepared here, and what is still to be measured of it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from gpu_worker.core.measuring import AnyMeasurement, ladder
from gpu_worker.core.sharing import NO_MEANS, Means, MeasuredGroup, Sharing
from mesh import wire
from mesh.codes import PackageCode


@dataclass(frozen=True, slots=True)
class News:
    """What follows from an event: the controller has to be told, and profiles have to be kept in files.

    A version of which a report says that it cannot be served has to be forgotten.
    """

    reports: tuple[wire.Prepared, ...] = ()
    profiles: tuple[tuple[str, wire.Profile], ...] = ()  # (ref, its profile)


NOTHING = News()


@dataclass(frozen=True, slots=True)
class ReadyVersion:
    """A version that the device can load and execute from now on."""

    ref: str
    spec: wire.ModelSpec
    pages: int
    weights_bytes: int
    content: str  # digest; empty: the device reads no weights
    profile: wire.Profile | None  # known already
    group: MeasuredGroup | None  # versions that take equal time; None: the device needs no measuring
    means: Means = NO_MEANS


@dataclass(slots=True)
class Ledger:
    """Reports of versions, by ref, and the measurements that will complete them."""

    _reports: dict[str, wire.Prepared] = field(default_factory=dict)  # {ref: last report}, in order of preparation
    _sharing: Sharing = field(default_factory=Sharing)

    def report(self, ref: str) -> wire.Prepared | None:
        """The last report of this version."""
        return self._reports.get(ref)

    def reports(self) -> tuple[wire.Prepared, ...]:
        """The last report of every version that is prepared here."""
        return tuple(self._reports.values())

    def prepared(self, ready: ReadyVersion) -> News:
        """The version is prepared. Without a profile it is measured, or waits for the profile of its group."""
        ref, profile, keep = ready.ref, ready.profile, False
        if ready.group is not None:
            profile = self._sharing.join(ref, ready.group, ready.profile, ready.means)
            keep = ready.profile is None and profile is not None
        measurement = self._sharing.measurements.get(ref)
        report = self._reports[ref] = wire.Prepared(
            ref=ref,
            ok=True,
            spec=msgspec.structs.replace(ready.spec, batch_sizes=ladder(ready.spec.batch_max)),
            pages=ready.pages,
            weights_bytes=ready.weights_bytes,
            profile=profile,
            measure=measurement.next_plan() if measurement is not None else (),
            content=ready.content,
        )
        return News((report,), ((ref, profile),) if keep and profile is not None else ())

    def ended(
        self, action: wire.Load | wire.Infer, duration_s: float, engine: str, load_from: str, memory_bytes: int = 0
    ) -> News:
        """An action ended well. Once a plan of measurements is done, the next one follows, or the profile.

        `memory_bytes`: what EXEC took; 0: that was not seen.
        """
        measurement = self._sharing.measurements.get(action.ref)
        if measurement is None:
            return NOTHING
        if isinstance(action, wire.Load):
            measurement.loaded(duration_s)
        elif action.parts:
            return NOTHING  # only measuring runs count: they execute as many rows as the batch has
        else:
            measurement.ran(action.batch, duration_s, action.extents, memory_bytes)
        return self._measured(action.ref, measurement, engine, load_from)

    def did_not_fit(self, action: wire.Infer, engine: str, load_from: str) -> News:
        """A measuring run ended for want of memory: the plan goes on without it, and without larger ones."""
        measurement = self._sharing.measurements.get(action.ref)
        if measurement is None or action.parts:
            return NOTHING
        measurement.did_not_fit(action.batch, action.extents)
        return self._measured(action.ref, measurement, engine, load_from)

    def forget(self, ref: str) -> News:
        """The version is not prepared any more. If its group waited for it, another one is measured in its place."""
        self._reports.pop(ref, None)
        heir = self._sharing.leave(ref)
        if heir is None:
            return NOTHING
        return self._changed([heir], measure=self._sharing.measurements[heir].next_plan())

    def is_measured(self, ref: str) -> bool:
        """Whether measurements of this version are under way."""
        return ref in self._sharing.measurements

    def _measured(self, ref: str, measurement: AnyMeasurement, engine: str, load_from: str) -> News:
        if not measurement.due:
            return NOTHING
        plan = measurement.next_plan()
        if measurement.fault:
            return self._refused(ref, measurement.fault)
        profile = measurement.profile(engine, load_from)
        if profile is None:
            return self._changed([ref], profile=None, measure=plan)
        group = self._sharing.complete(ref, profile)
        news = self._changed(group, profile=profile, measure=plan)
        return News(news.reports, tuple((other, profile) for other in group))

    def _refused(self, ref: str, fault: str) -> News:
        """No version of the group can be served: what one was measured to need, all do."""
        group = self._sharing.members(ref)
        for other in reversed(group):  # the measured one last, so that none takes its place
            del self._reports[other]
            self._sharing.leave(other)
        code = PackageCode.NO_MEMORY
        return News(tuple(wire.Prepared(ref=other, ok=False, faults=(fault,), code=code) for other in group))

    def _changed(self, refs: Iterable[str], **fields: object) -> News:
        reports = []
        for ref in refs:
            self._reports[ref] = msgspec.structs.replace(self._reports[ref], **fields)
            reports.append(self._reports[ref])
        return News(tuple(reports))

    def check(self) -> None:
        """Every invariant holds."""
        self._sharing.check()
        assert set(self._sharing.measurements) <= set(self._reports)
        assert all(report.ok for report in self._reports.values())
