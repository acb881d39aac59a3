"""Gets every wanted version prepared and measured on one device, in idle time. Pure.

A version goes through these stages: wanted, being prepared, to be measured (it is loaded, then run in every size),
ready. Or it has failed, with its faults, until it is wanted anew or an operator asks for it. A version that was ready
and turned out not to be is also prepared again now and then: its files may be back.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from controller.core.failures import DOUBLINGS_MAX
from mesh import wire
from mesh.sizes import Extents, holds

PREPARES_MAX = 2  # versions at a worker: one being prepared, one behind it
FIRST_GUESS_S = 0.05  # duration of a measuring run before any was seen
SHARE_OF_TIME = 0.1  # measuring takes at most this share of a device's time while it has other work
RETRY_S = 0.1  # pause after a measuring run that failed; it doubles with each further failure
RETRY_S_MAX = 5.0
AGAIN_S = 5.0  # until a version that was ready and was given up is prepared again; it doubles each time
AGAIN_S_MAX = 600.0
DOUBTED_S = 0.1  # until a version that was found missing a second time in a row is prepared again; it doubles each time
DOUBTED_S_MAX = 5.0
DOUBT_OVER_S = 60.0  # a version that was not found missing for so long is found missing for the first time
FAULTS_MAX = 3  # runs in a row that another one would repeat: the version cannot be served from the device
REPORT_S = 2.0  # a worker whose runs are all done says so by then, or is asked again
IDLE_S = 1.0  # a device that ran no client's batch for so long has no other work


@dataclass(frozen=True, slots=True)
class Terms:
    """What the catalogue says of one version that is wanted."""

    content: str = ""  # digest of what is served under it; empty: nothing was yet, or devices read no weights
    tries: int = 0  # how often operators have asked for it; each time, what failed is tried again
    pending: bool = False  # it is to become current, and the catalogue waits for a report of it
    unserved: bool | None = None  # the catalogue was told that no device can prepare it; None: it does not say


def terms_of(model: wire.ModelEntry, version: str) -> Terms:
    """What the table says of one of the model's versions.

    Whether a version in containers is served depends on who is there, so that is left open.
    """
    return Terms(
        content=model.contents.get(version, ""),
        tries=model.tries,
        pending=version == model.target,
        unserved=model.unserved if version == model.current and not model.container else None,
    )


class Runs(NamedTuple):
    """Measuring runs of one batch."""

    batch: int
    runs: int
    extents: Extents = ()  # (): the version has no open dimension

    @property
    def elements(self) -> int:
        """Elements of an input that has all open dimensions."""
        return self.batch * math.prod(self.extents)


class MeasuringRun(NamedTuple):
    """What is to be sent."""

    ref: str
    batch: int
    expected_s: float
    extents: Extents = ()


@dataclass(slots=True)
class Stage:
    """One version on one device."""

    asked: str = ""  # content that the worker was told to look for
    report: wire.Prepared | None = None  # what the worker said last
    left: list[Runs] = field(default_factory=list)  # measuring runs still to be sent
    running: bool = False  # a measuring run is at the device
    guess_s: float = FIRST_GUESS_S  # duration of the last run
    guess_batch: int = 1  # and its size
    seen_s: dict[int, float] = field(default_factory=dict)  # {elements: duration of the last run of so many}
    faults: int = 0  # measuring runs in a row with an end that another one would repeat
    failures: int = 0  # measuring runs in a row that did not end well
    retry_s: float = 0.0  # no measuring run before
    given_up: int = 0  # times in a row that it was ready, or prepared again, and turned out not to be
    doubted: int = 0  # times in a row that it was prepared, as was said, and its worker did not know it
    doubted_s: float = -math.inf  # when that was seen last

    def expected_s(self, run: Runs) -> float:
        """Duration that the run is expected to take, by those before it.

        With open dimensions it lies between those of the next fewer and the next more elements; beyond the most it is
        in proportion to them.
        """
        if not run.extents:
            return self.guess_s * max(1.0, run.batch / self.guess_batch)
        if not self.seen_s:
            return FIRST_GUESS_S
        fewer = max((elements for elements in self.seen_s if elements <= run.elements), default=0)
        more = min((elements for elements in self.seen_s if elements >= run.elements), default=0)
        if not fewer:
            return self.seen_s[more]
        if not more:
            return self.seen_s[fewer] * run.elements / fewer
        low_s, high_s = self.seen_s[fewer], self.seen_s[more]
        return low_s + (high_s - low_s) * (run.elements - fewer) / max(1, more - fewer)

    @property
    def failed(self) -> bool:
        """The version cannot be served from this device."""
        return self.report is not None and not self.report.ok

    @property
    def code(self) -> str:
        """Which kind of fault the report has; empty if none."""
        return self.report.code if self.report is not None else ""

    @property
    def content(self) -> str:
        """Digest of what the worker has prepared; empty if that is nothing, or reads no weights."""
        return self.report.content if self.report is not None and self.report.ok else ""


@dataclass(slots=True)
class Preparation:
    """All versions on one device."""

    stages: dict[str, Stage] = field(default_factory=dict)  # {ref: stage}, exactly the wanted ones, in their order
    _unsent: dict[str, None] = field(default_factory=dict)  # refs whose PREPARE is still to be sent
    _at_worker: dict[str, None] = field(default_factory=dict)  # refs being prepared
    _unmeasured: dict[str, None] = field(default_factory=dict)  # refs with runs left
    _measure_after_s: float = 0.0  # no measuring run before, while the device has other work
    _again: dict[str, float] = field(default_factory=dict)  # {ref given up, doubted, or measured: when PREPARE is sent}

    def want(self, refs: list[str]) -> list[str]:
        """These versions and no others are wanted. Returns the versions that the worker is to forget."""
        wanted = set(refs)
        dropped = [ref for ref in self.stages if ref not in wanted]
        for ref in dropped:
            del self.stages[ref]
            for group in (self._unsent, self._at_worker, self._unmeasured, self._again):
                group.pop(ref, None)
        for ref in refs:
            if ref not in self.stages:
                self.stages[ref] = Stage()
                self._unsent[ref] = None
        return dropped

    def again(self, ref: str) -> None:
        """The version is to be prepared as if it had not been wanted before."""
        self.stages[ref] = Stage()
        for group in (self._at_worker, self._unmeasured, self._again):
            group.pop(ref, None)
        self._unsent[ref] = None

    def give_up(self, ref: str, now: float) -> None:
        """The version was ready and cannot be served as it is: it is prepared again after a while."""
        stage = self.stages[ref]
        self._again[ref] = now + min(AGAIN_S_MAX, AGAIN_S * 2.0 ** min(stage.given_up, DOUBLINGS_MAX))
        stage.given_up += 1

    def doubted(self, ref: str, now: float) -> None:
        """The worker does not know the version, which it had prepared: it is prepared again, later with each time."""
        before = self.stages[ref]
        doubted = before.doubted if now < before.doubted_s + DOUBT_OVER_S else 0
        self.again(ref)
        self.stages[ref].doubted, self.stages[ref].doubted_s = doubted + 1, now
        if doubted:
            del self._unsent[ref]
            self._again[ref] = now + min(DOUBTED_S_MAX, DOUBTED_S * 2.0 ** min(doubted - 1, DOUBLINGS_MAX))

    def look_again(self, now: float) -> None:
        """Versions that were given up, doubted, or measured without a word, long enough ago are to be prepared."""
        for ref in [ref for ref, again_s in self._again.items() if now >= again_s]:
            before = self.stages[ref]
            self.again(ref)
            stage = self.stages[ref]
            stage.given_up, stage.doubted, stage.doubted_s = before.given_up, before.doubted, before.doubted_s

    def again_at(self) -> float:
        """When `look_again` next has work."""
        return min(self._again.values()) if self._again else math.inf  # asked of every device at every turn

    def loaded(self, ref: str) -> None:
        """A LOAD of the version has ended well."""
        stage = self.stages.get(ref)
        if stage is not None:
            stage.given_up = 0

    def to_prepare(self) -> list[str]:
        """The versions whose PREPARE is to be sent now; they count as sent."""
        chosen = list(self._unsent)[: PREPARES_MAX - len(self._at_worker)] if self._unsent else []
        for ref in chosen:
            del self._unsent[ref]
            self._at_worker[ref] = None
        return chosen

    def reported(self, report: wire.Prepared) -> bool:
        """The worker said how far a version is. False if the version is not wanted (any more)."""
        stage = self.stages.get(report.ref)
        if stage is None:
            return False
        self._unsent.pop(report.ref, None)
        self._at_worker.pop(report.ref, None)
        self._unmeasured.pop(report.ref, None)
        self._again.pop(report.ref, None)
        stage.report = report
        stage.left = [Runs(*runs) for runs in report.measure] if report.ok and report.profile is None else []
        if stage.left:
            self._unmeasured[report.ref] = None
        return True

    def to_measure(self, now: float, busy_until_s: float) -> MeasuringRun | None:
        """The measuring run to be sent now to a device that runs nothing, or None.

        `busy_until_s`: when it last ran something for a client.
        """
        if not self._unmeasured:
            return None
        if now < self._measure_after_s and now - busy_until_s < IDLE_S:
            return None
        for ref in self._unmeasured:
            stage = self.stages[ref]
            if stage.left and not stage.running and now >= stage.retry_s:
                run = stage.left[0]
                return MeasuringRun(ref, run.batch, stage.expected_s(run), run.extents)
        return None

    @property
    def complete(self) -> bool:
        """Nothing is left to be sent."""
        return not (self._unsent or self._unmeasured)

    def measuring(self, ref: str) -> None:
        """A measuring run of the version was sent."""
        self.stages[ref].running = True

    def measured(self, ref: str, batch: int, duration_s: float | None, now: float, extents: Extents = ()) -> None:
        """The run has ended. Without a duration it failed; it is tried again, later with each time."""
        stage = self.stages.get(ref)
        if stage is None:
            return
        stage.running = False
        if duration_s is None:
            self._measure_after_s = now + RETRY_S
            stage.retry_s = now + min(RETRY_S_MAX, RETRY_S * 2.0 ** min(stage.failures, DOUBLINGS_MAX))
            stage.failures += 1
            return
        stage.faults = stage.failures = 0
        self._measure_after_s = now + duration_s / SHARE_OF_TIME
        stage.guess_s, stage.guess_batch = duration_s, batch
        if extents:
            stage.seen_s[Runs(batch, 1, extents).elements] = duration_s
        if stage.left and (stage.left[0].batch, stage.left[0].extents) == (batch, extents):
            runs = stage.left[0].runs - 1
            stage.left[0:1] = [Runs(batch, runs, extents)] if runs else []
            if not stage.left:
                self._again[ref] = now + REPORT_S

    def did_not_fit(self, ref: str, batch: int, extents: Extents, now: float) -> None:
        """The run ended for want of memory: neither it nor a larger one is sent, and the worker plans the others."""
        stage = self.stages.get(ref)
        if stage is None:
            return
        stage.running = False
        self._measure_after_s = now + RETRY_S
        stage.left = [run for run in stage.left if run.batch < batch or not holds(run.extents, extents)]
        if not stage.left:
            self._again[ref] = now + REPORT_S

    def faulted(self, ref: str, now: float) -> bool:
        """The run ended as another one would. True after FAULTS_MAX of them: the version cannot be served from here."""
        self.measured(ref, 0, None, now)
        stage = self.stages.get(ref)
        if stage is None or not stage.left:
            return False  # it is not wanted any more, or has been prepared anew
        stage.faults += 1
        return stage.faults >= FAULTS_MAX

    def check(self) -> None:
        """Every invariant holds."""
        assert not self._unsent.keys() & self._at_worker.keys()
        for group in (self._unsent, self._at_worker, self._unmeasured, self._again):
            assert group.keys() <= self.stages.keys()
        assert all(
            stage.failed or stage.doubted or not stage.left for stage in map(self.stages.__getitem__, self._again)
        )
