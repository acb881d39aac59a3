"""Makes a timeline of what a mesh planned and did, in the Trace Event Format that Perfetto and chrome://tracing show.

Rows: for each device its lanes, and for each lane the actions' windows, the plan and what happened; for each controller
its requests, from arrival to end. Arrows lead from a request to the EXEC that served it. Counters: waiting requests,
free pages. Source of the format: "Trace Event Format" (Google, 2016): JSON object format; complete, flow, counter,
metadata events.
"""

import heapq
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from frontend.admin.observer import Recording
from gearmesh.telemetry.endings import amended
from mesh.codes import ActionCode, RequestOutcome
from mesh.facts import ActionFact, RequestFact

# names of colours that chrome://tracing knows; Perfetto colours by the name of the slice, which is the model in both
COLOURS = (
    "thread_state_running",
    "rail_response",
    "rail_animation",
    "rail_load",
    "cq_build_passed",
    "thread_state_iowait",
    "light_memory_dump",
    "detailed_memory_dump",
    "generic_work",
    "good",
    "vsync_highlight_color",
    "olive",
)
FAILED_COLOUR = "terrible"
LANES = {"load": ("LOAD", 1000), "infer": ("EXEC", 4000)}  # {action: (lane, number of its first row)}
WORKERLESS = (ActionCode.LOST, ActionCode.WORKER_LOST)  # no worker reported: the free pages are unknown, too
ROWS_MAX = 1000  # of one kind
REQUEST_ROW = 1
TOLERANCE_US = 20.0  # a lane does one thing at a time; a smaller overlap comes from the translation of clocks

Event = dict[str, Any]
Told = RequestFact | ActionFact
Place = tuple[int, int, float]  # process, row, microseconds


class RowKind(StrEnum):
    """What the bars of a row are; `kind` in the arguments of the row's `thread_name`."""

    REQUESTS = "requests"
    WINDOWS = "windows"
    PLANS = "plans"
    ACTIONS = "actions"  # as they were executed


@dataclass(slots=True)
class Rows:
    """Rows of one kind in one process, as many as needed to put overlapping bars into different rows."""

    name: str
    kind: RowKind
    first: int  # number of the first row
    slack_us: float = 0.0  # a bar that begins up to this long before the end of another one is moved to that end
    _free: list[int] = field(default_factory=list)  # heap of free rows
    _busy: list[tuple[float, int]] = field(default_factory=list)  # heap of (end, row)
    count: int = 0

    def place(self, begin_us: float, end_us: float) -> tuple[int, float, float]:
        """(row, begin, end) of a bar. Bars must come in order of their beginnings."""
        while self._busy and self._busy[0][0] <= begin_us + self.slack_us:
            over_us, row = heapq.heappop(self._busy)
            begin_us = max(begin_us, over_us)
            heapq.heappush(self._free, row)
        if self._free:
            row = heapq.heappop(self._free)
        else:
            row = self.first + self.count
            self.count += 1
        end_us = max(begin_us, end_us)
        heapq.heappush(self._busy, (end_us, row))
        return row, begin_us, end_us

    def names(self) -> Iterator[tuple[int, str]]:
        """(number, name) of every row."""
        for i in range(self.count):
            yield self.first + i, self.name if i == 0 else f"{self.name} ({i + 1})"


@dataclass(slots=True)
class Timeline:
    """Collects events. Process numbers: controllers from 1, devices from 1000."""

    began_s: float  # instants are relative to this one
    events: list[Event] = field(default_factory=list)
    flows: int = 0

    def us(self, at_s: float) -> float:
        """Microseconds since the beginning, rounded to the nanosecond."""
        return round((at_s - self.began_s) * 1e6, 3)

    def bar(self, pid: int, rows: Rows, begin_s: float, end_s: float, name: str, **more: Any) -> Place:
        """Adds a bar; returns where it begins."""
        row, begin_us, end_us = rows.place(self.us(begin_s), self.us(max(begin_s, end_s)))
        duration_us = round(end_us - begin_us, 3)
        self.events.append(
            {"ph": "X", "pid": pid, "tid": row, "ts": begin_us, "dur": duration_us, "name": name, **more}
        )
        return pid, row, begin_us

    def arrow(self, source: Place, target: Place) -> None:
        """Adds an arrow from the beginning of one bar to that of another."""
        self.flows += 1
        flow = {"cat": "request", "name": "served by", "id": self.flows}
        for phase, (pid, row, at_us), more in (("s", source, {}), ("f", target, {"bp": "e"})):
            self.events.append({"ph": phase, "pid": pid, "tid": row, "ts": at_us, **flow, **more})

    def counter(self, pid: int, at_s: float, name: str, value: float) -> None:
        """Adds a counter's value, which holds from then on."""
        self.events.append({"ph": "C", "pid": pid, "tid": 0, "ts": self.us(at_s), "name": name, "args": {name: value}})

    def describe(self, pid: int, name: str, rows: Iterable[Rows], device: str = "") -> None:
        """Names the process and its rows, and fixes their order. `device`: that it is; empty for a controller."""
        self._meta(pid, 0, "process_name", name=name, device=device)
        self._meta(pid, 0, "process_sort_index", sort_index=pid)
        for kind in rows:
            for row, label in kind.names():
                self._meta(pid, row, "thread_name", name=label, kind=kind.kind)
                self._meta(pid, row, "thread_sort_index", sort_index=row)

    def _meta(self, pid: int, tid: int, what: str, **arguments: Any) -> None:
        self.events.append({"ph": "M", "pid": pid, "tid": tid, "name": what, "args": arguments})


def timeline(recording: Recording) -> dict[str, Any]:
    """The whole trace, to be written as JSON."""
    told = {controller: amended(facts) for controller, facts in recording.facts.items()}
    made = Timeline(_origin_s(recording, told))
    devices: dict[tuple[str, str], list[Ordered]] = {}  # {(device, worker): its actions, of all controllers}
    for controller, facts in told.items():
        offset_s = recording.offset_s.get(controller, 0.0)
        for fact in facts:
            if isinstance(fact, ActionFact):
                devices.setdefault((fact.device, fact.worker), []).append(Ordered(fact, controller, offset_s))
    executed: dict[tuple[str, int], Place] = {}  # {(controller, INFER): where its bar begins}
    for pid, name in enumerate(sorted(devices), 1000):
        executed |= _device(made, pid, devices[name])
    for pid, (controller, facts) in enumerate(sorted(told.items()), 1):
        _controller(made, pid, controller, recording.offset_s.get(controller, 0.0), facts, executed)
    return {
        "traceEvents": made.events,
        "displayTimeUnit": "ms",
        "otherData": {
            "made by": "gearmesh trace",
            "seconds": round(recording.ended_s - recording.began_s, 3),
            "dropped": recording.dropped,
            "silent": recording.silent,
        },
    }


@dataclass(frozen=True, slots=True)
class Ordered:
    """An action, and the controller that ordered it."""

    fact: ActionFact
    controller: str
    offset_s: float  # its clock minus ours


def _origin_s(recording: Recording, told: Mapping[str, Sequence[Told]]) -> float:
    """An instant before everything shown; what ended in the recording may have begun before it."""
    first_s = recording.began_s
    for controller, facts in told.items():
        offset_s = recording.offset_s.get(controller, 0.0)
        for fact in facts:
            first_s = min(first_s, (fact.arrived_s if isinstance(fact, RequestFact) else fact.earliest_s) - offset_s)
    return first_s


def _controller(
    made: Timeline,
    pid: int,
    controller: str,
    offset_s: float,
    facts: Sequence[Told],
    executed: Mapping[tuple[str, int], Place],
) -> None:
    """Draws the requests of one controller, and arrows to the EXECs that served them."""
    rows = Rows("requests", RowKind.REQUESTS, REQUEST_ROW)
    for request in sorted((f for f in facts if isinstance(f, RequestFact)), key=lambda fact: fact.arrived_s):
        begin_s = request.arrived_s - offset_s
        place = made.bar(
            pid, rows, begin_s, begin_s + request.latency_s, request.ref, cat=request.outcome,
            cname=_colour(request.ref, request.outcome == RequestOutcome.IN_TIME), args=_arguments(request),
        )  # fmt: skip
        target = executed.get((controller, request.action))
        if target is not None:
            made.arrow(place, target)
    for fact in facts:
        if isinstance(fact, ActionFact):
            made.counter(pid, fact.result_s - offset_s, "requests waiting", fact.waiting)
    made.describe(pid, f"requests of {controller}", [rows])


def _device(made: Timeline, pid: int, actions: Sequence[Ordered]) -> dict[tuple[str, int], Place]:
    """Draws one device. Returns where the bars of executed INFERs begin."""
    executed: dict[tuple[str, int], Place] = {}
    kinds: list[Rows] = []
    for type_, (lane, first) in LANES.items():
        mine = [one for one in actions if one.fact.type == type_]
        if not mine:
            continue
        windows = Rows(f"{lane} window", RowKind.WINDOWS, first)
        plans = Rows(f"{lane} planned", RowKind.PLANS, first + ROWS_MAX)
        bars = Rows(lane, RowKind.ACTIONS, first + 2 * ROWS_MAX, TOLERANCE_US)
        kinds += [windows, plans, bars]
        for rows, span in ((windows, _window), (plans, _plan), (bars, _actual)):
            spans = [(span(one.fact), one) for one in mine]
            for (begin_s, end_s), one in sorted(spans, key=lambda entry: entry[0][0] - entry[1].offset_s):
                place = _draw(made, pid, rows, one, begin_s, end_s)
                if rows is bars:
                    executed[one.controller, one.fact.action] = place
    for one in actions:
        if one.fact.code not in WORKERLESS:
            made.counter(pid, one.fact.result_s - one.offset_s, "free pages", one.fact.free_pages)
    fact = actions[0].fact
    made.describe(pid, f"{fact.device} of {fact.worker}", kinds, fact.device)
    return executed


def _window(fact: ActionFact) -> tuple[float, float]:
    """The action's window, cut where it no longer mattered: that of a LOAD stays open for long."""
    return fact.earliest_s, min(fact.latest_s, max(fact.expected_end_s, fact.end_s or fact.result_s))


def _plan(fact: ActionFact) -> tuple[float, float]:
    return fact.expected_begin_s, fact.expected_end_s


def _actual(fact: ActionFact) -> tuple[float, float]:
    """Begin and end of the action; for one that never began, the instant when that was known."""
    begin_s = fact.result_s if fact.begin_s is None else fact.begin_s
    return begin_s, begin_s if fact.end_s is None else fact.end_s


def _draw(made: Timeline, pid: int, rows: Rows, one: Ordered, begin_s: float, end_s: float) -> Place:
    fact = one.fact
    return made.bar(
        pid, rows, begin_s - one.offset_s, end_s - one.offset_s, fact.ref, cat=fact.code,
        cname=_colour(fact.ref, fact.code == ActionCode.OK), args=_arguments(fact),
    )  # fmt: skip


def _colour(ref: str, good: bool) -> str:
    return COLOURS[zlib.crc32(ref.encode()) % len(COLOURS)] if good else FAILED_COLOUR


def _arguments(fact: Told) -> dict[str, Any]:
    """What is shown when a bar is clicked; durations in ms."""
    shown: dict[str, Any] = {}
    for name in fact.__struct_fields__:
        value = getattr(fact, name)
        if value is None or value == "" or name in ("ref", "device"):
            continue
        if name in DURATIONS:
            shown[name.removesuffix("_s") + "_ms"] = round(value * 1e3, 4)
        elif not name.endswith("_s"):
            shown[name] = value
    if isinstance(fact, ActionFact) and fact.begin_s is not None:
        shown["begin_after_plan_ms"] = round((fact.begin_s - fact.expected_begin_s) * 1e3, 4)
    return shown


DURATIONS = {
    "slo_s", "latency_s", "predicted_s", "queued_s", "exec_s", "expected_s", "duration_s", "error_s", "input_s",
    "output_s",
}  # fmt: skip
