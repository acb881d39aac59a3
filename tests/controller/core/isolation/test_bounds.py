"""What isolation remembers and spends is bounded, and forgotten."""

import pytest

from controller.core.isolation.budget import KEPT_S, SAVED_S, SHARE, Budget
from controller.core.isolation.rows import ROWS_MAX, KnownRows, RowDigest
from controller.core.isolation.suspects import DOUBTS_MAX, SUSPECT_S, SUSPECTS_MAX, Doubt, Watch
from controller.core.queues import Request
from mesh import digests, wire
from mesh.digests import SAMPLE_BYTES
from tests.controller.core.controller_builders import request


def test_a_budget_fills_at_its_share_and_no_further_than_what_is_saved() -> None:
    budget = Budget()
    budget.spend(SAVED_S, 1000.0)
    assert not budget.allows(1000.0, suspect=False)
    assert not budget.allows(1000.0 + KEPT_S / SHARE, suspect=True)
    assert budget.allows(1000.001 + KEPT_S / SHARE, suspect=True)
    budget.spend(SAVED_S + 0.1, 2000.0)
    assert not budget.allows(2000.0 + 0.09 / SHARE, suspect=False)


@pytest.mark.parametrize("suspect", [True, False])
def test_a_budget_says_when_it_allows_again(suspect: bool) -> None:
    budget = Budget()
    budget.spend(1.5, 10.0)
    at_s = budget.allows_at(suspect=suspect)
    assert not budget.allows(at_s - 1e-3, suspect=suspect)
    assert budget.allows(at_s, suspect=suspect)


def asked(*tensors: bytes, kept: bool = False) -> Request:
    """A request with these inputs, which its frontend may keep."""
    if not kept:
        return request(tensors=tensors)
    sizes = tuple(map(len, tensors))
    return request(kept=wire.Kept(sizes=sizes, whole=digests.whole(tensors), sample=digests.sample(tensors)))


@pytest.mark.parametrize("kept", [(False, False), (True, True), (True, False), (False, True)])
def test_inputs_are_known_by_every_byte_and_for_a_while(kept: tuple[bool, bool]) -> None:
    """`kept`: whether their frontends keep those that failed, and those that come later."""
    rows, large = KnownRows(), bytes(10 * SAMPLE_BYTES)
    other = large[:-1] + b"x"
    first, later = kept
    rows.add(RowDigest.of(asked(b"a", b"bc", kept=first)), 10.0, ends_process=False)
    rows.add(RowDigest.of(asked(large, kept=first)), 20.0, ends_process=True)
    assert rows.find(asked(b"a", b"bc", kept=later), 9.9) is not None
    assert rows.find(asked(b"a", b"bc", kept=later), 10.0) is None
    assert rows.find(asked(b"ab", b"c", kept=later), 9.9) is None
    assert rows.find(asked(large, kept=later), 9.9) is not None
    assert rows.find(asked(other, kept=later), 9.9) is None
    assert rows.find(asked(), 9.9) is None
    rows.forget(15.0)
    assert len(rows) == 1
    rows.forget(20.0)
    assert rows.find(asked(large, kept=later), 19.0) is None


def test_the_oldest_inputs_are_forgotten_for_others() -> None:
    rows = KnownRows()
    for number in range(ROWS_MAX + 1):
        rows.add(RowDigest.of(asked(b"%d" % number)), 10.0, ends_process=False)
    assert len(rows) == ROWS_MAX
    assert rows.find(asked(b"0"), 1.0) is None
    assert rows.find(asked(b"1"), 1.0) is not None


def test_no_more_suspects_and_doubts_are_kept_than_there_is_room_for() -> None:
    watch = Watch("m:1", Budget())
    for number in range(1, SUSPECTS_MAX + 2):
        watch.name(("f", number), 4, 1.0)
        watch.doubt(Doubt(("f", number), None, "device_error", "w", 5.0))
    assert len(watch.suspects) == SUSPECTS_MAX
    assert len(watch.doubts) == DOUBTS_MAX
    watch.forget(1.0 + SUSPECT_S)
    assert not watch.suspects
    assert watch.is_over(1.0 + SUSPECT_S)
