"""Inputs of unequal extents laid out as one batch, and buffers that grow with them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.devices import slots
from gpu_worker.devices.execution import open_rows
from gpu_worker.devices.execution.open_rows import OpenInputs, place_in, view
from gpu_worker.devices.slots import KEPT_BYTES_MAX, SlotPool
from mesh import wire

Array = npt.NDArray[Any]
Extents = tuple[int, ...]
DIMS = (wire.Dim(name="h", least=1, most=32), wire.Dim(name="w", least=1, most=32))
IMAGE = wire.TensorSpec(name="image", dtype="float32", shape=(-1, 2, -1, -1), dims=("", "h", "w"), pad=-1.5)
MASK = wire.TensorSpec(name="mask", dtype="bool", shape=(-1, -1), dims=("w",), pad=1.0)
KIND = wire.TensorSpec(name="kind", dtype="int64", shape=(-1,))
SPEC = wire.ModelSpec(inputs=(IMAGE, MASK, KIND), outputs=(), batch_max=16, slo_ms=1.0, dims=DIMS)


def rows_of(rows: int, extents: Extents, seed: int = 0) -> list[Array]:
    rng, (h, w) = np.random.default_rng(seed), extents
    return [
        rng.standard_normal((rows, 2, h, w)).astype(np.float32),
        rng.random((rows, w)) < 0.9,
        rng.integers(-9, 9, rows),
    ]


def part(rows: int, extents: Extents, request: int = 7) -> wire.Part:
    return wire.Part(frontend="f", request=request, attempt=0, rows=rows, predicted_s=0.1, extents=extents)


def laid(
    inputs: OpenInputs, batch: int, extents: Extents, parts: Sequence[tuple[wire.Part, list[bytes]]]
) -> tuple[str, list[Array]]:
    """The fault, and the inputs of the batch; the buffer held other things before."""
    layout, size = inputs.places(batch, extents)
    target = np.full(size, 0xAB, np.uint8)
    fault = inputs.fill(target, layout, extents, [p for p, _ in parts], [given for _, given in parts])
    return fault, [view(target, place) for place in layout]


@given(
    parts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    more=st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)),
)
def test_each_row_is_filled_up_with_its_input_s_own_value_and_spare_rows_repeat_the_first(
    parts: list[tuple[int, int, int]], more: tuple[int, int, int]
) -> None:
    rows = sum(n for n, _, _ in parts)
    h, w = max(h for _, h, _ in parts) + more[1], max(w for _, _, w in parts) + more[2]
    given = [rows_of(n, (own_h, own_w), i) for i, (n, own_h, own_w) in enumerate(parts)]
    fault, (image, mask, kind) = laid(
        OpenInputs(SPEC, None),
        rows + more[0],
        (h, w),
        [
            (part(n, (own_h, own_w)), [array.tobytes() for array in arrays])
            for (n, own_h, own_w), arrays in zip(parts, given, strict=True)
        ],
    )
    assert fault == ""
    row = 0
    for (n, own_h, own_w), (own_image, own_mask, own_kind) in zip(parts, given, strict=True):
        wanted = np.full((n, 2, h, w), -1.5, np.float32)
        wanted[:, :, :own_h, :own_w] = own_image
        assert np.array_equal(image[row : row + n], wanted)
        assert np.array_equal(mask[row : row + n, :own_w], own_mask)
        assert not mask[row : row + n, own_w:].any(), "a mask is filled up with False, whatever `pad` is"
        assert np.array_equal(kind[row : row + n], own_kind)
        row += n
    assert all((array[row:] == array[0]).all() for array in (image, mask, kind))


@given(
    block=st.tuples(*[st.integers(1, 4)] * 3),
    inner=st.tuples(*[st.integers(1, 4)] * 3),
)
def test_every_element_of_a_block_is_of_its_piece_or_what_it_is_filled_up_with(
    block: tuple[int, int, int], inner: tuple[int, int, int]
) -> None:
    shape = tuple(map(min, block, inner))
    piece = np.random.default_rng(0).standard_normal(shape)
    found, wanted = np.full(block, np.nan), np.full(block, 7.0)
    wanted[tuple(map(slice, shape))] = piece
    place_in(found, piece, 7.0)
    assert np.array_equal(found, wanted)


def test_a_large_input_is_laid_out_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def batch() -> list[Array]:
        parts = [(part(1, extents), encoded(1, extents)) for extents in ((3, 4), (4, 2), (4, 5))]
        fault, arrays = laid(OpenInputs(SPEC, None), 4, (4, 5), parts)
        assert fault == ""
        return arrays

    small = batch()
    monkeypatch.setattr(open_rows, "AT_ONCE_BYTES", 0)
    assert all(np.array_equal(one, other) for one, other in zip(small, batch(), strict=True))


def test_a_measuring_run_has_the_example_s_row_cut_or_repeated_or_zeros() -> None:
    example = [array[0] for array in rows_of(1, (3, 2))]
    fault, (image, mask, kind) = laid(OpenInputs(SPEC, example), 2, (2, 5), [])
    assert fault == ""
    assert np.array_equal(image[1], example[0][:, :2, [0, 1, 0, 1, 0]])
    assert np.array_equal(mask[0], example[1][[0, 1, 0, 1, 0]])
    assert (kind == example[2]).all()
    assert all(not array.any() for array in laid(OpenInputs(SPEC, None), 2, (2, 5), [])[1])


def encoded(rows: int, extents: Extents) -> list[bytes]:
    return [array.tobytes() for array in rows_of(rows, extents)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((part(1, (3, 4)), encoded(1, (3, 3))), ["request 7", "input image", "[3, 4]", "96"]),
        ((part(2, (3, 4)), encoded(1, (3, 4))), ["request 7", "input image", "2 rows", "192"]),
        ((part(1, (3, 4)), [*encoded(1, (3, 4))[:1], b"\1" * 5, bytes(8)]), ["input mask", "5 bytes", "4"]),
        ((part(1, (3, 4)), encoded(1, (3, 4))[:2]), ["2 inputs", "3"]),
        ((part(1, (3, 6)), encoded(1, (3, 6))), ["[3, 6]", "[4, 5]"]),
        ((part(1, (3,)), encoded(1, (3, 4))), ["[3]", "[4, 5]"]),
        ((part(1, ()), encoded(1, (3, 4))), ["[]", "[4, 5]"]),
    ],
)
def test_bytes_that_are_not_those_of_the_part_s_extents_are_refused(
    wrong: tuple[wire.Part, list[bytes]], said: list[str]
) -> None:
    good = (part(1, (4, 5), 3), encoded(1, (4, 5)))
    fault, _ = laid(OpenInputs(SPEC, None), 4, (4, 5), [good, wrong])
    assert "part 1" in fault
    assert all(word in fault for word in said), fault


# -- buffers ----------------------------------------------------------------------------------------------------------


def test_a_buffer_grows_for_a_large_batch_and_stays_so_while_little_is_kept() -> None:
    pool = SlotPool(100, 2)
    large = pool.take(1000)
    small = pool.take()
    assert large is not None
    assert small is not None
    assert (len(large.data), len(small.data), pool.take(1000)) == (1000, 100, None)
    data = large.data
    pool.give(small)
    pool.give(large)
    again = pool.take(900)
    assert again is not None
    assert again.data is data


def test_no_more_than_the_limit_is_kept_of_what_buffers_have_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEPT_BYTES_MAX == 64 << 20
    monkeypatch.setattr(slots, "KEPT_BYTES_MAX", 1500)
    pool = SlotPool(100, 3)
    taken = [slot for _ in range(3) if (slot := pool.take(1000)) is not None]
    for slot in taken:
        pool.give(slot)
    assert sorted(len(slot.data) for slot in taken) == [100, 100, 1000]
    taken = [slot for size in (100, 100, 1000) if (slot := pool.take(size)) is not None]
    assert len(taken) == 3
    for slot in taken:
        pool.give(slot)
    assert sum(len(slot.data) for slot in taken) <= 300 + 1500


def test_a_buffer_of_a_pool_that_was_replaced_is_dropped() -> None:
    old, new = SlotPool(100, 1), SlotPool(100, 1)
    slot = old.take()
    assert slot is not None
    new.give(slot)
    assert new.take() is not None
    assert new.take() is None
