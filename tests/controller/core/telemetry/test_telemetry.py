"""totals.py and snapshot.py: what is told of requests and actions, and what is kept in any case."""

import pytest

from controller.core.telemetry.snapshot import MODELS_MAX, PLACES_MAX, snapshot
from controller.core.telemetry.totals import RING, spread
from mesh import wire
from mesh.codes import ActionCode, ActionKind, ErrorCode, RequestOutcome
from mesh.facts import ActionFact, AmendedFact, Fact, JournalState, RequestFact
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, line, prepared

NEAR = 1e-9


def recording(**options: object) -> Shard:
    """A shard that serves m:1 on w1, and whose facts are recorded."""
    shard = Shard(**options).serve({"m:1": TEN_MS})  # type: ignore[arg-type]
    shard.scheduler.telemetry.recording = True
    return shard


def facts(shard: Shard) -> list[Fact]:
    """What was told since the last time."""
    return shard.scheduler.telemetry.take()


def request(shard: Shard) -> RequestFact:
    """The one request that was told of."""
    (fact,) = (fact for fact in facts(shard) if isinstance(fact, RequestFact))
    return fact


def action(shard: Shard) -> ActionFact:
    """The one action that was told of."""
    (fact,) = (fact for fact in facts(shard) if isinstance(fact, ActionFact))
    return fact


def test_a_served_request_is_told_with_its_plan_its_action_and_what_it_took() -> None:
    shard = recording()
    shard.submit(7, now=100.0, budget_s=0.05, age_s=0.002, rows=2)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.001, duration_s=0.012, now=100.014)
    fact = request(shard)
    assert (fact.frontend, fact.request, fact.ref, fact.rows) == ("f", 7, "m:1", 2)
    assert (fact.outcome, fact.code, fact.action, fact.batch, fact.device, fact.worker) == (
        RequestOutcome.IN_TIME, "", 1, 2, "test:w1", "w1",
    )  # fmt: skip
    assert fact.arrived_s == pytest.approx(99.998, abs=NEAR)
    assert fact.slo_s == pytest.approx(0.05, abs=NEAR)
    assert fact.latency_s == pytest.approx(0.015, abs=NEAR)
    assert fact.queued_s == pytest.approx(0.002, abs=NEAR)
    assert fact.exec_s == 0.012
    assert fact.predicted_s == pytest.approx(0.002 + 0.0003 + 0.012, abs=NEAR)
    assert (fact.cold, fact.tries) == (False, 0)


def test_its_action_is_told_with_its_window_in_the_controller_s_clock() -> None:
    shard = recording()
    shard.scheduler.clock("w1", 5000.0)
    shard.submit(1, now=100.0, budget_s=0.05)
    shard.submit(2, now=100.0, budget_s=0.5)
    shard.wake(100.0)
    shard.ran(1, begin_s=5100.001, duration_s=0.0115, now=100.014)
    fact = action(shard)
    assert (fact.action, fact.type, fact.code, fact.ref, fact.worker, fact.device) == (
        1, ActionKind.INFER, ActionCode.OK, "m:1", "w1", "test:w1",
    )  # fmt: skip
    assert (fact.batch, fact.requests, fact.in_time, fact.waiting) == (2, 2, 2, 0)
    assert (fact.sent_s, fact.earliest_s) == (100.0, pytest.approx(99.999, abs=NEAR))
    assert fact.latest_s == pytest.approx(100.5 - 0.001 - 0.012, abs=NEAR)
    assert fact.expected_begin_s == pytest.approx(100.0003, abs=NEAR)
    assert fact.expected_end_s == pytest.approx(100.0123, abs=NEAR)
    assert fact.begin_s == pytest.approx(100.001, abs=NEAR)
    assert fact.end_s == pytest.approx(100.0125, abs=NEAR)
    assert (fact.duration_s, fact.expected_s) == (0.0115, pytest.approx(0.012, abs=NEAR))
    assert fact.error_s == pytest.approx(-0.0005, abs=NEAR)


def test_a_late_one_is_told_as_late() -> None:
    shard = recording()
    shard.submit(1, now=100.0, budget_s=0.05)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.045, duration_s=0.010, now=100.06)
    told = facts(shard)
    assert [fact.outcome for fact in told if isinstance(fact, RequestFact)] == [RequestOutcome.LATE]
    assert [fact.in_time for fact in told if isinstance(fact, ActionFact)] == [0]


def test_a_refused_one_is_told_with_the_reason_and_the_prediction() -> None:
    shard = recording()
    shard.submit(1, now=100.0, budget_s=0.005)
    fact = request(shard)
    assert (fact.outcome, fact.code, fact.action, fact.batch, fact.device, fact.exec_s, fact.queued_s) == (
        RequestOutcome.REJECTED, ErrorCode.DEADLINE, 0, 0, "", None, None,
    )  # fmt: skip
    assert fact.latency_s == 0.0
    assert fact.predicted_s == pytest.approx(0.0103, abs=NEAR)


def test_one_that_was_never_looked_at_has_no_prediction() -> None:
    shard = recording(started_s=0.0)
    shard.submit(1, "x:1", now=100.0)
    assert (fact := request(shard)).code == ErrorCode.NOT_DEPLOYED
    assert fact.predicted_s is None


def test_those_that_nobody_waits_for_any_more_are_told_once_each() -> None:
    shard = recording()
    shard.submit(1, now=100.0)
    shard.submit(2, now=100.0)
    shard.cancel(1, now=100.001)
    shard.cancel(1, now=100.001)
    shard.lose_frontend(now=100.002)
    assert [fact.outcome for fact in facts(shard) if isinstance(fact, RequestFact)] == [
        RequestOutcome.CANCELLED,
        RequestOutcome.FRONTEND_LOST,
    ]
    assert shard.scheduler.telemetry.cancelled == 2


def test_a_request_whose_model_is_on_no_device_is_cold_and_its_load_is_told() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, resident=())
    shard.scheduler.telemetry.recording = True
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.loaded(1, now=100.006)
    shard.wake(100.006)
    fact = action(shard)
    assert (fact.type, fact.batch, fact.requests, fact.duration_s) == (ActionKind.LOAD, 0, 0, 0.005)
    assert fact.latest_s > fact.expected_end_s
    shard.ran(2, begin_s=100.007, duration_s=0.010)
    assert request(shard).cold
    shard.submit(2, now=100.1)
    shard.wake(100.1)
    shard.ran(3, begin_s=100.101, duration_s=0.010)
    assert not request(shard).cold
    assert shard.scheduler.telemetry.cold == 1


def test_actions_of_a_lost_worker_are_told_and_their_requests_when_they_end() -> None:
    shard = recording()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.lose("w1", now=100.002)
    told = facts(shard)
    assert [fact.code for fact in told if isinstance(fact, ActionFact)] == [ActionCode.WORKER_LOST]
    assert [(f.outcome, f.code) for f in told if isinstance(f, RequestFact)] == [
        (RequestOutcome.FAILED, ActionCode.WORKER_LOST)
    ]
    assert shard.scheduler.telemetry.devices == {}


def test_nothing_is_told_unless_it_is_recorded_but_all_is_counted() -> None:
    shard = Shard().serve({"m:1": TEN_MS})
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.001, duration_s=0.008)
    shard.submit(2, now=100.1, budget_s=0.001)
    telemetry = shard.scheduler.telemetry
    assert telemetry.take() == []
    assert (telemetry.models.of("m:1").in_time, telemetry.models.of("m:1").refused) == (1, 1)
    assert telemetry.devices["w1"].exec_busy_s == 0.008
    assert list(telemetry.exec_errors) == [pytest.approx(0.25)]  # 10 ms were predicted
    assert list(telemetry.latencies_s) == [pytest.approx(0.009)]


@pytest.mark.parametrize(
    ("outcome", "timed_out", "cancelled"),
    [(RequestOutcome.TIMED_OUT, 1, 0), (RequestOutcome.CANCELLED, 0, 1), (RequestOutcome.WITHDRAWN, 0, 1)],
)
def test_a_request_that_its_frontend_gives_up_ends_as_its_client_saw_it(
    outcome: RequestOutcome, timed_out: int, cancelled: int
) -> None:
    shard = recording()
    shard.submit(1, now=100.0)
    shard.scheduler.cancel("f", 1, outcome, now=100.05)
    shard.scheduler.check()
    assert request(shard).outcome == outcome
    telemetry = shard.scheduler.telemetry
    assert (telemetry.timed_out, telemetry.cancelled) == (timed_out, cancelled)
    assert telemetry.models.of("m:1").timed_out == timed_out


@pytest.mark.parametrize("outcome", list(RequestOutcome))
def test_one_that_has_ended_already_is_amended_unless_only_other_parts_of_it_are_over(outcome: RequestOutcome) -> None:
    shard = recording()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.001, duration_s=0.010)
    facts(shard)
    shard.scheduler.cancel("f", 1, outcome, now=100.1)
    amended = [AmendedFact(frontend="f", request=1, outcome=outcome)]
    assert facts(shard) == ([] if outcome is RequestOutcome.WITHDRAWN else amended)
    assert shard.scheduler.telemetry.models.of("m:1").in_time == 1, "counts are the controller's own"


ANSWERED = [RequestOutcome.IN_TIME, RequestOutcome.LATE, RequestOutcome.FAILED]


@pytest.mark.parametrize("outcome", ANSWERED)
def test_outputs_that_overtake_their_result_leave_a_whole_line_which_is_amended_if_need_be(
    outcome: RequestOutcome,
) -> None:
    shard = recording()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.scheduler.cancel("f", 1, outcome, now=100.012)
    shard.scheduler.check()
    assert facts(shard) == []
    shard.ran(1, begin_s=100.001, duration_s=0.010, now=100.013)
    line, *amended = [fact for fact in facts(shard) if not isinstance(fact, ActionFact)]
    assert isinstance(line, RequestFact)
    assert (line.outcome, line.device) == (RequestOutcome.IN_TIME, "test:w1")
    same = outcome is RequestOutcome.IN_TIME
    assert amended == ([] if same else [AmendedFact(frontend="f", request=1, outcome=outcome)])


@pytest.mark.parametrize("outcome", ANSWERED)
def test_what_was_answered_is_not_planned_again_if_its_result_never_comes(outcome: RequestOutcome) -> None:
    shard = recording()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.scheduler.cancel("f", 1, outcome, now=100.012)
    assert shard.lose("w1", now=100.02) == []
    assert request(shard).outcome == outcome
    assert shard.scheduler.open_requests == 0


def test_what_was_answered_by_an_earlier_attempt_does_not_wait_any_more() -> None:
    shard = recording()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.scheduler.cancel("f", 1, RequestOutcome.IN_TIME, now=100.001)
    assert shard.wake(100.002) == []
    assert request(shard).outcome == RequestOutcome.IN_TIME
    assert shard.scheduler.open_requests == 0


@pytest.mark.parametrize("outcome", [RequestOutcome.TIMED_OUT, RequestOutcome.FRONTEND_LOST])
def test_one_that_waits_for_a_worker_to_come_ends_with_a_line_too(outcome: RequestOutcome) -> None:
    shard = Shard(started_s=100.0)
    shard.scheduler.telemetry.recording = True
    shard.want(["m:1"])
    assert shard.submit(1, now=100.1) == []
    if outcome is RequestOutcome.TIMED_OUT:
        shard.scheduler.cancel("f", 1, outcome, now=100.2)
    else:
        shard.lose_frontend(now=100.2)
    assert request(shard).outcome == outcome
    shard.join(hello("w1", prepared("m:1"), resident=["m:1"]), now=100.3)
    shard.wake(110.0)
    assert facts(shard) == []
    assert shard.scheduler.open_requests == 0


def test_a_line_has_the_client_s_id_and_whose_part_it_is() -> None:
    shard = recording()
    message = wire.Submit(request=8, attempt=0, ref="m:1", rows=1, budget_s=0.001, asked_id="mine", call=7)
    shard.scheduler.submit(message, "f", age_s=0.0, now=100.0, hollow=True)
    assert ((fact := request(shard)).asked_id, fact.call) == ("mine", 7)


def test_a_batch_s_rows_are_told_without_the_padding() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, any_batch=False)
    shard.scheduler.telemetry.recording = True
    for number in range(3):
        shard.submit(number, now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x4 f/0 f/1 f/2"]
    shard.ran(1, begin_s=100.001, duration_s=0.016)
    assert ((told := [fact for fact in facts(shard) if isinstance(fact, ActionFact)])[0].batch, told[0].rows) == (4, 3)


def test_of_each_label_a_snapshot_has_distributions_that_count_each_request_and_each_batch() -> None:
    shard = Shard().serve({"m:1": TEN_MS, "m:2": TEN_MS})
    for number, ref in enumerate(("m:1", "m:1", "m:2")):
        shard.submit(number, ref, now=100.0, budget_s=0.1)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.001, duration_s=0.012)
    seen = snapshot(
        shard.scheduler, name="c", policy="atc", started_s=0.0, heard_s=lambda worker: 0.0,
        journal=JournalState(on=False), now=100.1,
    )  # fmt: skip
    record = seen.records["m"]
    told = {name: getattr(record, name) for name in seen.bounds}
    assert {name: sum(one.counts) for name, one in told.items() if one} == {
        "queue_s": 2, "exec_s": 1, "slack_s": 2, "latency_error": 2, "exec_error": 1,
    }  # fmt: skip
    assert all(len(one.counts) == len(seen.bounds[name]) + 1 for name, one in told.items() if one)
    assert told["exec_s"].sum == pytest.approx(0.012)
    assert told["slack_s"].sum == pytest.approx(2 * (0.1 - 0.013))
    assert (record.in_time, record.late, record.timed_out, record.refused) == (2, 0, 0, 0)


def test_one_that_is_late_had_no_time_to_spare_and_takes_none_from_the_sum() -> None:
    shard = recording()
    shard.submit(1, now=100.0, budget_s=0.05)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.045, duration_s=0.010)
    told = shard.scheduler.telemetry.models.of("m:1").label.slack_s
    assert (told.counts[0], sum(told.counts), told.sum) == (1, 1, 0.0)


def test_versions_that_are_gone_have_no_totals_but_their_labels_keep_the_counts() -> None:
    shard = recording()
    shard.submit(1, now=100.0, budget_s=0.001)
    shard.want(["n:1"])
    shard.submit(2, now=100.1, budget_s=0.001)
    table = shard.scheduler.telemetry.models
    assert table.of("m:1").refused == 0
    assert {name: record.refused for name, record in table.records().items()} == {"m": 2}


def test_rings_keep_the_last_values_only() -> None:
    shard = Shard().serve({"m:1": TEN_MS})
    for i in range(RING + 5):
        shard.submit(i, now=100.0 + i)
        shard.wake(100.0 + i)
        shard.ran(i + 1, begin_s=100.001 + i, duration_s=0.010)
    assert len(shard.scheduler.telemetry.latencies_s) == len(shard.scheduler.telemetry.exec_errors) == RING


@pytest.mark.parametrize(
    ("values", "p50", "p99"),
    [([3.0], 3.0, 3.0), ([2.0, 1.0], 1.0, 2.0), (range(1, 101), 50, 99), (range(1, 1001), 500, 990)],
)
def test_quantiles_are_of_the_nearest_rank(values: list[float], p50: float, p99: float) -> None:
    found = spread(values)
    assert (found.count, found.p50, found.p99) == (len(values), p50, p99)


def test_without_values_there_are_no_quantiles() -> None:
    assert (spread([]).count, spread([]).p50, spread([]).p99) == (0, None, None)


def test_a_snapshot_shows_devices_models_and_counts() -> None:
    shard = Shard().serve({"m:1": TEN_MS, "n:1": line(0.01, 0.0)}, resident=["m:1"])
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.001, duration_s=0.010)
    shard.submit(2, now=100.1)
    shard.wake(100.1)
    shard.submit(3, now=100.1, budget_s=0.001)
    seen = snapshot(
        shard.scheduler, name="controller-1", policy="atc", started_s=90.0, heard_s=lambda worker: 99.9,
        journal=JournalState(on=False), now=100.101,
    )  # fmt: skip
    assert (seen.controller, seen.uptime_s) == ("controller-1", pytest.approx(10.101))
    assert (seen.submitted, seen.in_time, seen.refused, seen.open) == (3, 1, {ErrorCode.DEADLINE: 1}, 1)
    (device,) = seen.devices
    assert (device.worker, device.pages, device.free_pages, device.exec_pending) == ("w1", 8, 4, 1)
    assert (device.batches, device.exec_busy_s, device.prepared, device.resident) == (1, 0.010, 2, 2)
    assert device.heard_ago_s == pytest.approx(0.201)
    assert {place.ref: place.state for place in device.places} == {"m:1": "running", "n:1": "loading"}
    assert {model.ref: (model.in_time, model.refused) for model in seen.models} == {"m:1": (1, 1), "n:1": (0, 0)}


def test_a_snapshot_of_thousands_of_models_names_the_busiest_and_counts_all() -> None:
    refs = {f"m{i}:1": TEN_MS for i in range(300)}
    shard = Shard().serve(refs, pages=600)
    shard.submit(1, "m299:1", now=100.0)
    seen = snapshot(
        shard.scheduler, name="c", policy="atc", started_s=0.0, heard_s=lambda worker: 0.0,
        journal=JournalState(on=False), now=100.0,
    )  # fmt: skip
    assert seen.models[0].ref == "m299:1"
    assert (len(seen.models), seen.models_total) == (MODELS_MAX, 300)
    assert (len(seen.devices[0].places), seen.devices[0].resident) == (PLACES_MAX, 300)
