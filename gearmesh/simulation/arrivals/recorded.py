"""Recorded loads: a request log, or the per-minute counts of the public Azure Functions trace.

A log has one JSON object per line, in any order; other fields are ignored:

    {"t_s": 12.345, "model": "resnet50_v2.3", "slo_ms": 100, "rows": 1}

`t_s`: arrival, seconds; the earliest becomes 0. `model`: a model of the scenario. `slo_ms`: the answer's budget; by
default the first of the model's or the load's. `rows`: default 1. `extents`: in the model's open dimensions, as [37];
by default drawn from the sizes of the scenario. With `load.rate_rps`, all gaps are scaled by one
factor to that mean rate. Request logs of controllers can be used too, one file, a folder, or some of the lines; they
have `arrived_s`, `ref` (model:version) and `slo_s` instead of the first three.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from gearmesh.simulation.fields import UnusableFile
from gearmesh.simulation.parts import Scenario, SimModel
from gearmesh.telemetry.journals import LogError, arrivals
from mesh import wire
from mesh.wire.ranges import OPEN_MAX, Extents

FAULTS_MAX = 10  # faults of one file that are reported
DAY_MIN = 1440


class RecordedRequest(msgspec.Struct, frozen=True):
    """One request of the log."""

    t_s: float
    model: str
    slo_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    rows: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    extents: Extents = ()


def controllers_log(source: Path) -> list[RecordedRequest] | None:
    """The requests in controllers' logs, by arrival, the first at 0; None if `source` is not such a log.

    Raises: LogError, if it has another version, is damaged, or is not a request log.
    """
    if not source.is_dir() and not _has_header(source):
        return None
    return [
        RecordedRequest(t_s, wire.split_ref(ref)[0], slo_s * 1e3, rows, extents)
        for t_s, ref, slo_s, rows, extents in arrivals(source)
    ]


def _has_header(file: Path) -> bool:
    """Whether the first line is the header of a controller's log, of any version."""
    with file.open("rb") as lines:
        first = lines.readline(1 << 16)
    try:
        found = msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(found, dict) and "version" in found and "t_s" not in found


class OwnRecordedRequest(msgspec.Struct, frozen=True):
    """One request in a controller's log."""

    arrived_s: float
    ref: str
    slo_s: Annotated[float, msgspec.Meta(gt=0)]
    rows: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    extents: Extents = ()

    def line(self) -> RecordedRequest:
        """The same request as a `RecordedRequest`."""
        model = self.ref.rpartition(":")[0] or self.ref
        return RecordedRequest(self.arrived_s, model, self.slo_s * 1e3, self.rows, self.extents)


class LineKind(msgspec.Struct, frozen=True):
    """The field that distinguishes the lines of a controller's log."""

    kind: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RecordedLog:
    """The requests, oldest first; arrays [requests]."""

    time_s: npt.NDArray[np.float64]
    model: npt.NDArray[np.int32]
    slo_s: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int32]
    extents: npt.NDArray[np.int32]  # [requests, OPEN_MAX]; 0 where the log does not say them


def read_log(scenario: Scenario) -> RecordedLog:
    """The log at `load.path`, cut after `load.seconds`. Raises: UnusableFile, which names lines."""
    load = scenario.load
    assert load.path is not None
    lines = _lines(scenario, load.path)
    index = {model.name: i for i, model in enumerate(scenario.models)}
    strange = sorted({line.model for line in lines} - index.keys())
    if strange:
        known = ", ".join(list(index)[:5]) + (", ..." if len(index) > 5 else "")
        raise UnusableFile(scenario.name, [f"model {', '.join(strange[:5])} must be one of the scenario's: {known}"])
    for line in lines:
        largest = scenario.models[index[line.model]].batch_max
        if line.rows > largest:
            wanted = f"rows of {line.model} must be at most its largest batch, {largest}; got {line.rows}"
            raise UnusableFile(scenario.name, [wanted])
        fault = _extents_fault(line, scenario.models[index[line.model]])
        if fault:
            raise UnusableFile(scenario.name, [fault])
    models = np.array([index[line.model] for line in lines], np.int32)
    default_ms = [(model.slo_ms or load.slo_ms)[0] for model in scenario.models]
    slo_ms = np.array([line.slo_ms or default_ms[m] for line, m in zip(lines, models, strict=True)], np.float64)
    times = np.array([line.t_s for line in lines], np.float64)
    times -= times.min(initial=np.inf) if len(times) else 0.0
    if load.rate_rps and len(times) and times.max() > 0:
        times *= (len(times) - 1) / load.rate_rps / times.max()
    order = np.argsort(times, kind="stable")
    order = order[times[order] < load.seconds]
    rows = np.array([line.rows for line in lines], np.int32)
    extents = np.array([(*line.extents, 0, 0)[:OPEN_MAX] for line in lines], np.int32).reshape(len(lines), OPEN_MAX)
    return RecordedLog(times[order], models[order], slo_ms[order] / 1e3, rows[order], extents[order])


def _extents_fault(line: RecordedRequest, model: SimModel) -> str:
    """Why no request of the model has these extents; empty if one can."""
    dims = model.open.dims if model.open is not None else ()
    good = len(line.extents) == len(dims) and all(
        dim.least <= extent <= dim.most for dim, extent in zip(dims, line.extents, strict=True)
    )
    if good or not line.extents:
        return ""
    wanted = ", ".join(f"{dim.name} from {dim.least} to {dim.most}" for dim in dims) or "none, as nothing is open"
    return f"extents of {line.model} must be {wanted}; got {list(line.extents)}"


def _lines(scenario: Scenario, file: Path) -> list[RecordedRequest]:
    try:
        own = controllers_log(file)
    except LogError as error:
        raise UnusableFile(scenario.name, [str(error)]) from error
    lines: list[RecordedRequest] = own or []
    faults: list[str] = []
    if own is None:
        _plain_lines(file, lines, faults)
    if not lines and not faults:
        faults.append(f'{file.name} holds no request; each line is one, like {{"t_s": 0.5, "model": "a"}}')
    if faults:
        raise UnusableFile(scenario.name, faults)
    return lines


def _plain_lines(file: Path, lines: list[RecordedRequest], faults: list[str]) -> None:
    """Adds to `lines` and `faults` what a file without a header holds."""
    for number, text in enumerate(file.read_bytes().splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = _line(text)
        except msgspec.MsgspecError as error:
            faults.append(f"line {number}: must be an object with t_s and model: {error}")
            if len(faults) >= FAULTS_MAX:
                break
            continue
        if line is not None:
            lines.append(line)


def _line(text: bytes) -> RecordedRequest | None:
    """The request in a line of either kind; None if the line is about something else."""
    found = msgspec.json.decode(text, type=LineKind)
    if found.kind == "request":
        return msgspec.json.decode(text, type=OwnRecordedRequest).line()
    if found.kind is not None:
        return None
    return msgspec.json.decode(text, type=RecordedRequest)


def read_counts(scenario: Scenario) -> npt.NDArray[np.float64]:
    """Requests per minute [functions, minutes] of an Azure day file: one row per function, counts in columns 1 to 1440.

    Reads `load.minutes` columns from `load.start_minute` on; after midnight it continues at the day's start. Raises:
    UnusableFile.
    """
    load = scenario.load
    assert load.path is not None
    with load.path.open(newline="", errors="replace") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        columns = [header.index(str(minute)) for minute in range(1, DAY_MIN + 1) if str(minute) in header]
        if len(columns) < load.minutes:
            wanted = f"must have a header with columns 1 to {DAY_MIN}, {load.minutes} of them at least"
            raise UnusableFile(scenario.name, [f"{wanted}; it has {len(columns)}"])
        chosen = [columns[(load.start_minute + i) % len(columns)] for i in range(load.minutes)]
        rows = []
        for number, row in enumerate(reader, 2):
            try:
                rows.append([float(row[column] or 0) for column in chosen])
            except (ValueError, IndexError) as error:
                raise UnusableFile(scenario.name, [f"line {number}: must hold counts: {error}"]) from error
    counts = np.array(rows, np.float64).reshape(len(rows), load.minutes)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise UnusableFile(scenario.name, ["counts must be 0 or more"])
    return counts
