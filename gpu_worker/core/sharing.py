"""Measures once per architecture: models that differ only in their weights take the same time. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

from gpu_worker.core.figures import Cell, SizedFigures
from gpu_worker.core.measuring import AnyMeasurement, Measurement
from gpu_worker.core.measuring_sizes import SizedMeasurement
from gpu_worker.core.surveying import Survey
from mesh import wire


class MeasuredGroup(NamedTuple):
    """What versions have in common that take equal time, and are measured alike."""

    architecture: str
    load_from: str  # where LOAD finds the image
    batch_max: int
    dims: tuple[wire.Dim, ...] = ()
    slo_s: float = 0.0  # with open dimensions: what is of use follows from it


class Means(NamedTuple):
    """With what a device measures a version that has open dimensions."""

    cells: tuple[Cell, ...] = ()  # all that it can execute, ascending; (): any extents
    memory_bytes: int = 0  # that a batch may take; 0: the device says itself what does not fit


NO_MEANS = Means()


def measurement_of(group: MeasuredGroup, means: Means) -> AnyMeasurement:
    """Returns a measurement that has not begun."""
    if not group.dims:
        return Measurement(group.batch_max)
    survey = Survey(group.dims, group.batch_max, group.slo_s)
    return SizedMeasurement(survey, SizedFigures(means.memory_bytes), means.cells)


@dataclass(slots=True)
class Sharing:
    """Knows which version is measured for each group, which ones wait for its figures, and the figures."""

    measurements: dict[str, AnyMeasurement] = field(default_factory=dict)  # {ref: figures so far}, one ref per group
    _profiles: dict[MeasuredGroup, wire.Profile] = field(default_factory=dict)
    _members: dict[MeasuredGroup, list[str]] = field(
        default_factory=dict
    )  # prepared refs, in the order in which they came
    _groups: dict[str, MeasuredGroup] = field(default_factory=dict)  # {ref: its group}
    _means: dict[str, Means] = field(default_factory=dict)  # {ref: its means}, of the same refs

    def join(
        self, ref: str, group: MeasuredGroup, profile: wire.Profile | None, means: Means = NO_MEANS
    ) -> wire.Profile | None:
        """`ref` is prepared and belongs to `group`. Returns its group's figures if they are known.

        `profile`: earlier figures of `ref`. If None is returned, `ref` is being measured (then it is in `measurements`)
        or waits for another of its group that is.
        """
        self._groups[ref], self._means[ref] = group, means
        members = self._members.setdefault(group, [])
        members.append(ref)
        measured = any(other in self.measurements for other in members)
        if profile is not None:
            if not measured:
                self._profiles.setdefault(group, profile)
            return profile
        known = self._profiles.get(group)
        if known is None and not measured:
            self.measurements[ref] = measurement_of(group, means)
        return known

    def complete(self, ref: str, profile: wire.Profile) -> list[str]:
        """`ref` was measured. Returns all refs whose figures are known by that, itself first."""
        del self.measurements[ref]
        group = self._groups[ref]
        self._profiles[group] = profile
        return self.members(ref)

    def members(self, ref: str) -> list[str]:
        """Returns all refs of this one's group, itself first."""
        return [ref, *(other for other in self._members[self._groups[ref]] if other != ref)]

    def leave(self, ref: str) -> str | None:
        """`ref` is no longer prepared. Returns the ref that is measured in its place, if there is one."""
        group = self._groups.pop(ref, None)
        if group is None:
            return None
        del self._means[ref]
        members = self._members[group]
        members.remove(ref)
        if not members:
            del self._members[group]
            self._profiles.pop(group, None)
        if self.measurements.pop(ref, None) is None or not members:
            return None
        self.measurements[members[0]] = measurement_of(group, self._means[members[0]])
        return members[0]

    def check(self) -> None:
        """Asserts every invariant."""
        for group, members in self._members.items():
            measured = [ref for ref in members if ref in self.measurements]
            assert len(measured) == (group not in self._profiles), (group, measured)
        assert self._means.keys() == self._groups.keys()
        assert sorted(self._groups) == sorted(ref for members in self._members.values() for ref in members)
