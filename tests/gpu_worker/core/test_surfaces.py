"""Values between points that were measured."""

import random

import pytest

from gpu_worker.core.edges import geometric
from gpu_worker.core.measuring import ladder
from gpu_worker.core.surfaces import Point, Surface, work_of
from tests.gpu_worker.core.sized_costs import Cost, cpu, h100

POINTS: list[Point] = [(batch, (length,)) for batch in (1, 6, 32) for length in geometric(1, 512, 10)]
ALL: list[Point] = [(batch, (length,)) for batch in ladder(32) for length in geometric(1, 512, 40)]


def test_a_measured_point_has_its_own_value() -> None:
    rng = random.Random(1)
    values = {point: rng.uniform(1, 9) for point in POINTS}
    assert Surface(values).at(POINTS).tolist() == pytest.approx(list(values.values()))


@pytest.mark.parametrize("cost", [cpu, h100])
def test_between_points_the_values_are_near_though_the_cost_has_a_floor(cost: Cost) -> None:
    surface = Surface({point: cost(*point) for point in POINTS})
    errors = [abs(value / cost(*point) - 1) for point, value in zip(ALL, surface.at(ALL).tolist(), strict=True)]
    assert max(errors) < 0.25
    assert sum(errors) / len(errors) < 0.05


def test_what_follows_the_formula_is_read_far_beyond_what_was_measured() -> None:
    def cost(point: Point) -> float:
        return 3.0 + 0.5 * work_of(point) + 0.002 * point[0] * point[1][0] ** 2

    few: list[Point] = [(1, (1,)), (1, (16,)), (1, (64,)), (2, (64,)), (4, (16,)), (4, (1,)), (8, (64,))]
    surface = Surface({point: cost(point) for point in few})
    assert surface.at([(32, (512,))])[0] == pytest.approx(cost((32, (512,))), rel=0.05)
    assert surface.fit(few).tolist() == pytest.approx([cost(point) for point in few], rel=0.05)


def test_one_point_is_enough() -> None:
    surface = Surface({(1, (8, 8)): 2.0})
    assert surface.at([(1, (8, 8)), (4, (8, 8))]).tolist() == [pytest.approx(2.0), pytest.approx(2.0, rel=3.01)]
    assert surface.at([]).tolist() == []
    assert surface.errors().tolist() == pytest.approx([0.0], abs=1e-3)


def test_distances_are_octaves() -> None:
    surface = Surface({(1, (8,)): 1.0, (4, (8,)): 2.0})
    assert surface.distances([(1, (16,)), (4, (1,)), (4, (8,))]).tolist() == pytest.approx([1.0, 3.0, 0.0], abs=1e-5)
    assert surface.nearest([(1, (16,)), (8, (8,))], 1).tolist() == [[0], [1]]
