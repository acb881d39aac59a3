"""Black boxes with open dimensions: what is learned of them is by work, and so is the limit."""

import math
import random
from itertools import pairwise, product

import pytest

from controller.core.sized_batching import WEIGHT_MIN, SizedBlackBoxCurve, make_sized_black_box
from mesh import wire
from mesh.sizes import Extents, joint
from tests.controller.core.open_models import IMAGE, SEQ, open_spec

OBJECTIVE_S = 0.1


def box(dims: tuple[wire.Dim, ...] = SEQ, *, method: str = "aimd", size: int = 1) -> SizedBlackBoxCurve:
    batching = wire.Batching(method=method, objective_s=OBJECTIVE_S, size=size)
    return make_sized_black_box(batching, open_spec(dims, batch_max=64))


def code(rows: int, extents: Extents) -> float:
    """5 ms of a batch, and 10 us of each token."""
    return 0.005 + 1e-5 * rows * math.prod(extents)


def fed(one: SizedBlackBoxCurve, batches: int = 400, seed: int = 3) -> SizedBlackBoxCurve:
    """It has executed batches of requests as they come, as large as it allows, or less."""
    rng = random.Random(seed)
    for _ in range(batches):
        extents = (rng.choice((16, 60, 200, 512)),)
        rows = rng.randint(1, one.joint_max(extents))
        one.learn(rows, code(rows, extents) * math.exp(rng.gauss(0.0, 0.05)), extents)
    return one


def test_durations_are_learned_as_a_line_over_work() -> None:
    one = fed(box())
    for rows, extents in product((1, 8, 15), [(64,), (200,), (512,)]):
        assert one.exec_s(rows, extents) == pytest.approx(code(rows, extents), rel=0.2, abs=0.004)


def test_the_limit_is_one_of_work_so_that_no_batch_of_long_rows_misses_the_objective_for_long() -> None:
    one = fed(box())
    most = one.joint_max((512,))
    assert 10 <= most <= 20  # 18.5 rows take 100 ms
    assert one.joint_max((16,)) == 64
    assert one.joint_max((256,)) == pytest.approx(2 * most, abs=2)


def test_at_first_short_rows_are_not_let_in_without_end() -> None:
    assert box().joint_max((1,)) == round(1 / WEIGHT_MIN)
    assert box().joint_max((512,)) == 1


def test_short_rows_alone_raise_the_limit_too() -> None:
    one = box()
    for _ in range(40):
        rows = one.joint_max((100,))
        one.learn(rows, code(rows, (100,)), (100,))
    assert one.joint_max((100,)) >= 50


def test_a_size_that_the_operator_gave_is_in_rows_of_any_length() -> None:
    one = box(method="fixed", size=8)
    assert [one.joint_max((s,)) for s in (1, 100, 512)] == [8, 8, 8]
    assert box(method="none").joint_max((1,)) == 1


def test_a_request_of_more_rows_than_the_limit_can_be_executed_alone() -> None:
    one = box()
    assert one.alone_max((512,)) == 64
    assert one.alone_s(64, (512,)) < math.inf
    assert one.limits[one.place((512,))] == 1
    assert one.tables[one.place((512,))][64] < math.inf


@pytest.mark.parametrize("dims", [SEQ, IMAGE])
def test_nothing_falls_in_rows_or_extents(dims: tuple[wire.Dim, ...]) -> None:
    one = box(dims)
    rng = random.Random(5)
    for _ in range(200):
        sizes = [tuple(rng.randint(dim.least, dim.most) for dim in dims) for _ in range(2)]
        one.learn(rng.randint(1, 8), rng.uniform(0.001, 0.2), sizes[0])
        both = joint(sizes)
        for rows in (1, 3, 64):
            assert one.exec_s(rows, both) >= max(one.exec_s(rows, s) for s in sizes)
            for s in sizes:
                assert one.exec_s(rows, s) <= one.tables[one.place(s)][rows] * (1 + 1e-9)
        assert one.joint_max(both) <= min(one.joint_max(s) for s in sizes)
        assert all(table == sorted(table) for table in one.tables)
        assert all(one.limits[one.place(s)] <= one.joint_max(s) for s in sizes)
    if dims is SEQ:
        assert all(a[5] <= b[5] for a, b in pairwise(one.tables))


def test_tables_are_new_when_the_limit_has_moved() -> None:
    one = box()
    for _ in range(5):
        tables, limits = one.tables, list(one.limits)
        one.learn(1, code(1, (512,)), (512,))
        assert (one.tables is tables) <= (one.limits == limits)


def test_another_process_of_the_same_code_starts_from_what_it_has_shown() -> None:
    one, other = fed(box()), box()
    other.inherit(one)
    assert other.cold
    assert other.exec_s(8, (200,)) == pytest.approx(one.exec_s(8, (200,)))
    assert other.joint_max((512,)) == one.joint_max((512,))


def test_what_is_out_of_date_is_forgotten() -> None:
    one = fed(box())
    one.forget()
    assert one.exec_s(1, (512,)) < 1e-3
