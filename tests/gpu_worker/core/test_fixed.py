"""Which batches a device of fixed shapes prepares itself for."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.figures import Cell
from gpu_worker.core.fixed import EDGES, FixedBatches, fixed_batches, fixed_rows, kept_cells
from mesh import wire
from mesh.sizes import holds

SEQ = wire.Dim(name="seq", least=1, most=512)
IMAGE = (wire.Dim(name="h", least=32, most=640), wire.Dim(name="w", least=32, most=640))


def spec(batch_max: int, *dims: wire.Dim) -> wire.ModelSpec:
    shape = (-1, *(-1 for _ in dims))
    tensor = wire.TensorSpec(name="x", dtype="float32", shape=shape, dims=tuple(dim.name for dim in dims))
    return wire.ModelSpec(inputs=(tensor,), outputs=(), batch_max=batch_max, slo_ms=1.0, dims=dims)


@pytest.mark.parametrize(
    ("batch_max", "sizes"),
    [(1, (1,)), (2, (1, 2)), (5, (1, 2, 3, 4, 5)), (8, (1, 2, 3, 4, 6, 8)), (13, (1, 2, 3, 4, 6, 8, 12, 13))],
)  # fmt: skip
def test_the_ladder_ends_with_the_largest_batch(batch_max: int, sizes: tuple[int, ...]) -> None:
    assert fixed_batches(spec(batch_max)).by_extents == (((), sizes),)


def test_a_batch_is_padded_to_the_next_size() -> None:
    batches = FixedBatches((((), (1, 2, 4, 7)),))
    assert [batches.holding(batch, ()) for batch in range(1, 8)] == [(n, ()) for n in (1, 2, 4, 4, 7, 7, 7)]


@pytest.mark.parametrize("batch", [0, -1, 8])
def test_no_cell_holds_a_batch_of_no_rows_or_of_too_many(batch: int) -> None:
    assert FixedBatches((((), (1, 2, 4, 7)),)).holding(batch, ()) is None


def cells_of(edges: Sequence[Sequence[int]], rows: tuple[int, ...]) -> tuple[Cell, ...]:
    return tuple(Cell(extents, rows) for extents in itertools.product(*edges))


def test_with_open_dimensions_rows_are_powers_of_two_as_far_as_they_are_of_use() -> None:
    assert fixed_rows(spec(12, SEQ)) == (1, 2, 4, 8, 12)
    cells = (Cell((32,), (1, 2, 3, 4, 6, 8, 12)), Cell((128,), (1, 2, 3, 4, 6)), Cell((512,), (1,)))
    found = fixed_batches(spec(12, SEQ), cells)
    assert found.by_extents == (((32,), (1, 2, 4, 8, 12)), ((128,), (1, 2, 4)), ((512,), (1,)))


def test_no_extents_have_more_rows_than_lesser_ones() -> None:
    cells = (Cell((32,), (1, 2)), Cell((512,), (1, 2, 3, 4)))
    assert fixed_batches(spec(4, SEQ), cells).by_extents == (((32,), (1, 2)), ((512,), (1, 2)))


def test_cells_of_an_earlier_profile_are_taken_as_they_are_unless_they_are_too_many() -> None:
    def kept(*extents: int) -> tuple[Cell, ...]:
        sizes = tuple(wire.SizeTimes(extents=(extent,), exec_s={1: 0.1, 2: 0.2}) for extent in extents)
        profile = wire.Profile(exec_s={1: 0.1, 2: 0.2}, load_s=0.1, sizes=sizes)
        return kept_cells(spec(4, SEQ), profile)

    most = range(512 - EDGES[1] + 1, 513)
    assert kept(*most) == tuple(Cell((extent,), (1, 2)) for extent in most)
    assert kept(1, *most) == ()


@given(rows=st.integers(1, 12), h=st.integers(32, 640), w=st.integers(32, 640))
def test_every_batch_is_held_by_the_least_cell_that_can(rows: int, h: int, w: int) -> None:
    batches = fixed_batches(spec(12, *IMAGE), cells_of([(96, 300, 640)] * 2, (1, 2, 4, 8, 12)))
    found = batches.holding(rows, (h, w))
    assert found is not None
    assert found[0] >= rows
    assert holds(found[1], (h, w))
    holding = [batch for batch in batches.all if batch[0] >= rows and holds(batch[1], (h, w))]
    assert all(found[0] <= size and holds(extents, found[1]) for size, extents in holding)


def test_what_covers_a_cell_that_does_not_fit_does_not_fit_either() -> None:
    batches = FixedBatches((((8,), (1, 2, 4)), ((64,), (1, 2, 4)), ((512,), (1, 2, 4)))).without((2, (64,)))
    assert batches.by_extents == (((8,), (1, 2, 4)), ((64,), (1,)), ((512,), (1,)))
    assert batches.holding(2, (9,)) is None
    assert batches.holding(1, (9,)) == (1, (64,))
    assert batches.holding(1, (513,)) is None
