"""Durations by rows and extents, of devices that are not there."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.emulation import ModelTimes, ProfileError, exec_s, fits, own_edges, parse_profile, sizes_of
from gpu_worker.core.sized_times import EXACT_EDGES, between, exact_edges, geometric_edges, rounded
from mesh import wire

CPU = {"least": 8.5, "intercept": 5.9, "element": 0.159, "square": 7.9e-6}
H100 = {"intercept": 0.9, "element": 0.0005, "free": 600.0, "square": 2e-7}
SEQ = wire.Dim(name="seq", least=1, most=512)
TABLE: list[dict[str, Any]] = [
    {"extents": [64], "exec_ms": {"1": 1.0, "8": 4.5}},
    {"extents": [128], "exec_ms": {"1": 2.0, "4": 5.0}},
]
CELLS = {(10, 10): 1.0, (10, 30): 4.0, (20, 10): 3.0, (20, 30): 2.0}
IMAGES: list[dict[str, Any]] = [{"extents": list(cell), "exec_ms": {"1": ms}} for cell, ms in CELLS.items()]


def times(**fields: Any) -> ModelTimes:
    text = json.dumps({"name": "x", "default": fields})
    found = parse_profile(text, "x.json").default
    assert found is not None
    return found


def test_the_formula_is_a_start_and_work_for_each_element_and_each_pair_and_a_floor() -> None:
    cpu, h100 = times(exec_ms=CPU), times(exec_ms=H100)
    assert exec_s(cpu, 1, (8,)) == pytest.approx(8.5e-3)
    assert exec_s(cpu, 1, (512,)) * 1e3 == pytest.approx(5.9 + 0.159 * 512 + 7.9e-6 * 512**2)
    assert exec_s(h100, 1, (512,)) * 1e3 == pytest.approx(0.9 + 2e-7 * 512**2)
    assert exec_s(h100, 32, (64,)) * 1e3 == pytest.approx(0.9 + 0.0005 * (32 * 64 - 600) + 2e-7 * 32 * 64**2)


def test_two_dimensions_count_by_their_product() -> None:
    images = times(exec_ms=CPU)
    assert exec_s(images, 2, (8, 16)) == exec_s(images, 2, (16, 8)) == exec_s(images, 2, (128,))


@given(
    st.sampled_from([times(exec_ms=CPU), times(exec_ms=H100), times(sizes=TABLE), times(sizes=IMAGES)]),
    st.integers(1, 32), st.integers(1, 600), st.integers(1, 600), st.integers(0, 50),
)  # fmt: skip
def test_durations_never_fall_in_an_extent(given_: ModelTimes, batch: int, h: int, w: int, more: int) -> None:
    two = given_.sizes and len(given_.sizes[0].extents) == 2
    least = exec_s(given_, batch, (h, w) if two else (h,))
    assert least > 0
    for greater in [(h + more, w), (h, w + more)] if two else [(h + more,)]:
        assert exec_s(given_, batch, greater) >= least * (1 - 1e-12)


def test_a_table_says_its_own_values_and_lines_lie_between_them() -> None:
    table = times(sizes=TABLE)
    assert exec_s(table, 8, (64,)) * 1e3 == pytest.approx(4.5)
    assert exec_s(table, 1, (96,)) * 1e3 == pytest.approx(1.5)
    assert exec_s(table, 4, (96,)) * 1e3 == pytest.approx((2.5 + 5.0) / 2)
    assert exec_s(table, 1, (7,)) * 1e3 == pytest.approx(1.0)


def test_a_table_of_two_dimensions_is_raised_to_its_running_maximum() -> None:
    assert between(CELLS, (20, 30)) == 4.0
    assert between(CELLS, (10, 20)) == pytest.approx(2.5)
    assert between(CELLS, (15, 20)) == pytest.approx((2.5 + 3.5) / 2)


def test_what_a_row_or_a_batch_needs_must_fit() -> None:
    limited = times(exec_ms=CPU, elements_max=1000)
    assert fits(limited, 10, (100,))
    assert not fits(limited, 10, (101,))
    table = times(sizes=TABLE)
    assert fits(table, 8, (64,))
    assert not fits(table, 8, (65,))
    assert fits(table, 4, (65,))
    assert not fits(table, 1, (129,))


def test_what_is_reported_is_what_fits() -> None:
    cells = sizes_of(times(exec_ms=CPU, elements_max=1000), [SEQ], [1, 2, 4], [[100, 400, 512]])
    assert [cell.extents for cell in cells] == [(100,), (400,), (512,)]
    assert [list(cell.exec_s) for cell in cells] == [[1, 2, 4], [1, 2], [1]]
    assert sizes_of(times(exec_ms=CPU), [], [1], []) == ()


def test_edges_end_with_the_greatest_extent() -> None:
    assert geometric_edges(SEQ, 6) == [16, 32, 64, 128, 256, 512]
    assert geometric_edges(SEQ, 1) == [512]
    assert geometric_edges(wire.Dim(name="x", least=7, most=7), 5) == [7]
    (close,) = exact_edges([SEQ])
    assert (close[0], close[-1]) == (1, 512)
    assert len(close) <= EXACT_EDGES[0]
    assert [len(edges) <= EXACT_EDGES[1] for edges in exact_edges([SEQ, SEQ])] == [True, True]
    assert rounded([[16, 32]], (17,)) == (32,)


def test_a_table_has_edges_of_its_own() -> None:
    assert own_edges(times(sizes=TABLE), [wire.Dim(name="s", least=1, most=100)]) == [[64, 100]]
    assert own_edges(times(exec_ms=CPU), [SEQ]) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"exec_ms": {"element": 1.0}}, ["exec_ms", "intercept"]),
        ({"exec_ms": {"intercept": 0.0, "element": 1.0}}, ["exec_ms", "above 0"]),
        ({"exec_ms": {**CPU, "slope": 1.0}}, ["exec_ms", "formula"]),
        ({"exec_ms": {"1": 1.0}, "sizes": TABLE}, ["exec_ms", "sizes"]),
        ({"sizes": [*TABLE, TABLE[0]]}, ["sizes", "once"]),
        ({"sizes": [TABLE[0], IMAGES[0]]}, ["sizes", "as many"]),
        ({"sizes": IMAGES[:3]}, ["sizes", "each pair"]),
        ({"sizes": [{"extents": [0], "exec_ms": {"1": 1.0}}]}, ["sizes", "from 1 on"]),
        ({"sizes": [{"extents": [8], "exec_ms": {}}]}, ["sizes", "[8]", "intercept"]),
        ({"sizes": TABLE, "dims": {"seq": [1, 512]}}, ["sizes", "greatest", "512"]),
        ({"exec_ms": CPU, "dims": {"seq": [5, 4]}}, ["dims"]),
        ({"exec_ms": CPU, "dims": {"a": [1, 2], "b": [1, 2], "c": [1, 2]}}, ["dims", "at most 2"]),
        ({"exec_ms": CPU, "dims": {"seq": [1, 512]}, "elements_max": 511}, ["elements_max", "512"]),
    ],
)
def test_what_is_wrong_with_durations_by_size_is_told_with_its_key(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ProfileError) as caught:
        times(**fields)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
