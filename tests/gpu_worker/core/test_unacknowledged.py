"""gpu_worker/core/unacknowledged.py: what is kept until a frontend confirms it."""

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
