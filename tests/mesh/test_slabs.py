"""mesh/slabs.py: which places are taken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.slabs import FITTING, GRANULE_BYTES, RESTING, SLAB_BYTES, SLAB_GRANULES, WIDTHS, Slabs

SIZE = st.one_of(
    st.integers(0, SLAB_BYTES + 1),
    st.sampled_from([width * GRANULE_BYTES for width in WIDTHS]).flatmap(lambda at: st.integers(at - 1, at + 1)),
)
STEPS = st.lists(st.one_of(st.tuples(st.just("take"), SIZE), st.tuples(st.just("give"), st.integers(0, 99)),
                           st.tuples(st.just("trim"), st.just(0))), max_size=60)  # fmt: skip


@given(STEPS, st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_no_two_slots_share_a_granule_and_all_are_accounted_for(steps: list[tuple[str, int]], count: int) -> None:
    slabs = Slabs(count)
    held: dict[int, int] = {}  # {first granule: granules}
    for step, value in steps:
        if step == "take":
            granule = slabs.take(value)
            if granule >= 0:
                width = slabs.width(granule)
                assert width * GRANULE_BYTES >= value
                assert granule // SLAB_GRANULES == (granule + width - 1) // SLAB_GRANULES < count
                assert all(at + wide <= granule or granule + width <= at for at, wide in held.items())
                held[granule] = width
        elif step == "give" and held:
            granule = sorted(held)[value % len(held)]
            del held[granule]
            slabs.give(granule)
        elif step == "trim":
            idle = slabs.trim()
            assert not {at // SLAB_GRANULES for at in held} & set(idle)
        assert slabs.granules_used == sum(held.values())
        assert all(slabs.is_taken(at) for at in held)
        slabs.check()


@given(st.integers(1, SLAB_BYTES))
def test_little_of_a_slot_is_wasted(size: int) -> None:
    granules = -(-size // GRANULE_BYTES)
    assert granules <= WIDTHS[FITTING[granules]] <= max(granules, granules * 5 / 4)


def test_all_memory_can_be_taken_and_again_once_it_was_given_back() -> None:
    slabs = Slabs(2)
    for size in (GRANULE_BYTES, SLAB_BYTES // 4, SLAB_BYTES):
        taken = []
        while (granule := slabs.take(size)) >= 0:
            taken.append(granule)
        assert slabs.granules_used == slabs.granules
        for granule in taken:
            slabs.give(granule)
        assert slabs.granules_used == 0


def test_a_size_without_a_slab_of_its_own_takes_a_wider_slot() -> None:
    slabs = Slabs(1)
    slabs.give(slabs.take(10 * GRANULE_BYTES))
    held = slabs.take(10 * GRANULE_BYTES)
    assert slabs.width(slabs.take(9 * GRANULE_BYTES)) == 10
    assert slabs.take(GRANULE_BYTES) == -1  # ten times as much would be wasted
    assert slabs.take(11 * GRANULE_BYTES) == -1
    assert slabs.is_taken(held)


def test_what_was_given_back_rests_before_it_is_used_again() -> None:
    slabs = Slabs(1)
    first = slabs.take(1)
    slabs.give(first)
    later = []
    for _ in range(RESTING):
        later.append(slabs.take(1))
        slabs.give(later[-1])
    assert first not in later
    assert slabs.take(1) == first


def test_without_room_there_is_none() -> None:
    assert Slabs(0).take(1) == -1
    assert Slabs(1).take(SLAB_BYTES + 1) == -1
    assert not Slabs(1).is_taken(-1)
    assert not Slabs(1).is_taken(SLAB_GRANULES)


def test_idle_slabs_are_given_back_but_one() -> None:
    slabs = Slabs(3)
    taken = [slabs.take(SLAB_BYTES) for _ in range(3)]
    for granule in taken:
        slabs.give(granule)
    assert slabs.trim() == []  # they were used a moment ago
    assert slabs.trim() == [1, 2]
    assert slabs.trim() == []


def test_a_slot_that_is_taken_keeps_its_slab() -> None:
    slabs = Slabs(2)
    slabs.take(SLAB_BYTES)
    slabs.take(1)
    slabs.trim()
    assert slabs.trim() == []


def test_giving_back_what_is_not_taken_is_a_fault_of_ours() -> None:
    slabs = Slabs(1)
    granule = slabs.take(1)
    slabs.give(granule)
    with pytest.raises(AssertionError):
        slabs.give(granule)
