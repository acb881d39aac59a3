"""What early refusals cost where lengths differ: `atc` with and without each of its two rules, on the same arrivals."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gearmesh.simulation.arrivals.loads import arrivals
from gearmesh.simulation.engine import Simulation
from gearmesh.simulation.outcome import Outcome
from gearmesh.simulation.scenario import Scenario
from mesh.codes import AnswerStatus
from scripts.rigs.length_cells import LengthCell

RULES: dict[str, dict[str, float]] = {
    "none": {"refuse_ahead": 0, "refuse_left": 0},
    "at arrival": {"refuse_left": 0},
    "put off": {"refuse_ahead": 0},
    "both": {},
    "both, 0.5": {"refuse_left": 0.5},
}  # {rule: parameters of the policy}; "both" is the default
EARLY = 0.5  # of the objective; who loses and is refused before that hears of it early


@dataclass(frozen=True, slots=True)
class RefusalRun:
    """One cell with one seed, on so many devices, whose durations scatter by `noise`."""

    cell: LengthCell
    seed: int
    requests: int
    devices: int
    noise: float

    def scenario(self) -> Scenario:
        """The cell's load for each device."""
        one = self.cell.scenario(self.requests)
        rate_rps, count = one.load.rate_rps, self.devices
        assert rate_rps is not None
        load = replace(one.load, rate_rps=rate_rps * count, seconds=one.load.seconds / count)
        noise = replace(one.noise, exec_cv=self.noise)
        return replace(one, devices=replace(one.devices, count=count), load=load, noise=noise)

    def records(self) -> dict[str, dict[str, Any]]:
        """{rule: attainment, and of those who lose: the share told early, and when, as a share of the objective}."""
        scenario = self.scenario()
        trace = arrivals(scenario, self.seed)
        found = {}
        for rule, parameters in RULES.items():
            outcome = Simulation(scenario, trace, "atc", self.seed, parameters).run()
            record = outcome.record("atc", self.seed, self.devices, scenario.load.seconds)
            found[rule] = {key: record[key] for key in ("attainment", "longest")} | _losers(outcome)
        return found


def _losers(outcome: Outcome) -> dict[str, float | None]:
    lost = [i for i in range(len(outcome.status)) if not outcome.in_time(i)]
    early, told = 0, []
    for i in lost:
        slo_s, after_s = outcome.slo_s[i], outcome.latency_s[i]
        refused = outcome.status[i] == AnswerStatus.REJECTED
        early += refused and after_s < EARLY * slo_s
        told.append(min(1.0, after_s / slo_s))
    return {"early": early / len(lost), "told": statistics.mean(told)} if lost else {"early": None, "told": None}


def table(found: Mapping[RefusalRun, Mapping[str, Mapping[str, Any]]], loads: Sequence[float]) -> list[str]:
    """One row for each rule."""

    def mean(rule: str, key: str, load: float | None = None) -> float:
        values = [records[rule][key] for run, records in found.items() if load in (run.cell.load, None)]
        return float(statistics.mean(value for value in values if value is not None))

    heads = ["refused early", *(f"load {load:g}" for load in loads), "least", "most", "longest", "early", "told after"]
    lines = ["### Refusing early", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    first = next(iter(RULES))
    for rule in RULES:
        changes = [100 * (records[rule]["attainment"] - records[first]["attainment"]) for records in found.values()]
        cells = [rule]
        for load in loads:
            base, own = mean(first, "attainment", load), mean(rule, "attainment", load)
            cells.append(f"{own:.3f}" if rule == first else f"{100 * (own - base):+.2f}")
        cells += ["", ""] if rule == first else [f"{min(changes):+.1f}", f"{max(changes):+.1f}"]
        cells += [f"{mean(rule, 'longest'):.3f}", f"{100 * mean(rule, 'early'):.0f} %", f"{mean(rule, 'told'):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]
