"""watchers.py: operators that follow get all there is room for, in order, and cost nothing when gone."""

import msgspec

from controller.core.telemetry.watchers import LEASE_S, REPLY_MAX, STORE_MAX, WATCHERS_MAX, Watchers
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
    watchers = Watchers()
    watchers.told([REQUEST], 1.0)
    assert watchers.asked("operator-1", ask(1), 2.0) == wire.FactsReply(call=1, now_s=2.0, facts=())
    watchers.told([REQUEST, ACTION], 2.5)
    assert watchers.asked("operator-1", ask(2), 3.0) == wire.FactsReply(call=2, now_s=3.0, facts=(REQUEST, ACTION))
    assert watchers.asked("operator-1", ask(3), 3.0).facts == ()


def test_long_stores_are_fetched_in_several_replies() -> None:
    watchers = Watchers()
    watchers.asked("operator-1", ask(), 1.0)
    watchers.told(numbered(REPLY_MAX + 1), 1.0)
    first, second = watchers.asked("operator-1", ask(), 1.0), watchers.asked("operator-1", ask(), 1.0)
    assert (len(first.facts), first.more) == (REPLY_MAX, True)
    assert (second.facts, second.more) == (tuple(numbered(1, REPLY_MAX)), False)


def test_what_finds_no_room_is_dropped_counted_and_told_once() -> None:
    watchers = Watchers()
    watchers.asked("operator-1", ask(), 1.0)
    watchers.told(numbered(STORE_MAX - 1), 1.0)
    watchers.told(numbered(3), 1.0)
    assert watchers.asked("operator-1", ask(), 1.0).dropped == 2
    assert watchers.asked("operator-1", ask(), 1.0).dropped == 0


def test_who_stops_asking_is_forgotten_and_who_stops_at_once() -> None:
    watchers = Watchers()
    watchers.asked("operator-1", ask(), 1.0)
    watchers.told([], 1.0 + LEASE_S)
    assert len(watchers) == 1
    watchers.told([], 1.001 + LEASE_S)
    assert len(watchers) == 0
    watchers.asked("operator-1", ask(), 9.0)
    watchers.asked("operator-1", ask(stop=True), 9.0)
    assert len(watchers) == 0
    watchers.asked("operator-2", ask(), 9.0)
    watchers.forget("operator-2")
    assert len(watchers) == 0


def test_more_operators_than_there_is_room_for_push_out_the_oldest() -> None:
    watchers = Watchers()
    for i in range(WATCHERS_MAX + 1):
        watchers.asked(f"operator-{i}", ask(), 1.0)
    assert len(watchers) == WATCHERS_MAX
