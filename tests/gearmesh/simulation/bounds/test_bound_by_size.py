"""No scheduler exceeds the bounds where requests have sizes: neither a policy, nor an exact search."""

from typing import Any

import numpy as np
import pytest

from controller.core.policies.registry import POLICIES
from gearmesh.simulation.arrivals.loads import Trace
from gearmesh.simulation.bounds.bound import Bound, fluid_bound, interval_bound, packing_bound, share_bound
from gearmesh.simulation.bounds.exact import exact
from gearmesh.simulation.engine import Simulation
from gearmesh.simulation.scenario import Scenario
from tests.gearmesh.simulation.scenarios import scenario, trace

RUNS = 25  # scenarios of each of the tests below, for each of the seeds
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
FLAT = {"intercept": 2.0, "element": 0.05}
ANY = {"kind": "uniform"}


def answers(bound: Bound) -> float:
    return bound.attainment * bound.requests


def _open_group(rng: np.random.Generator, name: str) -> dict[str, Any]:
    """A model with one or two open dimensions, and durations by a formula or by a table."""
    dims = {"seq": [1, 64]} if rng.random() < 0.7 else {"h": [2, 8], "w": [2, 8]}
    group: dict[str, Any] = {"name": name, "count": 1, "batch_max": int(rng.choice([2, 4, 16])), "dims": dims}
    if rng.random() < 0.3:
        group["elements_max"] = int(rng.integers(64, 256))
    if rng.random() < 0.3:
        edges = [[8], [32], [64]] if len(dims) == 1 else [[4, 4], [4, 8], [8, 4], [8, 8]]
        ms = np.sort(rng.uniform(1, 20, len(edges))).tolist()
        group["tables"] = [
            {"extents": own, "exec_ms": {"1": least, str(group["batch_max"]): least * float(rng.uniform(1, 4))}}
            for own, least in zip(edges, ms, strict=True)
        ]
        return group
    group["exec_ms"] = {
        "intercept": float(rng.choice([0.5, 3.0])), "element": float(rng.choice([0.01, 0.1])),
        "square": float(rng.choice([0.0, 0.002])), "least": float(rng.choice([0.0, 4.0])),
        "free": float(rng.choice([0.0, 100.0])),
    }  # fmt: skip
    return group


def draw(rng: np.random.Generator, requests: int) -> tuple[Scenario, Trace]:
    """A small scenario in which most models have open dimensions, and its trace."""
    count, models = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    groups = [_open_group(rng, f"m{index}") for index in range(models)]
    if rng.random() < 0.3:
        groups.append({"name": "closed", "count": 1, "batch_max": 4, "exec_ms": {"intercept": 2.0, "slope": 0.5}})
    for group in groups:
        group |= {"weights_mb": 50}
        if "dims" in group and rng.random() < 0.2:
            group["exact"] = True
    devices = {"count": count, "memory_mb": 250, "load_gb_per_s": float(rng.choice([50.0, 5000.0]))}
    if rng.random() < 0.4:
        devices["edges"] = int(rng.integers(1, 5))
    found = scenario(devices=devices, models=groups, load={"sizes": ANY})
    which = rng.integers(len(found.models), size=requests)
    extents = np.zeros((requests, 2), np.int32)
    for index, model in enumerate(found.models):
        for column, dim in enumerate(model.open.dims if model.open else ()):
            mine = which == index
            extents[mine, column] = rng.integers(dim.least, dim.most + 1, int(mine.sum()))
    longest_s = max(model.exec_s[1] for model in found.models)
    times = np.sort(rng.random(requests)) * requests / count * longest_s * float(rng.choice([0.05, 0.2, 0.6]))
    slack = float(rng.uniform(0.5, 6.0)) if rng.random() < 0.5 else rng.uniform(0.5, 6.0, requests)
    return found, trace(times, longest_s * slack, which, extents)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_policy_exceeds_a_bound(seed: int) -> None:
    rng = np.random.default_rng([11, seed])
    for _ in range(RUNS):
        found, requests = draw(rng, int(rng.integers(5, 40)))
        bounds = (
            fluid_bound(found, requests),
            share_bound(found, requests),
            interval_bound(found, requests),
            packing_bound(found, requests, rounds=3),
        )
        most = min(map(answers, bounds))
        for policy in POLICIES:
            outcome = Simulation(found, requests, policy, check=True).run()
            assert sum(map(outcome.in_time, range(len(requests)))) <= most + 1e-6, policy
            assert None not in outcome.status


@pytest.mark.parametrize("seed", SEEDS)
def test_an_exact_search_lies_between_policies_and_bounds(seed: int) -> None:
    rng = np.random.default_rng([12, seed])
    for _ in range(RUNS):
        found, requests = draw(rng, int(rng.integers(2, 8)))
        best = exact(found, requests)
        for policy in POLICIES:
            outcome = Simulation(found, requests, policy).run()
            assert sum(map(outcome.in_time, range(len(requests)))) <= best
        quick = scenario(devices={"count": found.devices.count, "load_gb_per_s": 1e9})
        resident = Scenario("resident", quick.devices, found.models, found.load)
        for bound in (
            fluid_bound(resident, requests),
            share_bound(resident, requests),
            interval_bound(resident, requests),
        ):
            assert best <= answers(bound) + 1e-6


def one_model(**models: Any) -> Scenario:
    group = {"count": 1, "exec_ms": FLAT, "dims": {"seq": [1, 100]}, "batch_max": 8, **models}
    return scenario(models=group, devices={"load_gb_per_s": 1e9}, load={"sizes": ANY})


def test_a_short_request_alone_with_long_ones_pays_for_their_length() -> None:
    """Eight requests come at once: a batch takes 2 + 0.05 b s ms, so 32.5 ms are enough for the short ones together."""
    found = one_model()
    short, mixed = [[1]] * 8, [[1], *[[100]] * 7]
    assert answers(interval_bound(found, trace([0.0] * 8, 0.0024, extents=short))) == 8
    assert answers(interval_bound(found, trace([0.0] * 8, 0.0023, extents=short))) < 8
    together, each = (bound(found, trace([0.0] * 8, 0.0225, extents=mixed)) for bound in (interval_bound, share_bound))
    assert answers(together) < answers(each)


def test_who_waits_at_no_common_instant_cannot_share() -> None:
    """Two short requests, one after the other: each takes 2.05 ms alone, of which it has as much."""
    found = one_model()
    requests = trace([0.0, 0.0021, 0.0001], 0.0021, extents=[[1], [1], [1]])
    assert answers(interval_bound(found, requests)) <= exact(found, requests)


def test_what_memory_does_not_hold_costs_more() -> None:
    """Eight requests of 100 in 42 ms: a batch of them. If only four fit in one, these take 22 ms, and three 17."""
    requests = trace([0.0] * 8, 0.042, extents=[[100]] * 8)
    assert answers(interval_bound(one_model(), requests)) == 8
    assert answers(interval_bound(one_model(elements_max=400), requests)) < 8
    assert exact(one_model(elements_max=400), requests) == 7


def test_padding_to_edges_costs_more() -> None:
    """At 17 to 100: 2.85 ms a piece in place of 7."""
    requests = trace([0.0, 0.0], 0.004, extents=[[17], [17]])
    padded = scenario(
        models={"count": 1, "exec_ms": FLAT, "dims": {"seq": [1, 100]}},
        devices={"load_gb_per_s": 1e9, "edges": 1},
        load={"sizes": ANY},
    )
    assert answers(interval_bound(one_model(), requests)) == 2
    assert answers(interval_bound(padded, requests)) == 0
    assert exact(padded, requests) == 0


def test_only_equal_sizes_share_a_batch_of_an_exact_model() -> None:
    requests = trace([0.0, 0.0], 0.0041, extents=[[20], [19]])
    assert exact(one_model(), requests) == 2
    assert exact(one_model(exact=True), requests) == 1
