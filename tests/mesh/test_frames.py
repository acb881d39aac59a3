"""mesh/frames.py: which frames belong to which message, and envelopes that have too few."""

import pytest

from mesh.frames import FramesMissing, take_frames

FRAMES = [memoryview(bytes([i])) for i in range(3)]


def test_messages_take_their_frames_in_their_order() -> None:
    frames = iter(FRAMES)
    assert [take_frames(frames, count) for count in (2, 0, 1)] == [FRAMES[:2], [], FRAMES[2:]]


@pytest.mark.parametrize(("count", "taken"), [(4, 0), (1, 3), (1 << 60, 0)])
def test_an_envelope_with_too_few_is_refused(count: int, taken: int) -> None:
    frames = iter(FRAMES[taken:])
    with pytest.raises(FramesMissing, match=f"{count} .*{3 - taken} "):
        take_frames(frames, count)


def test_a_number_below_zero_is_none() -> None:
    frames = iter(FRAMES)
    assert take_frames(frames, -1) == []
    assert list(frames) == FRAMES
