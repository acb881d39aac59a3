"""Requests of any size on virtual time: the production scheduler batches them, and each ends once."""

from typing import Any

import pytest

from controller.core.policies.registry import POLICIES
from gearmesh.simulation.arrivals.loads import arrivals
from gearmesh.simulation.engine import Simulation
from gearmesh.simulation.outcome import Outcome
from gearmesh.simulation.scenario import Scenario
from mesh.codes import AnswerStatus
from tests.gearmesh.simulation.scenarios import scenario, trace
from tests.gearmesh.simulation.test_engine import BROKEN, NOISE

FORMULA = {"intercept": 2.0, "element": 0.02}
TEXT = {"count": 1, "exec_ms": FORMULA, "dims": {"seq": [1, 512]}, "weights_mb": 1}
IMAGE = {"count": 1, "exec_ms": FORMULA, "dims": {"h": [8, 32], "w": [8, 32]}, "weights_mb": 1}
SIZES = {"kind": "mix", "of": [{"share": 0.8, "kind": "uniform", "most": 32}, {"share": 0.2, "kind": "uniform"}]}
AT_ONCE = {"load_gb_per_s": 1e9}


def sized(models: Any = None, **tables: Any) -> Scenario:
    load = {"rate_rps": 400, "slo_ms": 60, "seconds": 0.5, "sizes": SIZES, **tables.pop("load", {})}
    return scenario(models=models or TEXT, load=load, devices={**AT_ONCE, **tables.pop("devices", {})}, **tables)


def play(found: Scenario, policy: str = "atc", seed: int = 0, **more: Any) -> Outcome:
    return Simulation(found, arrivals(found, seed), policy, seed, **more).run()


def test_a_request_takes_as_long_as_its_size() -> None:
    outcome = Simulation(sized(), trace([0.0, 1.0], 0.1, extents=[[500], [50]]), "atc").run()
    assert outcome.latency_s == pytest.approx([0.012, 0.003], abs=1e-5)
    images = sized(IMAGE, load={"sizes": {"kind": "uniform"}})
    outcome = Simulation(images, trace([0.0, 1.0], 0.1, extents=[[10, 20], [32, 32]]), "atc").run()
    assert outcome.latency_s == pytest.approx([0.006, 0.02248], abs=1e-5)


def test_a_device_with_edges_pads_to_them() -> None:
    found = sized(devices={"edges": 2})  # 16 and 512
    outcome = Simulation(found, trace([0.0, 1.0], 0.1, extents=[[10], [17]]), "atc", check=True).run()
    assert outcome.latency_s == pytest.approx([0.00232, 0.01224], abs=1e-5)
    assert outcome.record("atc", 0, 1, 2.0)["padding"] == pytest.approx(1 - 27 / 528)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_is_padded_to_its_longest(policy: str) -> None:
    """While the first is executed, 10 ms, two others come."""
    requests = trace([0.0, 0.003, 0.003], 0.1, extents=[[400], [90], [100]])
    outcome = Simulation(sized(), requests, policy).run()
    assert outcome.status == [AnswerStatus.OK] * 3
    assert outcome.batch[1:] == [2, 2]
    assert outcome.latency_s[1] == outcome.latency_s[2]
    record = outcome.record(policy, 0, 1, 1.0)
    assert record["padding"] == pytest.approx(1 - 590 / 600)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("models", [TEXT, IMAGE, {**TEXT, "exact": True}, {**TEXT, "elements_max": 600}])
@pytest.mark.parametrize("edges", [None, 3])
def test_every_request_ends_once_though_all_breaks(policy: str, models: Any, edges: int | None) -> None:
    sizes = SIZES if models is not IMAGE else {"kind": "uniform"}
    devices = {"count": 2, **({} if edges is None else {"edges": edges})}
    found = sized(
        models, devices=devices, load={"sizes": sizes, "rate_rps": 150}, noise=NOISE, faults=[*BROKEN.values()]
    )
    outcome = play(found, policy, check=True)
    assert None not in outcome.status
    assert outcome.status.count(AnswerStatus.OK) > 2  # fifo is far behind


@pytest.mark.parametrize("policy", POLICIES)
def test_one_seed_is_one_story(policy: str) -> None:
    found = sized(noise=NOISE)
    assert play(found, policy, 3) == play(found, policy, 3)
    assert play(found, policy, 3) != play(found, policy, 4)


def test_a_record_says_who_was_served_by_size_and_how_much_was_padding() -> None:
    outcome = play(sized(load={"rate_rps": 2000}))
    record = outcome.record("atc", 0, 1, 0.5)
    parts = [record[f"q{quarter}"] for quarter in range(1, 5)]
    assert sum(parts) / 4 == pytest.approx(record["attainment"], abs=0.01)
    assert parts[0] > parts[3] >= record["longest"] - 0.2
    assert 0 < record["padding"] < 1


def test_a_record_says_nothing_of_size_where_nothing_is_open() -> None:
    assert not {"q1", "longest", "padding"} & play(scenario()).record("atc", 0, 1, 0.5).keys()


def test_the_next_request_of_a_client_has_a_size_of_its_own() -> None:
    found = sized(load={"kind": "closed", "clients": 2, "rate_rps": None, "seconds": 0.2})
    outcome = play(found)
    assert len(outcome.status) > 10
    assert len(set(outcome.extents)) > 5


def test_models_with_and_without_open_dimensions_share_a_device() -> None:
    closed = {"name": "closed", "count": 1, "exec_ms": {"intercept": 1.0, "slope": 0.2}, "weights_mb": 1}
    found = sized([{**TEXT, "name": "open"}, closed])
    outcome = play(found, check=True)
    served = [
        sum(outcome.in_time(i) for i, own in enumerate(outcome.model) if own == model) / outcome.model.count(model)
        for model in (0, 1)
    ]
    assert min(served) > 0.9


@pytest.mark.parametrize(
    ("times", "rate_rps", "slo_ms"),
    [
        ({"intercept": 3.0, "slope": 0.15}, 5000, (25,)),  # much is gained by batching, 1.2 times what can be served
        ({"intercept": 0.8, "slope": 1.4}, 900, (60,)),  # and little, 1.3 times
        ({"intercept": 3.0, "slope": 0.15}, 5000, (12, 50)),
    ],
)
def test_where_all_have_one_size_as_many_are_served_as_without_open_dimensions(
    times: dict[str, float], rate_rps: float, slo_ms: tuple[float, ...]
) -> None:
    served = []
    for opened in ({}, {"dims": {"seq": [1, 16]}}):
        models = {"count": 2, "weights_mb": 1, "batch_max": 32, "exec_ms": times, **opened}
        sizes = {"sizes": {"kind": "choice", "values": [16], "shares": [1.0]}} if opened else {}
        load = {"rate_rps": rate_rps, "slo_ms": list(slo_ms), "seconds": 1500 / rate_rps, **sizes}
        outcome = play(scenario(models=models, load=load, devices=AT_ONCE))
        served.append(sum(map(outcome.in_time, range(len(outcome.status)))) / len(outcome.status))
    assert 0.4 < served[0] < 0.97
    assert served[1] >= served[0] - 0.01
