import pytest

from scripts.rigs.spreads import Aim, Spread, judged, paired


def test_a_spread_has_the_middle_the_ends_and_the_quartiles_of_its_rounds():
    found = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.median, found.least, found.most, found.lower, found.upper) == (3.0, 1.0, 5.0, 2.0, 4.0)
    assert found.words(1) == "3.0 (1.0-5.0; IQR 2.0-4.0)"
    assert Spread.of([1.0, 2.0]).median == 1.0


def test_one_round_is_its_own_spread():
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)


def test_ratios_are_those_of_single_rounds_not_of_medians():
    slow_machine_in_round_two = paired([10.0, 1.0, 30.0], [20.0, 2.0, 60.0])
    assert slow_machine_in_round_two == Spread.of([0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("most", "hits"), [(False, [False, True, True]), (True, [True, True, False])])
def test_an_aim_is_hit_at_its_bound_and_on_one_side_of_it(most, hits):
    aim = Aim("f", 4.0, most)
    assert [aim.is_hit(value) for value in (3.99, 4.0, 4.01)] == hits


def test_aims_are_judged_by_medians_and_only_where_something_was_measured():
    aims = (Aim("a", 1.0), Aim("b", 4.0, most=True), Aim("not measured", 1.0))
    ratios = {"a": Spread.of([0.9, 1.1, 1.2]), "b": Spread.of([3.0, 4.5, 9.0]), "without an aim": Spread.of([1.0])}
    assert judged(aims, ratios) == [
        {"figure": "a", "aim": "≥ 1", "median": 1.1, "hit": True},
        {"figure": "b", "aim": "≤ 4", "median": 4.5, "hit": False},
    ]
