"""gpu_worker/core/unacknowledged.py: what is kept until a frontend confirms it."""

from collections.abc import Sequence

import pytest

from gpu_worker.core.unacknowledged import AGE_S_MAX, BYTES_MAX, Unacknowledged
from mesh import wire


def outputs(name: str) -> wire.Outputs:
    return wire.Outputs(ref=name, device="cpu:0", batch=1, exec_s=0.0, answers=())


def add(sent: Unacknowledged, name: str, size: int = 1, now: float = 100.0) -> tuple[int, int]:
    """(its number, the oldest that may be sent again)."""
    message = sent.add(outputs(name), (), size, now)
    sent.check()
    assert not message.again
    return message.number, message.oldest


def again(sent: Unacknowledged) -> list[tuple[str, int, int, bool]]:
    return [(message.ref, message.number, message.oldest, message.again) for message, _ in sent.again()]


def test_messages_are_numbered_from_one_and_sent_again_in_order() -> None:
    sent = Unacknowledged()
    assert [add(sent, name) for name in "abc"] == [(1, 1), (2, 1), (3, 1)]
    assert again(sent) == [("a", 1, 1, True), ("b", 2, 1, True), ("c", 3, 1, True)]


def test_what_is_confirmed_is_not_sent_again() -> None:
    sent = Unacknowledged()
    for name in "abc":
        add(sent, name)
    sent.confirmed(2)
    sent.check()
    assert again(sent) == [("c", 3, 3, True)]
    sent.confirmed(1)  # an older confirmation comes late
    assert (len(sent), sent.size) == (1, 1)
    sent.confirmed(99)
    assert (again(sent), sent.size) == ([], 0)
    assert add(sent, "d") == (4, 4)


def test_frames_go_with_their_message() -> None:
    sent = Unacknowledged()
    sent.add(outputs("a"), [b"tensor"], 6, 100.0)
    assert [frames for _, frames in sent.again()] == [[b"tensor"]]


def test_of_more_bytes_than_may_be_kept_the_oldest_are_given_up() -> None:
    sent = Unacknowledged()
    add(sent, "a", BYTES_MAX // 2)
    assert add(sent, "b", BYTES_MAX // 2) == (2, 1)
    assert add(sent, "c", 1) == (3, 2)
    assert (sent.given_up, [name for name, *_ in again(sent)]) == (1, ["b", "c"])


def test_one_that_is_larger_than_all_that_may_be_kept_leaves_no_gap_behind_it() -> None:
    sent = Unacknowledged()
    add(sent, "a")
    assert add(sent, "b", BYTES_MAX + 1) == (2, 2)
    assert add(sent, "c") == (3, 3)
    assert (sent.given_up, again(sent)) == (2, [("c", 3, 3, True)])


@pytest.mark.parametrize(("later_s", "kept"), [(AGE_S_MAX, "ab"), (AGE_S_MAX + 0.25, "b")])
def test_what_nobody_confirms_for_long_is_given_up(later_s: float, kept: str) -> None:
    sent = Unacknowledged()
    add(sent, "a")
    add(sent, "b", now=100.0 + later_s)
    assert [name for name, *_ in again(sent)] == list(kept)


def test_on_a_link_that_loses_nothing_nothing_is_kept() -> None:
    sent = Unacknowledged()
    assert [(m.number, m.oldest) for m in (sent.pass_by(outputs(name)) for name in "ab")] == [(1, 1), (2, 2)]
    assert len(sent) == 0


# -- outputs that lie in slots ----------------------------------------------------------------------------------------


def slot(generation: int) -> wire.Slot:
    return wire.Slot(segment="1.2.ab", offset=64, generation=generation)


def kept(*generations: int, frames: int = 0) -> wire.Outputs:
    """Outputs with one answer in each of these slots, and behind them one in frames."""
    answers = [
        wire.Answer(request=i, attempt=0, rows=1, predicted_s=0.0, kept=wire.Kept(sizes=(1, 1), slot=slot(i)))
        for i in generations
    ]
    if frames:
        answers.append(wire.Answer(request=99, attempt=0, rows=1, predicted_s=0.0, frames=frames))
    return wire.Outputs(ref="m:1", device="cpu:0", batch=1, exec_s=0.0, answers=tuple(answers))


def copies(of: wire.Kept) -> Sequence[bytes] | None:
    assert of.slot is not None
    return None if of.slot.generation == 13 else [b"a%d" % of.slot.generation, b"b%d" % of.slot.generation]


def free(sent: Unacknowledged) -> list[int]:
    sent.check()
    return [each.generation for each in sent.freed()]


def test_slots_are_free_once_their_message_is_confirmed_or_given_up_or_the_frontend_is_gone() -> None:
    sent = Unacknowledged()
    for message in (kept(1, 2), kept(3), kept(4)):
        sent.add(message, (), 10, 100.0)
    assert free(sent) == []
    sent.confirmed(1)
    assert free(sent) == [1, 2]
    assert free(sent) == []
    sent.clear()
    assert (free(sent), sent.given_up, sent.size, len(sent)) == ([3, 4], 2, 0, 0)


def test_slots_of_what_is_given_up_stay_as_it_was_sent_and_may_not_have_been_read_yet() -> None:
    sent = Unacknowledged()
    for message in (kept(1), kept(2, frames=1)):
        sent.add(message, (), 10, 100.0)
    sent.add(outputs("large"), (), BYTES_MAX + 1, 100.0)
    assert (free(sent), sent.given_up, sent.size, sent.again()) == ([], 3, 0, [])
    sent.confirmed(1)
    assert free(sent) == [1]
    sent.add(outputs("later"), (), 1, 100.0 + AGE_S_MAX)
    assert free(sent) == []
    sent.add(outputs("later"), (), 1, 100.25 + AGE_S_MAX)
    assert free(sent) == [2]


@pytest.mark.parametrize("end", ["clear", "unshare"])
def test_slots_of_what_is_given_up_are_free_once_nobody_will_read_them(end: str) -> None:
    sent = Unacknowledged()
    sent.add(kept(1), (), 10, 100.0)
    sent.add(outputs("large"), (), BYTES_MAX, 100.0)
    assert free(sent) == []
    if end == "clear":
        sent.clear()
    else:
        sent.unshare(copies)
    assert free(sent) == [1]


def test_outputs_lie_in_slots_only_while_nothing_would_be_given_up_for_them() -> None:
    sent = Unacknowledged()
    assert [sent.has_room(size) for size in (BYTES_MAX, BYTES_MAX + 1)] == [True, False]
    sent.add(kept(1), (), 10, 100.0)
    assert [sent.has_room(size) for size in (BYTES_MAX - 10, BYTES_MAX - 9)] == [True, False]
    sent.add(outputs("large"), (), BYTES_MAX, 100.0)  # the first is given up, but lies there still
    assert not sent.has_room(0)
    sent.confirmed(2)
    assert sent.has_room(BYTES_MAX)


def test_who_cannot_read_slots_gets_frames() -> None:
    sent = Unacknowledged()
    sent.add(outputs("a"), [b"f"], 1, 100.0)
    sent.add(kept(1, 2, frames=1), [b"z"], 10, 100.0)
    sent.unshare(copies)
    assert free(sent) == [1, 2]
    (_, before), (message, frames) = sent.again()
    assert (before, frames) == ([b"f"], [b"a1", b"b1", b"a2", b"b2", b"z"])
    assert [(answer.kept, answer.frames) for answer in message.answers] == [(None, 2), (None, 2), (None, 1)]
    assert (message.number, message.oldest, sent.size) == (2, 1, 11)
    sent.confirmed(2)
    assert (free(sent), sent.size) == ([], 0)


def test_frames_of_answers_in_between_stay_where_they_belong() -> None:
    message = kept(2)
    first = wire.Answer(request=98, attempt=0, rows=1, predicted_s=0.0, frames=1)
    last = wire.Answer(request=99, attempt=0, rows=1, predicted_s=0.0, frames=2)
    mixed = wire.Outputs(
        ref="m:1", device="cpu:0", batch=1, exec_s=0.0, answers=(first, *message.answers, last, *kept(3).answers)
    )
    sent = Unacknowledged()
    sent.add(mixed, [b"x", b"y", b"z"], 10, 100.0)
    sent.unshare(copies)
    ((_, frames),) = sent.again()
    assert frames == [b"x", b"a2", b"b2", b"y", b"z", b"a3", b"b3"]


def test_what_cannot_be_copied_any_more_is_given_up_with_all_before_it() -> None:
    sent = Unacknowledged()
    for message in (kept(1), kept(13), kept(3)):
        sent.add(message, (), 10, 100.0)
    sent.unshare(copies)
    assert (sorted(free(sent)), sent.given_up, sent.size) == ([1, 3, 13], 2, 10)
    assert [(message.number, message.oldest) for message, _ in sent.again()] == [(3, 3)]
