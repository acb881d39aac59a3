"""`gearmesh logs`: a report of a mesh's request log and action log."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from gearmesh.telemetry.endings import endings
from gearmesh.telemetry.journals import JournalLog, kind_of, read_actions, read_requests
from gearmesh.telemetry.machine import quantile
from mesh.codes import ActionCode, RequestOutcome
from mesh.facts import ActionFact, RequestFact
from mesh.wire import ASKED_ID_MAX

DEVICE_SHOWN = 8  # characters of a device's name
SHARES = (0.5, 0.99, 0.999)
NOT_OFFERED = (RequestOutcome.CANCELLED, RequestOutcome.FRONTEND_LOST, RequestOutcome.WITHDRAWN)  # nobody's to keep


def read_logs(source: Path) -> tuple[list[JournalLog[RequestFact]], list[JournalLog[ActionFact]]]:
    """(request logs, action logs) in a folder; of a file, the log that it is. Raises: LogError."""
    kind = None if source.is_dir() else kind_of(source)
    return (
        read_requests(source) if kind in (None, "requests") else [],
        read_actions(source) if kind in (None, "actions") else [],
    )


def summary(log: JournalLog[RequestFact] | JournalLog[ActionFact]) -> dict[str, Any]:
    """The report of a log for programs: how often each outcome, or each action, and the quantiles of its seconds."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for fact in log.facts:
        if isinstance(fact, RequestFact):
            groups.setdefault((fact.outcome, fact.code), []).append(fact.latency_s)
        else:
            groups.setdefault((fact.device, fact.worker, fact.type, fact.code), []).append(fact.duration_s or 0.0)
    of_requests = log.headers[0].log == "requests"
    heads = ("outcome", "code") if of_requests else ("device", "worker", "action", "code")
    return {
        "log": log.headers[0].log,
        "controller": log.headers[0].controller,
        "policy": log.headers[0].policy,
        "lines": len(log.facts),
        **(
            {"requests": dict(endings(fact for fact in log.facts if isinstance(fact, RequestFact)))}
            if of_requests
            else {}
        ),
        "dropped": log.dropped,
        "cut": log.cut,
        "groups": [
            {**dict(zip(heads, group, strict=True)), "count": len(values), **_seconds(sorted(values))}
            for group, values in sorted(groups.items())
        ],
    }


def _seconds(ordered: list[float]) -> dict[str, float | None]:
    """Quantiles that so many values support, and the largest."""
    found = {f"p{share * 100:g}_s": quantile(ordered, share) for share in SHARES}
    return {**found, "max_s": ordered[-1]}


def found_lines(source: Path, request: int | None, asked_id: str, client: int | None = None) -> list[dict[str, Any]]:
    """The request log's lines with this number, or of parts of that request, or with this id of a client, or of it.

    Raises: LogError.
    """
    return [
        msgspec.to_builtins(fact)
        for log in read_requests(source)
        for fact in log.facts
        if (request is not None and request in (fact.request, fact.call or fact.request))
        or (asked_id and fact.asked_id == asked_id[:ASKED_ID_MAX])
        or (client and fact.client == client)
    ]


def requests_table(log: JournalLog[RequestFact]) -> Table:
    """Outcomes with their latencies; a quantile is shown only if enough requests support it."""
    facts = log.facts
    span_s = max((f.arrived_s for f in facts), default=0.0) - min((f.arrived_s for f in facts), default=0.0)
    table = Table("outcome", "code", "requests", "p50 ms", "p99 ms", "p99.9 ms", "max ms", title_justify="left")
    table.title = f"requests of {_whose(log)}: {len(facts)} in {span_s:.1f} s"
    groups: dict[tuple[str, str], list[float]] = {}
    for fact in facts:
        groups.setdefault((fact.outcome, fact.code), []).append(fact.latency_s * 1e3)
    for (outcome, code), values in sorted(groups.items(), key=lambda group: -len(group[1])):
        table.add_row(outcome, code, str(len(values)), *_quantiles(values), f"{max(values):.2f}")
    served = [fact for fact in facts if fact.exec_s is not None and fact.predicted_s is not None and fact.latency_s > 0]
    errors = [abs(fact.latency_s - (fact.predicted_s or 0.0)) / fact.latency_s * 100 for fact in served]
    ended = endings(facts)
    offered = sum(count for outcome, count in ended.items() if outcome not in NOT_OFFERED)
    in_time = ended[RequestOutcome.IN_TIME]
    caption = [f"{fact_share(in_time, offered)} in time", f"{sum(fact.cold for fact in facts)} cold"]
    if ended.total() < len(facts):
        caption.insert(0, f"{ended.total()} requests of clients, some in parts")
    if errors:
        caption.append(
            f"latency predicted with an error of {_quantiles(errors)[0]} % (p50), {_quantiles(errors)[1]} % (p99)"
        )
    table.caption = "; ".join([*caption, *_missing(log)])
    return table


def actions_table(log: JournalLog[ActionFact]) -> Table:
    """Actions by device and type, with their durations and the prediction errors."""
    table = Table(
        "device", "worker", "action", "count", "failed", "batch", "busy s", "p50 ms", "p99 ms", "err p50", "err p99",
        title_justify="left", box=None, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    for column in table.columns[3:]:
        column.justify, column.no_wrap = "right", True
    table.title = f"actions of {_whose(log)}"
    groups: dict[tuple[str, str, str], list[ActionFact]] = {}
    for fact in log.facts:
        groups.setdefault((fact.device, fact.worker, fact.type), []).append(fact)
    for (device, worker, type_), facts in sorted(groups.items()):
        short = (
            device if len(device) <= DEVICE_SHOWN else f"…{device[1 - DEVICE_SHOWN :]}"
        )  # cut at the front: names differ at their ends
        table.add_row(short, worker.rpartition("-")[2], type_, *_action_row(facts))
    failed = Counter(fact.code for fact in log.facts if fact.code != ActionCode.OK)
    reasons = [", ".join(f"{count} {code}" for code, count in failed.most_common())] if failed else []
    table.caption = "; ".join([*reasons, *_missing(log)])
    return table


def _action_row(facts: Sequence[ActionFact]) -> Iterable[str]:
    done = [fact for fact in facts if fact.code == ActionCode.OK and fact.duration_s]
    durations = [(fact.duration_s or 0.0) * 1e3 for fact in done]
    errors = [abs((fact.error_s or 0.0) / (fact.duration_s or 1.0)) * 100 for fact in done]
    batches = [fact.rows or fact.batch for fact in done if fact.requests]  # version 1 has no rows
    yield str(len(facts))
    yield str(sum(fact.code != ActionCode.OK for fact in facts))
    yield f"{sum(batches) / len(batches):.1f}" if batches else "-"
    yield f"{sum(durations) / 1e3:.2f}"
    yield from _quantiles(durations)[:2]
    yield from (error if error == "-" else f"{error}%" for error in _quantiles(errors)[:2])


def fact_share(part: int, whole: int) -> str:
    """The share as a percentage."""
    return f"{part / whole:.2%}" if whole else "none"


def _quantiles(values: Iterable[float]) -> list[str]:
    ordered = sorted(values)
    found = [quantile(ordered, share) for share in SHARES]
    return ["-" if value is None else f"{value:.2f}" for value in found]


def _whose(log: JournalLog[RequestFact] | JournalLog[ActionFact]) -> str:
    return f"{log.headers[0].controller} ({log.headers[0].policy})"


def _missing(log: JournalLog[RequestFact] | JournalLog[ActionFact]) -> list[str]:
    dropped = [f"{log.dropped} lines were dropped"] if log.dropped else []
    return [*dropped, *([f"{log.cut} last lines were cut short"] if log.cut else [])]
