"""One of each of the facts that a controller tells, with every field set; and what a frontend tells beside it."""

from typing import Any

from mesh.facts import (
    ActionFact,
    DeviceState,
    Distribution,
    JournalState,
    LabelRecord,
    ModelState,
    Place,
    RequestFact,
    Snapshot,
    Spread,
)

REQUEST = RequestFact(
    frontend="frontend-1",
    request=7,
    ref="m:1",
    rows=2,
    weight=1.0,
    arrived_s=100.0,
    slo_s=0.05,
    outcome="in_time",
    code="",
    latency_s=0.02,
    predicted_s=0.025,
    queued_s=0.005,
    exec_s=0.01,
    batch=4,
    device="cpu:0",
    worker="gpu_worker-1",
    action=3,
    cold=False,
    tries=0,
    asked_id="mine",
    call=6,
    client=7,
)
ACTION = ActionFact(
    action=3,
    type="infer",
    code="ok",
    ref="m:1",
    worker="gpu_worker-1",
    device="cpu:0",
    batch=4,
    requests=2,
    in_time=2,
    sent_s=100.005,
    earliest_s=100.004,
    latest_s=100.03,
    expected_begin_s=100.009,
    expected_end_s=100.021,
    expected_s=0.012,
    received_s=100.006,
    begin_s=100.01,
    end_s=100.02,
    duration_s=0.01,
    error_s=-0.002,
    input_s=0.001,
    output_s=0.0005,
    result_s=100.021,
    gathered=False,
    clock_mhz=0.0,
    waiting=5,
    free_pages=6,
    rows=3,
)
SECONDS = Distribution(counts=(1, 2, 0), sum=0.5)
SNAPSHOT = Snapshot(
    controller="controller-1",
    policy="atc",
    now_s=100.0,
    uptime_s=50.0,
    frontends=1,
    waiting=5,
    open=9,
    submitted=100,
    in_time=80,
    late=2,
    cancelled=1,
    cold=3,
    refused={"deadline": 6, "overload": 2},
    failed_actions={"late": 1},
    batches=40,
    batched_rows=90,
    loads=3,
    unloads=1,
    latency_s=Spread(count=82, p50=0.02, p99=0.04),
    exec_error=Spread(count=40, p50=0.02, p99=0.2),
    load_error=Spread(count=3, p50=0.1, p99=0.3),
    latency_error=Spread(count=82, p50=0.1, p99=0.5),
    devices=(
        DeviceState(
            worker="gpu_worker-1",
            name="cpu:0",
            kind="cpu",
            pages=8,
            free_pages=6,
            page_bytes=1 << 20,
            leaving=False,
            heard_ago_s=0.1,
            clock_offset_s=0.0,
            exec_busy_s=20.0,
            load_busy_s=1.0,
            exec_pending=1,
            load_pending=0,
            batches=40,
            loads=3,
            failed=1,
            prepared=2,
            resident=1,
            places=(Place(ref="m:1", pages=2, state="running"),),
        ),
    ),
    models=(
        ModelState(
            ref="m:1", devices=1, ready=1, waiting=5, rate=20.0, in_time=80, late=2, refused=8, cold=3, timed_out=6
        ),
    ),
    models_total=1,
    journal=JournalState(on=True, folder="logs", written=10, dropped=2, waiting=0, fault=""),
    revoked=3,
    computed_for_nobody=2,
    rows_for_nobody=5,
    left_out=7,
    tried_apart=8,
    tried_alone=4,
    quarantines=1,
    failed_s=0.75,
    lines_folded=15,
    lines_dropped=16,
    amended={"timed_out": 2, "cancelled": 1},
    timed_out=6,
    bounds=dict.fromkeys(
        ("queue_s", "exec_s", "slack_s", "latency_error", "exec_error", "load_error"), (0.01, 0.1)
    ),
    records={
        "m": LabelRecord(
            in_time=80, late=2, timed_out=6, refused=8, cold=3, queue_s=SECONDS, exec_s=SECONDS, slack_s=SECONDS,
            latency_error=SECONDS, exec_error=SECONDS, load_error=SECONDS, elements=3000, elements_computed=4000,
        )
    },
)  # fmt: skip


def tally(latency: tuple[int, ...] = (0, 0, 0), **counts: int) -> dict[str, Any]:
    """What a frontend tells of so many requests."""
    outcomes = dict.fromkeys(("ok", "rejected", "timed_out", "failed", "invalid", "cancelled"), 0)
    told = {**outcomes, "in_time": 0, "late": 0, "cold": 0, "cached": 0, **counts}
    offered = sum(told[outcome] for outcome in outcomes) - told["cancelled"]
    return {"offered": offered, **told, "latency_s": {"counts": list(latency), "sum": 0.25 * sum(latency)}}


M = tally((70, 12, 0), ok=82, in_time=80, late=2, rejected=8, timed_out=6, cancelled=1)
OUTCOMES = {
    "bounds_s": [0.01, 0.1],
    "total": tally((80, 15, 0), ok=95, in_time=92, late=3, rejected=8, timed_out=7, invalid=4, cancelled=1),
    "models": {"m": M},
    "other_models": tally(),
    "busiest": {},
    "applications": {"digits": tally((10, 3, 0), ok=13, in_time=12, late=1, timed_out=1)},
    "other_applications": tally(),
    "unknown": tally(invalid=4),
    "asks": {"m": tally((20, 5, 0), ok=25, in_time=25)},
    "other_asks": tally(),
    "unlogged": {"ok": 6, "rejected": 2},
}
FRONTEND = {  # of what a frontend answers to `status`
    "uptime_s": 50.0,
    "controllers": {"controller-1": 0.1},
    "outcomes": OUTCOMES,
    "answers": {"ok": 82, "rejected": 8},
    "in_flight": 3,
    "in_flight_bytes": 4096,
    "refused": {"memory_full": 2, "bad_shape": 1},
    "answers_dropped": 4,
    "answers_waiting": 5,
    "cancelled": 1,
    "computed_for_nobody": 2,
    "connections_refused": 6,
    "link_losses": 3,
    "outputs_resent": 12,
    "outputs_doubled": 11,
    "outputs_of_others": 10,
    "results_refused": 13,
    "links": [
        {"peer": "gpu_worker-1", "role": "gpu_worker", "up": True, "heard_ago_s": 0.1, "lost": 2, "lost_ago_s": 5.2,
         "why": "was silent for too long", "resent": 12},
        {"peer": "gpu_worker-2", "role": "gpu_worker", "up": False, "heard_ago_s": None, "lost": 1, "lost_ago_s": 70.0,
         "why": "closed the connection", "resent": 0},
        {"peer": "controller-1", "role": "controller", "up": True, "heard_ago_s": 1.3, "lost": 0, "lost_ago_s": None,
         "why": None, "resent": 0},
    ],
    "accept_failed": 9,
    "lines": {"folded": 11, "dropped": 12},
    "suspects": [
        {"client": 7, "ref": "m:1", "code": "container_died", "pause_s": 4.0, "ago_s": 2.0, "peer": "192.0.2.7:4711",
         "source": "[red]:pill:"},
    ],
    "cache": {
        "hits": 6, "misses": 3, "coalesced": 1, "evicted": 2, "entries": 3, "bytes": 1 << 20, "bytes_max": 64 << 20,
        "hit_ratio": 0.6,
    },
    "applications": {
        "learning": "paused: no [store]",
        "feedback_held": 4,
        "apps": {
            "digits": {"answered": 5, "defaults": {"deadline": 1, "low_confidence": 2}, "refused": 7, "disagreed": 3,
                       "partial": 2, "feedback": 9},
        },
    },
}  # fmt: skip
