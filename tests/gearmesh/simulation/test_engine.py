"""The production scheduler and lanes on virtual time: every request ends once, whatever fails; runs are repeatable."""

from typing import Any

import numpy as np
import pytest

from controller.core.policies.registry import POLICIES
from gearmesh.simulation.arrivals.loads import arrivals
from gearmesh.simulation.engine import Simulation
from gearmesh.simulation.outcome import Outcome
from gearmesh.simulation.scenario import Scenario
from mesh.codes import AnswerStatus
from tests.gearmesh.simulation.scenarios import scenario, trace

NOISE = {
    "exec_cv": 0.1, "outlier_share": 0.02, "outlier_factor": 4, "load_cv": 0.1, "network_ms": 0.2,
    "network_jitter_ms": 0.1,
}  # fmt: skip
BROKEN = {
    "kill": {"kind": "kill", "at_s": 0.1, "device": 1, "seconds": 0.1},
    "kill for good": {"kind": "kill", "at_s": 0.1, "device": 0},
    "slow": {"kind": "slow", "at_s": 0.05, "device": 0, "factor": 5, "seconds": 0.1},
    "hang": {"kind": "hang", "at_s": 0.1, "device": 1, "seconds": 0.06},
    "lose": {"kind": "lose", "at_s": 0.1, "device": 0, "count": 5},
    "restart": {"kind": "restart", "at_s": 0.1, "seconds": 0.01},
}


def play(found: Scenario, policy: str = "atc", seed: int = 0, **more: Any) -> Outcome:
    return Simulation(found, arrivals(found, seed), policy, seed, **more).run()


def crowded(faults: list[dict[str, Any]], **changes: Any) -> Scenario:
    """Two devices with memory for half of the models, near their capacity."""
    small = {"count": 2, "memory_mb": 150, "load_gb_per_s": 20}
    load = {"rate_rps": 500, "slo_ms": [20, 60], "seconds": 0.3}
    return scenario(**{"devices": small, "models": {"count": 6}, "load": load, "faults": faults, **changes})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", BROKEN)
def test_every_request_ends_once_whatever_breaks(policy: str, fault: str) -> None:
    outcome = play(crowded([BROKEN[fault]]), policy, check=True)
    assert None not in outcome.status
    assert outcome.status.count(AnswerStatus.OK) > 20
    if fault != "lose" and fault != "restart":
        assert max(outcome.heard) == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(2))
def test_every_request_ends_once_though_all_breaks_and_nothing_is_as_predicted(policy: str, seed: int) -> None:
    outcome = play(crowded([*BROKEN.values()], noise=NOISE), policy, seed, check=True)
    assert None not in outcome.status
    assert outcome.status.count(AnswerStatus.OK) > 5


@pytest.mark.parametrize("policy", POLICIES)
def test_no_answer_comes_after_its_deadline_and_none_twice(policy: str) -> None:
    outcome = play(crowded([]), policy)
    late = [i for i, status in enumerate(outcome.status) if status == AnswerStatus.OK and not outcome.in_time(i)]
    assert late == []
    assert max(outcome.heard) <= 1


def test_work_goes_on_under_the_next_controller() -> None:
    found = crowded([{"kind": "restart", "at_s": 0.1, "seconds": 0.02}])
    outcome = play(found)
    after = [outcome.in_time(i) for i, arrived_s in enumerate(outcome.arrived_s) if arrived_s > 0.13]
    assert sum(after) > 0.7 * len(after)


def test_work_goes_on_when_a_device_is_back() -> None:
    load = {"rate_rps": 400, "slo_ms": 20, "seconds": 0.3}
    fault = {"kind": "kill", "at_s": 0.1, "seconds": 0.05}
    found = crowded([fault], devices={"count": 1, "memory_mb": 400}, load=load)
    outcome = play(found)
    gone = [outcome.in_time(i) for i, s in enumerate(outcome.arrived_s) if 0.1 < s < 0.11]
    after = [outcome.in_time(i) for i, s in enumerate(outcome.arrived_s) if s > 0.2]
    assert not any(gone)
    assert any(after)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_seed_is_one_story(policy: str) -> None:
    found = crowded([*BROKEN.values()], noise=NOISE)
    first, second = play(found, policy, 3), play(found, policy, 3)
    assert first == second
    assert play(found, policy, 4) != first


def test_an_empty_device_loads_first_and_then_takes_as_long_as_the_profile_says() -> None:
    """50 MB at 10 GB/s, then 3 ms; later 3 ms alone."""
    found = scenario(models={"count": 1}, devices={"load_gb_per_s": 10})
    outcome = Simulation(found, trace([0.0, 1.0], 0.1), "atc").run()
    assert outcome.latency_s == pytest.approx([0.005 + 0.003, 0.003], abs=1e-6)
    assert outcome.record("atc", 0, 1, 2.0)["attainment"] == 1.0


def test_a_record_says_what_became_of_the_requests() -> None:
    found = crowded([])
    outcome = play(found, "atc")
    record = outcome.record("atc", 0, 2, 0.3)
    good = sum(map(outcome.in_time, range(len(outcome.status))))
    assert record["offered"] == len(outcome.status)
    assert record["attainment"] == good / len(outcome.status)
    assert record["goodput_rps"] == pytest.approx(good / 0.3)
    assert record["rejected"] == outcome.status.count(AnswerStatus.REJECTED)
    assert 0 < record["device_utilisation"] <= 1


def test_clients_of_a_closed_loop_ask_again_when_they_are_answered() -> None:
    found = scenario(load={"kind": "closed", "clients": 4, "rate_rps": None, "seconds": 0.2}, models={"count": 1})
    outcome = play(found)
    at_once = [
        sum(a <= s < a + d for a, d in zip(outcome.arrived_s, outcome.latency_s, strict=True)) for s in (0.05, 0.1)
    ]
    assert len(outcome.status) > 40
    assert max(at_once) <= 4


def test_clairvoyant_evictions_do_no_worse_where_memory_is_short() -> None:
    found = crowded([], load={"kind": "poisson", "rate_rps": 200, "slo_ms": 30, "seconds": 1, "zipf": 0.5})
    plain, knowing = (play(found, "atc", clairvoyant=clairvoyant) for clairvoyant in (False, True))
    good = [sum(map(outcome.in_time, range(len(outcome.status)))) for outcome in (plain, knowing)]
    assert good[1] >= 0.97 * good[0]


def test_progress_is_told() -> None:
    heard: list[float] = []
    found = scenario(load={"rate_rps": 2500, "seconds": 1})
    Simulation(found, arrivals(found, 0), "fifo", progress=heard.append).run()
    assert heard == sorted(heard)
    assert len(heard) >= 2
    assert np.all(np.array(heard) <= 1)
