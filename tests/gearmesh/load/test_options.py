"""Plans made of the command's options, and messages about options that are wrong."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gearmesh.cli.main import app
from gearmesh.load.errors import LoadError
from gearmesh.load.generating.schedule import open_arrivals
from gearmesh.load.options import LoadOptions, numbers, plan_of, with_models
from gearmesh.load.plan import Closed, LoadTarget, Open
from gearmesh.load.replay import read_lines
from mesh.errors import GearmeshError
from tests.messages import names


def test_clients_are_a_closed_loop_and_a_rate_is_an_open_one():
    closed = plan_of(LoadOptions(clients=16, think_ms=5.0, slo_ms="25"), ("a",)).phases[0].streams[0]
    assert closed.source == Closed(16, think_s=0.005)
    assert closed.slo.values == (25.0,)
    opened = plan_of(LoadOptions(rate=400.0, arrivals="gamma", cv=2.0, slo_factor="2,4"), ("a",)).phases[0].streams[0]
    assert isinstance(opened.source, Open)
    assert (opened.source.load.kind, opened.source.load.rate_rps, opened.source.load.cv) == ("gamma", 400.0, 2.0)
    assert (opened.slo.unit, opened.slo.values) == ("batch1", (2.0, 4.0))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (LoadOptions(), "--clients N"),
        (LoadOptions(clients=1, rate=5.0), "--clients"),
        (LoadOptions(rate=0.0), "--rate"),
        (LoadOptions(rate=float("nan")), "--rate"),
        (LoadOptions(rate=1e9), "--rate"),
        (LoadOptions(rate=5.0, arrivals="lumpy"), "--arrivals.*poisson"),
        (LoadOptions(rate=5.0, slo_ms="1", slo_factor="1"), "--slo-factor"),
        (LoadOptions(rate=5.0, rate_end=9.0), "--arrivals ramp"),
        (LoadOptions(arrivals="log"), "--file"),
        (LoadOptions(rate=5.0, warmup_s=10.0), "--warmup-s"),
        (LoadOptions(rate=5.0, cv=-1.0), "--cv"),
        (LoadOptions(clients=0), "--clients"),
        (LoadOptions(rate=5.0, seed=-1), "--seed"),
        (LoadOptions(rate=5.0, distinct_inputs=1_000_000), "--distinct-inputs.* 10,000"),
        (LoadOptions(rate=5.0, burst_s=2.0), "--burst-s.* --arrivals burst"),
        (LoadOptions(rate=5.0, think_ms=2.0), "--think-ms.*--clients"),
        (LoadOptions(rate=5.0, mapping="stripe"), "--mapping.* --arrivals maf"),
        (LoadOptions(clients=5, cv=2.0), "--cv.* --arrivals gamma .*burst"),
        (LoadOptions(rate=5.0, arrivals="maf", zipf=1.0), "--zipf.* --clients .*--arrivals poisson"),
        (LoadOptions(rate=5.0, file=Path(__file__)), "--file.* --arrivals log .*maf"),
    ],
)
def test_an_option_that_cannot_stand_is_named(options, named):
    with pytest.raises(LoadError, match=named):
        plan_of(options, ("a",))


@pytest.mark.parametrize("text", ["", "a", "10,,20", "0", "-1", "nan", "10;20"])
def test_lists_of_numbers_are_checked(text):
    with pytest.raises(LoadError, match="--slo-ms"):
        numbers(text, "--slo-ms")


def test_a_recorded_log_is_replayed_from_its_first_request_with_its_own_budgets(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"t_s": 7.5, "model": "a", "rows": 2, "extra": 1}\n{"t_s": 5.0, "model": "b", "slo_ms": 20}\n')
    plan = with_models(plan_of(LoadOptions(arrivals="log", file=file), ("-",)), ("a", "b"))
    targets = {name: LoadTarget(name, ()) for name in ("a", "b")}
    found = open_arrivals(plan.phases[0], {"a": 0, "b": 1}, targets, 0)
    assert found.due_s.tolist() == [0.0, 2.5]
    assert found.model.tolist() == [1, 0]
    assert found.slo_s.tolist() == pytest.approx([0.020, 0.100])
    assert found.rows.tolist() == [1, 2]
    assert plan.phases[0].seconds == pytest.approx(2.501)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"log": "requests", "version": 99}\n', "version 99"),
        ('{"t_s": 1, "model": "a"}\n{"model": "a"}\n', "line 2"),
        ("t,model\n", "line 1"),
        ("", "no request"),
    ],
)
def test_a_log_of_another_version_or_kind_is_refused_with_exit_code_2(tmp_path, text, said):
    file = tmp_path / "log.jsonl"
    file.write_text(text)
    with pytest.raises(GearmeshError, match=said):
        read_lines(file)
    result = CliRunner().invoke(app, ["load", "--arrivals", "log", "--file", str(file)])
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_an_output_file_that_exists_is_not_overwritten(tmp_path, option):
    file = tmp_path / "there"
    file.write_text("precious")
    result = CliRunner().invoke(app, ["load", "--rate", "10", option, str(file)])
    assert result.exit_code == 2
    assert str(file) in result.stderr.replace("\n", "")
    assert file.read_text() == "precious"


def test_the_same_file_for_both_outputs_is_refused(tmp_path):
    file = str(tmp_path / "out")
    result = CliRunner().invoke(app, ["load", "--rate", "10", "--json", file, "--plot", file])
    assert result.exit_code == 2
    assert names(result.stderr, "--json", "--plot")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "5"], "--rate"),
        (["-m", "a", "--slo-ms", "5", "--address", "tcp://h:1"], "--slo-ms, --model, --address"),
        (["--seed", "-1"], "--seed"),
        (["--device", "cpu", "--scale", "1"], "150"),
    ],
)
def test_a_scenario_takes_only_options_that_mean_something_to_it(options, said):
    result = CliRunner().invoke(app, ["load", "paper-6.6", *options])
    assert result.exit_code == 2
    assert said in result.stderr


def test_what_the_simulator_says_of_a_load_is_said_of_the_options(tmp_path):
    day = tmp_path / "day.csv"
    day.write_bytes(bytes(range(256)))
    for options, said in (
        (LoadOptions(rate=0.001, seconds=1.0), "--rate.*--seconds"),
        (LoadOptions(arrivals="maf", rate=5.0, file=day), "--file"),
    ):
        plan = with_models(plan_of(options, ("-",)), ("a",))
        with pytest.raises(LoadError, match=said):
            open_arrivals(plan.phases[0], {"a": 0}, {"a": LoadTarget("a", ())}, 0)


def test_requests_have_the_rows_asked_for():
    plan = with_models(plan_of(LoadOptions(rate=50.0, rows=4), ("-",)), ("a",))
    found = open_arrivals(plan.phases[0], {"a": 0}, {"a": LoadTarget("a", ())}, 0, plan.rows)
    assert set(found.rows.tolist()) == {4}


def test_a_target_that_is_not_there_is_said_with_exit_code_2(monkeypatch):
    monkeypatch.setattr("gearmesh.load.targets.CONNECT_S", 0.1)
    result = CliRunner().invoke(app, ["load", "--rate", "10", "--address", "tcp://127.0.0.1:9"])
    assert result.exit_code == 2
    assert "tcp://127.0.0.1:9" in result.stderr
