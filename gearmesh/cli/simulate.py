"""How a policy would do: the production scheduler on virtual time, against a load and devices that a scenario names.

gearmesh simulate SCENARIO.toml [--policy NAME]... [--seeds N] [--bound] [--json FILE] [--plot FILE.png]
"""

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gearmesh.cli.terminal.consoles import console
from mesh.errors import GearmeshError

if TYPE_CHECKING:
    from gearmesh.simulation.scenario import Scenario

RESULT = (
    "policy", "seed", "offered", "attainment", "goodput_rps", "p99_ms", "rejected", "cold_starts", "device_utilisation",
)  # fmt: skip
SIZED = ("by size %", "longest %", "padding %")  # in time: by quartile, of the longest 5 %; and of what was computed
app = typer.Typer(add_completion=False)
STDOUT = Path("-")  # in place of a file
out = console()
err = console(stderr=True)


@app.command()
def simulate(
    scenario: Annotated[
        str, typer.Argument(help="A TOML file, or one that comes with gearmesh: w1_steady, lengths, ...")
    ],
    policy: Annotated[list[str] | None, typer.Option(help="atc, clockwork, fifo; again for more of them.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="So many different arrivals: seeds 0 to N - 1.")] = 1,
    bound: Annotated[bool, typer.Option("--bound", help="Also what no scheduler could exceed.")] = False,
    tight: Annotated[bool, typer.Option("--tight", help="A tighter bound; minutes for 50,000 requests.")] = False,
    belady: Annotated[bool, typer.Option("--belady", help="Also the first policy with clairvoyant evictions.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results there; -: standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them there; .png, .svg or .pdf.")] = None,
    find_devices: Annotated[
        bool, typer.Option("--find-devices", help="The fewest devices that reach the target, for each policy.")
    ] = False,
    target: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of --find-devices: share answered in time.")] = 0.999,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; by default one for each core.")] = None,
) -> None:
    """Runs the production scheduler on virtual time: how much of a load is answered in time?"""
    from gearmesh.simulation.scenario import find_scenario, read_scenario
    from gearmesh.simulation.study import BOUND, CLAIRVOYANT, TIGHT, check_policies

    try:
        _check_files(json_file, plot)
        read = read_scenario(find_scenario(scenario))
        policies = list(dict.fromkeys(policy or read.policies))
        check_policies(read, policies)
        for note in read.notes:
            err.print(f"note: {note}", style="yellow")
        if find_devices:
            _find(read, policies, seeds, target, json_file)
        else:
            what = ([BOUND] if bound and not tight else []) + ([TIGHT] if tight else [])
            policies += [policies[0] + CLAIRVOYANT] if belady else []
            _compare(read, policies, seeds, what, jobs, json_file, plot)
    except (GearmeshError, ValueError) as error:
        _usage(str(error))


def _usage(message: str) -> NoReturn:
    err.print(f"simulate: {message}", style="red", soft_wrap=True)
    raise typer.Exit(2)


def _check_files(json_file: Path | None, plot: Path | None) -> None:
    for option, file in (("--json", json_file), ("--plot", plot)):
        if file is not None and not file.resolve().parent.is_dir():
            _usage(f"{option}: must be in a folder that exists; got {file}")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        _usage(f"--plot: must end in .png, .svg or .pdf; got {plot}")


def _compare(
    scenario: "Scenario",
    policies: list[str],
    seeds: int,
    bound: list[str],
    jobs: int | None,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    from gearmesh.simulation.study import Task

    if plot is not None:  # imported before the run, as its library may not be installed
        from gearmesh.simulation.plots import draw
    tasks = [Task(scenario, seed, name) for name in policies for seed in range(seeds)]
    if bound and scenario.load.kind == "closed":
        _usage("--bound: a closed loop has none, since what arrives depends on what is answered; leave --bound away")
    tasks += [Task(scenario, seed, kind) for kind in bound for seed in range(seeds)]
    records = _run(tasks, jobs)
    results, bounds = records[: len(policies) * seeds], records[len(policies) * seeds :]
    people = err if json_file == STDOUT else out
    people.print(_table(scenario.name, results, bounds))
    if any("padding" in record for record in results):
        people.print(_sizes(results))
    if json_file is not None:
        rows = [{key: record[key] for key in RESULT} for record in results]
        details = [{key: v for key, v in record.items() if key not in RESULT[2:]} for record in results]
        _write(json_file, {"results": rows, "bound": bounds, "details": details})
    if plot is not None:
        draw(scenario, policies, results, bounds, plot)
        people.print(f"drawn: {plot}")


def _write(json_file: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1) + "\n"
    if json_file == STDOUT:
        sys.stdout.write(text)
    else:
        json_file.write_text(text)


def _run(tasks: "list[Any]", jobs: int | None) -> list[dict[str, Any]]:
    """The records, in the tasks' order."""
    from gearmesh.simulation.study import run, run_all

    records: list[dict[str, Any]] = [{} for _ in tasks]
    with _bar() as progress:
        bar = progress.add_task("simulating", total=len(tasks))
        if len(tasks) == 1:
            records[0] = run(tasks[0], lambda share: progress.update(bar, completed=share))
            progress.update(bar, completed=1)
        else:
            for index, record in run_all(tasks, jobs):
                records[index] = record
                progress.advance(bar)
    return records


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
        console=err, transient=True,
    )  # fmt: skip


def _table(title: str, results: list[dict[str, Any]], bounds: list[dict[str, Any]]) -> Table:
    """One row per policy: means over its seeds, and the spread of the main figures."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    columns = ("in time %", "good/s", "p99 ms", "refused", "cold", "busy %", "batch")
    for column in columns + (("of bound",) if bounds else ()):
        table.add_column(column, justify="right", no_wrap=True)
    most = statistics.mean(bound["attainment"] for bound in bounds) if bounds else None
    for policy in dict.fromkeys(record["policy"] for record in results):
        mine = [record for record in results if record["policy"] == policy]
        mean = {key: _mean([record[key] for record in mine]) for key in mine[0] if key != "policy"}
        attained = mean["attainment"] or 0.0
        spread = f" ±{statistics.stdev(r['attainment'] for r in mine) * 100:.2f}" if len(mine) > 1 else ""
        table.add_row(
            policy,
            f"{attained * 100:.2f}{spread}",
            f"{mean['goodput_rps']:,.0f}",
            "-" if mean["p99_ms"] is None else f"{mean['p99_ms']:.2f}",
            f"{mean['rejected']:,.0f}",
            f"{mean['cold_starts']:,.0f}",
            f"{(mean['device_utilisation'] or 0.0) * 100:.1f}",
            f"{mean['mean_batch']:.1f}",
            *([f"{attained / most:.3f}" if most else "-"] if bounds else []),
        )
    if most is not None:
        table.add_row("bound", f"{most * 100:.2f}", style="dim")
    offered = [record["offered"] for record in results]
    seeds = len({record["seed"] for record in results})
    table.caption = f"{round(statistics.mean(offered)):,} requests" + (f", {seeds} seeds" if seeds > 1 else "")
    table.caption_justify = "left"
    return table


def _sizes(results: list[dict[str, Any]]) -> Table:
    """One row per policy whose requests have sizes: means over its seeds. Beside the other columns too wide for 80."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    for column in SIZED:
        table.add_column(column, justify="right", no_wrap=True)
    for policy in dict.fromkeys(record["policy"] for record in results):
        mine = [record for record in results if record["policy"] == policy]
        shares = [_mean([record.get(key) for record in mine]) for key in ("q1", "q2", "q3", "q4", "longest", "padding")]
        told = ["-" if share is None else f"{share * 100:.0f}" for share in shares]
        table.add_row(policy, "/".join(told[:4]), *told[4:])
    return table


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _find(scenario: "Scenario", policies: list[str], seeds: int, target: float, json_file: Path | None) -> None:
    from gearmesh.simulation.study import find_devices

    table = Table("policy", "devices", "tried", title=f"{scenario.name}: devices for {target:.3%} in time")
    answers = []
    for name in policies:
        with err.status(f"{name} ...") as status:
            found = find_devices(
                scenario, name, target, seeds, lambda n, share: status.update(f"{n} devices: {share:.3%}")
            )
        tried = ", ".join(f"{count}: {share:.2%}" for count, share in sorted(found.tried.items()))
        table.add_row(name, "too many" if found.devices is None else str(found.devices), tried)
        tries = [{"devices": count, "attainment": share} for count, share in sorted(found.tried.items())]
        answers.append({"policy": name, "devices": found.devices, "target": target, "tried": tries})
    (err if json_file == STDOUT else out).print(table)
    if json_file is not None:
        _write(json_file, {"find_devices": answers})
