"""A mesh's state as metrics, for Prometheus by way of its own client library.

Samples name the process they come from, and are never added here: a counter that is the sum of processes would go back
when one of them ends. Names of models and applications are bounded where they are counted.
Source of the rules for names: "Metric and label naming", "Writing exporters" (Prometheus documentation).
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from frontend.core.outcomes import OUTCOMES
from mesh.codes import RequestOutcome
from mesh.facts import Distribution, Snapshot
from mesh.tallies import OTHER

CHUNK = 64  # samples written in one go: some 300 us
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NOTHING = ""  # the model of requests that named nothing that is deployed: no model has this name

METRICS: dict[str, tuple[str, str]] = {  # {name: (kind, help)}, in order; docs/telemetry.md is checked against it
    "gearmesh_up": ("gauge", "1 where the member answers, 0 where it is silent."),
    "gearmesh_requests_total": (
        "counter",
        "Clients' requests of a model that have ended, by outcome as the client saw it; without a model: of nothing.",
    ),
    "gearmesh_requests_in_time_total": ("counter", "Of those, answered ok by their deadlines."),
    "gearmesh_latency_seconds": ("histogram", "From receipt at the frontend to the ok answer, of a model."),
    "gearmesh_app_requests_total": (
        "counter",
        "Clients' requests of an application that have ended, by outcome as the client saw it.",
    ),
    "gearmesh_app_requests_in_time_total": ("counter", "Of those, answered ok by their deadlines."),
    "gearmesh_app_latency_seconds": ("histogram", "From receipt at the frontend to the ok answer, of an application."),
    "gearmesh_app_asks_total": ("counter", "What applications asked of a model, by outcome; no clients' requests."),
    "gearmesh_requests_unlogged_total": (
        "counter",
        "Requests, and asks, that ended without a line in a controller's log, by outcome.",
    ),
    "gearmesh_requests_submitted_total": ("counter", "Requests that reached a controller."),
    "gearmesh_controller_requests_total": (
        "counter",
        "Requests that ended at a controller with outputs or without a word, by outcome.",
    ),
    "gearmesh_requests_amended_total": (
        "counter",
        "Requests that ended so for their clients, by outcome, after a controller had counted them otherwise.",
    ),
    "gearmesh_requests_refused_total": ("counter", "Requests that a controller rejected or failed, by code."),
    "gearmesh_requests_cold_total": ("counter", "Requests whose model was on no device when they arrived."),
    "gearmesh_requests_waiting": ("gauge", "Requests in queues."),
    "gearmesh_requests_open": ("gauge", "Requests that have not ended."),
    "gearmesh_batches_total": ("counter", "Batches sent to devices."),
    "gearmesh_batched_rows_total": ("counter", "Rows in them that were asked for, without padding."),
    "gearmesh_loads_total": ("counter", "LOADs sent."),
    "gearmesh_unloads_total": ("counter", "UNLOADs sent to make room."),
    "gearmesh_actions_failed_total": ("counter", "Actions that came to nothing, by code."),
    "gearmesh_model_requests_total": ("counter", "A model's requests that ended at a controller, by outcome."),
    "gearmesh_elements_total": (
        "counter",
        "Rows x extents of a model with open dimensions, in executed batches: asked, and computed with all padding.",
    ),
    "gearmesh_queue_seconds": ("histogram", "From arrival of a request until the INFER that served it was sent."),
    "gearmesh_exec_seconds": ("histogram", "EXEC of a batch, as the device measured it."),
    "gearmesh_slack_seconds": ("histogram", "From the end of a request's EXEC to its deadline; 0 for late ones."),
    "gearmesh_prediction_error_ratio": (
        "histogram",
        "|actual - predicted| / actual, of: latency predicted at admission, durations of exec and of load.",
    ),
    "gearmesh_lane_busy_seconds_total": ("counter", "Time that a lane of a device was busy: exec, load."),
    "gearmesh_device_pages": ("gauge", "Pages of a device."),
    "gearmesh_device_free_pages": ("gauge", "Of those, free ones."),
    "gearmesh_device_models": ("gauge", "Versions in its pages."),
    "gearmesh_revoked_total": ("counter", "INFERs taken back before they began, as nobody waited for them any more."),
    "gearmesh_computed_for_nobody_total": ("counter", "Requests that were executed though nobody waited any more."),
    "gearmesh_rows_for_nobody_total": ("counter", "Rows of these."),
    "gearmesh_left_out_total": ("counter", "Requests without which a batch ran, as their inputs had not come in time."),
    "gearmesh_tried_apart_total": ("counter", "Requests executed again apart after their batch failed, each time."),
    "gearmesh_tried_alone_total": ("counter", "Requests executed again alone after a process died, each time."),
    "gearmesh_quarantines_total": ("counter", "Times that a client, or an input, was refused for a while."),
    "gearmesh_failed_apart_seconds_total": ("counter", "Device time of what failed while it was executed apart."),
    "gearmesh_log_lines_total": ("counter", "Log lines written."),
    "gearmesh_log_lines_dropped_total": ("counter", "Log lines dropped."),
    "gearmesh_service_lines_folded_total": ("counter", "Lines of a member's own log that another line counts."),
    "gearmesh_service_lines_dropped_total": ("counter", "Lines of a member's own log that were lost: nobody read."),
    "gearmesh_answers_total": ("counter", "A frontend's answers, by status."),
    "gearmesh_frontend_refusals_total": ("counter", "Requests that a frontend refused itself, by code."),
    "gearmesh_answers_dropped_total": ("counter", "A frontend's answers whose client was gone or did not read."),
    "gearmesh_answers_waiting": ("gauge", "A frontend's answers that their clients have no room for yet."),
    "gearmesh_cancelled_total": ("counter", "A frontend's requests that clients ended, or whose clients had gone."),
    "gearmesh_outputs_for_nobody_total": ("counter", "Outputs that reached a frontend when nobody waited any more."),
    "gearmesh_outputs_resent_total": ("counter", "Messages of outputs that workers sent again, as a link was lost."),
    "gearmesh_outputs_doubled_total": ("counter", "Messages of outputs that came once more, and were not taken."),
    "gearmesh_outputs_of_others_total": ("counter", "Messages of outputs for another frontend, not taken."),
    "gearmesh_results_refused_total": ("counter", "Envelopes at the port for outputs that were not read."),
    "gearmesh_link_losses_total": ("counter", "A frontend's links to controllers and workers that were lost."),
    "gearmesh_links_down": ("gauge", "Links that were lost and have no successor yet, of members of the table."),
    "gearmesh_connections_refused_total": ("counter", "A frontend's connections closed for ROUTING_ID, key or ZMTP."),
    "gearmesh_accept_failed_total": ("counter", "A frontend's connections closed for want of file descriptors."),
    "gearmesh_in_flight": ("gauge", "A frontend's requests without an answer."),
    "gearmesh_in_flight_bytes": ("gauge", "Bytes of their inputs."),
    "gearmesh_cache_lookups_total": ("counter", "Queries that looked into the cache: hit, miss, coalesced."),
    "gearmesh_cache_evicted_total": ("counter", "Predictions that made room for others."),
    "gearmesh_cache_bytes": ("gauge", "Bytes of inputs and outputs in the cache."),
    "gearmesh_app_answers_total": ("counter", "An application's answers, by outcome: models, default, none."),
    "gearmesh_app_disagreed_total": ("counter", "Answers on which the models that came did not agree."),
    "gearmesh_app_partial_total": ("counter", "Answers without some of the models that were asked."),
    "gearmesh_app_feedback_total": ("counter", "Feedback that was learned."),
    "gearmesh_feedback_held": ("gauge", "Feedback that waits for a store that is down."),
    "gearmesh_http_answers_total": ("counter", "This gateway's HTTP answers, by HTTP status."),
    "gearmesh_http_in_flight": ("gauge", "This gateway's requests without an answer."),
    "gearmesh_http_accept_failed_total": ("counter", "This gateway's connections closed for want of file descriptors."),
}


class HttpCounts(NamedTuple):
    """A gateway's own counts since it started."""

    answers: Mapping[int, int]  # {HTTP status: answers}
    in_flight: int  # requests without an answer
    accept_failed: int = 0  # connections that were closed for want of descriptors
    lines_folded: int = 0  # lines of its log that were counted in another line
    lines_dropped: int = 0  # that were lost, because nobody read them


def metrics_text(
    up: Mapping[str, bool],
    snapshots: Iterable[Snapshot],
    frontends: Mapping[str, Mapping[str, Any]],
    http: HttpCounts | None = None,
    *,
    pause_s: float = 0.0,
) -> bytes:
    """All metrics in the text format. `up`: {member: whether it answers}; `frontends`: {frontend: its status}, of those
    that answered.

    `http`: of the gateway that serves this text; None elsewhere.
    `pause_s`: other threads get the interpreter for so long after every CHUNK samples.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MeshCollector(up, tuple(snapshots), frontends, http, pause_s))
    return generate_latest(registry)


class PausingSamples(list[Any]):
    """Samples that are given one by one, with a pause after every CHUNK."""

    pause_s = 0.0

    def __iter__(self) -> Iterator[Any]:
        for i, sample in enumerate(super().__iter__(), 1):
            yield sample
            if i % CHUNK == 0:
                time.sleep(self.pause_s)


@dataclass(slots=True, eq=False)
class MeshCollector(Collector):
    """Makes metric families of one look at a mesh. Families without samples are left out."""

    up: Mapping[str, bool]
    snapshots: Sequence[Snapshot]
    frontends: Mapping[str, Mapping[str, Any]]
    http: HttpCounts | None = None
    pause_s: float = 0.0
    _made: dict[str, Metric] = field(default_factory=dict)  # {name: family}, in no order

    def collect(self) -> Iterator[Metric]:
        """Yields all families, in the order of METRICS."""
        self._made = {}
        for member, there in self.up.items():
            self._add("gearmesh_up", {"member": member}, float(there))
        for frontend, status in self.frontends.items():
            self._frontend({"frontend": frontend}, status)
        for snapshot in self.snapshots:
            self._controller({"controller": snapshot.controller}, snapshot)
        if self.http is not None:
            answers = {str(code): count for code, count in self.http.answers.items()}
            self._each("gearmesh_http_answers_total", {}, "code", answers)
            self._add("gearmesh_http_in_flight", {}, self.http.in_flight)
            self._add("gearmesh_http_accept_failed_total", {}, self.http.accept_failed)
            self._lines("gateway", self.http.lines_folded, self.http.lines_dropped)
        for name in METRICS:
            if name in self._made:
                yield self._pausing(self._made[name])

    def _pausing(self, family: Metric) -> Metric:
        if self.pause_s:
            family.samples = samples = PausingSamples(family.samples)
            samples.pause_s = self.pause_s
        return family

    def _pause(self) -> None:
        if self.pause_s:
            time.sleep(self.pause_s)

    # -- frontends ----------------------------------------------------------------------------------------------------

    def _frontend(self, who: dict[str, str], status: Mapping[str, Any]) -> None:
        if "outcomes" in status:  # a frontend that is older than this program has none
            self._outcomes(who, status["outcomes"])
        self._add("gearmesh_in_flight", who, status["in_flight"])
        self._add("gearmesh_in_flight_bytes", who, status.get("in_flight_bytes", 0))
        self._add("gearmesh_answers_dropped_total", who, status.get("answers_dropped", 0))
        self._add("gearmesh_answers_waiting", who, status.get("answers_waiting", 0))
        self._add("gearmesh_cancelled_total", who, status.get("cancelled", 0))
        self._add("gearmesh_outputs_for_nobody_total", who, status.get("computed_for_nobody", 0))
        self._add("gearmesh_links_down", who, sum(not link["up"] for link in status.get("links", ())))
        for name in (
            "connections_refused", "accept_failed", "link_losses", "outputs_resent", "outputs_doubled",
            "outputs_of_others", "results_refused",
        ):  # fmt: skip
            self._add(f"gearmesh_{name}_total", who, status.get(name, 0))
        self._each("gearmesh_answers_total", who, "status", status["answers"])
        self._each("gearmesh_frontend_refusals_total", who, "code", status.get("refused", {}))
        if "lines" in status:
            self._lines(who["frontend"], status["lines"]["folded"], status["lines"]["dropped"])
        cache = status["cache"]
        lookups = {"hit": cache["hits"], "miss": cache["misses"], "coalesced": cache["coalesced"]}
        self._each("gearmesh_cache_lookups_total", who, "outcome", lookups)
        self._add("gearmesh_cache_evicted_total", who, cache["evicted"])
        self._add("gearmesh_cache_bytes", who, cache["bytes"])
        self._applications(who, status["applications"])

    def _outcomes(self, who: dict[str, str], told: Mapping[str, Any]) -> None:
        bounds = told["bounds_s"]
        models = [*told["models"].items(), (OTHER, told["other_models"]), (NOTHING, told["unknown"])]
        for model, tally in models:
            self._pause()
            labels = {**who, "model": model}
            self._tally("gearmesh_requests_total", labels, tally)
            self._add("gearmesh_requests_in_time_total", labels, tally["in_time"])
            self._latency("gearmesh_latency_seconds", labels, bounds, tally)
        for app, tally in (*told["applications"].items(), (OTHER, told["other_applications"])):
            labels = {**who, "app": app}
            self._tally("gearmesh_app_requests_total", labels, tally)
            self._add("gearmesh_app_requests_in_time_total", labels, tally["in_time"])
            self._latency("gearmesh_app_latency_seconds", labels, bounds, tally)
        for model, tally in (*told["asks"].items(), (OTHER, told["other_asks"])):
            self._tally("gearmesh_app_asks_total", {**who, "model": model}, tally)
        self._each("gearmesh_requests_unlogged_total", who, "outcome", told["unlogged"])

    def _tally(self, name: str, labels: dict[str, str], tally: Mapping[str, Any]) -> None:
        self._each(name, labels, "outcome", {outcome: tally[outcome] for outcome in OUTCOMES})

    def _latency(self, name: str, labels: dict[str, str], bounds: Sequence[float], tally: Mapping[str, Any]) -> None:
        latency = tally.get("latency_s")
        if latency is not None and any(latency["counts"]):
            self._histogram(name, labels, bounds, latency["counts"], latency["sum"])

    def _applications(self, who: dict[str, str], status: Mapping[str, Any]) -> None:
        self._add("gearmesh_feedback_held", who, status["feedback_held"])
        for app, counts in status["apps"].items():
            mine = {**who, "app": app}
            defaults = sum(counts["defaults"].values())
            answers = {"models": counts["answered"], "default": defaults, "none": counts["refused"]}
            self._each("gearmesh_app_answers_total", mine, "outcome", answers)
            for what in ("disagreed", "partial", "feedback"):
                self._add(f"gearmesh_app_{what}_total", mine, counts[what])

    # -- controllers --------------------------------------------------------------------------------------------------

    def _controller(self, who: dict[str, str], s: Snapshot) -> None:
        for name, value in {
            "requests_submitted_total": s.submitted,
            "requests_cold_total": s.cold,
            "requests_waiting": s.waiting,
            "requests_open": s.open,
            "batches_total": s.batches,
            "batched_rows_total": s.batched_rows,
            "loads_total": s.loads,
            "unloads_total": s.unloads,
            "revoked_total": s.revoked,
            "computed_for_nobody_total": s.computed_for_nobody,
            "rows_for_nobody_total": s.rows_for_nobody,
            "left_out_total": s.left_out,
            "tried_apart_total": s.tried_apart,
            "tried_alone_total": s.tried_alone,
            "quarantines_total": s.quarantines,
            "failed_apart_seconds_total": s.failed_s,
            "log_lines_total": s.journal.written,
            "log_lines_dropped_total": s.journal.dropped,
        }.items():
            self._add(f"gearmesh_{name}", who, value)
        self._lines(s.controller, s.lines_folded, s.lines_dropped)
        outcomes: dict[str, float] = {
            RequestOutcome.IN_TIME: s.in_time,
            RequestOutcome.LATE: s.late,
            RequestOutcome.TIMED_OUT: s.timed_out,
            RequestOutcome.CANCELLED: s.cancelled,
        }
        self._each("gearmesh_controller_requests_total", who, "outcome", outcomes)
        self._each("gearmesh_requests_amended_total", who, "outcome", s.amended)
        self._each("gearmesh_requests_refused_total", who, "code", s.refused)
        self._each("gearmesh_actions_failed_total", who, "code", s.failed_actions)
        self._records(who, s)
        for device in s.devices:
            labels = {**who, "worker": device.worker, "device": device.name}
            busy = {"exec": device.exec_busy_s, "load": device.load_busy_s}
            self._each("gearmesh_lane_busy_seconds_total", labels, "lane", busy)
            self._add("gearmesh_device_pages", labels, device.pages)
            self._add("gearmesh_device_free_pages", labels, device.free_pages)
            self._add("gearmesh_device_models", labels, device.resident)

    def _records(self, who: dict[str, str], s: Snapshot) -> None:
        """What is told of each model with a label."""
        for model, record in s.records.items():
            self._pause()
            labels = {**who, "model": model}
            counts: dict[str, int] = {
                RequestOutcome.IN_TIME: record.in_time,
                RequestOutcome.LATE: record.late,
                RequestOutcome.TIMED_OUT: record.timed_out,
                "refused": record.refused,
            }
            self._each("gearmesh_model_requests_total", labels, "outcome", counts)
            if record.elements_computed:
                elements = {"asked": record.elements, "computed": record.elements_computed}
                self._each("gearmesh_elements_total", labels, "of", elements)
            for name in ("queue_s", "exec_s", "slack_s"):
                told: Distribution | None = getattr(record, name)
                if told is not None:
                    metric = f"gearmesh_{name.removesuffix('_s')}_seconds"
                    self._histogram(metric, labels, s.bounds[name], told.counts, told.sum)
            for of in ("latency", "exec", "load"):
                told = getattr(record, f"{of}_error")
                if told is not None:
                    error = {**labels, "of": of}
                    bounds = s.bounds[f"{of}_error"]
                    self._histogram("gearmesh_prediction_error_ratio", error, bounds, told.counts, told.sum)

    def _lines(self, member: str, folded: int, dropped: int) -> None:
        """What became of the lines of the member's own log."""
        self._add("gearmesh_service_lines_folded_total", {"member": member}, folded)
        self._add("gearmesh_service_lines_dropped_total", {"member": member}, dropped)

    # -- samples ------------------------------------------------------------------------------------------------------

    def _family(self, name: str, labels: Iterable[str]) -> Any:
        family = self._made.get(name)
        if family is None:
            kind, text = METRICS[name]
            make = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
            family = self._made[name] = make[kind](name.removesuffix("_total"), text, labels=list(labels))
        return family

    def _add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        self._family(name, labels).add_metric(list(labels.values()), value)

    def _each(self, name: str, labels: Mapping[str, str], label: str, counts: Mapping[str, float]) -> None:
        """A sample for each of the counts, with its key as one more label."""
        if counts:
            family, values = self._family(name, (*labels, label)), list(labels.values())
            for key, value in counts.items():
                family.add_metric([*values, str(key)], value)

    def _histogram(
        self, name: str, labels: Mapping[str, str], bounds: Sequence[float], counts: Sequence[int], total: float
    ) -> None:
        """`counts`: of values up to each bound and above the one before; the last: above all."""
        buckets, so_far = [], 0
        for bound, count in zip((*map(repr, map(float, bounds)), "+Inf"), counts, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        self._family(name, labels).add_metric(list(labels.values()), buckets, total)
