"""gpu_worker/core/outputs.py: each frontend gets its own rows and nothing else."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gpu_worker.core.outputs import outputs_by_frontend
from mesh import wire


def part(frontend: str, request: int, rows: int) -> wire.Part:
    return wire.Part(frontend=frontend, request=request, attempt=1, rows=rows, predicted_s=0.25, cold=request == 1)


def order(*parts: wire.Part, batch: int) -> wire.Infer:
    return wire.Infer(action=1, ref="m:1", earliest_s=0.0, latest_s=1.0, expected_s=0.01, batch=batch, parts=parts)


def test_each_frontend_gets_one_message_with_the_rows_of_its_requests() -> None:
    action = order(part("ann", 1, 1), part("bob", 2, 2), part("ann", 3, 1), batch=5)  # one row is padding
    narrow, wide = memoryview(bytes(range(5))), memoryview(bytes(range(100, 110)))
    shares = outputs_by_frontend(action, [narrow, wide], "cpu:0", 0.5)
    assert list(shares) == ["ann", "bob"]
    message, frames = shares["ann"]
    assert (message.ref, message.device, message.batch, message.exec_s, frames) == ("m:1", "cpu:0", 5, 0.5, [])
    first, third = message.answers
    assert (first.request, first.attempt, first.rows, first.predicted_s, first.cold) == (1, 1, 1, 0.25, True)
    assert [bytes(data) for data in first.inline] == [b"\0", bytes([100, 101])]
    assert (third.request, third.cold) == (3, False)
    assert [bytes(data) for data in third.inline] == [b"\3", bytes([106, 107])]
    (second,) = shares["bob"][0].answers
    assert [bytes(data) for data in second.inline] == [b"\1\2", bytes([102, 103, 104, 105])]


def test_what_is_large_goes_beside_the_message_in_the_order_of_the_answers() -> None:
    width = wire.INLINE_BYTES_MAX
    output = memoryview(bytes([7]) * width + bytes([8]) * 2 * width)
    action = order(part("ann", 1, 1), part("ann", 2, 2), batch=3)
    message, frames = outputs_by_frontend(action, [output], "cpu:0", 0.1)["ann"]
    small, large = message.answers
    assert (len(small.inline), small.frames) == (1, 0)
    assert (large.inline, large.frames) == ((), 1)
    assert [bytes(frame) for frame in frames] == [bytes([8]) * 2 * width]


@given(
    rows=st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid"]), st.integers(1, 5)), min_size=1, max_size=12),
    padding=st.integers(0, 3),
    width=st.sampled_from([0, 1, 7, wire.INLINE_BYTES_MAX // 3, wire.INLINE_BYTES_MAX, wire.INLINE_BYTES_MAX + 1]),
)
def test_one_output_is_shared_out_as_it_is_beside_another(
    rows: list[tuple[str, int]], padding: int, width: int
) -> None:
    """A model with one output goes a shorter way. The other output here has rows without bytes."""
    batch = sum(count for _, count in rows) + padding
    action = order(*(part(name, number, count) for number, (name, count) in enumerate(rows)), batch=batch)
    output = memoryview(bytes(number % 251 for number in range(batch * width)))
    alone = outputs_by_frontend(action, [output], "cpu:0", 0.5)
    beside = outputs_by_frontend(action, [output, memoryview(b"")], "cpu:0", 0.5)
    assert list(alone) == list(beside)
    for frontend, (message, frames) in alone.items():
        other, others = beside[frontend]
        assert frames == [frame for frame in others if len(frame)]
        assert len(message.answers) == len(other.answers)
        for mine, theirs in zip(message.answers, other.answers, strict=True):
            without = replace(theirs, inline=theirs.inline[:1], frames=min(theirs.frames, 1))
            assert mine == without
        assert replace(message, answers=()) == replace(other, answers=())
