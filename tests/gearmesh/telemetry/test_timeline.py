"""timeline.py: the trace keeps the rules of its format, and shows what was planned and what happened."""

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.admin.observer import Recording
from gearmesh.telemetry.draw_trace import draw, rows_of
from gearmesh.telemetry.timeline import FAILED_COLOUR, timeline
from mesh.facts import ActionFact, Fact, RequestFact
from tests.facts import ACTION, REQUEST

replace = msgspec.structs.replace
Event = dict[str, Any]


def recorded(*facts: Fact, offset_s: float = 0.0, controller: str = "controller-1") -> Recording:
    """A recording of one controller, from 100 s to 101 s by our clock."""
    return Recording(100.0, 101.0, {controller: list(facts)}, {controller: offset_s})


def check_format(trace: dict[str, Any]) -> list[Event]:
    """Checks every rule of the Trace Event Format that applies to our events.

    Returns the events as a reader sees them.
    """
    events: list[Event] = json.loads(msgspec.json.encode(trace))["traceEvents"]
    rows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    names: Counter[tuple[str, int, int]] = Counter()
    flows: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        assert event["ph"] in ("X", "s", "f", "C", "M")
        assert all(isinstance(event[key], int) and event[key] >= 0 for key in ("pid", "tid"))
        assert isinstance(event["name"], str)
        assert event["name"]
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            names[event["name"], event["pid"], event["tid"]] += 1
            continue
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
        else:
            flows[event["id"]].append(event)
    for (pid, tid), bars in rows.items():
        assert names["process_name", pid, 0] == names["thread_name", pid, tid] == 1
        bars.sort()
        assert all(end <= begin + 1e-6 for (_, end), (begin, _) in itertools.pairwise(bars)), "bars overlap"
    for start, end in flows.values():
        assert (start["ph"], end["ph"], end["bp"]) == ("s", "f", "e")
        assert (start["cat"], start["name"]) == (end["cat"], end["name"])
        for event in (start, end):
            bars = rows[event["pid"], event["tid"]]
            assert any(begin <= event["ts"] <= finish for begin, finish in bars), "an arrow hangs in the air"
    return events


def bars_of(events: list[Event]) -> dict[str, list[tuple[float, float]]]:
    """{row's name: (begin, duration) of its bars, us}."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            found[names[event["pid"], event["tid"]]].append((event["ts"], event["dur"]))
    return dict(found)


def test_an_action_shows_its_window_its_plan_and_what_happened_and_its_request_points_at_it() -> None:
    events = check_format(timeline(recorded(REQUEST, ACTION)))
    assert bars_of(events) == {
        "EXEC window": [(4000.0, 17000.0)],
        "EXEC planned": [(9000.0, 12000.0)],
        "EXEC": [(10000.0, 10000.0)],
        "requests": [(0.0, 20000.0)],
    }
    start, end = (event for event in events if event["ph"] in "sf")
    assert (start["ts"], end["ts"]) == (0.0, 10000.0)
    colours = {event["cname"] for event in events if event["ph"] == "X"}
    assert len(colours) == 1
    assert {event["name"] for event in events if event["ph"] == "X"} == {"m:1"}


def test_a_load_has_a_lane_of_its_own_and_counters_follow_pages_and_queue() -> None:
    load = replace(ACTION, action=2, type="load", requests=0, batch=0)
    events = check_format(timeline(recorded(load, ACTION)))
    assert set(bars_of(events)) == {
        f"{lane}{what}" for lane in ("LOAD", "EXEC") for what in (" window", " planned", "")
    }
    counters = {(e["name"], e["args"][e["name"]]) for e in events if e["ph"] == "C"}
    assert counters == {("free pages", 6), ("requests waiting", 5)}


def test_the_controller_s_clock_is_brought_to_ours() -> None:
    shifted = recorded(
        *(
            replace(fact, **{name: getattr(fact, name) + 50.0 for name in instants})
            for fact, instants in (
                (REQUEST, ("arrived_s",)),
                (
                    ACTION,
                    (
                        "sent_s", "earliest_s", "latest_s", "expected_begin_s", "expected_end_s", "received_s",
                        "begin_s", "end_s", "result_s",
                    ),
                ),
            )
        ),
        offset_s=50.0,
    )  # fmt: skip
    here = bars_of(check_format(timeline(recorded(REQUEST, ACTION))))
    there = bars_of(check_format(timeline(shifted)))
    assert {row: [(round(t), round(d)) for t, d in bars] for row, bars in there.items()} == {
        row: [(round(t), round(d)) for t, d in bars] for row, bars in here.items()
    }


def test_what_came_to_nothing_is_marked_and_has_no_length() -> None:
    late = replace(ACTION, code="late", begin_s=None, end_s=None, duration_s=None, error_s=None)
    refused = replace(REQUEST, outcome="rejected", code="deadline", latency_s=0.0, action=0, batch=0, exec_s=None)
    events = check_format(timeline(recorded(refused, late)))
    assert bars_of(events)["EXEC"] == [(21000.0, 0.0)]
    assert {event["cname"] for event in events if event["ph"] == "X"} == {FAILED_COLOUR}
    assert not [event for event in events if event["ph"] in "sf"]


def test_a_device_that_changed_hands_is_drawn_once_with_the_actions_of_both_controllers() -> None:
    later = replace(
        ACTION, earliest_s=ACTION.earliest_s + 50.02, latest_s=ACTION.latest_s + 50.02,
        expected_begin_s=ACTION.expected_begin_s + 50.02, expected_end_s=ACTION.expected_end_s + 50.02,
        begin_s=(ACTION.begin_s or 0) + 50.02, end_s=(ACTION.end_s or 0) + 50.02, result_s=ACTION.result_s + 50.02,
    )  # fmt: skip
    facts: dict[str, list[Fact]] = {
        "controller-1": [REQUEST, ACTION],
        "controller-2": [replace(REQUEST, arrived_s=REQUEST.arrived_s + 50.02), later],
    }
    recording = Recording(100.0, 101.0, facts, {"controller-1": 0.0, "controller-2": 50.0})
    events = check_format(timeline(recording))
    assert [round(begin) for begin, _ in bars_of(events)["EXEC"]] == [10_000, 30_000]
    targets = [round(event["ts"]) for event in events if event["ph"] == "f"]
    assert targets == [10_000, 30_000]


def test_one_lane_is_one_row_though_clocks_are_some_microseconds_off() -> None:
    assert ACTION.end_s is not None
    begin_s = ACTION.end_s - 5e-6
    after = replace(ACTION, action=8, begin_s=begin_s, end_s=begin_s + 0.01)
    events = check_format(timeline(recorded(ACTION, after, replace(REQUEST, action=8))))
    assert bars_of(events)["EXEC"] == [(10_000.0, 10_000.0), (20_000.0, 9_995.0)]
    (target,) = (event for event in events if event["ph"] == "f")
    assert target["ts"] == 20_000.0


def test_what_was_lost_tells_nothing_of_pages() -> None:
    lost = replace(ACTION, code="lost", begin_s=None, end_s=None, free_pages=0)
    events = check_format(timeline(recorded(lost)))
    assert [e["name"] for e in events if e["ph"] == "C"] == ["requests waiting"]


def test_devices_are_in_order_of_their_names() -> None:
    events = check_format(timeline(recorded(*(replace(ACTION, worker=w, device=d) for w, d in ("b0", "c1", "a2")))))
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name" and e["pid"] >= 1000}
    assert [names[pid] for pid in sorted(names)] == ["0 of b", "1 of c", "2 of a"]


def test_what_was_missed_is_said_in_the_file() -> None:
    recording = recorded(ACTION)
    recording.dropped, recording.silent = 3, ["controller-2"]
    assert timeline(recording)["otherData"] == {
        "made by": "gearmesh trace", "seconds": 1.0, "dropped": 3, "silent": ["controller-2"],
    }  # fmt: skip


def test_nothing_recorded_is_a_trace_too() -> None:
    assert check_format(timeline(Recording(100.0, 101.0))) == []


SECONDS = st.floats(100.0, 101.0)
DURATIONS = st.floats(0.0, 0.5)


@st.composite
def any_action(draw: st.DrawFn) -> ActionFact:
    """An action with arbitrary instants."""
    begin_s = draw(st.none() | SECONDS)
    expected_s = draw(DURATIONS)
    expected_begin_s = draw(SECONDS)
    return replace(
        ACTION,
        action=draw(st.integers(1, 5)),
        type=draw(st.sampled_from(["load", "infer", "unload"])),
        code=draw(st.sampled_from(["ok", "late"])),
        worker=draw(st.sampled_from(["w1", "w2"])),
        earliest_s=draw(SECONDS),
        latest_s=draw(SECONDS),
        expected_begin_s=expected_begin_s,
        expected_end_s=expected_begin_s + expected_s,
        begin_s=begin_s,
        end_s=None if begin_s is None else begin_s + draw(DURATIONS),
        result_s=draw(SECONDS),
    )


@st.composite
def any_request(draw: st.DrawFn) -> RequestFact:
    """A request with arbitrary instants."""
    return replace(REQUEST, action=draw(st.integers(0, 6)), arrived_s=draw(SECONDS), latency_s=draw(DURATIONS))


@given(st.lists(any_action() | any_request(), max_size=20))
def test_whatever_was_recorded_the_format_holds(facts: list[Fact]) -> None:
    trace = timeline(recorded(*facts))
    events = check_format(trace)
    shown = sum(isinstance(fact, RequestFact) for fact in facts)
    shown += 3 * sum(isinstance(fact, ActionFact) and fact.type != "unload" for fact in facts)
    assert sum(event["ph"] == "X" for event in events) == shown


def test_a_trace_can_be_drawn_and_what_is_empty_cannot(tmp_path: Path) -> None:
    trace = timeline(recorded(REQUEST, ACTION))
    events = [event for event in trace["traceEvents"] if event["ph"] in "MX"]
    rows = list(rows_of(events).values())
    assert [(row.number, row.shade) for row in rows] == [(0, 1.0), (1, 0.25), (2, 0.55), (3, 1.0)]
    assert [row.title for row in rows] == ["requests", "cpu:0  EXEC window", "cpu:0  EXEC planned", "cpu:0  EXEC"]
    draw(trace, tmp_path / "picture.png", None, 60.0)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"60.*9000"):
        draw(trace, tmp_path / "nothing.png", 9000.0, 60.0)
    with pytest.raises(ValueError, match="no bars"):
        draw(timeline(recorded()), tmp_path / "nothing.png", None, 60.0)
