"""mesh/net/unsent.py: which messages of a turn share an envelope."""

import pytest

from mesh.net.unsent import ENVELOPE_BYTES, Held, Unsent

HALF = ENVELOPE_BYTES // 2


def filled(*sizes: int | None) -> Unsent:
    """One message for each size, which is its number; with a frame of that many bytes, unless it is None."""
    unsent = Unsent()
    for number, size in enumerate(sizes):
        unsent.add(number, [] if size is None else [bytes(size)])
    return unsent


def envelopes(unsent: Unsent) -> list[tuple[list[int], list[int]]]:
    """All of them, as (messages, bytes of their frames)."""
    found = []
    while unsent:
        messages, frames = unsent.next()
        found.append((messages, [len(frame) for frame in frames]))
    return found


def test_messages_without_tensors_share_one_envelope_however_many_they_are() -> None:
    assert envelopes(filled(*[None] * 1000)) == [(list(range(1000)), [])]


@pytest.mark.parametrize(
    ("second", "numbers"), [(HALF - 1, [[0, 1, 2]]), (HALF, [[0, 1], [2]]), (3 * ENVELOPE_BYTES, [[0, 1], [2]])]
)
def test_the_message_that_fills_an_envelope_is_its_last(second: int, numbers: list[list[int]]) -> None:
    assert [messages for messages, _ in envelopes(filled(HALF, second, None))] == numbers


def test_each_message_keeps_its_frames_and_its_place() -> None:
    unsent = filled(None, ENVELOPE_BYTES, None, 5, HALF, HALF, 7)
    assert len(unsent) == 7
    assert unsent.size == 2 * ENVELOPE_BYTES + 12
    assert envelopes(unsent) == [([0, 1], [ENVELOPE_BYTES]), ([2, 3, 4, 5], [5, HALF, HALF]), ([6], [7])]
    assert (len(unsent), unsent.size, bool(unsent)) == (0, 0, False)


@pytest.mark.parametrize("last", [None, ENVELOPE_BYTES])
def test_within_one_process_all_goes_at_once(last: int | None) -> None:
    messages, frames = filled(ENVELOPE_BYTES, None, ENVELOPE_BYTES, 3, last).all()
    assert messages == [0, 1, 2, 3, 4]
    assert [len(frame) for frame in frames] == [n for n in (ENVELOPE_BYTES, ENVELOPE_BYTES, 3, last) if n]


def test_what_is_held_waits_too_and_nothing_waits_once_it_is_cleared() -> None:
    unsent = filled(ENVELOPE_BYTES, 3)
    messages, frames = unsent.next()
    unsent.held = Held(b"body", frames, len(messages))
    assert (len(unsent), unsent.size) == (2, 4 + ENVELOPE_BYTES + 3)
    unsent.add(9, [bytes(ENVELOPE_BYTES)])
    unsent.clear()
    assert (len(unsent), unsent.size, bool(unsent)) == (0, 0, False)
