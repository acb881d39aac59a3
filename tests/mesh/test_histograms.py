"""mesh/histograms.py and mesh/tallies.py: what metrics are made of."""

import pytest

from mesh.histograms import RATIO, SECONDS, SLACK_S, Histogram
from mesh.tallies import OTHER, NamedTallies


@pytest.mark.parametrize(
    ("value", "place"), [(0.0, 0), (0.01, 0), (0.010001, 1), (0.1, 1), (0.11, 2), (float("inf"), 2)]
)
def test_a_value_counts_below_the_first_bound_that_it_does_not_exceed(value: float, place: int) -> None:
    made = Histogram((0.01, 0.1))
    made.add(value)
    assert [i for i, count in enumerate(made.counts) if count] == [place]
    assert made.sum == value


def test_an_empty_one_tells_nothing_and_two_can_be_added() -> None:
    one, other = Histogram((1.0,)), Histogram((1.0,))
    assert one.told() is None
    one.add(0.5)
    other.add(2.0)
    one.merge(other)
    told = one.told()
    assert told is not None
    assert (told.counts, told.sum) == ((1, 1), 2.5)
    assert other.counts == [0, 1]


@pytest.mark.parametrize("bounds", [SECONDS, SLACK_S, RATIO])
def test_bounds_rise_and_none_is_negative(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert bounds[0] >= 0


def tallies(*deployed: str, labels_max: int = 2) -> NamedTallies[Histogram]:
    """Counts by name; the bound is of no interest."""
    made = NamedTallies(lambda: Histogram((1.0,)), labels_max)
    made.deploy(deployed)
    return made


def sums(made: NamedTallies[Histogram]) -> dict[str, float]:
    """{name, or OTHER: sum of its values}."""
    return {**{name: tally.sum for name, tally in made.labels.items()}, OTHER: made.rest.sum}


def test_the_first_names_have_tallies_of_their_own_and_the_others_one_together() -> None:
    made = tallies("a", "b", "c", "d")
    for name in ("a", "b", "c", "d", "never"):
        made.of(name).add(1.0)
    assert sums(made) == {"a": 1, "b": 1, OTHER: 3}
    assert made.total().sum == 5


def test_no_sum_ever_shrinks_or_jumps_whatever_comes_and_goes() -> None:
    made, before = tallies("a", "c", labels_max=2), {}
    for deployed in (["a", "c"], ["c", "d"], [], ["d", "e"], ["a"], ["c", "a", "b"]):
        made.deploy(deployed)
        now = sums(made)
        assert {name: now[name] for name in before} == before, "a change of what is deployed moves nothing"
        for name in "abcde":
            made.of(name).add(1.0)
        assert made.total().sum == sum(now.values()) + 5
        before = sums(made)
    assert before.keys() == {"a", "c", OTHER}


def test_who_is_deployed_is_known_with_or_without_a_label() -> None:
    made = tallies("a", "b", "c")
    made.deploy(["b", "c"])
    assert [name for name in "abcd" if made.deployed(name)] == ["b", "c"]


def test_a_model_that_is_called_as_the_others_are_is_one_of_them() -> None:
    made = tallies(OTHER, "a")
    made.of(OTHER).add(1.0)
    assert sums(made) == {"a": 0, OTHER: 1}
