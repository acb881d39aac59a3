"""What the benchmark of bad neighbours prints, and what it writes as JSON."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from gearmesh.telemetry.machine import median, quantile
from scripts.rigs.neighbourhoods import Situation
from scripts.rigs.open_loops import OK, WRONG, Seen
from scripts.rigs.processes import console

SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class SoundRun:
    """What sound clients saw in one round, and what their neighbours counted: nothing, if there were none."""

    seen: Seen
    neighbours: Mapping[str, int]
    steal: float  # share of the processor time that other machines on this host took

    @property
    def requests(self) -> int:
        """Of the sound clients."""
        return self.seen.outcomes.total()

    @property
    def goodput(self) -> float:
        """Share of them that were answered rightly and in time."""
        return self.seen.outcomes[OK] / self.requests


@dataclass(frozen=True, slots=True)
class LeavingRun:
    """What came after many clients had left, in one round."""

    left: int
    next_live_s: float  # from then until a live one was answered
    rows_for_nobody: int  # of batches that began after they had left
    refused: Mapping[str, int]  # how the live one was, meanwhile


@dataclass(slots=True)
class Figures:
    """Of all rounds, in order."""

    sound: dict[tuple[str, str, bool], list[SoundRun]] = field(default_factory=dict)  # {(situation, mesh, beside): ...}
    leaving: dict[str, list[LeavingRun]] = field(default_factory=dict)  # {mesh: ...}

    @property
    def wrong(self) -> int:
        """Answers that were ok, and not right."""
        return sum(run.seen.outcomes[WRONG] for runs in self.sound.values() for run in runs)

    def ratios(self) -> dict[str, float]:
        """{which: goodput beside the neighbours relative to that alone}, medians; without those of no goodput alone."""
        found = {}
        for (situation, mesh, beside), runs in self.sound.items():
            alone = median(run.goodput for run in self.sound[situation, mesh, False])
            if beside and alone:
                found[f"{situation}, {mesh}: goodput beside / alone"] = median(run.goodput for run in runs) / alone
        return found

    def described(self) -> dict[str, Any]:
        """For the JSON."""
        sound: dict[str, Any] = {}
        for (situation, mesh, beside), runs in self.sound.items():
            of_mesh = sound.setdefault(situation, {}).setdefault(mesh, {})
            of_mesh["beside" if beside else "alone"] = {
                "latencies_ms": quantiles_ms(runs),
                "rounds": [
                    {
                        "n": run.requests, "goodput": run.goodput, "outcomes": dict(run.seen.outcomes),
                        "neighbours": dict(run.neighbours), "steal": run.steal,
                    }
                    for run in runs
                ],
            }  # fmt: skip
        leaving = {
            mesh: [
                {
                    "left": run.left, "next_live_s": run.next_live_s, "rows_for_nobody": run.rows_for_nobody,
                    "refused": dict(run.refused),
                }
                for run in runs
            ]
            for mesh, runs in self.leaving.items()
        }  # fmt: skip
        return {"sound": sound, "leaving": leaving, "ratios": self.ratios()}


def quantiles_ms(runs: Iterable[SoundRun]) -> dict[str, float | None]:
    """Of the latencies of all rounds; None where there are too few."""
    ordered = sorted(s for run in runs for s in run.seen.latencies_s)
    found = {f"p{share * 100:.0f}": quantile(ordered, share) for share in SHARES}
    return {name: None if value is None else value * 1e3 for name, value in found.items()}


def show(figures: Figures, situations: Sequence[Situation], meshes: Sequence[str]) -> None:
    """Prints the tables and the ratios."""
    table = Table(
        "neighbours", "mesh", "sound clients", "goodput (min-max)", "p50 / p95 / p99 ms", "n", "their failures",
        "of the neighbours",
    )  # fmt: skip
    for situation in situations:
        for mesh in meshes:
            for beside in (False, True):
                cells = _sound_cells(figures.sound[situation.name, mesh, beside])
                table.add_row(situation.name, mesh, "beside" if beside else "alone", *cells)
        table.add_section()
    console.print(table)
    leaving = Table("mesh", "left", "next live answer, s (min-max)", "rows for nobody (min-max)", "refused meanwhile")
    for mesh, runs in figures.leaving.items():
        leaving.add_row(mesh, *_leaving_cells(runs))
    console.print(leaving)
    for name, ratio in figures.ratios().items():
        console.print(f"{name}: {ratio:.2f}")


def _sound_cells(runs: Sequence[SoundRun]) -> list[str]:
    failures: Counter[str] = Counter()
    neighbours: Counter[str] = Counter()
    for run in runs:
        failures += run.seen.outcomes
        neighbours.update(run.neighbours)
    del failures[OK]
    times = ("-" if value is None else f"{value:.0f}" for value in quantiles_ms(runs).values())
    return [
        _spread([run.goodput for run in runs], 3),
        " / ".join(times),
        str(sum(run.requests for run in runs)),
        _listed(failures),
        _listed(neighbours),
    ]


def _leaving_cells(runs: Sequence[LeavingRun]) -> list[str]:
    refused: Counter[str] = Counter()
    for run in runs:
        refused.update(run.refused)
    return [
        str(runs[0].left),
        _spread([run.next_live_s for run in runs], 2),
        _spread([run.rows_for_nobody for run in runs], 0),
        _listed(refused),
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.most_common())
