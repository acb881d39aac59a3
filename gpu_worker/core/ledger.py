"""What the controller was told of each version that is prepared here, and what is still to be measured of it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from gpu_worker.core.measuring import Measurement
from gpu_worker.core.sharing import Group, Sharing
from mesh import wire


@dataclass(frozen=True, slots=True)
class News:
    """What follows from an event: the controller has to be told, and profiles have to be kept in files."""

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
    group: Group | None  # versions that take equal time; None: the device needs no measuring


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
            profile = self._sharing.join(ref, ready.group, ready.profile)
            keep = ready.profile is None and profile is not None
        measurement = self._sharing.measurements.get(ref)
        sizes = Measurement(ready.spec.batch_max).sizes
        report = self._reports[ref] = wire.Prepared(
            ref=ref,
            ok=True,
            spec=msgspec.structs.replace(ready.spec, batch_sizes=sizes),
            pages=ready.pages,
            weights_bytes=ready.weights_bytes,
            profile=profile,
            measure=measurement.next_plan() if measurement is not None else (),
            content=ready.content,
        )
        return News((report,), ((ref, profile),) if keep and profile is not None else ())

    def ended(self, action: wire.Load | wire.Infer, duration_s: float, engine: str, load_from: str) -> News:
        """An action ended well. Once a plan of measurements is done, the next one follows, or the profile."""
        measurement = self._sharing.measurements.get(action.ref)
        if measurement is None:
            return NOTHING
        if isinstance(action, wire.Load):
            measurement.loaded(duration_s)
        elif action.parts:
            return NOTHING  # only measuring runs count: they execute as many rows as the batch has
        else:
            measurement.ran(action.batch, duration_s)
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

    def _measured(self, ref: str, measurement: Measurement, engine: str, load_from: str) -> News:
        if not measurement.due:
            return NOTHING
        plan = measurement.next_plan()
        profile = measurement.profile(engine, load_from)
        if profile is None:
            return self._changed([ref], profile=None, measure=plan)
        group = self._sharing.complete(ref, profile)
        news = self._changed(group, profile=profile, measure=plan)
        return News(news.reports, tuple((other, profile) for other in group))

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
