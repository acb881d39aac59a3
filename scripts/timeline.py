"""Makes a timeline of what a mesh planned and did, in the Trace Event Format that Perfetto and chrome://tracing show.

Rows: for each device its lanes, of each the window, the plan and what happened; for each controller its requests, from
arrival to end. Arrows lead from a request to the EXEC that served it. Counters: requests that wait, free pages.
Source of the format: "Trace Event Format" (Google, 2016): JSON object format; complete, flow, counter, metadata events.
"""

import heapq
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.facts import ActionFact, RequestFact
from frontend.observer import Recording

# names of colours that chrome://tracing knows; Perfetto colours by the name of the slice, which is the model too
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
ROWS_MAX = 1000  # of one kind
REQUEST_ROW = 1

Event = dict[str, Any]


@dataclass(slots=True)
class Rows:
    """Rows of one kind in one process: as many as are needed for bars that overlap to lie in different ones."""

    name: str
    first: int  # number of the first row
    _free: list[int] = field(default_factory=list)  # heap of rows that are free
    _busy: list[tuple[float, int]] = field(default_factory=list)  # heap of (end, row)
    count: int = 0

    def place(self, begin_us: float, end_us: float) -> int:
        """The row of a bar; bars come in order of their beginning."""
        while self._busy and self._busy[0][0] <= begin_us:
            heapq.heappush(self._free, heapq.heappop(self._busy)[1])
        if self._free:
            row = heapq.heappop(self._free)
        else:
            row = self.first + self.count
            self.count += 1
        heapq.heappush(self._busy, (end_us, row))
        return row

    def names(self) -> Iterator[tuple[int, str]]:
        """(number, name) of every row."""
        for i in range(self.count):
            yield self.first + i, self.name if i == 0 else f"{self.name} ({i + 1})"


@dataclass(slots=True)
class Timeline:
    """Collects events. Process numbers: controllers from 1, devices from 1000."""

    began_s: float  # instants are told from here on
    events: list[Event] = field(default_factory=list)
    flows: int = 0

    def us(self, at_s: float) -> float:
        """Microseconds since the beginning, to the nanosecond."""
        return round((at_s - self.began_s) * 1e6, 3)

    def bar(self, pid: int, rows: Rows, begin_s: float, end_s: float, name: str, **more: Any) -> int:
        """A bar from begin to end; returns its row."""
        begin_us, end_us = self.us(begin_s), self.us(max(begin_s, end_s))
        row = rows.place(begin_us, end_us)
        duration_us = round(end_us - begin_us, 3)
        self.events.append(
            {"ph": "X", "pid": pid, "tid": row, "ts": begin_us, "dur": duration_us, "name": name, **more}
        )
        return row

    def arrow(self, source: tuple[int, int, float], target: tuple[int, int, float]) -> None:
        """From (process, row, instant) to another; each lies in a bar."""
        self.flows += 1
        flow = {"cat": "request", "name": "served by", "id": self.flows}
        for phase, (pid, row, at_s), more in (("s", source, {}), ("f", target, {"bp": "e"})):
            self.events.append({"ph": phase, "pid": pid, "tid": row, "ts": self.us(at_s), **flow, **more})

    def counter(self, pid: int, at_s: float, name: str, value: float) -> None:
        """A counter's value from then on."""
        self.events.append({"ph": "C", "pid": pid, "tid": 0, "ts": self.us(at_s), "name": name, "args": {name: value}})

    def describe(self, pid: int, name: str, rows: Iterable[Rows]) -> None:
        """The process and its rows have names, and are shown in order."""
        self._meta(pid, 0, "process_name", name=name)
        self._meta(pid, 0, "process_sort_index", sort_index=pid)
        for kind in rows:
            for row, label in kind.names():
                self._meta(pid, row, "thread_name", name=label)
                self._meta(pid, row, "thread_sort_index", sort_index=row)

    def _meta(self, pid: int, tid: int, what: str, **arguments: Any) -> None:
        self.events.append({"ph": "M", "pid": pid, "tid": tid, "name": what, "args": arguments})


def timeline(recording: Recording) -> dict[str, Any]:
    """The whole trace, ready to be written as JSON."""
    made = Timeline(_origin_s(recording))
    devices: dict[str, int] = {}  # {worker: process number}
    for number, (controller, facts) in enumerate(sorted(recording.facts.items()), 1):
        offset_s = recording.offset_s.get(controller, 0.0)
        actions = [fact for fact in facts if isinstance(fact, ActionFact)]
        requests = [fact for fact in facts if isinstance(fact, RequestFact)]
        for worker in sorted({action.worker for action in actions}):
            devices.setdefault(worker, 1000 + len(devices))
        _controller(made, number, controller, offset_s, actions, requests, devices)
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


def _origin_s(recording: Recording) -> float:
    """Before everything that is shown: what ended in the recording may have begun before it."""
    first_s = recording.began_s
    for controller, facts in recording.facts.items():
        offset_s = recording.offset_s.get(controller, 0.0)
        for fact in facts:
            first_s = min(first_s, (fact.arrived_s if isinstance(fact, RequestFact) else fact.earliest_s) - offset_s)
    return first_s


def _controller(
    made: Timeline,
    number: int,
    controller: str,
    offset_s: float,
    actions: Sequence[ActionFact],
    requests: Sequence[RequestFact],
    devices: dict[str, int],
) -> None:
    executed: dict[int, tuple[int, int, float]] = {}  # {INFER: (process, row, begin)}
    for worker in dict.fromkeys(action.worker for action in actions):
        mine = [action for action in actions if action.worker == worker]
        executed.update(_device(made, devices[worker], offset_s, mine))
    for action in actions:
        made.counter(number, action.result_s - offset_s, "requests waiting", action.waiting)
    rows = Rows("requests", REQUEST_ROW)
    for request in sorted(requests, key=lambda fact: fact.arrived_s):
        begin_s = request.arrived_s - offset_s
        row = made.bar(
            number, rows, begin_s, begin_s + request.latency_s, request.ref, cat=request.outcome,
            cname=_colour(request.ref, request.outcome == "in_time"), args=_arguments(request),
        )  # fmt: skip
        target = executed.get(request.action)
        if target is not None:
            made.arrow((number, row, begin_s), target)
    made.describe(number, f"requests of {controller}", [rows])


def _device(
    made: Timeline, pid: int, offset_s: float, actions: Sequence[ActionFact]
) -> dict[int, tuple[int, int, float]]:
    """Draws one device. Returns {INFER: (process, row, begin)} of what was executed."""
    executed: dict[int, tuple[int, int, float]] = {}
    kinds: list[Rows] = []
    for type_, (lane, first) in LANES.items():
        mine = [action for action in actions if action.type == type_]
        if not mine:
            continue
        windows, plans, bars = (
            Rows(f"{lane} {what}".strip(), first + ROWS_MAX * i) for i, what in enumerate(("window", "planned", ""))
        )
        kinds += [windows, plans, bars]
        for action in sorted(mine, key=lambda fact: fact.earliest_s):
            # a window is drawn as far as it mattered: that of a LOAD stays open for long
            closes_s = min(action.latest_s, max(action.expected_end_s, action.end_s or action.result_s))
            _draw(made, pid, windows, action, action.earliest_s, closes_s, offset_s)
        for action in sorted(mine, key=lambda fact: fact.expected_begin_s):
            _draw(made, pid, plans, action, action.expected_begin_s, action.expected_end_s, offset_s)
        for action in sorted(mine, key=_begin_s):
            begin_s = _begin_s(action)
            end_s = begin_s if action.end_s is None else action.end_s
            row = _draw(made, pid, bars, action, begin_s, end_s, offset_s)
            executed[action.action] = pid, row, begin_s - offset_s
    for action in actions:
        made.counter(pid, action.result_s - offset_s, "free pages", action.free_pages)
    made.describe(pid, f"{actions[0].device} of {actions[0].worker}", kinds)
    return executed


def _begin_s(action: ActionFact) -> float:
    """When it began; of what never did, when that was known."""
    return action.result_s if action.begin_s is None else action.begin_s


def _draw(
    made: Timeline, pid: int, rows: Rows, action: ActionFact, begin_s: float, end_s: float, offset_s: float
) -> int:
    return made.bar(
        pid, rows, begin_s - offset_s, end_s - offset_s, action.ref, cat=action.code,
        cname=_colour(action.ref, action.code == "ok"), args=_arguments(action),
    )  # fmt: skip


def _colour(ref: str, good: bool) -> str:
    return COLOURS[zlib.crc32(ref.encode()) % len(COLOURS)] if good else FAILED_COLOUR


def _arguments(fact: RequestFact | ActionFact) -> dict[str, Any]:
    """What is shown of a bar that is clicked: durations in ms."""
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
