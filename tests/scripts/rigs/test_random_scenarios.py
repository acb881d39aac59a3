"""Scenarios drawn at random."""

from pathlib import Path

import pytest

from gearmesh.simulation.scenario import parse_scenario
from scripts import bench_random
from scripts.rigs.random_scenarios import REQUESTS_MAX, draw


def test_every_number_is_a_scenario_inside_the_ranges_and_always_the_same() -> None:
    for number in range(100):
        assert draw(number) == draw(number)
        scenario = parse_scenario(draw(number), "random", Path())
        model, load = scenario.models[0], scenario.load
        assert 1 <= scenario.devices.count <= 8
        assert 1 <= len(scenario.models) <= 800
        assert 0.5e-3 <= scenario.devices.load_s(model) <= 50e-3
        assert 15 <= load.slo_ms[0] <= 300
        assert model.exec_s[1] * 1e3 <= load.slo_ms[0] / 3 + 1e-9
        assert load.seconds <= 3
        assert (load.rate_rps or 0) * load.seconds <= REQUESTS_MAX * (1 + 1e-9)


def test_the_benchmark_counts_where_atc_loses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_random", "--first", "82", "--count", "1", "--jobs", "1"])
    assert bench_random.main() == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "1 scenarios: atc 1.000, clockwork 1.000; below it by more than 0.002: 0"
    assert told[-1].startswith("| 82 | 1 | 9 | 4 | 2.1 |")
