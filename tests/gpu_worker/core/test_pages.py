"""Who holds which page of the arena."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_worker.core.pages import Holding, PageTable


def test_pages_are_taken_once_and_given_back() -> None:
    table = PageTable(4)
    assert table.take("a", 3) == (0, 1, 2)
    assert table.free == 1
    table.check()
    assert table.take("b", 1) == (3,)
    assert table.pages_of("a") == (0, 1, 2)
    assert table.release("a") is True
    table.check()
    assert table.free == 3
    assert table.take("c", 2) == (0, 1)


def test_nothing_is_taken_where_there_are_not_enough() -> None:
    table = PageTable(4)
    table.take("a", 2)
    assert table.take("b", 3) is None
    assert table.free == 2
    assert not table.holds("b")
    table.check()
    assert table.take("b", 2) == (2, 3)


def test_a_model_is_loaded_when_its_copy_is_complete() -> None:
    table = PageTable(4)
    table.take("a", 2)
    assert (table.holds("a"), table.is_loaded("a"), table.is_loaded("b")) == (True, False, False)
    table.loaded("a")
    assert table.is_loaded("a")


def test_models_that_are_there_are_told_in_the_order_they_came() -> None:
    table = PageTable(4)
    for ref in ("b", "a", "c"):
        table.take(ref, 1)
        table.loaded(ref)
    table.release("a")
    assert table.resident() == ("b", "c")


def test_pages_that_are_read_are_given_back_with_the_last_pin() -> None:
    table = PageTable(4)
    table.take("a", 3)
    table.loaded("a")
    first, second = table.pin("a"), table.pin("a")
    assert table.release("a") is False
    table.check()
    assert (table.free, table.holds("a"), table.is_loaded("a")) == (1, False, False)
    assert table.take("b", 2) is None
    table.unpin(first)
    table.check()
    assert table.free == 1
    table.unpin(second)
    table.check()
    assert table.free == 4


def test_a_model_may_come_back_while_its_former_pages_are_still_read() -> None:
    table = PageTable(4)
    table.take("a", 2)
    table.loaded("a")
    old = table.pin("a")
    table.release("a")
    assert table.take("a", 2) == (2, 3)
    table.loaded("a")
    new = table.pin("a")
    table.check()
    assert (old.pages, new.pages) == ((0, 1), (2, 3))
    table.unpin(old)
    table.check()
    assert table.free == 2
    assert table.is_loaded("a")
    table.unpin(new)
    assert table.free == 2


def test_mistakes_are_not_let_pass() -> None:
    table = PageTable(4)
    table.take("a", 1)
    with pytest.raises(AssertionError):
        table.take("a", 1)
    with pytest.raises(AssertionError):
        table.pin("a")
    table.loaded("a")
    holding = table.pin("a")
    table.unpin(holding)
    with pytest.raises(AssertionError):
        table.unpin(holding)
    with pytest.raises(KeyError):
        table.pages_of("b")
    with pytest.raises(KeyError):
        table.release("b")
    table.check()


class PageMachine(RuleBasedStateMachine):
    """The table against a map from page to holder."""

    PAGES = 6

    def __init__(self) -> None:
        super().__init__()
        self.table = PageTable(self.PAGES)
        self.held: dict[str, tuple[int, ...]] = {}
        self.ready: set[str] = set()
        self.pins: list[tuple[str, Holding]] = []
        self.left: list[Holding] = []

    @rule(ref=st.sampled_from("abcd"), pages=st.integers(1, 4))
    def take(self, ref: str, pages: int) -> None:
        if ref in self.held:
            return
        free = self.PAGES - len(self.used())
        taken = self.table.take(ref, pages)
        assert (taken is None) == (pages > free)
        if taken is not None:
            assert len(set(taken)) == pages
            assert not set(taken) & self.used()
            self.held[ref] = taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def load(self, data: Any) -> None:
        ref = data.draw(st.sampled_from(sorted(self.held)))
        self.table.loaded(ref)
        self.ready.add(ref)

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def pin(self, data: Any) -> None:
        ref = data.draw(st.sampled_from(sorted(self.ready)))
        holding = self.table.pin(ref)
        assert holding.pages == self.held[ref]
        self.pins.append((ref, holding))

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: Any) -> None:
        _, holding = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        self.table.unpin(holding)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        ref = data.draw(st.sampled_from(sorted(self.held)))
        pages = self.held.pop(ref)
        self.ready.discard(ref)
        read = any(holding.pages == pages for _, holding in self.pins)
        assert self.table.release(ref) is not read

    def used(self) -> set[int]:
        pinned = {page for _, holding in self.pins for page in holding.pages}
        return pinned | {page for pages in self.held.values() for page in pages}

    @invariant()
    def agrees(self) -> None:
        self.table.check()
        assert self.table.free == self.PAGES - len(self.used())
        assert all(self.table.is_loaded(ref) == (ref in self.ready) for ref in "abcd")


TestPageMachine = PageMachine.TestCase
