"""The compiled form decides as the interpreted one: the simulator's results are equal to the last digit."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from mesh.process.compiled import PURE
from scripts import ROOT

PROGRAM = """
import json, sys
from dataclasses import fields, replace
from gearmesh.simulation.scenario import find_scenario, read_scenario
from gearmesh.simulation.study import play
from mesh.process.compiled import form

told = []
for name, seconds, policy in json.loads(sys.argv[1]):
    scenario = read_scenario(find_scenario(name))
    scenario = replace(scenario, load=replace(scenario.load, seconds=min(scenario.load.seconds, seconds)))
    outcome, trace = play(scenario, policy, 1)
    record = outcome.record(policy, 1, scenario.devices.count, seconds)
    told.append(repr([record, *(getattr(outcome, field.name) for field in fields(outcome))]))
print(json.dumps([form().name, told]))
"""
RUNS = [
    ("w1_steady", 0.5, "atc"),
    ("w1_steady", 0.5, "clockwork"),
    ("w1_steady", 0.5, "fifo"),
    ("w2_many_models", 0.5, "atc"),
    ("w2_many_models", 0.5, "clockwork"),
    ("w6_mixed", 0.5, "atc"),
    ("w8_cold", 0.5, "atc"),
    ("batching", 0.5, "atc"),
    ("faults", 2.0, "atc"),
    ("lengths", 0.5, "atc"),
    ("lengths", 0.5, "clockwork"),
    ("lengths", 0.5, "fifo"),
]


def played(**environment: str) -> Any:
    """The form that a process ran in, and what its runs gave."""
    kept = {key: value for key, value in os.environ.items() if key != PURE}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, json.dumps(RUNS)], env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_compiled_and_interpreted_simulations_are_equal_to_the_last_digit() -> None:
    form, compiled = played()
    if form != "compiled":
        pytest.skip("nothing is compiled here: scripts/setup")
    _, pure = played(**{PURE: "1"})
    differing = [run for run, first, second in zip(RUNS, compiled, pure, strict=True) if first != second]
    assert differing == []
