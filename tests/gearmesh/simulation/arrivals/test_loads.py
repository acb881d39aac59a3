"""Arrivals: their number and distribution are as specified, and equal for equal seeds."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gearmesh.simulation.arrivals.loads import Trace, arrivals
from gearmesh.simulation.fields import ScenarioError
from tests.facts import REQUEST
from tests.gearmesh.simulation.scenarios import scenario

MODELS = {"count": 20}


def drawn(seed: int = 0, models: dict[str, Any] | None = None, folder: Path = Path(), **load: Any) -> Trace:
    base = {"rate_rps": 4000, "seconds": 10}
    return arrivals(scenario(folder, models=models or MODELS, load={**base, **load}), seed)


def gap_cv(trace: Trace, model: int) -> float:
    gaps = np.diff(trace.time_s[trace.model == model])
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("kind", ["poisson", "gamma", "maf", "burst", "fixed", "ramp"])
def test_a_trace_is_sorted_inside_its_time_and_the_same_for_its_seed(kind: str) -> None:
    more = {"functions": 500} if kind == "maf" else {}
    trace, same, other = (drawn(seed, kind=kind, **more) for seed in (1, 1, 2))
    assert np.all(np.diff(trace.time_s) >= 0)
    assert trace.time_s[0] >= 0
    assert trace.time_s[-1] < 10
    assert np.array_equal(trace.time_s, same.time_s)
    assert np.array_equal(trace.model, same.model)
    assert len(trace) != len(other) or not np.array_equal(trace.time_s, other.time_s)


@pytest.mark.parametrize(("kind", "within"), [("poisson", 0.03), ("gamma", 0.05), ("fixed", 0.001), ("ramp", 0.03)])
def test_the_rate_is_that_of_all_models_together(kind: str, within: float) -> None:
    assert len(drawn(kind=kind)) == pytest.approx(40_000, rel=within)


def test_the_maf_like_load_has_the_rate_asked_for_though_it_is_uneven() -> None:
    trace = drawn(kind="maf", functions=5000)
    assert len(trace) == pytest.approx(40_000, rel=0.15)
    counts = np.sort(np.bincount(trace.model, minlength=20))[::-1]
    assert counts[:2].sum() > 0.5 * counts.sum()


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_of_a_model_have_the_cv_asked_for(cv: float) -> None:
    trace = drawn(kind="gamma", cv=cv, seconds=100)
    assert np.mean([gap_cv(trace, model) for model in range(20)]) == pytest.approx(cv, rel=0.1)


def test_bursts_have_the_cv_asked_for() -> None:
    trace = drawn(kind="burst", cv=3.0, seconds=100)
    assert np.mean([gap_cv(trace, model) for model in range(20)]) == pytest.approx(3.0, rel=0.25)


def test_popularity_follows_zipf() -> None:
    counts = np.sort(np.bincount(drawn(zipf=1.0).model, minlength=20))[::-1]
    assert counts[0] / counts[9] == pytest.approx(10.0, rel=0.15)


def test_a_group_gets_its_share() -> None:
    groups = [
        {"name": name, "exec_ms": {"1": 5.0}, "count": count, **more}
        for name, count, more in (("few", 1, {"rate_share": 0.25}), ("many", 9, {}))
    ]
    trace = arrivals(scenario(models=groups, load={"rate_rps": 4000, "seconds": 5}), 0)
    assert np.mean(trace.model == 0) == pytest.approx(0.25, abs=0.02)


def test_deadlines_are_drawn_from_the_list() -> None:
    values, counts = np.unique(drawn(slo_ms=[25, 100]).slo_s, return_counts=True)
    assert values == pytest.approx([0.025, 0.1])
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


def test_a_log_is_played_as_it_was(tmp_path: Path) -> None:
    lines = [
        {"t_s": 7.0, "model": "model.1", "slo_ms": 30, "rows": 2},
        {"t_s": 5.0, "model": "model.0", "status": "ok"},
        {"t_s": 5.5, "model": "model.3"},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    load = {"kind": "log", "path": "log.jsonl", "slo_ms": 40, "rate_rps": None, "seconds": None}
    trace = arrivals(scenario(tmp_path, load=load), 0)
    assert trace.time_s.tolist() == [0.0, 0.5, 2.0]
    assert trace.model.tolist() == [0, 3, 1]
    assert trace.slo_s.tolist() == [0.04, 0.04, 0.03]
    assert trace.rows.tolist() == [1, 1, 2]
    squeezed = arrivals(scenario(tmp_path, load={**load, "rate_rps": 10}), 0)
    assert squeezed.time_s[-1] == pytest.approx(0.2)


def test_the_log_of_a_controller_is_played_as_it_is(tmp_path: Path) -> None:
    controllers_log(tmp_path / "requests-1.jsonl", ("model.2:1", 3, 71.5, 0.05), ("model.0:12", 1, 71.0, 0.02))
    load = {"kind": "log", "path": "requests-1.jsonl", "rate_rps": None, "seconds": None}
    trace = arrivals(scenario(tmp_path, load=load), 0)
    assert trace.time_s.tolist() == [0.0, 0.5]
    assert trace.model.tolist() == [0, 2]
    assert trace.slo_s.tolist() == pytest.approx([0.02, 0.05])
    assert trace.rows.tolist() == [1, 3]


def test_a_folder_of_logs_is_played_as_one(tmp_path: Path) -> None:
    (tmp_path / "telemetry").mkdir()
    for number, arrived_s in ((1, 71.0), (2, 73.0)):
        controllers_log(tmp_path / "telemetry" / f"requests-{number}.jsonl", ("model.0:1", 1, arrived_s, 0.05))
    load = {"kind": "log", "path": "telemetry", "rate_rps": None, "seconds": None}
    assert arrivals(scenario(tmp_path, load=load), 0).time_s.tolist() == [0.0, 2.0]


def test_lines_of_a_controllers_log_without_its_header_will_do(tmp_path: Path) -> None:
    lines = [
        {"kind": "request", "ref": "model.2:1", "rows": 3, "arrived_s": 71.5, "slo_s": 0.05, "outcome": "in_time"},
        {"kind": "dropped", "count": 4},
        {"kind": "request", "ref": "model.0:12", "rows": 1, "arrived_s": 71.0, "slo_s": 0.02, "outcome": "late"},
    ]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, lines)))
    load = {"kind": "log", "path": "some.jsonl", "rate_rps": None, "seconds": None}
    assert arrivals(scenario(tmp_path, load=load), 0).time_s.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("header", "words"),
    [({"version": 3}, r"\b3\b.*\b1 and 2\b"), ({"log": "actions"}, "'actions'")],
)
def test_a_log_of_another_version_or_kind_is_refused(tmp_path: Path, header: dict[str, object], words: str) -> None:
    controllers_log(tmp_path / "requests.jsonl", ("model.2:1", 3, 71.5, 0.05), **header)
    load = {"kind": "log", "path": "requests.jsonl", "rate_rps": None, "seconds": None}
    with pytest.raises(ScenarioError, match=words):
        arrivals(scenario(tmp_path, load=load), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["load.path", "no request"]),
        ("{}", ["load.path", "line 1", "t_s"]),
        ('{"t_s": 1, "model": "m9"}', ["load.path", "m9", "model.0"]),
        ('{"t_s": 1, "model": "model.0", "slo_ms": -4}', ["line 1", "slo_ms"]),
        ('{"t_s": 1, "model": "model.0", "rows": 99}', ["rows", "largest batch", "8", "99"]),
        ("nonsense", ["load.path", "line 1"]),
    ],
)
def test_a_log_that_cannot_be_played_is_told_of(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    load = {"kind": "log", "path": "log.jsonl", "rate_rps": None}
    with pytest.raises(ScenarioError) as caught:
        arrivals(scenario(tmp_path, load=load), 0)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def controllers_log(file: Path, *requests: tuple[str, int, float, float], **header: object) -> None:
    """Writes a request log as a controller does. `requests`: (ref, rows, arrived_s, slo_s)."""
    first = {"log": "requests", "version": 1, "controller": "c", "policy": "atc", "clock_s": 70.0, "unix_s": 1e9}
    lines = [json.dumps({**first, **header})]
    for ref, rows, arrived_s, slo_s in requests:
        fact = msgspec.structs.replace(REQUEST, ref=ref, rows=rows, arrived_s=arrived_s, slo_s=slo_s)
        lines.append(msgspec.json.encode(fact).decode())
    lines.append(json.dumps({"kind": "dropped", "count": 4}))
    file.write_text("\n".join([*lines, ""]))


def azure(folder: Path, rows: list[list[int]]) -> None:
    """Writes a day file with these counts in the first minutes, and 0 in the others."""
    header = ["HashOwner", "HashApp", "HashFunction", "Trigger", *map(str, range(1, 1441))]
    lines = [",".join(header)]
    lines += [
        ",".join(["o", "a", f"f{i}", "http", *map(str, row), *["0"] * (1440 - len(row))]) for i, row in enumerate(rows)
    ]
    (folder / "day.csv").write_text("\n".join(lines) + "\n")


def test_an_azure_day_is_played_minute_by_minute(tmp_path: Path) -> None:
    azure(tmp_path, [[600, 0, 0], [0, 0, 60], [6000, 6000, 0]])
    load = {"kind": "maf", "path": "day.csv", "minutes": 3, "seconds": 180, "rate_rps": None, "mapping": "stripe"}
    trace = arrivals(scenario(tmp_path, models={"count": 3}, load=load), 0)
    counts = sorted(np.bincount(trace.model, minlength=3).tolist())
    assert counts == pytest.approx([60, 600, 12_000], rel=0.3)
    minutes = np.bincount((trace.time_s // 60).astype(int), minlength=3)
    assert minutes == pytest.approx([6600, 6000, 60], rel=0.3)
    scaled = arrivals(scenario(tmp_path, models={"count": 3}, load={**load, "rate_rps": 10}), 0)
    assert len(scaled) == pytest.approx(1800, rel=0.1)


def test_an_azure_file_without_its_columns_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text("a,b\n1,2\n")
    load = {"kind": "maf", "path": "day.csv", "rate_rps": None}
    with pytest.raises(ScenarioError, match=r"load\.path.*1440"):
        arrivals(scenario(tmp_path, load=load), 0)
