"""How the code of each container is, as it said, and how long ago it said so. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from mesh import wire
from mesh.starting import aged


@dataclass(slots=True)
class ChildStates:
    """When each container told its state: clocks of machines differ, so that only ages travel."""

    _told_s: dict[str, float] = field(default_factory=dict)  # {member: when its state came}

    def took(self, member: wire.Member, now: float) -> None:
        """The member says how its code is, if it is a container."""
        if member.child is not None:
            self._told_s[member.id] = now

    def left(self, member: str) -> None:
        """The member is gone."""
        self._told_s.pop(member, None)

    def only_line(self, known: wire.Member, member: wire.Member) -> bool:
        """Whether nothing has changed but what its code printed, and for how long it has been as it is."""
        before, after = known.child, member.child
        if before is None or after is None:
            return False
        child = msgspec.structs.replace(before, line=after.line, for_s=after.for_s)
        return msgspec.structs.replace(known, child=child) == member

    def aged(self, members: Iterable[wire.Member], now: float) -> tuple[wire.Member, ...]:
        """The members, each container's state as old as it is now."""
        return tuple(
            msgspec.structs.replace(member, child=aged(member.child, now - self._told_s[member.id]))
            if member.child is not None
            else member
            for member in members
        )
