"""scripts/bench_neighbours.py: all of it runs, and its figures are of what it says."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scripts import ROOT
from scripts.rigs.checkouts import HeldMesh
from scripts.rigs.neighbour_tables import Figures, SoundRun
from scripts.rigs.neighbourhoods import Neighbourhood, Situation, of_container, plan_of
from scripts.rigs.neighbours import http_request
from scripts.rigs.open_loops import Seen


def where(folder: Path) -> Neighbourhood:
    return Neighbourhood("gearmesh", HeldMesh(ROOT, "tcp://127.0.0.1:1", {}, {}), 2, folder)


def sound(ok: int, wrong: int = 0, failed: int = 0) -> SoundRun:
    return SoundRun(Seen([0.01] * ok, Counter({"ok": ok, "wrong": wrong, "failed device_error": failed})), {}, 0.0)


def test_rows_of_those_that_left_count_from_when_they_left(tmp_path: Path) -> None:
    assert where(tmp_path).rows_of_leavers(0.0) == 0
    (tmp_path / "leavers").write_text("10.0 8\n12.5 8\n13.0 3\n")
    assert [where(tmp_path).rows_of_leavers(since_s) for since_s in (0.0, 12.5, 12.6, 14.0)] == [19, 11, 3, 0]


def test_neighbours_ask_for_the_model_of_the_sound_clients_with_a_row_of_their_own(tmp_path: Path) -> None:
    situation = Situation("", of_container("double"), "leaving", -1.0, {"clients": 3, "slo_ms": 5.0})
    plan = plan_of(where(tmp_path), situation)
    assert (plan.model, plan.dtype, plan.row, plan.clients) == ("double", "float32", [-1.0, 0.0, 0.0, 0.0], 3)
    head, _, body = http_request(plan).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/double/infer HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    asked = json.loads(body)
    assert asked["inputs"] == [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": plan.row}]
    assert asked["parameters"] == {"slo_ms": 5.0, "cache": False}


def test_goodput_is_of_all_sound_requests_and_its_ratio_of_the_medians_of_the_rounds() -> None:
    alone = [sound(10), sound(8, failed=2), sound(10)]
    beside = [sound(4, failed=6), sound(5, wrong=5), sound(9, wrong=1)]
    figures = Figures({("s", "m", False): alone, ("s", "m", True): beside})
    assert figures.ratios() == {"s, m: goodput beside / alone": 0.5}
    assert figures.wrong == 6
    told = figures.described()["sound"]["s"]["m"]["beside"]
    assert [each["goodput"] for each in told["rounds"]] == [0.4, 0.5, 0.9]
    assert told["latencies_ms"] == {"p50": 10.0, "p95": None, "p99": None}  # too few for those


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
    for figures in result["sound"].values():
        for how, of_rounds in figures["gearmesh"].items():
            (run,) = of_rounds["rounds"]
            assert sum(run["outcomes"].values()) == run["n"] > 0
            assert bool(run["neighbours"]) == (how == "beside")
    (left,) = result["leaving"]["gearmesh"]
    assert left["left"] == 100
    assert 0 <= left["rows_for_nobody"] <= 100
