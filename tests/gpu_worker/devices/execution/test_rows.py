"""gpu_worker/devices/execution/rows.py: the inputs of a batch, part by part and input by input, and padding behind."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.devices.execution.rows import JOINED_BYTES_MAX, fill
from mesh import wire

SPARE = 16  # bytes of the slot behind the batch
UNTOUCHED = 0xEE


def order(rows: list[int], batch: int) -> wire.Infer:
    parts = tuple(
        wire.Part(frontend="ann", request=number, attempt=0, rows=count, predicted_s=0.1)
        for number, count in enumerate(rows)
    )
    return wire.Infer(action=1, ref="m:1", earliest_s=0.0, latest_s=1.0, expected_s=0.1, batch=batch, parts=parts)


@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    more=st.integers(0, 3),
    widths=st.lists(st.sampled_from([1, 3, 64, JOINED_BYTES_MAX // 4]), min_size=1, max_size=3),
    views=st.booleans(),
)
def test_a_slot_has_each_input_s_rows_in_the_parts_order_and_padding_behind(
    rows: list[int], more: int, widths: list[int], views: bool
) -> None:
    batch = sum(rows) + more
    parts = [
        [bytes((part * 31 + i * 7 + at) % 251 for at in range(count * width)) for i, width in enumerate(widths)]
        for part, count in enumerate(rows)
    ]
    padding = [np.full(width, 100 + i, np.uint8) for i, width in enumerate(widths)]
    slot = np.full(sum(widths) * batch + SPARE, UNTOUCHED, np.uint8)
    given_parts = [[memoryview(piece) for piece in part] if views else part for part in parts]
    assert fill(slot, order(rows, batch), given_parts, widths, padding) == ""
    wanted = b"".join(
        b"".join(part[i] for part in parts) + bytes([100 + i]) * (width * more) for i, width in enumerate(widths)
    )
    assert slot.tobytes() == wanted + bytes([UNTOUCHED]) * SPARE


def test_a_part_with_too_many_or_too_few_bytes_is_named_whatever_the_sum() -> None:
    slot = np.zeros(64, np.uint8)
    for parts in ([[b"abc"], [b"d"]], [[b"a"], [b"bcd"]]):
        assert fill(slot, order([1, 1], 2), parts, [2], [np.zeros(2, np.uint8)]) != ""
    assert fill(slot, order([1, 1], 2), [[b"ab"], [b"cd", b"ef"]], [2], [np.zeros(2, np.uint8)]) != ""
