"""What a version of files has to be, and which devices have that: a version is its content. Pure.

The catalogue's word is the last. What a device has prepared before there is one waits for it, and meanwhile no other
device may bring anything else; so a version is never served in two contents, whatever dies in between.
"""

from dataclasses import dataclass, field
from enum import Enum

from controller.core.versions.preparation import Preparation, Stage, Terms
from mesh import wire
from mesh.versions import CHANGED

NO_TERMS = Terms()


class Verdict(Enum):
    """What becomes of what a device has prepared."""

    SERVED = "served"
    HELD = "held"  # until the catalogue has its content
    PREPARED_AGAIN = "prepared again"  # other files, and the worker was not told which to look for
    REFUSED = "refused"  # other files than those it was told to look for


@dataclass(slots=True)
class Contents:
    """The versions' contents, as far as they are known."""

    preparations: dict[str, Preparation]  # {worker: its versions}; the fleet's
    terms: dict[str, Terms] = field(default_factory=dict)  # {ref: the catalogue's}, of those wanted and draining
    held: dict[str, dict[str, None]] = field(default_factory=dict)  # {ref: workers that wait for the catalogue's word}

    def of(self, ref: str, *, but: str = "") -> str:
        """What every device is to have: as the catalogue knows it, else as another device has it; else any will do."""
        known = self.terms.get(ref, NO_TERMS).content
        if known:
            return known
        found = (p.stages[ref].content for worker, p in self.preparations.items() if worker != but and ref in p.stages)
        return next(filter(None, found), "")

    def judge(self, worker: str, report: wire.Prepared) -> Verdict:
        """Of what a worker has prepared, which its stage knows already. What reads no weights has no content."""
        ref = report.ref
        if not report.content:
            return Verdict.SERVED
        right = self.of(ref, but=worker)
        if right not in ("", report.content):
            asked = self.preparations[worker].stages[ref].asked
            return Verdict.REFUSED if asked == right else Verdict.PREPARED_AGAIN
        return Verdict.SERVED if self.terms.get(ref, NO_TERMS).content else Verdict.HELD

    def hold(self, worker: str, ref: str) -> None:
        """The version could be served from there, once the catalogue has its content."""
        self.held.setdefault(ref, {})[worker] = None

    def drop(self, worker: str, ref: str) -> None:
        """It does not wait there any more."""
        held = self.held.get(ref)
        if held is not None:
            held.pop(worker, None)
            if not held:
                del self.held[ref]

    def held_by(self, worker: str) -> list[str]:
        """The versions that wait there."""
        return [ref for ref, workers in self.held.items() if worker in workers]

    def first_held(self, ref: str) -> wire.Prepared | None:
        """What a device says of the version that it could serve, once the catalogue has its content."""
        worker = next(iter(self.held.get(ref, ())), None)
        return self.preparations[worker].stages[ref].report if worker is not None else None

    def free(self, ref: str) -> None:
        """A device that had the version is gone. If no other has it, what others read may be right after all."""
        if self.of(ref):
            return
        for preparation, stage in self.stages(ref):
            if stage.failed and stage.code == CHANGED:
                preparation.again(ref)

    def stages(self, ref: str) -> list[tuple[Preparation, Stage]]:
        """How far the version is, on each device that is to have it."""
        return [(p, p.stages[ref]) for p in self.preparations.values() if ref in p.stages]

    def check(self) -> None:
        """Every invariant holds."""
        for ref in self.terms:
            found = {stage.content for _, stage in self.stages(ref)} - {""}
            assert len(found) <= 1, (ref, found)
            assert not found or self.terms[ref].content in ("", *found), ref
        for ref, workers in self.held.items():
            assert workers
            assert not self.terms[ref].content, ref
