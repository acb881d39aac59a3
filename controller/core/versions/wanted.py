"""Which versions the routing table wants, and which ones are let go. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

LET_GO_S = 2.0  # a version that is not wanted any more is served so long: not all frontends hear of it at once


@dataclass(slots=True)
class WantedVersions:
    """What the shard is to have ready."""

    wanted: list[str] = field(default_factory=list)  # refs, in the catalogue's order
    draining: dict[str, float] = field(
        default_factory=dict
    )  # {ref wanted before: kept until then and its last request}
    contained: frozenset[str] = frozenset()  # refs that containers serve, and paged devices do not

    def want(self, refs: Sequence[str], contained: Iterable[str], now: float) -> list[str]:
        """These refs are wanted and others drain; containers serve the `contained` ones. Returns what is new."""
        self.contained = frozenset(contained) | (self.contained & {*self.wanted, *self.draining} - {*refs})
        for ref in self.wanted:
            if ref not in refs:
                self.draining[ref] = now + LET_GO_S
        for ref in refs:
            self.draining.pop(ref, None)
        new = [ref for ref in refs if ref not in self.wanted]
        self.wanted = list(refs)
        return new

    def drained(self, still_used: Callable[[str], bool], now: float) -> list[str]:
        """The versions whose time is over and whose last request has ended. They are let go."""
        ended = [ref for ref, until_s in self.draining.items() if now >= until_s and not still_used(ref)]
        for ref in ended:
            del self.draining[ref]
        return ended

    def kept(self) -> list[str]:
        """All that devices are to have ready: what is wanted, and what drains."""
        return [*self.wanted, *self.draining]

    def __contains__(self, ref: str) -> bool:
        return ref in self.wanted or ref in self.draining

    def check(self) -> None:
        """Every invariant holds."""
        assert not set(self.wanted) & self.draining.keys()
