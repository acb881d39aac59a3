"""broker/core/effect.py: an operator hears that something is in effect when it is."""

from broker.core.effect import HELD_S, HeldReplies
from mesh import wire

ONE, TWO = (("operator-1", wire.CallReply(call=n, ok=True, message="it is current")) for n in (1, 2))


def held(*frontends: str) -> HeldReplies:
    """A reply waits for these frontends to have table 7."""
    replies = HeldReplies()
    replies.hold(*ONE)
    assert replies.pushed(7, frontends, 100.0) == []
    return replies


def test_without_frontends_a_reply_leaves_with_the_table() -> None:
    replies = HeldReplies()
    replies.hold(*ONE)
    assert replies.pushed(7, (), 100.0) == [ONE]
    assert replies.due_at() is None


def test_a_reply_waits_until_every_frontend_has_its_table_or_a_later_one() -> None:
    replies = held("f", "g")
    assert replies.taken("f", 7) == []
    assert replies.taken("g", 6) == []
    assert replies.taken("worker", 9) == []
    assert replies.taken("g", 9) == [ONE]
    assert replies.taken("g", 10) == []


def test_a_frontend_that_is_gone_is_not_waited_for() -> None:
    replies = held("f", "g")
    assert replies.taken("f", 7) == []
    assert replies.left("g") == [ONE]


def test_a_frontend_that_stands_still_holds_a_reply_up_for_so_long() -> None:
    replies = held("f")
    assert replies.due_at() == 100.0 + HELD_S
    assert replies.due(100.0 + HELD_S - 1e-6) == []
    assert replies.due(100.0 + HELD_S) == [ONE]
    assert replies.due_at() is None


def test_replies_of_two_tables_wait_each_for_its_own() -> None:
    replies = held("f")
    replies.hold(*TWO)
    assert replies.pushed(8, ["f", "g"], 100.1) == []
    assert replies.taken("f", 7) == [ONE]
    assert replies.taken("f", 8) == []
    assert replies.taken("g", 8) == [TWO]


def test_all_replies_leave_before_the_broker_does() -> None:
    replies = held("f")
    replies.hold(*TWO)
    assert replies.rest() == [TWO, ONE]
    assert replies.rest() == []
