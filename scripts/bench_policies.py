"""Policies compared in the simulator on the same arrivals, with the upper bound: the tables of
docs/benchmarks_scheduler.md.

python scripts/bench_policies.py [--suite NAME]... [--seeds N] [--seconds FACTOR] [--jobs N] [--tight] [--json FILE]
    [--plot FILE.png]

Load 1.0 is what the devices do if every batch is the largest that takes at most half of its SLO
(docs/design/policy.md). Figures are means over the seeds; ± is the standard deviation over them.
"""

import argparse
import json
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from controller.core.policies.registry import POLICIES
from gearmesh.simulation.scenario import Scenario, parse_scenario
from gearmesh.simulation.study import BOUND, CLAIRVOYANT, TIGHT, Task, run_all
from gearmesh.telemetry.machine import describe
from scripts import ROOT
from scripts.rigs.flags import picture
from scripts.rigs.suite_plots import LIMIT, Panel, draw

FOLDER = ROOT / "gearmesh" / "simulation" / "scenarios"
LOADS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
SLO_FACTORS = (1.5, 2, 3, 4, 6, 10, 20, 50, 100)
MODEL_COUNTS = (1, 10, 50, 100, 200, 300, 600, 1200, 2400, 3600)
GOOD = 0.99
err = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Point:
    """One row of a table: a scenario, and the label in the row's first column."""

    label: str
    scenario: Scenario


@dataclass(frozen=True, slots=True)
class Suite:
    """One table."""

    name: str
    title: str
    column: str  # heading of the labels
    points: tuple[Point, ...]
    loads: tuple[float, ...] = ()  # of the points, if they are a sweep over the load
    belady: bool = False  # whether policies also run with clairvoyant evictions


def read(file: str, changes: Mapping[str, Any] | None = None) -> Scenario:
    """A scenario that comes with the simulator, with `changes`: {table: {key: value}}."""
    mapping = tomllib.loads((FOLDER / f"{file}.toml").read_text())
    for table, values in (changes or {}).items():
        mapping[table] = {**mapping[table], **values}
    return parse_scenario(mapping, file, FOLDER)


def capacity_rps(scenario: Scenario) -> float:
    """Requests per second in the largest batches that take at most half of the SLO, with equal rates for all models."""
    costs = []
    for model in scenario.models:
        slo_s = min(model.slo_ms or scenario.load.slo_ms) / 1e3
        fitting = [size for size in range(1, model.batch_max + 1) if model.exec_s[size] <= slo_s / 2] or [1]
        costs.append(min(model.exec_s[size] / size for size in fitting))
    return scenario.devices.count / statistics.mean(costs)


def at_load(scenario: Scenario, factor: float, seconds: float = 1.0) -> Scenario:
    """The scenario at this multiple of its capacity, and `seconds` times as long."""
    load = replace(scenario.load, rate_rps=capacity_rps(scenario) * factor, seconds=scenario.load.seconds * seconds)
    return replace(scenario, load=load)


def sweep(name: str, title: str, scenario: Scenario, seconds: float, loads: Sequence[float] = LOADS) -> Suite:
    """A table with one row for each load."""
    points = tuple(Point(f"{factor:g}", at_load(scenario, factor, seconds)) for factor in loads)
    return Suite(name, title, "load", points, tuple(loads))


def longer(scenario: Scenario, factor: float) -> Scenario:
    """The scenario, `factor` times as long."""
    return replace(scenario, load=replace(scenario.load, seconds=scenario.load.seconds * factor))


def suites(seconds: float) -> dict[str, Callable[[], Suite]]:
    """{name: function that makes the suite}."""

    def slo() -> Suite:
        base = _flat("w3_slo_ramp")
        alone_ms = base.models[0].exec_s[1] * 1e3
        points = []
        for factor in SLO_FACTORS:
            load = replace(base.load, slo_ms=(alone_ms * factor,), seconds=5.0 * seconds)
            points.append(Point(f"{factor:g}x ({alone_ms * factor:.1f} ms)", replace(base, load=load)))
        return Suite("slo", "12 ResNet50 on 6 V100s, 1,200 r/s: tighter and tighter SLOs (W3)", "SLO", tuple(points))

    def many() -> Suite:
        points = []
        for count in MODEL_COUNTS:
            mapping = tomllib.loads((FOLDER / "w2_many_models.toml").read_text())
            mapping["models"][1]["count"] = count
            found = longer(parse_scenario(mapping, "w2_many_models", FOLDER), seconds)
            points.append(Point(str(count), found))
        title = "Models that share 1,000 r/s beside one of 200 r/s, a V100 with room for 201, SLO 100 ms (W2)"
        return Suite("many", title, "models", tuple(points), belady=True)

    def grid() -> Suite:
        points = []
        for cv in (1, 2, 4, 8):
            for zipf in (0, 0.6, 0.9, 1.2):
                found = read("w5_burst", {"load": {"cv": cv, "zipf": zipf}})
                points.append(Point(f"CV {cv}, Zipf {zipf}", at_load(found, 1.1, seconds)))
        return Suite("grid", "Bursts and popularity at load 1.1 (W5)", "arrivals", tuple(points))

    def maf() -> Suite:
        found = sweep("maf", "4,026 models on 6 V100s, MAF-like, SLO 100 ms (W4)", read("w4_maf"), seconds,
                      (0.5, 0.75, 1.0, 1.5, 2.0))  # fmt: skip
        return replace(found, belady=True)

    def cold() -> Suite:
        base = read("w8_cold")
        points = []
        for rate in (50, 80, 100, 120, 150, 200):
            load = replace(base.load, rate_rps=float(rate), seconds=base.load.seconds * seconds)
            points.append(Point(f"{rate} r/s", replace(base, load=load)))
        return Suite(
            "cold", "Nearly every request needs a LOAD: one V100, 120 LOADs/s (W8)", "rate", tuple(points), (), True
        )

    line = "32 models, Zipf 0.9, 4 devices, SLO 25 ms"

    def resnet() -> Suite:
        found = read("batching", {"models": {"exec_ms": {"intercept": 0.8, "slope": 0.11}}})
        return sweep("resnet", f"H100-like ResNet, 0.8 + 0.11 b ms: {line}", found, seconds / 2)

    def simple(name: str, file: str, title: str, factor: float = 1.0) -> Callable[[], Suite]:
        return lambda: sweep(name, title, read(file), seconds * factor)

    return {
        "steady": simple("steady", "w1_steady", "15 ResNet50 on one V100, SLO 100 ms (W1)"),
        "resnet": resnet,
        "batching": simple("batching", "batching", f"Strong batching, 3.0 + 0.15 b ms: {line}"),
        "burst": simple("burst", "w5_burst", "Gamma gaps of CV 4, 64 models, 4 devices, SLO 25 ms (W5)", 0.5),
        "mixed": simple("mixed", "w6_mixed", "Three tenants: SLO 25, 100, 500 ms; five kinds of model (W6)"),
        "noise": simple("noise", "faults", "Noise, network, and faults of every kind, 4 devices, SLO 50 ms"),
        "slo": slo,
        "many": many,
        "grid": grid,
        "maf": maf,
        "cold": cold,
    }


def _flat(file: str) -> Scenario:
    """A ramp scenario without its ramp: Poisson arrivals at the first step's rate."""
    mapping = tomllib.loads((FOLDER / f"{file}.toml").read_text())
    load = mapping["load"]
    mapping["load"] = {"kind": "poisson", "rate_rps": load["rate_rps"], "slo_ms": load["slo_ms"]}
    return parse_scenario(mapping, file, FOLDER)


def table(suite: Suite, policies: Sequence[str], found: dict[tuple[int, str], list[dict[str, Any]]]) -> list[str]:
    """The suite as lines of Markdown. `found`: {(point, what): records, one for each seed}."""
    others = [name for name in policies if name not in ("atc", "clockwork")]
    shown = [*(["clockwork"] if "clockwork" in policies else []), *others, *(["atc"] if "atc" in policies else [])]
    heads = [suite.column, *shown, "bound", "atc / clockwork", "atc / bound", "atc goodput r/s", "atc refused",
             "after ms", "batch", "cold"]  # fmt: skip
    lines = [f"### {suite.title}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for index, point in enumerate(suite.points):
        mean = {name: statistics.mean(r["attainment"] for r in found[index, name]) for name in policies}
        bounds = found.get((index, TIGHT)) or found.get((index, BOUND))
        most = statistics.mean(r["attainment"] for r in bounds) if bounds else None
        cells = [point.label, *(_spread(found[index, name]) for name in shown), _number(most, 3)]
        cells.append(_number(mean["atc"] / mean["clockwork"] if mean.get("clockwork") else None, 2))
        cells.append(_number(mean["atc"] / most if most else None, 3))
        mine = found[index, "atc"]
        cells.append(f"{statistics.mean(r['goodput_rps'] for r in mine):,.0f}")
        cells.append(f"{sum(r['rejected'] for r in mine) / sum(r['offered'] for r in mine):.1%}")
        early = [r["rejected_after_ms_p50"] for r in mine if r["rejected_after_ms_p50"] is not None]
        cells.append(_number(statistics.mean(early) if early else None, 1))
        cells.append(_number(statistics.mean(r["mean_batch"] for r in mine), 1))
        cells.append(f"{sum(r['cold_starts'] for r in mine) / sum(r['offered'] for r in mine):.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    if suite.loads:
        lines += ["", _good_line(suite, shown, found)]
    return [*lines, ""]


def panel(
    suite: Suite, policies: Sequence[str], found: dict[tuple[int, str], list[dict[str, Any]]], bound: str
) -> Panel:
    """The suite as a panel of the plot."""
    shown = {name: name for name in policies} | {bound: LIMIT}
    points = range(len(suite.points))
    attainments = {label: [[r["attainment"] for r in found[i, what]] for i in points] for what, label in shown.items()}
    return Panel(suite.title, suite.column, tuple(point.label for point in suite.points), attainments)


def _good_line(suite: Suite, shown: Sequence[str], found: dict[tuple[int, str], list[dict[str, Any]]]) -> str:
    """For each policy the greatest load up to which every point has 99 % of the requests in time."""
    told = []
    for name in [*shown, TIGHT, BOUND]:
        best = None
        for index, load in enumerate(suite.loads):
            if (index, name) not in found or statistics.mean(r["attainment"] for r in found[index, name]) < GOOD:
                break
            best = load
        if (0, name) in found:
            told.append(f"{name} {'-' if best is None else f'{best:g}'}")
    return f"Greatest load of these with {GOOD:.0%} in time: " + ", ".join(told) + "."


def _spread(records: Sequence[dict[str, Any]]) -> str:
    values = [record["attainment"] for record in records]
    return f"{statistics.mean(values):.3f}" + (f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def measure(
    suite: Suite, policies: Sequence[str], seeds: int, bound: str, jobs: int | None
) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """{(point, what): records, one for each seed}."""
    numbered = [
        (index, Task(point.scenario, seed, name))
        for index, point in enumerate(suite.points)
        for name in (*policies, bound)
        for seed in range(seeds)
    ]
    numbered.sort(key=lambda entry: -(entry[1].scenario.load.rate_rps or 0.0))  # the longest first
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task(suite.name, total=len(numbered))
        for index, record in run_all([task for _, task in numbered], jobs):
            point, task = numbered[index]
            found.setdefault((point, task.what), []).append(record)
            progress.advance(bar)
    return {key: sorted(records, key=lambda record: record["seed"]) for key, records in found.items()}


def main() -> int:
    """Prints Markdown. Exit code 1 if a policy is above the bound, or atc below Clockwork's policy by over 0.002."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    makers = suites(1.0)
    parser.add_argument("--suite", action="append", choices=list(makers), help="all of them by default")
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="besides atc; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="factor on the length of every scenario")
    parser.add_argument("--jobs", type=int, help="processes; by default one for each core")
    parser.add_argument("--tight", action="store_true", help="a tighter bound, which takes most of the time")
    parser.add_argument("--json", type=Path, help="write all records there, too")
    parser.add_argument("--plot", type=picture, help="draw the attainments there: .png, .svg or .pdf")
    arguments = parser.parse_args()
    named = arguments.policy or [name for name in POLICIES if name != "atc"]
    policies = list(dict.fromkeys([*named, "atc"]))
    machine = describe()
    command = "python scripts/bench_policies.py " + " ".join(sys.argv[1:])
    print(f"`{command.strip()}` on {machine}, {arguments.seeds} seeds\n")
    everything: list[dict[str, Any]] = []
    odd: list[str] = []
    panels: list[Panel] = []
    for name in arguments.suite or list(makers):
        suite = suites(arguments.seconds)[name]()
        began_s = time.perf_counter()
        wanted = [*policies, *(["atc" + CLAIRVOYANT] if suite.belady else [])]
        bound = TIGHT if arguments.tight else BOUND
        found = measure(suite, wanted, arguments.seeds, bound, arguments.jobs)
        print("\n".join(table(suite, wanted, found)), flush=True)
        err.print(f"{name}: {time.perf_counter() - began_s:.0f} s")
        odd += unexpected(suite, found, bound)
        panels.append(panel(suite, policies, found, bound))
        everything += [
            {"suite": name, "point": suite.points[index].label, "what": what, "records": records}
            for (index, what), records in sorted(found.items())
        ]
    print("\n".join(odd))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine, "runs": everything}, indent=1) + "\n")
    if arguments.plot is not None:
        draw(panels, arguments.plot)
    return int(bool(odd))


def unexpected(suite: Suite, found: dict[tuple[int, str], list[dict[str, Any]]], bound: str) -> list[str]:
    """Results to point out: where atc is below Clockwork's policy, and where a policy exceeds the bound."""
    told = []
    for (index, what), records in sorted(found.items()):
        label = f"{suite.name}, {suite.points[index].label}"
        noisy = suite.points[index].scenario.noise.exec_cv > 0  # the bound does not cover durations below the profile
        for record, most in zip(records, found[index, bound], strict=True):
            if record["attainment"] > most["attainment"] + 1e-9 and not noisy:
                told.append(f"- {label}, seed {record['seed']}: {what} is above the bound, which cannot be")
        if what == "clockwork":
            mine, theirs = (statistics.mean(r["attainment"] for r in found[index, name]) for name in ("atc", what))
            if mine < theirs - 0.002:
                told.append(f"- {label}: atc loses to Clockwork's policy, {mine:.3f} to {theirs:.3f}")
    return told


if __name__ == "__main__":
    raise SystemExit(main())
