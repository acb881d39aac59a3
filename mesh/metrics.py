"""Metrics in the Prometheus text format, computed from the state of controllers and frontends. Pure.

Source of the format: "Exposition formats", text format 0.0.4 (Prometheus documentation).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.codes import RequestOutcome
from mesh.facts import Snapshot, Spread

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, str], float]  # labels, value

METRICS = {  # {name: (type, help)}; docs/telemetry.md is checked against it
    "gearmesh_up": ("gauge", "1 where the member answers, 0 where it is silent."),
    "gearmesh_requests_submitted_total": ("counter", "Requests that reached a controller."),
    "gearmesh_requests_total": ("counter", "Requests that ended, by outcome: in_time, late, cancelled."),
    "gearmesh_requests_refused_total": ("counter", "Requests rejected or failed, by code."),
    "gearmesh_requests_cold_total": ("counter", "Requests whose model was on no device when they arrived."),
    "gearmesh_requests_waiting": ("gauge", "Requests in queues."),
    "gearmesh_requests_open": ("gauge", "Requests that have not ended."),
    "gearmesh_batches_total": ("counter", "Batches sent to devices."),
    "gearmesh_batched_rows_total": ("counter", "Rows in them."),
    "gearmesh_loads_total": ("counter", "LOADs sent."),
    "gearmesh_unloads_total": ("counter", "UNLOADs sent to make room."),
    "gearmesh_actions_failed_total": ("counter", "Actions that came to nothing, by code."),
    "gearmesh_latency_seconds": ("gauge", "Latency of the last requests until EXEC ended, by quantile."),
    "gearmesh_prediction_error_ratio": ("gauge", "Latest |actual - predicted| / actual, by what and quantile."),
    "gearmesh_lane_busy_seconds_total": ("counter", "Time that a lane of a device was busy: exec, load."),
    "gearmesh_device_pages": ("gauge", "Pages of a device."),
    "gearmesh_device_free_pages": ("gauge", "Of those, free ones."),
    "gearmesh_device_models": ("gauge", "Versions in its pages."),
    "gearmesh_model_requests_total": ("counter", "Requests of one of the busiest versions, by outcome."),
    "gearmesh_log_lines_total": ("counter", "Log lines written."),
    "gearmesh_log_lines_dropped_total": ("counter", "Log lines dropped."),
    "gearmesh_answers_total": ("counter", "A frontend's answers, by status."),
    "gearmesh_frontend_refusals_total": ("counter", "Requests that a frontend refused itself, by code."),
    "gearmesh_answers_dropped_total": ("counter", "A frontend's answers whose client was gone or did not read."),
    "gearmesh_answers_waiting": ("gauge", "A frontend's answers that their clients have no room for yet."),
    "gearmesh_in_flight": ("gauge", "A frontend's requests without an answer."),
    "gearmesh_in_flight_bytes": ("gauge", "Bytes of their inputs."),
    "gearmesh_cache_lookups_total": (
        "counter",
        "Queries that looked into the cache, by outcome: hit, miss, coalesced.",
    ),
    "gearmesh_cache_evicted_total": ("counter", "Predictions that made room for others."),
    "gearmesh_cache_bytes": ("gauge", "Bytes of inputs and outputs in the cache."),
    "gearmesh_app_answers_total": ("counter", "An application's answers, by outcome: models, default, none."),
    "gearmesh_app_disagreed_total": ("counter", "Answers on which the models that came did not agree."),
    "gearmesh_app_partial_total": ("counter", "Answers without some of the models that were asked."),
    "gearmesh_app_feedback_total": ("counter", "Feedback that was learned."),
    "gearmesh_feedback_held": ("gauge", "Feedback that waits for a store that is down."),
    "gearmesh_http_answers_total": ("counter", "This gateway's HTTP answers, by HTTP status."),
    "gearmesh_http_in_flight": ("gauge", "This gateway's requests without an answer."),
}


def metrics_text(
    up: Mapping[str, bool],
    snapshots: Iterable[Snapshot],
    frontends: Mapping[str, Mapping[str, Any]],
    http: tuple[Mapping[int, int], int] | None = None,
) -> str:
    """The text of all metrics. `up`: {member: whether it answers}; `frontends`: {frontend: its status}, of those that
    answered.

    `http`: ({HTTP status: answers}, requests in flight) of the gateway that serves this text; None elsewhere.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in METRICS}
    samples["gearmesh_up"] = [({"member": member}, float(answers)) for member, answers in up.items()]
    for snapshot in snapshots:
        _controller(samples, snapshot)
    for frontend, status in frontends.items():
        labels = {"frontend": frontend}
        samples["gearmesh_in_flight"].append((labels, status["in_flight"]))
        samples["gearmesh_in_flight_bytes"].append((labels, status.get("in_flight_bytes", 0)))
        samples["gearmesh_answers_dropped_total"].append((labels, status.get("answers_dropped", 0)))
        samples["gearmesh_answers_waiting"].append((labels, status.get("answers_waiting", 0)))
        _each(samples["gearmesh_answers_total"], status["answers"], labels, "status")
        _each(samples["gearmesh_frontend_refusals_total"], status.get("refused", {}), labels, "code")
        _cache(samples, status["cache"], labels)
        _applications(samples, status["applications"], labels)
    if http is not None:
        answers, in_flight = http
        _each(samples["gearmesh_http_answers_total"], {str(code): count for code, count in answers.items()}, {}, "code")
        samples["gearmesh_http_in_flight"].append(({}, in_flight))
    lines = []
    for name, (kind, text) in METRICS.items():
        if samples[name]:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples[name]]
    return "\n".join(lines) + "\n"


def _controller(samples: dict[str, list[Sample]], s: Snapshot) -> None:
    who = {"controller": s.controller}
    plain = {
        "requests_submitted_total": s.submitted,
        "requests_cold_total": s.cold,
        "requests_waiting": s.waiting,
        "requests_open": s.open,
        "batches_total": s.batches,
        "batched_rows_total": s.batched_rows,
        "loads_total": s.loads,
        "unloads_total": s.unloads,
        "log_lines_total": s.journal.written,
        "log_lines_dropped_total": s.journal.dropped,
    }
    for name, value in plain.items():
        samples[f"gearmesh_{name}"].append((who, value))
    outcomes: dict[str, float] = {
        RequestOutcome.IN_TIME: s.in_time,
        RequestOutcome.LATE: s.late,
        RequestOutcome.CANCELLED: s.cancelled,
    }
    _each(samples["gearmesh_requests_total"], outcomes, who, "outcome")
    _each(samples["gearmesh_requests_refused_total"], s.refused, who, "code")
    _each(samples["gearmesh_actions_failed_total"], s.failed_actions, who, "code")
    _quantiles(samples["gearmesh_latency_seconds"], s.latency_s, who)
    for what, error in (("exec", s.exec_error), ("load", s.load_error), ("latency", s.latency_error)):
        _quantiles(samples["gearmesh_prediction_error_ratio"], error, {**who, "of": what})
    for device in s.devices:
        labels = {**who, "worker": device.worker, "device": device.name}
        busy = {"exec": device.exec_busy_s, "load": device.load_busy_s}
        _each(samples["gearmesh_lane_busy_seconds_total"], busy, labels, "lane")
        samples["gearmesh_device_pages"].append((labels, device.pages))
        samples["gearmesh_device_free_pages"].append((labels, device.free_pages))
        samples["gearmesh_device_models"].append((labels, device.resident))
    for model in s.models:
        counts = {RequestOutcome.IN_TIME: model.in_time, RequestOutcome.LATE: model.late, "refused": model.refused}
        _each(samples["gearmesh_model_requests_total"], counts, {**who, "model": model.ref}, "outcome")


def _cache(samples: dict[str, list[Sample]], counts: Mapping[str, float], labels: Mapping[str, str]) -> None:
    lookups = {"hit": counts["hits"], "miss": counts["misses"], "coalesced": counts["coalesced"]}
    _each(samples["gearmesh_cache_lookups_total"], lookups, labels, "outcome")
    samples["gearmesh_cache_evicted_total"].append((labels, counts["evicted"]))
    samples["gearmesh_cache_bytes"].append((labels, counts["bytes"]))


def _applications(samples: dict[str, list[Sample]], status: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    samples["gearmesh_feedback_held"].append((labels, status["feedback_held"]))
    for app, counts in status["apps"].items():
        mine = {**labels, "app": app}
        answers = {"models": counts["answered"], "default": sum(counts["defaults"].values()), "none": counts["refused"]}
        _each(samples["gearmesh_app_answers_total"], answers, mine, "outcome")
        for what in ("disagreed", "partial", "feedback"):
            samples[f"gearmesh_app_{what}_total"].append((mine, counts[what]))


def _each(found: list[Sample], counts: Mapping[str, float], labels: Mapping[str, str], label: str) -> None:
    found.extend(({**labels, label: key}, value) for key, value in counts.items())


def _quantiles(found: list[Sample], spread: Spread, labels: Mapping[str, str]) -> None:
    for quantile, value in (("0.5", spread.p50), ("0.99", spread.p99)):
        if value is not None:
            found.append(({**labels, "quantile": quantile}, value))


def _labels(labels: Mapping[str, str]) -> str:
    escaped = (
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels.items()
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) and not value.is_integer() else str(int(value))
