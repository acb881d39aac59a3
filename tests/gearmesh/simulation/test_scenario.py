"""What a scenario file may contain, and the messages about faults."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from gearmesh.simulation.scenario import FAULTS, KINDS, ScenarioError, find_scenario, parse_scenario, read_scenario
from gpu_worker.profiling import profile_file, write_profile
from mesh import wire
from scripts import ROOT
from tests.gearmesh.simulation.scenarios import LINE, mapping, scenario

SCENARIOS = ROOT / "gearmesh" / "simulation" / "scenarios"


def told(folder: Path = SCENARIOS, **changes: Any) -> str:
    """The message about a scenario with faults."""
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(mapping(**changes), "test", folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load": {"rate_rps": -5}}, ["load.rate_rps", "above 0", "-5"]),
        ({"load": {"rate_rps": "fast"}}, ["load.rate_rps", "a number", "'fast'"]),
        ({"load": {"rate_rps": True}}, ["load.rate_rps", "a number"]),
        ({"load": {"rate_rps": None}}, ["load.rate_rps", "missing"]),
        ({"load": {"rate_rps": float("nan")}}, ["load.rate_rps", "a number"]),
        ({"load": {"kind": "poison"}}, ["load.kind", "poisson", "gamma", "maf", "burst", "log"]),
        ({"load": {"rps": 5}}, ["load.rps", "no such key", "rate_rps"]),
        ({"load": {"cv": -1}}, ["load.cv", "0 or more"]),
        ({"load": {"slo_ms": 0}}, ["load.slo_ms", "above 0"]),
        ({"load": {"slo_ms": []}}, ["load.slo_ms", "list"]),
        ({"load": {"slo_ms": [50, -1]}}, ["load.slo_ms", "above 0"]),
        ({"load": {"seconds": 0}}, ["load.seconds", "above 0"]),
        ({"load": {"seconds": 1e6, "rate_rps": 1e6}}, ["load.rate_rps", "at most"]),
        ({"load": {"kind": "log"}}, ["load.path", "missing"]),
        ({"load": {"kind": "log", "path": "nowhere.jsonl"}}, ["load.path", "a file that can be read", "nowhere.jsonl"]),
        ({"load": {"kind": "maf", "path": "nowhere.csv"}}, ["load.path", "a file that can be read"]),
        ({"load": {"kind": "maf", "mapping": "blocks"}}, ["load.mapping", "block, stripe, random"]),
        ({"devices": {"count": 0}}, ["devices.count", "from 1"]),
        ({"devices": {"gpus": 4}}, ["devices.gpus", "no such key", "count", "memory_mb", "load_gb_per_s"]),
        ({"devices": {"memory_mb": 10}}, ["devices.memory_mb", "largest model"]),
        ({"devices": {"load_gb_per_s": -1}}, ["devices.load_gb_per_s", "above 0"]),
        ({"models": {"exec_ms": None}}, ["models.exec_ms", "intercept", "slope", "profile"]),
        ({"models": {"exec_ms": {"intercept": 1.0}}}, ["models.exec_ms", "intercept and slope"]),
        ({"models": {"exec_ms": {"intercept": -1.0, "slope": 2.0}}}, ["models.exec_ms", "0 or more"]),
        ({"models": {"exec_ms": 5}}, ["models.exec_ms", "intercept"]),
        ({"models": {"exec_ms": {"0": 1.0, "1": 2.0}}}, ["models.exec_ms", "from 1 to"]),
        ({"models": {"exec_ms": {"2": 1.0}}}, ["models.exec_ms", "batch 1"]),
        ({"models": {"exec_ms": {"1": 4.0, "8": 1.0}}}, ["models.exec_ms", "batch 8", "less than half"]),
        ({"models": {"batch_max": 0}}, ["models.batch_max", "from 1 to"]),
        ({"models": {"profile": "paper"}}, ["models.exec_ms", "either"]),
        ({"models": {"profile": "papers", "exec_ms": None}}, ["models.profile", "encoder_h100, h100, paper"]),
        ({"models": {"profile": "h100", "exec_ms": None, "use": ["gpt9"]}}, ["models.use", "resnet50_like"]),
        ({"models": {"size": 1}}, ["models.size", "no such key", "weights_mb", "batch_max"]),
        ({"models": []}, ["models", "must be"]),
        ({"noise": {"exec_sd": 1}}, ["noise.exec_sd", "no such key", "exec_cv"]),
        ({"noise": {"outlier_share": 0.1}}, ["noise.outlier_factor", "missing"]),
        ({"faults": {"kind": "flood", "at_s": 1}}, ["faults.kind", *FAULTS]),
        ({"faults": {"kind": "kill", "at_s": 1, "device": 1}}, ["faults.device", "from 0 to 0"]),
        ({"faults": [{"kind": "slow", "at_s": 1, "seconds": 1}]}, ["faults[0].factor", "missing"]),
        ({"policy": {"name": "edf"}}, ["policy.name", "atc, clockwork, fifo"]),
        ({"policy": {"edf": {}}}, ["policy.edf", "no such key", "atc, clockwork, fifo"]),
        ({"network": {}}, ["network", "no such key", "devices", "load", "noise"]),
    ],
)  # fmt: skip
def test_what_cannot_stand_is_told_with_its_key_and_what_may(changes: dict[str, Any], words: list[str]) -> None:
    text = told(**changes)
    assert [word for word in words if word not in text] == [], text


def test_all_faults_are_told_at_once() -> None:
    text = told(load={"rate_rps": -1, "zipf": -1}, devices={"count": 0})
    assert all(key in text for key in ("load.rate_rps", "load.zipf", "devices.count"))


def test_what_is_no_toml_is_told_with_the_place(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("[load\n")
    with pytest.raises(ScenarioError, match=r"broken\.toml.*\n.*TOML"):
        read_scenario(file)


@pytest.mark.parametrize("file", sorted(SCENARIOS.glob("*.toml")), ids=lambda file: file.stem)
def test_scenarios_go_to_other_processes_as_they_are(file: Path) -> None:
    there = read_scenario(file)
    assert pickle.loads(pickle.dumps(there)) == there  # noqa: S301  # written here


@pytest.mark.parametrize("file", sorted(SCENARIOS.glob("*.toml")), ids=lambda file: file.stem)
def test_the_scenarios_that_come_with_it_can_be_read(file: Path) -> None:
    assert read_scenario(file).notes == ()


def test_nothing_is_noisy_or_delayed_unless_named() -> None:
    noise = scenario().noise
    assert (noise.exec_cv, noise.outlier_share, noise.load_cv, noise.network_ms, noise.network_jitter_ms) == (0,) * 5


def test_a_line_gives_a_duration_for_every_batch() -> None:
    (model, *_) = scenario().models
    assert model.exec_s == pytest.approx([0.0, *((2 + b) / 1e3 for b in range(1, 9))])
    assert len(scenario().models) == 4


def test_groups_have_models_of_their_own() -> None:
    groups = [{"name": "a", "count": 2, "exec_ms": LINE}, {"name": "b", "exec_ms": {"1": 5.0, "4": 8.0}, "slo_ms": 9}]
    first, second, third = scenario(models=groups).models
    assert [first.name, second.name, third.name] == ["a.0", "a.1", "b"]
    assert third.exec_s == pytest.approx([0.0, 0.005, 0.006, 0.007, 0.008])
    assert third.slo_ms == (9.0,)


def test_a_profile_that_a_worker_measured_can_be_used(tmp_path: Path) -> None:
    version = tmp_path / "digits" / "1"
    version.mkdir(parents=True)
    write_profile(version, "cpu x", wire.Profile(exec_s={1: 0.001, 2: 0.0015, 4: 0.0025}, load_s=0.1, engine="eager"))
    name = str(profile_file(version, "cpu x").relative_to(tmp_path))
    (model,) = scenario(tmp_path, models={"count": None, "batch_max": None, "exec_ms": None, "profile": name}).models
    assert model.name == "digits"
    assert model.exec_s == pytest.approx([0.0, 0.001, 0.0015, 0.002, 0.0025])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["p.json", "JSON"]),
        ({"name": "x", "models": {"m": {"exec_ms": {}}}}, ["models.m.exec_ms"]),
        ({"name": "x", "models": {"m": {"exec_ms": {"1": -2.0}}}}, ["models", "exec_ms"]),
        ({"name": "x", "models": {"m": {"exec_ms": {"99999": 2.0, "1": 1.0}}}}, ["models.m.exec_ms", "1024"]),
        ({"name": "x", "models": {"m": {"exec_ms": {"4": 2.0}}}}, ["models.m.exec_ms", "batch 1"]),
        ({"name": "x", "models": {"m": {"exec_ms": {"1": 9.0, "4": 2.0}}}}, ["models.m.exec_ms", "less than half"]),
        ({"format": 1, "kind": "k", "profile": {}}, ["p.json", "$.profile"]),
        ({"format": 1, "kind": "k", "profile": [{}, 0.1]}, ["exec_ms", "batch 1"]),
        ({"format": 1, "kind": "k", "profile": [{"2": 0.1}, 0.1]}, ["exec_ms", "batch 1"]),
    ],
)
def test_a_profile_with_missing_or_absurd_batches_is_told_of(tmp_path: Path, content: Any, words: list[str]) -> None:
    (tmp_path / "p.json").write_text(content if isinstance(content, str) else json.dumps(content))
    text = told(tmp_path, models={"exec_ms": None, "profile": "p.json"})
    assert "models.profile" in text
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("log", "closed")])
def test_the_keys_that_all_loads_have_may_stand_in_every_kind(kind: str) -> None:
    load = {"kind": kind, "cv": 2.0, "zipf": 0.9, "slo_ms": [25, 100]}
    found = scenario(load=load)
    assert found.load.slo_ms == (25.0, 100.0)
    assert bool(found.notes) == (kind not in ("gamma", "burst"))


def test_a_policy_can_be_named_and_set_in_the_scenario() -> None:
    found = scenario(policy={"name": ["fifo", "atc"], "fifo": {"wait_s": 0.002}})
    assert found.policies == ("fifo", "atc")
    assert found.parameters == {"fifo": {"wait_s": 0.002}}
    assert scenario().policies == ("atc",)


def test_a_scenario_that_comes_with_gearmesh_is_found_by_its_name_and_a_file_of_the_name_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_scenario("w1_steady") == SCENARIOS / "w1_steady.toml"
    assert find_scenario("nothing") == Path("nothing")
    (tmp_path / "w1_steady").touch()
    assert find_scenario("w1_steady") == Path("w1_steady")
