"""frontend/core/cache.py: found by hash, compared by bytes, bounded in bytes."""

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.core.cache import ENTRY_BYTES, PredictionCache


def remember(cache: PredictionCache[str], ref: str, data: bytes, outputs: bytes = b"out") -> None:
    cache.put(cache.lead(cache.key(ref, [data]), ref, [data], "leader"), [outputs])
    cache.check()


def found(cache: PredictionCache[str], ref: str, *data: Any) -> Any:
    entry = cache.find(cache.key(ref, data), ref, data)
    return None if entry is None else entry.outputs


def test_only_the_same_model_version_and_input_is_found() -> None:
    cache: PredictionCache[str] = PredictionCache(10_000)
    remember(cache, "m:1", b"abcd")
    assert found(cache, "m:1", b"abcd") == (b"out",)
    assert found(cache, "m:1", memoryview(b"abcd")) == (b"out",)
    for ref, data in [("m:2", [b"abcd"]), ("n:1", [b"abcd"]), ("m:1", [b"abce"]), ("m:1", [b"ab", b"cd"])]:
        assert found(cache, ref, *data) is None
    assert (cache.hits, cache.misses) == (2, 4)
    assert cache.counts()["hit_ratio"] == pytest.approx(1 / 3)


def test_an_equal_hash_of_another_input_is_no_hit() -> None:
    cache: PredictionCache[str] = PredictionCache(10_000, hash_of=lambda ref, inputs: 7)
    remember(cache, "m:1", b"abcd")
    assert found(cache, "m:1", b"efgh") is None
    assert cache.collisions == 1
    assert cache.flight(7, "m:1", [b"efgh"]) is None


def test_what_was_used_gets_another_round_and_the_rest_makes_room() -> None:
    cache: PredictionCache[str] = PredictionCache(3 * (ENTRY_BYTES + 4))
    for name in (b"a", b"b", b"c"):
        remember(cache, "m:1", name)
    assert found(cache, "m:1", b"a") is not None
    remember(cache, "m:1", b"d")
    assert found(cache, "m:1", b"b") is None
    assert found(cache, "m:1", b"a") is not None
    assert cache.evicted == 1


def test_inputs_and_outputs_count_and_what_cannot_fit_is_not_kept() -> None:
    cache: PredictionCache[str] = PredictionCache(ENTRY_BYTES + 100)
    remember(cache, "m:1", b"x" * 50, b"y" * 51)
    assert len(cache) == 0
    remember(cache, "m:1", b"x" * 50, b"y" * 50)
    assert cache.size == ENTRY_BYTES + 100


def test_a_new_version_leaves_nothing_of_the_old_one() -> None:
    cache: PredictionCache[str] = PredictionCache(10_000)
    remember(cache, "m:1", b"a")
    remember(cache, "n:1", b"a")
    cache.keep_only(["m:2", "n:1"])
    cache.check()
    assert found(cache, "m:1", b"a") is None
    assert found(cache, "n:1", b"a") is not None


def test_followers_of_a_flight_are_told_once() -> None:
    cache: PredictionCache[str] = PredictionCache(10_000)
    key = cache.key("m:1", [b"a"])
    assert cache.flight(key, "m:1", [b"a"]) is None
    flight = cache.lead(key, "m:1", [b"a"], "first")
    assert cache.find(key, "m:1", [b"a"]) is None
    same = cache.flight(key, "m:1", [b"a"])
    assert same is flight
    cache.follow(flight, "second", 1.0)
    assert cache.landed(flight) == ["second"]
    assert cache.landed(flight) == []
    assert cache.flight(key, "m:1", [b"a"]) is None
    assert cache.coalesced == 1


def test_the_most_urgent_follower_leads_next_and_ties_are_broken_by_who_came_first() -> None:
    cache: PredictionCache[str] = PredictionCache(10_000)
    flight = cache.lead(cache.key("m:1", [b"a"]), "m:1", [b"a"], "first")
    for name, deadline_s in (("b", 3.0), ("c", 2.0), ("a", 2.0), ("d", 9.0)):
        cache.follow(flight, name, deadline_s)
    flight.leave("b")
    leaders = [flight.succeed() for _ in range(4)]
    assert leaders == ["c", "a", "d", None]
    assert (flight.leader, cache.landed(flight)) == ("d", [])


def test_a_flight_forgets_those_who_leave_however_many_come_and_go() -> None:
    cache: PredictionCache[str] = PredictionCache(10_000)
    flight = cache.lead(cache.key("m:1", [b"a"]), "m:1", [b"a"], "first")
    cache.follow(flight, "stays", 1.0)
    holding = []
    for round_ in range(5):
        for i in range(400):
            cache.follow(flight, f"{round_}/{i}", 1.0)
        for i in range(400):
            flight.leave(f"{round_}/{i}")
        holding.append(sys.getsizeof(flight.followers))
    assert max(holding) == holding[0]
    assert flight.succeed() == "stays"


def test_nothing_fits_into_no_bytes() -> None:
    cache: PredictionCache[str] = PredictionCache(0)
    assert not cache.on
    remember(cache, "m:1", b"a")
    assert len(cache) == 0


@given(
    budget=st.integers(0, 6000),
    steps=st.lists(st.tuples(st.sampled_from("gpk"), st.integers(0, 12), st.integers(0, 900)), max_size=80),
)
def test_the_budget_is_kept_and_answers_are_those_that_were_put(budget: int, steps: list[tuple[str, int, int]]) -> None:
    cache: PredictionCache[str] = PredictionCache(budget)
    put: dict[bytes, bytes] = {}
    for step, name, size in steps:
        data = bytes([name])
        if step == "p":
            put[data] = bytes([name]) * size
            remember(cache, "m:1", data, put[data])
        elif step == "g":
            outputs = found(cache, "m:1", data)
            assert outputs is None or outputs == (put[data],)
        else:
            cache.keep_only(["m:1"])
        cache.check()


def test_equal_bytes_of_other_shapes_are_another_query() -> None:
    cache: PredictionCache[str] = PredictionCache(10_000)
    data = [bytes(12)]
    keys = {sizes: cache.key("m:1", data, sizes) for sizes in ((1, 12), (2, 6), (6, 2), ())}
    assert len(set(keys.values())) == 4
    cache.put(cache.lead(keys[2, 6], "m:1", data, "ann", (2, 6)), [b"out"], ((2, 1),))
    found = cache.find(keys[2, 6], "m:1", data, (2, 6))
    assert found is not None
    assert (found.outputs, found.shapes) == ((b"out",), ((2, 1),))
    assert cache.find(keys[2, 6], "m:1", data, (6, 2)) is None  # even where the hashes are equal
    assert cache.flight(keys[2, 6], "m:1", data, (6, 2)) is None
    assert cache.flight(keys[2, 6], "m:1", data, (2, 6)) is not None
    cache.check()
