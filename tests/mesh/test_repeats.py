"""mesh/repeats.py: which lines are written, which are counted, and what is told of these."""

import random
from collections import Counter

import pytest

from mesh.repeats import EVENTS_MAX, FLOOD_SHARE, PERIOD_S, TOLD_MAX, LineBudget, LoggedLine, Repeats

FEW = LineBudget(lines=6, of_one=3)


def repeats() -> Repeats[str]:
    """Of the event e six lines pass in a period, three of one peer."""
    return Repeats({"e": FEW, "f": FEW})


def said(
    core: Repeats[str], count: int, *, event: str = "e", peer: str = "p", now: float = 0.0
) -> list[LoggedLine[str]]:
    """What is written when a peer causes so many lines, the texts of which are counted."""
    told = [each for i in range(count) for each in core.said(event, peer, f"{peer}{i}", now=now)]
    core.check()
    return told


def test_the_first_lines_pass_and_the_rest_is_told_at_the_end_of_the_period_by_the_last_one() -> None:
    core = repeats()
    assert said(core, 5) == [LoggedLine("p0"), LoggedLine("p1"), LoggedLine("p2")]
    assert core.wake_at() == PERIOD_S
    assert core.wake(now=PERIOD_S - 1e-6) == []
    assert core.wake(now=PERIOD_S) == [LoggedLine("p4", folded=2, over_s=PERIOD_S)]
    assert (core.folded, core.wake_at(), core.wake(now=2 * PERIOD_S)) == (2, None, [])


def test_no_peer_takes_what_belongs_to_the_others() -> None:
    core = repeats()
    assert len(said(core, 1000, peer="loud")) == FEW.of_one
    assert [told.line for told in said(core, 2, peer="quiet")] == ["quiet0", "quiet1"]


def test_no_event_takes_what_belongs_to_another_one() -> None:
    core = repeats()
    for peer in range(1000):
        said(core, 1, peer=f"p{peer}")
    assert said(core, 1, event="device_lost") == [LoggedLine("p0")]


def test_peers_that_come_when_the_budget_is_spent_are_told_together() -> None:
    core = repeats()
    for peer in "abcdefghij":
        said(core, 1, peer=peer)
    assert core.wake(now=PERIOD_S) == [LoggedLine("j0", folded=4, over_s=PERIOD_S, several=True)]


def test_the_loudest_peers_are_told_one_by_one_and_the_others_together() -> None:
    core: Repeats[str] = Repeats({"e": LineBudget(1000, 1)})
    for i in range(TOLD_MAX + 3):
        said(core, 2 + i, peer=f"peer-{i}.")
    told = core.wake(now=PERIOD_S)
    assert [each.folded for each in told] == [*range(TOLD_MAX + 3, 3, -1), 1 + 2 + 3]
    assert [each.several for each in told] == [False] * TOLD_MAX + [True]


def test_a_line_after_the_period_tells_first_what_was_folded_in_it() -> None:
    core = repeats()
    said(core, 5)
    assert core.said("e", "p", "new", now=PERIOD_S) == [LoggedLine("p4", folded=2, over_s=PERIOD_S), LoggedLine("new")]


def test_while_a_flood_lasts_little_passes_and_once_it_is_over_all_does() -> None:
    core: Repeats[str] = Repeats()
    usual, flooded = LineBudget(), LineBudget().in_flood()
    assert flooded.lines == usual.lines // FLOOD_SHARE
    passed = [sum(not told.folded for told in said(core, 1000, now=period * PERIOD_S)) for period in range(3)]
    assert passed == [usual.of_one, flooded.of_one, flooded.of_one]
    core.wake(now=3 * PERIOD_S)
    assert len(said(core, 1000, now=5 * PERIOD_S)) == usual.of_one


@pytest.mark.parametrize("quiet_s", [PERIOD_S, 1000 * PERIOD_S])
def test_an_event_that_comes_seldom_is_always_written(quiet_s: float) -> None:
    core = repeats()
    for i in range(100):
        assert len(said(core, FEW.of_one, now=i * quiet_s)) == FEW.of_one
    assert core.folded == 0


def test_all_that_is_folded_is_told_at_the_end() -> None:
    core = repeats()
    said(core, 5)
    said(core, 4, event="f", now=1.0)
    assert core.close(now=2.0) == [LoggedLine("p4", folded=2, over_s=2.0), LoggedLine("p3", folded=1, over_s=1.0)]
    assert core.close(now=3.0) == []


def test_names_of_events_that_never_end_take_no_more_than_their_room() -> None:
    core: Repeats[str] = Repeats()
    told = [each for i in range(10 * EVENTS_MAX) for each in core.said(f"event-{i}", "", "line", now=0.0)]
    core.check()
    assert len(told) < 2 * EVENTS_MAX
    assert sum(each.folded for each in core.close(now=1.0)) == 10 * EVENTS_MAX - len(told)
    assert core.said("another", "", "line", now=PERIOD_S) == [LoggedLine("line")], "those that are over made room"


@pytest.mark.parametrize("seed", range(20))
def test_every_line_is_written_or_counted_exactly_once_and_a_flood_stays_small(seed: int) -> None:
    rng = random.Random(seed)
    core: Repeats[str] = Repeats({"e": FEW})
    now, caused, written, counted = 0.0, Counter[str](), Counter[str](), Counter[str]()
    for _ in range(3000):
        now += rng.choice((0.0, 0.001, 0.5))
        event = rng.choice("eefg")
        told = core.said(event, rng.choice("abcdefgh") * rng.choice((1, 2)), event, now=now)
        if rng.random() < 0.1:
            told += core.wake(now=now)
        caused[event] += 1
        for each in told:
            counted[each.line] += max(1, each.folded)
            written[each.line] += 1
        core.check()
    for each in core.close(now=now):
        counted[each.line] += each.folded
    assert counted == caused
    assert written["e"] <= (now / PERIOD_S + 1) * (FEW.lines + TOLD_MAX + 1)
