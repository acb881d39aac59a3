"""scripts/bench_neighbours.py: all of it runs, and its figures are of what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import ROOT
from scripts.bench_neighbours import middle, wrong
from scripts.rigs.checkouts import HeldMesh
from scripts.rigs.neighbourhoods import Neighbourhood, of_container, plan_of
from scripts.rigs.neighbours import http_request


def where(folder: Path) -> Neighbourhood:
    return Neighbourhood("gearmesh", HeldMesh(ROOT, "tcp://127.0.0.1:1", {}, {}), 2, folder)


def test_rows_of_those_that_left_count_from_when_they_left(tmp_path: Path) -> None:
    assert where(tmp_path).rows_of_leavers(0.0) == 0
    (tmp_path / "leavers").write_text("10.0 8\n12.5 8\n13.0 3\n")
    assert [where(tmp_path).rows_of_leavers(since_s) for since_s in (0.0, 12.5, 12.6, 14.0)] == [19, 11, 3, 0]


def test_neighbours_ask_for_the_model_of_the_sound_clients_with_a_row_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(where(tmp_path), "leaving", of_container("double"), -1.0, clients=3, slo_ms=5.0)
    assert (plan.model, plan.dtype, plan.row, plan.clients) == ("double", "float32", [-1.0, 0.0, 0.0, 0.0], 3)
    head, _, body = http_request(plan).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/double/infer HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    asked = json.loads(body)
    assert asked["inputs"] == [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": plan.row}]
    assert asked["parameters"] == {"slo_ms": 5.0, "cache": False}


def test_figures_are_medians_of_the_rounds_that_have_them_and_wrong_answers_are_counted() -> None:
    runs = [{"p99_ms": value, "outcomes": {"ok": 1, "wrong": 2}} for value in (3.0, None, 1.0, 2.0)]
    assert middle(runs, "p99_ms") == 2.0
    assert middle(runs[1:2], "p99_ms") is None
    assert wrong({"a": {"gearmesh": {"alone": runs, "beside": runs[:1]}}}) == 10


@pytest.mark.slow
@pytest.mark.end_to_end
def test_all_of_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.bench_neighbours", "--quick", "--json", file],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(file.read_text())
    assert json.loads(ended.stdout.splitlines()[-1]) == result
    for figures in result["results"].values():
        for beside in ("alone", "beside"):
            (run,) = figures["gearmesh"][beside]
            assert sum(run["outcomes"].values()) == run["n"] > 0
            assert bool(run["neighbours"]) == (beside == "beside")
    (left,) = result["leavers"]["gearmesh"]
    assert left["sent"] == 100
    assert 0 <= left["rows_for_nobody"] <= 100
