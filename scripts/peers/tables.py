"""The results as Markdown tables, and the cells in which a peer is ahead. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gearmesh.telemetry.machine import median
from scripts.rigs.spreads import Aim, Spread, paired

Runs = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # {system: {cell: its runs, one per round}}
OURS = "gearmesh"
REFERENCE = "mosec"  # the best peer


def middle(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The median over the rounds; None if a round lacks the value."""
    values = [run[key] for run in runs]
    return None if not values or any(value is None for value in values) else median(values)


def goodput(runs: Sequence[Mapping[str, Any]], slo: str) -> tuple[float, float]:
    """(share in time, goodput per second): medians over the rounds."""
    return (
        median(run["goodput"][slo]["share"] for run in runs),
        median(run["goodput"][slo]["per_s"] for run in runs),
    )


def throughput_table(title: str, runs: Runs, in_flight: Sequence[int]) -> str:
    """Requests per second and latencies for each number in flight."""
    head = ["system"]
    for n in in_flight:
        head += [f"{n} in flight: req/s", "p50 ms", "p99 ms"]
    rows = []
    for system, cells in runs.items():
        row: list[str] = [system]
        worst: list[Mapping[str, Any]] = []
        for n in in_flight:
            found = cells.get(str(n), [])
            row += [_number(middle(found, "done_per_s"), 0), *(_number(middle(found, f"p{p}_ms"), 2) for p in (50, 99))]
            worst += found
        rows.append([*row, *_machine(worst)])
    return _table(title, [*head, "failed", "steal", "foreign"], rows)


def goodput_table(title: str, runs: Runs, cell: str, slos: Sequence[float]) -> str:
    """Share of the requests within each SLO, and goodput per second.

    Peers know nothing of SLOs, so one run fills all their columns. gearmesh is told the SLO: one run for each. In a
    closed loop a refused client sends its next request at once, so the share refers to many more requests; compare the
    goodput per second.
    """
    head = ["system", "done/s", "p50 ms", "p99 ms", *(f"≤{slo:g} ms" for slo in slos), "refused p99 ms"]
    rows = []
    for system, cells in runs.items():
        one = {f"{slo:g}": cells.get(f"{cell}@{slo:g}") or cells.get(cell, []) for slo in slos}
        loosest = one[f"{max(slos):g}"]
        if not loosest:
            continue
        row = [system, _number(middle(loosest, "done_per_s"), 0)]
        row += [_number(middle(loosest, "p50_ms"), 1), _number(middle(loosest, "p99_ms"), 1)]
        for slo, found in one.items():
            share, per_s = goodput(found, slo)
            row.append(f"{share:.0%} ({per_s:,.0f}/s)")
        refused = [value for found in one.values() if (value := middle(found, "refused_p99_ms")) is not None]
        row.append(_number(max(refused) if refused else None, 1))
        rows.append([*row, *_machine([run for found in one.values() for run in found])])
    return _table(title, [*head, "failed", "steal", "foreign"], rows)


def behind(runs: Runs, cells: Iterable[str], slos: Sequence[float]) -> list[str]:
    """The cells and SLOs in which gearmesh's best goodput is below that of the best peer."""
    said = []
    for cell in cells:
        for slo in slos:
            scores = {
                system: goodput(found, f"{slo:g}")[1]
                for system, by_cell in runs.items()
                if (found := by_cell.get(f"{cell}@{slo:g}") or by_cell.get(cell))
            }
            ours = max((score for system, score in scores.items() if system.startswith(OURS)), default=0.0)
            for system, score in scores.items():
                if not system.startswith(OURS) and score > ours:
                    said.append(f"{cell}, SLO {slo:g} ms: {system} {score:,.0f}/s, gearmesh {ours:,.0f}/s")
    return said


def behind_throughput(title: str, runs: Runs, in_flight: Sequence[int]) -> list[str]:
    """The numbers in flight at which gearmesh serves fewer requests per second than a peer."""
    said = []
    for n in in_flight:
        scores = {s: middle(cells[str(n)], "done_per_s") or 0.0 for s, cells in runs.items() if cells.get(str(n))}
        ours = max((score for system, score in scores.items() if system.startswith(OURS)), default=0.0)
        for system, score in scores.items():
            if not system.startswith(OURS) and score > ours:
                said.append(f"{title}, {n} in flight: {system} {score:,.0f}/s, gearmesh {ours:,.0f}/s")
    return said


def closed_figure(system: str, slo: float) -> str:
    """The name of a ratio of goodputs."""
    return f"{system}: goodput within {slo:g} ms / {REFERENCE}'s"


def closed_ratios(runs: Runs, cell: str, slos: Sequence[float]) -> dict[str, Spread]:
    """{name: goodput relative to the best peer's, of each round by itself}; empty if that peer was not measured."""
    found = {}
    for system, cells in runs.items():
        for slo in slos if system.startswith(OURS) else ():
            mine, other = cells.get(f"{cell}@{slo:g}"), runs.get(REFERENCE, {}).get(cell)
            if mine and other and len(mine) == len(other) and all(run["goodput"][f"{slo:g}"]["per_s"] for run in other):
                pair = [[run["goodput"][f"{slo:g}"]["per_s"] for run in each] for each in (mine, other)]
                found[closed_figure(system, slo)] = paired(*pair)
    return found


def ratios_table(aims: Iterable[Aim], ratios: Mapping[str, Spread]) -> str:
    """A row for each ratio, with its aim if it has one; empty if there are none."""
    if not ratios:
        return ""
    by_figure = {aim.figure: aim for aim in aims}
    rows = []
    for name, found in ratios.items():
        aim = by_figure.get(name)
        judged = ["", ""] if aim is None else [aim.words, "hit" if aim.is_hit(found.median) else "miss"]
        rows.append([name, found.words(), *judged])
    return _table("Ratios of single rounds", ["ratio", "median (min-max; IQR)", "aim", ""], rows)


def lateness(models: Mapping[str, Runs]) -> str:
    """The greatest delay with which the client itself sent requests."""
    found = [
        (run["late_p99_ms"], f"{system}, {model} {cell}")
        for model, runs in models.items()
        for system, cells in runs.items()
        for cell, each in cells.items()
        for run in each
        if run["late_p99_ms"] is not None
    ]
    if not found:
        return ""
    late_ms, where = max(found)
    return f"The client sent its requests late by {late_ms:.1f} ms (p99) in the worst cell: {where}.\n"


def _machine(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not runs:
        return ["-", "-", "-"]
    failed = str(sum(run["failed"] for run in runs))
    return [failed, *(f"{max(run[key] for run in runs):.2f}" for key in ("steal", "foreign"))]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])
