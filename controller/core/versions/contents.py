"""What the files of a version have to be, and which devices have that: a version is its content. Pure.

The catalogue has the last word. Before it has one, whatever a device has prepared waits for it, and meanwhile no other
device may bring anything else. So a version is never served in two contents, whatever dies in between.
"""

from dataclasses import dataclass, field
from enum import Enum

from controller.core.versions.preparation import Preparation, Stage, Terms
from mesh import wire
from mesh.codes import PackageCode

NO_TERMS = Terms()


class ContentDecision(Enum):
    """What becomes of a version that a device has prepared."""

    SERVED = "served"
    HELD = "held"  # until the catalogue has its content
    PREPARED_AGAIN = "prepared again"  # from other files, and the worker was not told which to look for
    REFUSED = "refused"  # from other files than those it was told to look for


@dataclass(slots=True)
class VersionContents:
    """The contents of versions, as far as they are known."""

    preparations: dict[str, Preparation]  # {worker: its versions}; the fleet's
    terms: dict[str, Terms] = field(default_factory=dict)  # {ref: the catalogue's}, of those wanted and draining
    held: dict[str, dict[str, None]] = field(default_factory=dict)  # {ref: workers that wait for the catalogue's word}

    def of(self, ref: str, *, but: str = "") -> str:
        """The digest that every device is to have; empty if any will do.

        It is the catalogue's, or else that of another device; the worker `but` is not asked.
        """
        known = self.terms.get(ref, NO_TERMS).content
        if known:
            return known
        found = (p.stages[ref].content for worker, p in self.preparations.items() if worker != but and ref in p.stages)
        return next(filter(None, found), "")

    def decide(self, worker: str, report: wire.Prepared) -> ContentDecision:
        """What becomes of this report, which the worker's stage knows already.

        A device that reads no weights reports no content, and serves at once.
        """
        ref = report.ref
        if not report.content:
            return ContentDecision.SERVED
        right = self.of(ref, but=worker)
        if right not in ("", report.content):
            asked = self.preparations[worker].stages[ref].asked
            return ContentDecision.REFUSED if asked == right else ContentDecision.PREPARED_AGAIN
        return ContentDecision.SERVED if self.terms.get(ref, NO_TERMS).content else ContentDecision.HELD

    def hold(self, worker: str, ref: str) -> None:
        """The worker could serve the version, once the catalogue has its content."""
        self.held.setdefault(ref, {})[worker] = None

    def drop(self, worker: str, ref: str) -> None:
        """The version does not wait at this worker any more."""
        held = self.held.get(ref)
        if held is not None:
            held.pop(worker, None)
            if not held:
                del self.held[ref]

    def held_by(self, worker: str) -> list[str]:
        """The versions that wait at this worker."""
        return [ref for ref, workers in self.held.items() if worker in workers]

    def first_held(self, ref: str) -> wire.Prepared | None:
        """The report of the first worker that could serve the version once the catalogue has its content."""
        worker = next(iter(self.held.get(ref, ())), None)
        return self.preparations[worker].stages[ref].report if worker is not None else None

    def free(self, ref: str) -> bool:
        """A device that had the version is gone. If no other has it, devices that read other files prepare it again.

        Returns whether there are any.
        """
        freed = False
        for preparation, stage in self.stages(ref) if not self.of(ref) else ():
            if stage.failed and stage.code == PackageCode.CONTENT_CHANGED:
                preparation.again(ref)
                freed = True
        return freed

    def stages(self, ref: str) -> list[tuple[Preparation, Stage]]:
        """How far the version is on each device that is to have it."""
        return [(p, p.stages[ref]) for p in self.preparations.values() if ref in p.stages]

    def failed_everywhere(self, ref: str) -> list[Stage]:
        """The version's stages if it has failed on every device that is to have it; otherwise none."""
        stages = [stage for _, stage in self.stages(ref)]
        return stages if all(stage.failed for stage in stages) else []

    def faults(self, ref: str) -> list[str]:
        """What devices said about why they cannot prepare the version, each fault once."""
        reports = [stage.report for _, stage in self.stages(ref) if stage.report is not None]
        return list(dict.fromkeys(fault for report in reports for fault in report.faults))

    def check(self) -> None:
        """Every invariant holds."""
        for ref in self.terms:
            found = {stage.content for _, stage in self.stages(ref)} - {""}
            assert len(found) <= 1, (ref, found)
            assert not found or self.terms[ref].content in {"", *found}, ref
        for ref, workers in self.held.items():
            assert workers
            assert not self.terms[ref].content, ref
