"""Requests of unequal length on the simulator: the tables of docs/benchmarks_scheduler.md, "Batches of unequal length".

python scripts/bench_lengths.py [--quick] [--cost NAME]... [--load FACTOR]... [--seeds N] [--requests N] [--edges N]
    [--no-bound] [--set NAME=VALUE]... [--first-seed N] [--jobs N] [--json FILE] [--plot FILE.png]
python scripts/bench_lengths.py --refusing [--devices N] [--noise CV] [--cost NAME]... [--load FACTOR]... ...

The cells are those of study Q: five kinds of lengths, two of arrivals, four objectives, two costs; one encoder on one
device. Compared on the same arrivals: `atc`; `atc`, everything padded to the longest; `clockwork` and `fifo`, padded to
the longest in the batch; and, apart from the scheduler, batches in the order of deadlines or of arrival with a fixed
size (the best of four for each cell, with hindsight). Figures are means over cells and seeds. With --refusing: `atc`
with and without its early refusals.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from gearmesh.simulation.arrivals.loads import Trace, arrivals
from gearmesh.simulation.engine import Simulation
from gearmesh.simulation.scenario import Scenario
from gearmesh.telemetry.machine import describe
from scripts.rigs.flags import picture
from scripts.rigs.length_cells import BATCH_MAX, COSTS, LENGTHS, LOADS, LengthCell, all_cells
from scripts.rigs.length_refusals import RefusalRun, table
from scripts.rigs.length_rules import first_come, longest_by_deadline
from scripts.rigs.suite_plots import LIMIT, Panel, draw

err = Console(stderr=True)
OURS, MAXIMUM, CLOCKWORK, FIFO = "atc", "padded to the longest", "clockwork", "fifo"
DEADLINES, ARRIVAL, SHARES = "by deadline", "by arrival", "share bound"
RULES = (MAXIMUM, FIFO, ARRIVAL, CLOCKWORK, DEADLINES, OURS)
FIXED = (4, 8, 16, 32)  # batch sizes of ARRIVAL; the best of them is taken for each cell
STUDY: dict[str, dict[float, tuple[float, float, float]]] = {
    "h100": {0.5: (0.717, 0.907, 0.997), 0.7: (0.582, 0.869, 0.994), 1.0: (0.434, 0.805, 0.979),
             1.3: (0.337, 0.733, 0.898), 2.0: (0.223, 0.603, 0.725)},
    "cpu": {0.5: (0.887, 0.958, 0.987), 0.7: (0.804, 0.934, 0.979), 1.0: (0.699, 0.879, 0.959),
            1.3: (0.621, 0.818, 0.908), 2.0: (0.501, 0.712, 0.796)},
}  # fmt: skip  # study Q: (by deadline, its rule, its bound), by load
QUICK_LOADS = (0.7, 1.3)


@dataclass(frozen=True, slots=True)
class LengthRun:
    """One cell with one seed."""

    cell: LengthCell
    seed: int
    requests: int
    edges: int | None
    bounds: bool
    parameters: tuple[tuple[str, float], ...] = ()  # of the policy `atc`, in place of its own

    def records(self) -> dict[str, dict[str, Any]]:
        """{rule or bound: its record}."""
        scenario = self.cell.scenario(self.requests, edges=self.edges)
        trace = arrivals(scenario, self.seed)
        found = {name: self._simulated(scenario, trace, name) for name in (OURS, CLOCKWORK, FIFO)}
        closed = self.cell.scenario(self.requests, closed=True)
        found[MAXIMUM] = self._simulated(closed, arrivals(closed, self.seed), OURS)
        found |= self.others(scenario, trace)
        if self.bounds:
            from gearmesh.simulation.bounds.bound import interval_bound, share_bound  # scipy takes a while

            found[LIMIT] = {"attainment": interval_bound(scenario, trace).attainment}
            found[SHARES] = {"attainment": share_bound(scenario, trace).attainment}
        return found

    def _simulated(self, scenario: Scenario, trace: Trace, policy: str) -> dict[str, Any]:
        began_s = time.process_time()
        given = dict(self.parameters) if policy == OURS else {}
        outcome = Simulation(scenario, trace, policy, self.seed, given).run()
        took_s = time.process_time() - began_s
        record = outcome.record(policy, self.seed, scenario.devices.count, scenario.load.seconds)
        return record | {"us_per_request": took_s / len(trace) * 1e6}

    def others(self, scenario: Scenario, trace: Trace) -> dict[str, dict[str, Any]]:
        """The rules that are no policies."""
        opened = scenario.models[0].open
        assert opened is not None
        lengths = trace.extents[:, 0].tolist()
        requests = list(zip(trace.time_s.tolist(), (trace.time_s + trace.slo_s).tolist(), lengths, strict=True))

        @cache
        def cost(rows: int, length: int) -> float:
            return opened.exec_s(rows, opened.computed((length,)))

        by_deadline = longest_by_deadline(requests, cost, BATCH_MAX)
        fixed = [statistics.mean(first_come(requests, cost, rows)) for rows in FIXED]
        return {DEADLINES: {"attainment": statistics.mean(by_deadline)}, ARRIVAL: {"attainment": max(fixed)}}


Run = TypeVar("Run", LengthRun, RefusalRun)


def measure(runs: Sequence[Run], jobs: int | None) -> Iterator[tuple[Run, dict[str, dict[str, Any]]]]:
    """Each run with its records, as they finish."""
    with (
        ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("forkserver")) as pool,
        Progress(console=err, transient=True) as progress,
    ):
        bar = progress.add_task("cells", total=len(runs))
        futures = {pool.submit(run.records): run for run in runs}
        for future in as_completed(futures):
            progress.advance(bar)
            yield futures[future], future.result()


Found = Mapping[LengthRun, Mapping[str, Mapping[str, Any]]]


def mean(found: Found, rule: str, key: str, among: Callable[[LengthCell], bool]) -> float | None:
    """The mean of a figure of a rule, over those cells and all seeds; None if there are none."""
    values = [records[rule].get(key) for run, records in found.items() if among(run.cell) and rule in records]
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def shown(value: float | None) -> str:
    """A share with three digits."""
    return "-" if value is None else f"{value:.3f}"


def by_load(found: Found, cost: str, loads: Sequence[float]) -> list[str]:
    """The table over the load: attainments, and those of the study."""
    heads = ["load", *RULES, LIMIT, f"{OURS} / {LIMIT}", SHARES, "study: by deadline", "its rule", "its bound"]
    lines = [f"### Encoder, cost of {cost}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for load in (*loads, None):

        def among(cell: LengthCell, load: float | None = load) -> bool:
            return cell.cost == cost and load in (cell.load, None)

        values = {rule: mean(found, rule, "attainment", among) for rule in (*RULES, LIMIT, SHARES)}
        most, mine = values[LIMIT], values[OURS]
        study = STUDY[cost].get(load, (None, None, None)) if load is not None else (None, None, None)
        cells = ["all" if load is None else f"{load:g}", *(shown(values[rule]) for rule in RULES), shown(most)]
        cells += [shown(mine / most if mine is not None and most else None), shown(values[SHARES]), *map(shown, study)]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def by_kind(found: Found, cost: str) -> list[str]:
    """atc / bound by kind of lengths and by objective."""
    kinds = [("lengths", kind) for kind in LENGTHS] + [("objective", kind) for kind in ("2x", "4x", "10x", "mixed")]
    lines = [f"| {cost} | " + " | ".join(kind for _, kind in kinds) + " |", "|" + "---|" * (1 + len(kinds))]
    for name, below in ((f"{OURS} / {LIMIT}", LIMIT), (f"{OURS} / {DEADLINES}", DEADLINES)):
        cells = [name]
        for field, kind in kinds:

            def among(cell: LengthCell, field: str = field, kind: str = kind) -> bool:
                return cell.cost == cost and getattr(cell, field) == kind

            mine, other = (mean(found, rule, "attainment", among) for rule in (OURS, below))
            cells.append(shown(mine / other if mine is not None and other else None))
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def by_length(found: Found, loads: Sequence[float]) -> list[str]:
    """Who is served, by quartile of length: mix and passages, Poisson, 4x and mixed objectives, both costs."""
    heads = ["rule", *(f"load {load:g}" for load in loads)]
    lines = ["### Long requests", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for rule in (CLOCKWORK, FIFO, OURS):
        cells = [rule]
        for load in loads:

            def among(cell: LengthCell, load: float = load) -> bool:
                kinds = cell.lengths in ("mix", "passages") and cell.objective in ("4x", "mixed")
                return kinds and cell.arrivals == "Poisson" and cell.load == load

            parts = [mean(found, rule, key, among) for key in ("attainment", "q1", "q2", "q3", "q4", "longest")]
            told = ["-" if part is None else f"{part:.2f}".removeprefix("0") for part in parts]
            cells.append(f"{told[0]} / {' '.join(told[1:5])} / {told[5]}")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def panels(found: Found, costs: Sequence[str], loads: Sequence[float]) -> list[Panel]:
    """A panel for each cost and kind of lengths: means over arrivals and objectives, by seed."""
    seeds = sorted({run.seed for run in found})
    made = []
    for cost in costs:
        for kind in LENGTHS:
            attainments = {}
            for rule in (*RULES, LIMIT):
                attainments[rule] = [
                    [
                        statistics.mean(
                            records[rule]["attainment"]
                            for run, records in found.items()
                            if (run.cell.cost, run.cell.lengths, run.cell.load, run.seed) == (cost, kind, load, seed)
                        )
                        for seed in seeds
                    ]
                    for load in loads
                ]
            made.append(Panel(f"{kind}, {cost}", "load", tuple(f"{load:g}" for load in loads), attainments))
    return made


def unexpected(found: Found) -> list[str]:
    """Runs in which a rule exceeds a bound, which cannot be."""
    told = []
    for run, records in found.items():
        for rule in RULES:
            for bound in (LIMIT, SHARES):
                if bound in records and records[rule]["attainment"] > records[bound]["attainment"] + 1e-9:
                    told.append(f"- {run.cell}, seed {run.seed}: {rule} is above the {bound}, which cannot be")
    return told


def _parameter(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def main() -> int:
    """Prints Markdown. Exit code 1 if a rule is above a bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"loads {QUICK_LOADS}, one seed, 1000 requests")
    parser.add_argument("--cost", action="append", choices=COSTS, help="both by default")
    parser.add_argument("--load", action="append", type=float, help=f"{LOADS} by default")
    parser.add_argument("--seeds", type=int, help="3 by default")
    parser.add_argument("--first-seed", type=int, default=11, help="11 by default, as in the study")
    parser.add_argument("--requests", type=int, help="of each run, 5000 by default")
    parser.add_argument("--edges", type=int, help="the device pads to so many edges; by default to none")
    parser.add_argument("--no-bound", action="store_true", help="without the bounds")
    parser.add_argument("--set", action="append", default=[], type=_parameter, help="parameter of atc: NAME=VALUE")
    parser.add_argument("--refusing", action="store_true", help="instead: with and without early refusals")
    parser.add_argument("--devices", type=int, default=1, help="with --refusing; 1 by default")
    parser.add_argument("--noise", type=float, default=0.0, help="with --refusing: of durations, 0 by default")
    parser.add_argument("--jobs", type=int, help="processes; by default one for each core")
    parser.add_argument("--json", type=Path, help="write all records there, too")
    parser.add_argument("--plot", type=picture, help="draw the attainments there: .png, .svg or .pdf")
    arguments = parser.parse_args()
    costs = arguments.cost or list(COSTS)
    loads = arguments.load or (QUICK_LOADS if arguments.quick else LOADS)
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    requests = arguments.requests or (1000 if arguments.quick else 5000)
    cells = all_cells(costs=costs, loads=loads)
    drawn = [(cell, seed) for cell in cells for seed in range(arguments.first_seed, arguments.first_seed + seeds)]
    command = "python scripts/bench_lengths.py " + " ".join(sys.argv[1:])
    print(f"`{command.strip()}` on {describe()}, {len(drawn)} runs of {requests} requests\n")
    if arguments.refusing:
        refusals = [RefusalRun(cell, seed, requests, arguments.devices, arguments.noise) for cell, seed in drawn]
        print("\n".join(table(dict(measure(refusals, arguments.jobs)), loads)))
        return 0
    runs = [
        LengthRun(cell, seed, requests, arguments.edges, not arguments.no_bound, tuple(arguments.set))
        for cell, seed in drawn
    ]
    found = dict(measure(runs, arguments.jobs))
    for cost in costs:
        print("\n".join([*by_load(found, cost, loads), *by_kind(found, cost)]))
    print("\n".join(by_length(found, loads)))
    odd = unexpected(found)
    print("\n".join(odd))
    if arguments.json is not None:
        records = [asdict(run) | {"records": records} for run, records in found.items()]
        arguments.json.write_text(json.dumps(records) + "\n")
    if arguments.plot is not None:
        draw(panels(found, costs, loads), arguments.plot)
    return int(bool(odd))


if __name__ == "__main__":
    raise SystemExit(main())
