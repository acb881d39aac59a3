"""followers.py: operators that follow get all there is room for, in order, and cost nothing when gone."""

import msgspec

from controller.core.telemetry.followers import FOLLOWERS_MAX, LEASE_S, REPLY_MAX, STORE_MAX, Followers
from mesh import wire
from mesh.facts import RequestFact
from tests.facts import ACTION, REQUEST


def ask(call: int = 1, *, stop: bool = False) -> wire.AskFacts:
    """What an operator says."""
    return wire.AskFacts(call=call, stop=stop)


def numbered(count: int, first: int = 0) -> list[RequestFact]:
    """So many facts that differ in their number."""
    return [msgspec.structs.replace(REQUEST, request=first + i) for i in range(count)]


def test_the_first_word_starts_the_recording_and_later_ones_fetch() -> None:
    followers = Followers()
    followers.add([REQUEST], 1.0)
    assert followers.asked("operator-1", ask(1), 2.0) == wire.FactsReply(call=1, now_s=2.0, facts=())
    followers.add([REQUEST, ACTION], 2.5)
    assert followers.asked("operator-1", ask(2), 3.0) == wire.FactsReply(call=2, now_s=3.0, facts=(REQUEST, ACTION))
    assert followers.asked("operator-1", ask(3), 3.0).facts == ()


def test_long_stores_are_fetched_in_several_replies() -> None:
    followers = Followers()
    followers.asked("operator-1", ask(), 1.0)
    followers.add(numbered(REPLY_MAX + 1), 1.0)
    first, second = followers.asked("operator-1", ask(), 1.0), followers.asked("operator-1", ask(), 1.0)
    assert (len(first.facts), first.more) == (REPLY_MAX, True)
    assert (second.facts, second.more) == (tuple(numbered(1, REPLY_MAX)), False)


def test_what_finds_no_room_is_dropped_counted_and_told_once() -> None:
    followers = Followers()
    followers.asked("operator-1", ask(), 1.0)
    followers.add(numbered(STORE_MAX - 1), 1.0)
    followers.add(numbered(3), 1.0)
    assert followers.asked("operator-1", ask(), 1.0).dropped == 2
    assert followers.asked("operator-1", ask(), 1.0).dropped == 0


def test_who_stops_asking_is_forgotten_and_who_stops_at_once() -> None:
    followers = Followers()
    followers.asked("operator-1", ask(), 1.0)
    followers.add([], 1.0 + LEASE_S)
    assert len(followers) == 1
    followers.add([], 1.001 + LEASE_S)
    assert len(followers) == 0
    followers.asked("operator-1", ask(), 9.0)
    followers.asked("operator-1", ask(stop=True), 9.0)
    assert len(followers) == 0
    followers.asked("operator-2", ask(), 9.0)
    followers.forget("operator-2")
    assert len(followers) == 0


def test_more_operators_than_there_is_room_for_push_out_the_oldest() -> None:
    followers = Followers()
    for i in range(FOLLOWERS_MAX + 1):
        followers.asked(f"operator-{i}", ask(), 1.0)
    assert len(followers) == FOLLOWERS_MAX
