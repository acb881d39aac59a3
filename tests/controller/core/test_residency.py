"""Which models are on a device, and whom to evict."""

import math

import pytest

from controller.core.residency import DECAY_S, Popularity, Residency


def place(residency: Residency, ref: str, pages: int, used_s: float = 0.0) -> None:
    """The model is there."""
    residency.loading(ref, pages, 1, used_s, used_s)
    assert residency.loaded(ref, 1, used_s)
    residency.check()


def device(**models: int) -> Residency:
    """Ten pages; these models in so many of them."""
    residency = Residency(10, 10)
    for ref, pages in models.items():
        place(residency, ref, pages)
    return residency


def nobody(ref: str) -> bool:
    return False


def worth_nothing(ref: str) -> float:
    return 0.0


def test_pages_are_counted_from_the_moment_a_load_is_sent() -> None:
    residency = Residency(10, 10)
    residency.loading("a", 4, action=1, ready_s=5.0, now=1.0)
    residency.check()
    assert residency.free == 6
    assert residency.models["a"].loading == 1
    assert residency.models["a"].ready_s == 5.0
    assert residency.loaded("a", 1, 4.5)
    assert residency.models["a"].loading is None
    assert residency.models["a"].ready_s == 4.5
    residency.gone("a")
    residency.check()
    assert residency.free == 10


def test_the_end_of_another_load_is_not_taken_for_the_one_awaited() -> None:
    residency = Residency(10, 10)
    residency.loading("a", 4, action=2, ready_s=5.0, now=1.0)
    assert not residency.loaded("a", 1, 4.5)
    assert not residency.loaded("b", 2, 4.5)
    assert residency.models["a"].loading == 2


def test_what_is_gone_twice_gives_its_pages_back_once() -> None:
    residency = device(a=3)
    residency.gone("a")
    residency.gone("a")
    residency.check()
    assert residency.free == 10


def test_nobody_leaves_while_there_is_room() -> None:
    residency = device(a=4, b=4)
    assert residency.victims(1, nobody, worth_nothing) == []
    assert residency.victims(2, nobody, worth_nothing) == []
    assert residency.victims(3, nobody, worth_nothing) == ["a"]


def test_the_least_worth_leaves_first() -> None:
    residency = device(a=3, b=3, c=4)
    worth = {"a": 3.0, "b": 1.0, "c": 2.0}
    assert residency.victims(3, nobody, worth.__getitem__) == ["b"]
    assert residency.victims(4, nobody, worth.__getitem__) == ["b", "c"]


def test_ties_are_broken_by_the_last_use_and_then_by_name() -> None:
    residency = Residency(10, 10)
    for ref, used_s in (("c", 1.0), ("b", 1.0), ("a", 2.0)):
        place(residency, ref, 3, used_s)
    assert residency.victims(4, nobody, worth_nothing) == ["b"]
    assert residency.victims(5, nobody, worth_nothing) == ["b", "c"]
    assert residency.victims(10, nobody, worth_nothing) == ["b", "c", "a"]


def test_no_more_leave_than_are_needed() -> None:
    residency = device(a=2, b=2, c=2, d=2)
    assert [residency.victims(pages, nobody, worth_nothing) for pages in (2, 3, 4, 5, 6, 7)] == [
        [], ["a"], ["a"], ["a", "b"], ["a", "b"], ["a", "b", "c"],
    ]  # fmt: skip


def test_models_with_running_work_or_on_their_way_or_protected_never_leave() -> None:
    residency = device(bound=2, wanted=2, idle=2)
    residency.models["bound"].bound = 1
    residency.loading("coming", 2, action=9, ready_s=9.0, now=1.0)
    residency.check()
    assert residency.victims(4, lambda ref: ref == "wanted", worth_nothing) == ["idle"]
    assert residency.victims(5, lambda ref: ref == "wanted", worth_nothing) is None


def test_nothing_is_evicted_if_that_would_not_make_enough_room() -> None:
    residency = device(a=4, b=4)
    assert residency.victims(10, nobody, worth_nothing) == ["a", "b"]
    assert residency.victims(11, nobody, worth_nothing) is None
    assert residency.free == 2


def test_a_load_without_room_or_of_what_is_there_is_a_mistake() -> None:
    residency = device(a=4)
    with pytest.raises(AssertionError, match=r"\b7\b.*\b6\b"):
        residency.loading("b", 7, 2, 0.0, 0.0)
    with pytest.raises(AssertionError):
        residency.loading("a", 1, 2, 0.0, 0.0)
    residency.check()


def test_popularity_decays_with_its_time_constant() -> None:
    popularity = Popularity()
    assert popularity.value(100.0) == 0.0
    popularity.add(100.0, 10)
    assert popularity.value(100.0) == pytest.approx(10.0)
    assert popularity.value(100.0 + DECAY_S) == pytest.approx(10.0 / math.e)
    popularity.add(100.0 + DECAY_S)
    assert popularity.value(100.0 + DECAY_S) == pytest.approx(10.0 / math.e + 1.0)


def test_popularity_of_a_steady_stream_is_its_rate() -> None:
    popularity = Popularity()
    for i in range(20_000):
        popularity.add(i / 100.0)
    assert popularity.rate(200.0) == pytest.approx(100.0, rel=0.01)
