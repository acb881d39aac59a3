"""Virtual time: calls happen in order, and never before their time."""

import math

from gearmesh.simulation.timeline import VirtualTime


def happened(timeline: VirtualTime) -> None:
    """Everything that is due."""
    while (call := timeline.pop_due()) is not None:
        call()


def test_calls_happen_in_the_order_of_their_instants_and_then_of_their_planning() -> None:
    timeline, heard = VirtualTime(), list[str]()
    for at, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        timeline.at(at, lambda name=name: heard.append(name))
    assert timeline.next_s() == 1.0
    timeline.advance(2.0)
    happened(timeline)
    assert heard == ["a", "b", "c"]
    assert timeline.next_s() == math.inf


def test_nothing_happens_before_its_time() -> None:
    timeline, heard = VirtualTime(5.0), list[str]()
    timeline.at(6.0, lambda: heard.append("late"))
    timeline.at(4.0, lambda: heard.append("missed"))  # due at once
    happened(timeline)
    assert heard == ["missed"]


def test_what_a_call_plans_for_now_happens_now() -> None:
    timeline, heard = VirtualTime(), list[str]()
    timeline.at(0.0, lambda: timeline.at(0.0, lambda: heard.append("second")))
    happened(timeline)
    assert heard == ["second"]


def test_time_does_not_go_back() -> None:
    timeline = VirtualTime(5.0)
    timeline.advance(4.0)
    assert timeline.now == 5.0
