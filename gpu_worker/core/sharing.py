"""Measures once per architecture: models that differ only in their weights take the same time. Pure."""

from dataclasses import dataclass, field

from gpu_worker.core.measuring import Measurement
from mesh import wire

Group = tuple[str, str, int]  # (architecture, where LOAD finds the image, batch_max): refs of one group take equal time


@dataclass(slots=True)
class Sharing:
    """Knows which version is measured for each group, which ones wait for its figures, and the figures."""

    measurements: dict[str, Measurement] = field(default_factory=dict)  # {ref: figures so far}, one ref per group
    _profiles: dict[Group, wire.Profile] = field(default_factory=dict)
    _members: dict[Group, list[str]] = field(default_factory=dict)  # prepared refs, in the order in which they came
    _groups: dict[str, Group] = field(default_factory=dict)  # {ref: its group}

    def join(self, ref: str, group: Group, profile: wire.Profile | None) -> wire.Profile | None:
        """`ref` is prepared and belongs to `group`. Returns its group's figures if they are known.

        `profile`: earlier figures of `ref`. If None is returned, `ref` is being measured (then it is in `measurements`)
        or waits for another of its group that is.
        """
        self._groups[ref] = group
        members = self._members.setdefault(group, [])
        members.append(ref)
        measured = any(other in self.measurements for other in members)
        if profile is not None:
            if not measured:
                self._profiles.setdefault(group, profile)
            return profile
        known = self._profiles.get(group)
        if known is None and not measured:
            self.measurements[ref] = Measurement(group[2])
        return known

    def complete(self, ref: str, profile: wire.Profile) -> list[str]:
        """`ref` was measured. Returns all refs whose figures are known by that, itself first."""
        del self.measurements[ref]
        group = self._groups[ref]
        self._profiles[group] = profile
        return [ref, *(other for other in self._members[group] if other != ref)]

    def leave(self, ref: str) -> str | None:
        """`ref` is no longer prepared. Returns the ref that is measured in its place, if there is one."""
        group = self._groups.pop(ref, None)
        if group is None:
            return None
        members = self._members[group]
        members.remove(ref)
        if not members:
            del self._members[group]
            self._profiles.pop(group, None)
        if self.measurements.pop(ref, None) is None or not members:
            return None
        self.measurements[members[0]] = Measurement(group[2])
        return members[0]

    def check(self) -> None:
        """Asserts every invariant."""
        for group, members in self._members.items():
            measured = [ref for ref in members if ref in self.measurements]
            assert len(measured) == (group not in self._profiles), (group, measured)
        assert sorted(self._groups) == sorted(ref for members in self._members.values() for ref in members)
