"""The page table of the weight arena: which version holds which pages, and which pages are free. Pure.

The controller counts pages, and the worker chooses them. An execution pins the pages that it reads. Pages of a version
that is unloaded become free when the last execution that reads them has ended.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Holding:
    """The pages of one version's weights."""

    pages: tuple[int, ...]
    loaded: bool = False  # the weights are complete
    pins: int = 0  # executions that read the pages now
    leaving: bool = False  # unloaded while pinned: the pages become free with the last pin


@dataclass(slots=True)
class PageTable:
    """All pages of one arena. Each page is free, or belongs to exactly one holding."""

    count: int
    _free: list[int] = field(default_factory=list)  # the last one is taken first
    _holdings: dict[str, Holding] = field(default_factory=dict)  # {ref: its pages}, without unloaded versions
    _leaving: list[Holding] = field(default_factory=list)  # unloaded, but still pinned

    def __post_init__(self) -> None:
        self._free = list(range(self.count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Number of pages that a LOAD can take now."""
        return len(self._free)

    def take(self, ref: str, pages: int) -> tuple[int, ...] | None:
        """`ref` holds so many pages, whose weights are not loaded yet. None, and no change, if fewer pages are free."""
        assert ref not in self._holdings, f"{ref} has pages already"
        if pages > len(self._free):
            return None
        taken = tuple(self._free.pop() for _ in range(pages))
        self._holdings[ref] = Holding(taken)
        return taken

    def loaded(self, ref: str) -> None:
        """The weights of `ref` are complete."""
        self._holdings[ref].loaded = True

    def is_loaded(self, ref: str) -> bool:
        """Whether `ref` can be executed."""
        holding = self._holdings.get(ref)
        return holding is not None and holding.loaded

    def holds(self, ref: str) -> bool:
        """Whether `ref` holds pages, loaded or not."""
        return ref in self._holdings

    def pages_of(self, ref: str) -> tuple[int, ...]:
        """The pages that `ref` holds. Raises: KeyError if it holds none."""
        return self._holdings[ref].pages

    def pin(self, ref: str) -> Holding:
        """An execution starts to read the pages of `ref`. `unpin` takes the holding that this returns."""
        holding = self._holdings[ref]
        assert holding.loaded, f"{ref} is not loaded"
        holding.pins += 1
        return holding

    def unpin(self, holding: Holding) -> None:
        """An execution that pinned this holding has ended."""
        assert holding.pins > 0, "unpinned more often than pinned"
        holding.pins -= 1
        if holding.leaving and holding.pins == 0:
            self._leaving.remove(holding)
            self._free.extend(reversed(holding.pages))

    def release(self, ref: str) -> bool:
        """`ref` holds no pages any more. True if they are free now, False if an execution still reads them."""
        holding = self._holdings.pop(ref)
        if holding.pins:
            holding.leaving = True
            self._leaving.append(holding)
            return False
        self._free.extend(reversed(holding.pages))
        return True

    def resident(self) -> tuple[str, ...]:
        """Refs of the versions that are loaded, in the order in which they took their pages."""
        return tuple(ref for ref, holding in self._holdings.items() if holding.loaded)

    def check(self) -> None:
        """Every invariant holds: no page is lost, none is held twice."""
        held = [page for holding in (*self._holdings.values(), *self._leaving) for page in holding.pages]
        assert sorted(self._free + held) == list(range(self.count))
        assert all(holding.leaving and holding.pins for holding in self._leaving)
        assert not any(holding.leaving for holding in self._holdings.values())
