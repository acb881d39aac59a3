"""No scheduler exceeds the bounds: neither a policy, nor an exact search that knows the future."""

import numpy as np
import pytest

from controller.core.policies.registry import POLICIES
from gearmesh.simulation.arrivals.loads import Trace, arrivals
from gearmesh.simulation.bounds.bound import Bound, fluid_bound, interval_bound, packing_bound
from gearmesh.simulation.bounds.exact import REQUESTS_MAX, exact
from gearmesh.simulation.engine import Simulation
from gearmesh.simulation.scenario import Scenario
from tests.gearmesh.simulation.scenarios import scenario, trace

RUNS = 25  # scenarios of each of the tests below, for each of the seeds
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]


def answers(bound: Bound) -> float:
    return bound.attainment * bound.requests


def draw(rng: np.random.Generator, requests: int) -> tuple[Scenario, Trace]:
    """A small scenario, with enough work for some of its windows, and its trace."""
    count, models = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    line = {"intercept": float(rng.choice([0.5, 3.0, 8.0])), "slope": float(rng.choice([0.0, 0.2, 1.0, 4.0]))}
    alone_s = sum(line.values()) / 1e3
    found = scenario(
        devices={"count": count, "memory_mb": 150, "load_gb_per_s": float(rng.choice([5.0, 50.0, 5000.0]))},
        models={"count": models, "batch_max": int(rng.choice([2, 4, 16])), "exec_ms": line},
    )
    times = np.sort(rng.random(requests)) * requests / count * alone_s * float(rng.choice([0.1, 0.3, 1.0]))
    slack = float(rng.uniform(1.0, 6.0)) if rng.random() < 0.5 else rng.uniform(1.0, 6.0, requests)
    return found, trace(times, alone_s * slack, rng.integers(models, size=requests))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_policy_exceeds_a_bound(seed: int) -> None:
    rng = np.random.default_rng([1, seed])
    for _ in range(RUNS):
        found, requests = draw(rng, int(rng.integers(5, 50)))
        bounds = (
            fluid_bound(found, requests),
            interval_bound(found, requests),
            packing_bound(found, requests, rounds=3),
        )
        most = min(map(answers, bounds))
        for policy in POLICIES:
            outcome = Simulation(found, requests, policy).run()
            assert sum(map(outcome.in_time, range(len(requests)))) <= most + 1e-6, policy


@pytest.mark.parametrize("seed", SEEDS)
def test_an_exact_search_lies_between_policies_and_bounds(seed: int) -> None:
    rng = np.random.default_rng([2, seed])
    for _ in range(RUNS):
        found, requests = draw(rng, int(rng.integers(2, 8)))
        best = exact(found, requests)
        outcome = Simulation(found, requests, "atc").run()
        assert sum(map(outcome.in_time, range(len(requests)))) <= best
        quick = scenario(devices={"count": found.devices.count, "load_gb_per_s": 1e9})
        resident = Scenario("resident", quick.devices, found.models, found.load)
        for bound in (
            fluid_bound(resident, requests),
            interval_bound(resident, requests),
            packing_bound(resident, requests, rounds=3),
        ):
            assert best <= answers(bound) + 1e-6


def test_the_bound_is_tight_where_requests_cannot_share() -> None:
    """Three requests at once, 3 ms each, one device: by 3.5 ms one can end, by 6.5 ms two."""
    found = scenario(models={"count": 3}, devices={"load_gb_per_s": 1e9})
    assert answers(interval_bound(found, trace([0, 0, 0], 0.0065, [0, 1, 2]))) == 2
    assert answers(interval_bound(found, trace([0, 0, 0], 0.0035, [0, 1, 2]))) == 1
    assert answers(interval_bound(found, trace([0, 0, 0], 0.0029, [0, 1, 2]))) == 0


def test_the_bound_counts_a_whole_batch() -> None:
    """Eight requests for one model in one batch: 10 ms."""
    found = scenario(models={"count": 1}, devices={"load_gb_per_s": 1e9})
    assert answers(interval_bound(found, trace([0.0] * 8, 0.0101))) == 8
    assert answers(packing_bound(found, trace([0.0] * 8, 0.0099))) < 8


def test_whole_batches_bound_no_less_tightly() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        found, requests = draw(rng, 60)
        assert packing_bound(found, requests).attainment <= interval_bound(found, requests).attainment


def test_loads_limit_what_can_be_answered() -> None:
    """Ten models, each with a LOAD of 10 ms, asked at once with 40 ms: three LOADs fit, and the EXEC of the last."""
    found = scenario(models={"count": 10, "weights_mb": 100}, devices={"load_gb_per_s": 10})
    requests = trace(np.zeros(10), 0.040, np.arange(10))
    assert answers(interval_bound(found, requests)) <= 4
    assert answers(interval_bound(scenario(models={"count": 10, "weights_mb": 1}), requests)) == 10


def test_fifty_thousand_requests_take_less_than_a_minute() -> None:
    found = scenario(
        devices={"count": 4, "load_gb_per_s": 55, "memory_mb": 65536},
        models={"count": 32, "batch_max": 32, "exec_ms": {"intercept": 0.8, "slope": 0.11}},
        load={"rate_rps": 50_000, "slo_ms": 25, "seconds": 1, "zipf": 0.9},
    )
    requests = arrivals(found, 0)
    bound = interval_bound(found, requests)
    assert len(requests) > 49_000
    assert bound.seconds_taken < 60
    assert 0.5 < bound.attainment < 1.0


def test_a_closed_loop_has_no_bound_and_a_search_has_a_limit() -> None:
    closed = scenario(load={"kind": "closed", "clients": 2, "rate_rps": None})
    with pytest.raises(ValueError, match="closed loop"):
        interval_bound(closed, arrivals(closed, 0))
    with pytest.raises(ValueError, match=str(REQUESTS_MAX)):
        exact(scenario(), trace(np.zeros(REQUESTS_MAX + 1), 1.0))
