"""Pages of the weight arena: who holds which, and which must not be touched yet. Pure.

The controller counts pages; the worker picks them. A model that is executing is pinned: its pages are given back only
when the last execution that reads them has ended, whatever was ordered meanwhile.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Holding:
    """One model's weights in the arena."""

    pages: tuple[int, ...]
    loaded: bool = False  # the copy is complete
    pins: int = 0  # executions that read the pages now
    leaving: bool = False  # unloaded while pinned: the pages are given back with the last pin


@dataclass(slots=True)
class PageTable:
    """All pages of one arena. Each page is free, or held by exactly one holding."""

    count: int
    _free: list[int] = field(default_factory=list)  # the last one is taken first
    _holdings: dict[str, Holding] = field(default_factory=dict)  # {ref: its pages}, unloaded ones excluded
    _leaving: list[Holding] = field(default_factory=list)  # unloaded, still pinned

    def __post_init__(self) -> None:
        self._free = list(range(self.count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Pages that a LOAD could take now."""
        return len(self._free)

    def take(self, ref: str, pages: int) -> tuple[int, ...] | None:
        """Pages for `ref`, not loaded yet; None, and nothing changes, if there are not enough."""
        assert ref not in self._holdings, f"{ref} has pages already"
        if pages > len(self._free):
            return None
        taken = tuple(self._free.pop() for _ in range(pages))
        self._holdings[ref] = Holding(taken)
        return taken

    def loaded(self, ref: str) -> None:
        """The copy into the pages of `ref` is complete."""
        self._holdings[ref].loaded = True

    def is_loaded(self, ref: str) -> bool:
        """`ref` can be executed."""
        holding = self._holdings.get(ref)
        return holding is not None and holding.loaded

    def holds(self, ref: str) -> bool:
        """`ref` has pages, loaded or not."""
        return ref in self._holdings

    def pages_of(self, ref: str) -> tuple[int, ...]:
        """Pages of `ref`. Raises: KeyError."""
        return self._holdings[ref].pages

    def pin(self, ref: str) -> Holding:
        """An execution starts to read the pages of `ref`; the holding is the receipt for `unpin`."""
        holding = self._holdings[ref]
        assert holding.loaded, f"{ref} is not loaded"
        holding.pins += 1
        return holding

    def unpin(self, holding: Holding) -> None:
        """That execution has ended."""
        assert holding.pins > 0, "unpinned more often than pinned"
        holding.pins -= 1
        if holding.leaving and holding.pins == 0:
            self._leaving.remove(holding)
            self._free.extend(reversed(holding.pages))

    def release(self, ref: str) -> bool:
        """`ref` has no pages any more. True if they are free now, False if an execution still reads them."""
        holding = self._holdings.pop(ref)
        if holding.pins:
            holding.leaving = True
            self._leaving.append(holding)
            return False
        self._free.extend(reversed(holding.pages))
        return True

    def resident(self) -> tuple[str, ...]:
        """Refs that are loaded, in the order they came."""
        return tuple(ref for ref, holding in self._holdings.items() if holding.loaded)

    def check(self) -> None:
        """Every invariant holds: no page is lost, none is held twice."""
        held = [page for holding in (*self._holdings.values(), *self._leaving) for page in holding.pages]
        assert sorted(self._free + held) == list(range(self.count))
        assert all(holding.leaving and holding.pins for holding in self._leaving)
        assert not any(holding.leaving for holding in self._holdings.values())
