"""atc compared with Clockwork's policy on random scenarios with devices that start empty, to find where it is worse.

python -m scripts.bench_random [--first 0] [--count 80] [--seeds 1] [--worst 5] [--jobs N]

Prints Markdown: in how many scenarios atc is below by more than 0.002, and those with the smallest lead. The
distribution is in scripts/rigs/random_scenarios.py.
"""

import argparse
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from gearmesh.simulation.scenario import Scenario, parse_scenario
from gearmesh.simulation.study import Task, run_all
from scripts.rigs.random_scenarios import draw

POLICIES = ("atc", "clockwork")
BELOW = 0.002


def read(number: int) -> Scenario:
    """The scenario of that number."""
    return parse_scenario(draw(number), f"random-{number}", Path())


def line(number: int, scenario: Scenario, mine: float, theirs: float) -> str:
    """One row of the table."""
    devices, model, load = scenario.devices, scenario.models[0], scenario.load
    room = devices.pages // devices.pages_of(model)
    cells = [
        f"{number}", f"{devices.count}", f"{len(scenario.models)}", f"{room}", f"{devices.load_s(model) * 1e3:.1f}",
        f"{load.slo_ms[0]:.0f}", f"{model.exec_s[1] * 1e3:.1f}", f"{load.rate_rps:,.0f}", f"{load.seconds:.2f}",
        f"{theirs:.3f}", f"{mine:.3f}", f"{mine - theirs:+.3f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Runs the comparison and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="number of the first scenario")
    parser.add_argument("--count", type=int, default=80, help="of scenarios")
    parser.add_argument("--seeds", type=int, default=1, help="of arrivals, for each")
    parser.add_argument("--worst", type=int, default=5, help="rows of the table")
    parser.add_argument("--jobs", type=int, help="processes; by default one for each core")
    arguments = parser.parse_args()
    scenarios = {n: read(n) for n in range(arguments.first, arguments.first + arguments.count)}
    keys = [(n, what, seed) for n in scenarios for what in POLICIES for seed in range(arguments.seeds)]
    found: dict[tuple[int, str], list[float]] = {}
    runs = run_all([Task(scenarios[n], seed, what) for n, what, seed in keys], arguments.jobs)
    for index, record in track(runs, "random", len(keys), console=Console(stderr=True), transient=True):
        number, what, _ = keys[index]
        found.setdefault((number, what), []).append(record["attainment"])
    means = {n: [statistics.mean(found[n, what]) for what in POLICIES] for n in scenarios}
    leads = sorted((mine - theirs, n) for n, (mine, theirs) in means.items())
    mine, theirs = (statistics.mean(pair[i] for pair in means.values()) for i in (0, 1))
    below = sum(lead < -BELOW for lead, _ in leads)
    print(f"{len(leads)} scenarios: atc {mine:.3f}, clockwork {theirs:.3f}; below it by more than {BELOW}: {below}\n")
    heads = ["scenario", "devices", "models", "room", "LOAD ms", "SLO ms", "EXEC of 1, ms", "r/s", "s", "clockwork",
             "atc", "lead"]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    print("\n".join(line(n, scenarios[n], *means[n]) for _, n in leads[: arguments.worst]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
