"""Statistics of records."""

import json
import math
import re

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from gearmesh.cli.load import ReportFiles
from gearmesh.load.errors import LoadError
from gearmesh.load.plan import Closed, LoadPhase, LoadTestPlan, Open, Replay, RequestStream, Slo
from gearmesh.load.reporting.records import OUTCOMES, RECORD, Recorder, merge
from gearmesh.load.reporting.statistics import lateness, over_time, quantiles, report
from gearmesh.load.results import PhaseRun
from gearmesh.simulation.arrivals.recorded import RecordedRequest
from gearmesh.simulation.parts import Workload
from gearmesh.telemetry.machine import describe


def recorded(rows) -> np.ndarray:
    """Records of rows (due_s, sent_s, done_s, slo_s, status)."""
    recorder = Recorder()
    for due_s, sent_s, done_s, slo_s, status in rows:
        row = recorder.sent(due_s, sent_s, slo_s, 0, 0)
        if status is not None:
            recorder.answered(row, done_s, status, code="overload" if status == "rejected" else "")
    return recorder.records()


def reported(records, codes=("", "overload"), **more):
    more = {"seconds": 10.0, "warmup_s": 0.0, **more}
    return report("p", records, codes, ["s"], ["m"], **more)


def test_the_budget_counts_from_when_the_request_was_due_not_from_when_it_was_sent():
    rows = recorded([(1.0, 1.0, 1.0499, 0.05, "ok"), (1.0, 1.01, 1.0501, 0.05, "ok")])
    assert [OUTCOMES[i] for i in rows["outcome"]] == ["ok", "late"]
    found = reported(rows)
    assert found.goodput_per_s == pytest.approx(0.1)
    assert found.attainment == 0.5
    assert found.outcomes["late"].max_ms == pytest.approx(50.1)


def test_what_was_never_answered_counts_as_offered_and_as_missed():
    found = reported(recorded([(1.0, 1.0, 0, 0.05, None), (2.0, 2.0, 2.01, 0.05, "ok")]))
    assert (found.n, found.attainment, found.outcomes["no_answer"].n) == (2, 0.5, 1)
    assert found.answered_per_s == pytest.approx(0.1)


def test_refusals_are_counted_by_code_and_timed_from_sending():
    found = reported(recorded([(1.0, 1.5, 1.504, 0.05, "rejected")] * 3))
    assert found.rejections == {"overload": 3}
    assert found.rejected_within.p50_ms == pytest.approx(4.0, rel=0.01)


def test_the_warm_up_is_left_out():
    found = reported(recorded([(0.5, 0.5, 0.51, 0.05, "ok"), (2.0, 2.0, 2.01, 0.05, "ok")]), warmup_s=1.0)
    assert (found.n, found.seconds) == (1, 9.0)


def test_attainment_is_told_for_each_budget_and_in_bins_where_there_are_many():
    rows = recorded([(1.0, 1.0, 1.02, 0.01, "ok"), (1.0, 1.0, 1.02, 0.1, "ok")])
    found = reported(rows)
    assert [(one.slo_ms, one.attainment) for one in found.by_slo] == [(10.0, 0.0), (100.0, 1.0)]
    many = recorded([(1.0, 1.0, 1.001, 0.01 * 1.1**i, "ok") for i in range(40)])
    assert len(reported(many).by_slo) < 12
    assert sum(one.n for one in reported(many).by_slo) == 40


def test_a_quantile_needs_ten_samples_beyond_it():
    assert quantiles(np.arange(1.0, 1000.0)).p99_ms is None
    assert quantiles(np.arange(1.0, 1001.0)).p99_ms == pytest.approx(990, rel=0.002)
    assert quantiles(np.array([1.0, 2.0, math.nan])).p50_ms == pytest.approx(1.0, rel=0.002)
    assert quantiles(np.array([])).p50_ms is None


def test_histograms_of_two_runs_can_be_added():
    one, other = (HdrHistogram.decode(quantiles(np.full(100, ms)).hdr) for ms in (1.0, 3.0))
    one.add(other)
    assert one.get_total_count() == 200
    assert one.get_max_value() == pytest.approx(3000, rel=0.002)


def test_the_mean_batch_counts_batches_not_requests():
    recorder = Recorder()
    for size in (1, 3, 3, 3):
        recorder.answered(recorder.sent(0, 0, 1, 0, 0), 0.1, "ok", batch=size)
    assert reported(recorder.records()).mean_batch == pytest.approx(2.0)


def test_prediction_errors_are_told_above_and_below_apart():
    recorder = Recorder()
    for predicted_ms, latency_ms in ((5.0, 3.0), (4.0, 7.0)):
        row = recorder.sent(0, 0, 1, 0, 0)
        recorder.answered(row, 0.1, "ok", predicted_ms=predicted_ms, latency_ms=latency_ms)
    found = reported(recorder.records())
    assert found.over_predicted.max_ms == pytest.approx(2.0)
    assert found.under_predicted.max_ms == pytest.approx(3.0)


def test_cold_starts_are_counted_where_the_mesh_tells_them_and_unknown_where_not():
    recorder = Recorder()
    recorder.answered(recorder.sent(0, 0, 1, 0, 0), 0.1, "ok")
    assert reported(recorder.records()).cold_starts is None
    recorder.answered(recorder.sent(0, 0, 1, 0, 0), 0.1, "ok", cold=True)
    recorder.answered(recorder.sent(0, 0, 1, 0, 0), 0.1, "ok", cold=False)
    assert reported(recorder.records()).cold_starts == 1


@pytest.mark.parametrize(("late", "kept"), [(5, True), (6, False)])
def test_a_generator_that_sends_more_than_a_twentieth_late_did_not_keep_the_rate(late, kept):
    rows = recorded([(1.0, 1.0201 if i < late else 1.0199, 1.03, 0.1, "ok") for i in range(100)])
    assert lateness(rows, 10.0, 10.0).kept is kept


@pytest.mark.parametrize(("late", "kept"), [(5, True), (6, False)])
def test_nor_did_one_that_left_more_than_a_twentieth_of_the_answers_unread_for_so_long(late, kept):
    recorder = Recorder()
    for i in range(100):
        row = recorder.sent(1.0, 1.0, 0.1, 0, 0)
        recorder.answered(row, 1.03, "ok", unread_ms=20.1 if i < late else 19.9)
    recorder.sent(1.0, 1.0, 0.1, 0, 0)  # never answered, so not counted as unread
    found = lateness(recorder.records(), 10.0, 10.0)
    assert found.kept is kept
    assert found.unread.n == 100


def phase_run(records, codes=("",), **more) -> PhaseRun:
    phase = LoadPhase("p", 10.0, (RequestStream("s", ("m",), Closed(1), Slo((100.0,))),))
    more = {"broken": 0, "full": False, **more}
    return PhaseRun(phase, records, list(codes), len(records), [0.1], 0, watched={"foreign": 0, "steal": 0}, **more)


@pytest.mark.parametrize(
    ("late_s", "full", "code", "said"),
    [
        (0.0, False, 0, ""),
        (
            0.1,
            False,
            2,
            "THE GENERATOR COULD NOT KEEP THE RATE in phase 'p': 100.0% of the requests left over 20 ms late",
        ),
        (0.0, True, 2, "THE CLIENTS STOPPED ASKING in phase 'p'"),
    ],
)
def test_a_rate_that_was_not_kept_is_said_and_the_exit_code_is_2(late_s, full, code, said, tmp_path, capsys):
    run = phase_run(recorded([(1.0, 1.0 + late_s, 1.2, 1.0, "ok")] * 20), full=full)
    outputs = ReportFiles(tmp_path / "report.json", None, progress=False)
    assert outputs.write(LoadTestPlan("load", (run.phase,)), [run]) == code
    assert said in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "report.json").read_text())["phases"][0]["lateness"]["kept"] is (late_s == 0)


def test_connections_that_were_lost_and_requests_that_found_no_room_are_said(capsys):
    recorder = Recorder()
    recorder.not_sent(recorder.sent(1.0, 1.0, 1.0, 0, 0))
    run = phase_run(recorder.records(), recorder.codes, broken=3)
    assert ReportFiles(None, None, progress=False).write(LoadTestPlan("load", (run.phase,)), [run]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\b1\b.*not_sent", said)
    assert re.search(r"'p'.*\b3\b", said)


def test_goodput_over_time_is_by_when_requests_were_due():
    rows = recorded([(0.1, 0.1, 0.9, 1.0, "ok"), (0.1, 0.1, 0.9, 0.1, "ok")])
    first = over_time(rows, 0.0, 10.0)[0]
    assert first == pytest.approx((0.5, 4.0, 2.0))


def test_rows_of_several_generators_get_common_codes_in_order_of_time():
    parts = []
    for due_s, code in ((2.0, "overload"), (1.0, "deadline")):
        recorder = Recorder()
        recorder.answered(recorder.sent(due_s, due_s, 1, 0, 0), 3.0, "rejected", code=code)
        parts.append((recorder.records(), list(recorder.codes)))
    rows, codes = merge(parts)
    assert [codes[code] for code in rows["code"]] == ["deadline", "overload"]


def test_no_request_at_all_is_no_error():
    found = reported(np.empty(0, RECORD))
    assert (found.n, found.attainment, found.by_slo, found.lateness.kept) == (0, None, [], True)


def test_the_file_says_what_was_asked_and_of_whom(tmp_path):
    lines = tuple(RecordedRequest(float(i), "m") for i in range(1000))
    slo = Slo((100.0,))
    phase = LoadPhase("p", 10.0, (
        RequestStream("open", ("m",), Open(Workload("gamma", 5.0, cv=2.0)), slo),
        RequestStream("closed", ("m",), Closed(3), slo),
        RequestStream("replayed", ("m",), Replay(lines), slo),
    ))  # fmt: skip
    run = phase_run(recorded([(1.0, 1.0, 1.2, 1.0, "ok")]))
    run.phase = phase
    ReportFiles(tmp_path / "r.json", None, progress=False).write(
        LoadTestPlan("load", (phase,), seed=7), [run], processes=2
    )
    found = json.loads((tmp_path / "r.json").read_text())
    assert {"at", "command", "machine", "plan", "phases"} <= found.keys()
    assert (found["processes"], found["plan"]["seed"], found["machine"]["commit"]) == (2, 7, describe()["commit"])
    opened, closed, replayed = (stream["source"] for stream in found["plan"]["phases"][0]["streams"])
    assert (opened["loop"], opened["kind"], opened["cv"]) == ("open", "gamma", 2.0)
    assert not {"seconds", "slo_ms"} & opened.keys()  # the phase's and the stream's values count
    assert (closed["loop"], closed["clients"]) == ("closed", 3)
    assert replayed == {"loop": "replay", "requests": 1000, "rate_rps": None}


def test_a_file_that_cannot_be_written_costs_a_file_and_not_the_report(tmp_path, capsys):
    run = phase_run(recorded([(1.0, 1.0, 1.2, 1.0, "ok")]))
    with pytest.raises(LoadError, match=r"gone/r\.json"):
        ReportFiles(tmp_path / "gone" / "r.json", None, progress=False).write(LoadTestPlan("load", (run.phase,)), [run])
    assert "100.00%" in capsys.readouterr().out


def test_requests_are_told_apart_by_quartile_of_their_sizes():
    recorder = Recorder()
    for size in (8, 16, 32, 64, 8, 16, 32, 64):
        row = recorder.sent(1.0, 1.0, 0.05, 0, 0, size)
        recorder.answered(row, 1.2 if size == 64 else 1.01, "ok")
    found = reported(recorder.records()).by_size
    assert [(one.least, one.most, one.n, one.attainment) for one in found] == [
        (8, 8, 2, 1.0), (16, 16, 2, 1.0), (32, 32, 2, 1.0), (64, 64, 2, 0.0),
    ]  # fmt: skip
    assert sum(one.goodput_per_s for one in found) == pytest.approx(0.6)


def test_requests_of_one_size_are_never_parted_and_those_of_none_are_left_out():
    recorder = Recorder()
    for size in (0, 7, 7, 7, 9):
        recorder.sent(1.0, 1.0, 0.05, 0, 0, size)
    assert [(one.least, one.most, one.n) for one in reported(recorder.records()).by_size] == [(7, 7, 3), (9, 9, 1)]
    assert reported(recorded([(1.0, 1.0, 1.01, 0.05, "ok")])).by_size == []
