"""`gearmesh/cli/simulate.py` and `gearmesh simulate`: what they write, draw, find and refuse."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from gearmesh.cli.main import app as gearmesh
from gearmesh.cli.simulate import simulate

TOML = """
[devices]
count = {devices}
memory_mb = 1000
load_gb_per_s = 50
[models]
count = 4
weights_mb = 50
batch_max = 8
exec_ms = {{intercept = 2.0, slope = 1.0}}
[load]
kind = "poisson"
rate_rps = {rate_rps}
slo_ms = 40
seconds = 0.3
"""
SIZED = """
[models]
profile = "encoder_h100"
[load]
kind = "poisson"
rate_rps = 2000
seconds = 0.2
slo_ms = 10
sizes = {kind = "uniform"}
"""
KEYS = {
    "policy", "seed", "offered", "attainment", "goodput_rps", "p99_ms", "rejected", "cold_starts", "device_utilisation",
}  # fmt: skip
app = typer.Typer()
app.command()(simulate)


def write(folder: Path, devices: int = 1, rate_rps: float = 500, more: str = "") -> str:
    file = folder / "small.toml"
    file.write_text(TOML.format(devices=devices, rate_rps=rate_rps) + more)
    return str(file)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == code, result.output
    return result


def results(folder: Path, *arguments: str) -> dict[str, Any]:
    file = folder / "out.json"
    run(*arguments, "--jobs", "1", "--json", str(file))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_results_and_bounds_are_written_for_every_policy_and_seed(tmp_path: Path) -> None:
    found = results(tmp_path, write(tmp_path), "--policy", "atc", "--policy", "clockwork", "--seeds", "2", "--bound")
    assert [(r["policy"], r["seed"]) for r in found["results"]] == [
        ("atc", 0), ("atc", 1), ("clockwork", 0), ("clockwork", 1),
    ]  # fmt: skip
    assert all(record.keys() == KEYS for record in found["results"])
    assert [bound["seed"] for bound in found["bound"]] == [0, 1]
    assert all(bound.keys() == {"seed", "attainment"} for bound in found["bound"])
    for record in found["results"]:
        assert record["attainment"] <= found["bound"][record["seed"]]["attainment"]


def test_the_same_seed_gives_the_same_results_and_policies_the_same_arrivals(tmp_path: Path) -> None:
    first = results(tmp_path, write(tmp_path), "--policy", "atc", "--policy", "fifo")
    assert first == results(tmp_path, write(tmp_path), "--policy", "atc", "--policy", "fifo")
    assert first["results"][0]["offered"] == first["results"][1]["offered"]


def test_a_scenario_names_its_policies_and_atc_is_what_is_run_without(tmp_path: Path) -> None:
    assert [r["policy"] for r in results(tmp_path, write(tmp_path))["results"]] == ["atc"]
    named = write(tmp_path, more='[policy]\nname = ["fifo", "clockwork"]\n')
    assert [r["policy"] for r in results(tmp_path, named)["results"]] == ["fifo", "clockwork"]


def test_processes_side_by_side_give_what_one_gives(tmp_path: Path) -> None:
    file, out = write(tmp_path), tmp_path / "side.json"
    run(file, "--seeds", "2", "--jobs", "2", "--json", str(out))
    assert json.loads(out.read_text()) == results(tmp_path, file, "--seeds", "2")


def test_the_table_says_what_the_file_says(tmp_path: Path) -> None:
    file = write(tmp_path)
    found = results(tmp_path, file)["results"][0]
    assert f"{found['attainment'] * 100:.2f}" in run(file).output


@pytest.mark.parametrize("options", [(), ("--find-devices", "--target", "0.5")])
def test_results_on_standard_output_are_all_that_is_there(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = run(write(tmp_path), "--jobs", "1", "--json", "-", *options)
    assert json.loads(result.stdout)
    assert "small" in result.stderr


def test_the_fewest_devices_that_are_enough_are_found(tmp_path: Path) -> None:
    file, out = write(tmp_path, rate_rps=2000), tmp_path / "out.json"
    run(file, "--find-devices", "--target", "0.95", "--json", str(out))
    (found,) = json.loads(out.read_text())["find_devices"]
    tried = {entry["devices"]: entry["attainment"] for entry in found["tried"]}
    assert tried[found["devices"]] >= 0.95
    assert found["devices"] > 1
    assert tried[found["devices"] - 1] < 0.95


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    run(write(tmp_path), "--policy", "atc", "--policy", "fifo", "--bound", "--jobs", "1", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_clairvoyant_evictions_and_a_tighter_bound_are_run_on_request(tmp_path: Path) -> None:
    found = results(tmp_path, write(tmp_path, rate_rps=900), "--belady", "--tight")
    assert [r["policy"] for r in found["results"]] == ["atc", "atc + Belady"]
    loose = results(tmp_path, write(tmp_path, rate_rps=900), "--bound")["bound"][0]["attainment"]
    assert found["bound"][0]["attainment"] <= loose + 0.01


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        (["--policy", "edf"], "", ["edf", "atc, clockwork, fifo"]),
        ([], "[noise]\nspeed = 1\n", ["noise.speed", "exec_cv"]),
        ([], "[policy.atc]\nkmaximum = 1\n", ["policy.atc.kmaximum", "there are"]),
        (["--plot", "p.txt"], "", ["--plot", ".png"]),
        (["--json", "/nowhere/at/all.json"], "", ["--json", "folder"]),
    ],
)
def test_what_cannot_be_run_is_refused_with_code_2(
    tmp_path: Path, arguments: list[str], more: str, words: list[str]
) -> None:
    text = run(write(tmp_path, more=more), *arguments, code=2).output
    assert [word for word in words if word not in text] == [], text


def test_a_load_without_requests_is_refused(tmp_path: Path) -> None:
    text = run(write(tmp_path, rate_rps=1e-6), code=2).output
    assert "load" in text
    assert "empty" in text
    assert "rate_rps" in text


def test_there_is_a_file_or_a_word_about_it(tmp_path: Path) -> None:
    assert "nowhere.toml" in run(str(tmp_path / "nowhere.toml"), code=2).output


def test_gearmesh_simulate_is_the_same_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(gearmesh, ["simulate", write(tmp_path), "--policy", "fifo"])
    assert result.exit_code == 0
    assert "fifo" in result.output


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gearmesh.simulation.plots", None)  # as where matplotlib is not installed
    written = tmp_path / "out.json"
    result = CliRunner().invoke(app, [write(tmp_path), "--plot", str(tmp_path / "x.png"), "--json", str(written)])
    assert isinstance(result.exception, ModuleNotFoundError)
    assert not written.exists()


def test_who_was_served_by_size_is_told_where_requests_have_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gearmesh.cli.simulate.out", Console(width=80))
    plain = run(write(tmp_path), "--policy", "fifo").output
    file = tmp_path / "sized.toml"
    file.write_text(SIZED)
    told = run(str(file), "--policy", "fifo", "--policy", "atc").output
    for column in ("by size %", "longest %", "padding %"):
        assert column in " ".join(told.split())
        assert column not in " ".join(plain.split())
    assert "…" not in told, "all of it fits a terminal of 80 columns"
    found = results(tmp_path, str(file), "--policy", "atc", "--bound")
    (details,) = found["details"]
    assert {"q1", "q2", "q3", "q4", "longest", "padding"} <= details.keys()
    assert found["results"][0].keys() == KEYS
    assert found["results"][0]["attainment"] <= found["bound"][0]["attainment"]
