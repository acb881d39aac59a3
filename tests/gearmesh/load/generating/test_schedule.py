"""When requests are due, and which generator sends them."""

import itertools

import numpy as np
import pytest

from gearmesh.load.errors import LoadError
from gearmesh.load.generating.schedule import closed_clients, draws, first_asked, growing, open_arrivals, share_clients
from gearmesh.load.plan import (
    Closed,
    Growing,
    LoadPhase,
    LoadTarget,
    LoadTestPlan,
    ModelInput,
    Open,
    RequestStream,
    Slo,
    each_slo,
)
from gearmesh.simulation.parts import Workload

X = (ModelInput("x", "float32", (4,)),)
TARGETS = {name: LoadTarget(name, X, 8, batch1) for name, batch1 in (("a", 2.0), ("b", 5.0), ("c", None))}
BUDGET = Slo((50.0,))
INDEX = {"a": 0, "b": 1, "c": 2}


def phase_of(*streams: RequestStream, seconds: float = 10.0) -> LoadPhase:
    return LoadPhase("p", seconds, streams)


def opened(kind: str = "poisson", rate: float = 200.0, models=("a", "b"), slo=BUDGET, **load) -> RequestStream:
    return RequestStream("s", models, Open(Workload(kind, rate, **load)), slo)


@pytest.mark.parametrize("kind", ["poisson", "fixed", "gamma", "burst", "ramp", "maf"])
def test_every_kind_of_arrival_is_sorted_within_the_phase_and_the_same_for_the_same_seed(kind):
    first, again = (open_arrivals(phase_of(opened(kind, functions=500)), INDEX, TARGETS, 7) for _ in range(2))
    assert len(first) > 0
    assert (np.diff(first.due_s) >= 0).all()
    assert first.due_s[0] >= 0
    assert first.due_s[-1] < 10.0
    assert np.array_equal(first.due_s, again.due_s)
    assert np.array_equal(first.model, again.model)


def test_a_poisson_stream_has_its_rate_and_gamma_its_spread():
    due_s = open_arrivals(phase_of(opened(rate=500.0, models=("a",)), seconds=100), INDEX, TARGETS, 0).due_s
    assert len(due_s) / 100 == pytest.approx(500, rel=0.03)
    assert np.diff(due_s).std() / np.diff(due_s).mean() == pytest.approx(1.0, abs=0.03)
    due_s = open_arrivals(phase_of(opened("gamma", 500.0, ("a",), cv=3.0), seconds=100), INDEX, TARGETS, 0).due_s
    assert np.diff(due_s).std() / np.diff(due_s).mean() == pytest.approx(3.0, rel=0.1)


def test_budgets_as_factors_follow_the_time_of_each_model():
    found = open_arrivals(phase_of(opened(slo=Slo((2.0,), "batch1"))), INDEX, TARGETS, 0)
    assert set(np.round(found.slo_s[found.model == 0], 6)) == {0.004}
    assert set(np.round(found.slo_s[found.model == 1], 6)) == {0.010}


def test_a_factor_of_a_time_that_was_not_measured_is_an_error_that_names_the_model():
    with pytest.raises(LoadError, match=r"--slo-factor.*\bc\b"):
        open_arrivals(phase_of(opened(models=("c",), slo=Slo((2.0,), "batch1"))), INDEX, TARGETS, 0)


def test_streams_side_by_side_are_merged_and_known_apart():
    found = open_arrivals(phase_of(opened(models=("b",)), opened("fixed", 50.0, ("a",))), INDEX, TARGETS, 0)
    assert set(found.model[found.stream == 0]) == {1}
    assert set(found.model[found.stream == 1]) == {0}
    assert (found.stream == 1).sum() == 500
    assert (np.diff(found.due_s) >= 0).all()


def test_shares_of_several_generators_are_all_of_it():
    whole = open_arrivals(phase_of(opened()), INDEX, TARGETS, 0)
    together = np.sort(np.concatenate([whole.share(part, 3).due_s for part in range(3)]))
    assert np.array_equal(together, whole.due_s)


def test_a_growing_set_uses_one_model_more_every_interval():
    due_s, model = growing(Growing(2000.0, 1.0), 5, 8.0, np.random.default_rng(0))
    for second in range(8):
        used = set(model[(due_s >= second) & (due_s < second + 1)])
        assert used == set(range(min(second + 1, 5)))


def test_every_client_is_dealt_to_one_generator():
    closed = RequestStream("s", ("a", "b"), Closed(5, per_model=True), Slo((50.0,)))
    groups = closed_clients(phase_of(closed, opened()), INDEX, TARGETS, 0)
    assert [(group.count, group.models, group.stream) for group in groups] == [(5, (0,), 0), (5, (1,), 0)]
    shares = [share_clients(groups, part, 3) for part in range(3)]
    for model in (0, 1):
        assert sum(group.count for part in shares for group in part if group.models == (model,)) == 5
    assert sorted(sum(group.count for group in part) for part in shares) == [3, 3, 4]


def test_clients_that_draw_their_model_follow_zipf():
    (group,) = closed_clients(
        phase_of(RequestStream("s", ("a", "b"), Closed(4, zipf=1.0), Slo((50.0,)))), INDEX, TARGETS, 0
    )
    assert sorted(group.weights) == pytest.approx([1 / 3, 2 / 3])
    drawn = [model for model, _, _ in itertools.islice(draws(group, np.random.default_rng(0)), 6000)]
    popular = group.models[int(np.argmax(group.weights))]
    assert drawn.count(popular) / 6000 == pytest.approx(2 / 3, abs=0.03)


def test_drawn_budgets_and_pauses_are_those_asked_for():
    (group,) = closed_clients(
        phase_of(RequestStream("s", ("a",), Closed(1, think_s=0.2), Slo((10.0, 40.0)))), INDEX, TARGETS, 0
    )
    drawn = list(itertools.islice(draws(group, np.random.default_rng(0)), 4000))
    assert {slo_s for _, slo_s, _ in drawn} == {0.010, 0.040}
    assert np.mean([pause for _, _, pause in drawn]) == pytest.approx(0.2, rel=0.1)
    (spread,) = closed_clients(
        phase_of(RequestStream("s", ("a",), Closed(1), Slo((10.0, 40.0), draw="log_uniform"))), INDEX, TARGETS, 0
    )
    budgets = [slo_s for _, slo_s, _ in itertools.islice(draws(spread, np.random.default_rng(0)), 2000)]
    assert 0.010 <= min(budgets) < 0.011
    assert 0.039 < max(budgets) <= 0.040


def test_clients_begin_evenly_spread():
    assert first_asked(4, 0.01) == pytest.approx([0.0, 0.0025, 0.005, 0.0075])


def test_one_phase_for_each_budget_meets_the_same_arrivals():
    plan = each_slo(LoadTestPlan("p", (phase_of(opened(slo=Slo((10.0, 25.0)))),)))
    assert [phase.name for phase in plan.phases] == ["p slo 10 ms", "p slo 25 ms"]
    first, second = (open_arrivals(phase, INDEX, TARGETS, 3) for phase in plan.phases)
    assert np.array_equal(first.due_s, second.due_s)
    assert (set(first.slo_s), set(second.slo_s)) == ({0.010}, {0.025})
