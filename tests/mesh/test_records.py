"""mesh/losses.py, mesh/folding.py, mesh/doubling.py, mesh/trimming.py: small tables that transports keep."""

import pytest

from mesh.doubling import Doubling
from mesh.folding import CAUSES_MAX, Folding
from mesh.losses import PEERS_MAX, Loss, Losses
from mesh.trimming import GROWN_BYTES, QUIET_S, Trimming


def test_losses_are_counted_by_peer_and_the_last_is_told() -> None:
    losses = Losses()
    losses.lost("a", "silent", 1.0)
    losses.lost("b", "closed", 2.0)
    losses.lost("a", "closed", 3.0)
    assert (losses.of("a"), losses.of("b"), losses.of("c")) == (Loss(2, 3.0, "closed"), Loss(1, 2.0, "closed"), None)
    losses.keep_only(["b", "c"])
    assert (losses.of("a"), losses.of("b"), losses.total) == (None, Loss(1, 2.0, "closed"), 3)


def test_of_more_losses_than_there_is_room_for_the_oldest_goes() -> None:
    losses = Losses()
    for i in range(PEERS_MAX):
        losses.lost(str(i), "silent", float(i))
    losses.lost("0", "silent", 1e6)
    losses.lost("new", "silent", 1e6)
    assert losses.of("1") is None
    assert losses.of("0") == Loss(2, 1e6, "silent")


def test_what_happens_often_is_told_once_in_a_while_with_its_number() -> None:
    folding = Folding(span_s=10.0)
    told = [folding.happened("a", now) for now in (5.0, 6.0, 14.75, 15.0, 16.0)]
    assert told == [1, 0, 0, 3, 0]
    assert folding.happened("b", 16.0) == 1


def test_more_causes_than_there_is_room_for_are_told_again() -> None:
    folding = Folding()
    for i in range(CAUSES_MAX + 1):
        assert folding.happened(str(i), 1.0) == 1
    assert folding.happened("0", 1.0) == 1
    assert folding.happened(str(CAUSES_MAX), 1.0) == 0


def test_pauses_double_up_to_the_longest_and_begin_anew() -> None:
    pauses = Doubling(0.25, 1.5)
    assert [pauses.next() for _ in range(5)] == [0.25, 0.5, 1.0, 1.5, 1.5]
    pauses.reset()
    assert pauses.next() == 0.25


@pytest.mark.parametrize(
    ("bytes_now", "quiet_s", "due"),
    [
        (1000 + GROWN_BYTES, QUIET_S, True),
        (999 + GROWN_BYTES, QUIET_S, False),
        (1000 + GROWN_BYTES, 0.99 * QUIET_S, False),
    ],
)
def test_memory_is_given_back_when_much_came_and_it_is_quiet(bytes_now: int, quiet_s: float, due: bool) -> None:
    trimming = Trimming(9000)
    assert not trimming.due(5000, QUIET_S, 100.0)
    assert not trimming.due(1000, QUIET_S, 101.0)
    assert trimming.due(bytes_now, quiet_s, 102.0) is due


def test_it_is_tried_again_after_pauses_that_double_until_something_comes() -> None:
    trimming = Trimming(9000)
    trimming.due(0, QUIET_S, 99.0)
    tried = [now for now in range(100, 140) if trimming.due(2 * GROWN_BYTES, now - 90.0, float(now))]
    assert tried == [100, 102, 106, 114, 130]
    assert trimming.due(2 * GROWN_BYTES, 1.0, 141.0)  # it was busy at 140
    assert not trimming.due(2 * GROWN_BYTES, 2.0, 142.0)
    assert trimming.due(2 * GROWN_BYTES, 3.0, 143.0)
