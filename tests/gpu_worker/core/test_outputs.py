"""gpu_worker/core/outputs.py: each frontend gets its own rows and nothing else."""

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
