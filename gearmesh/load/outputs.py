"""Runs a plan with live counts on the terminal, and writes its report: tables, a JSON file, a picture."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from gearmesh.cli.terminal.consoles import console
from gearmesh.load.errors import LoadError
from gearmesh.load.plan import LoadPhase, LoadTarget, LoadTestPlan
from gearmesh.load.reporting.records import OK, OUTCOMES
from gearmesh.load.results import PhaseRun, Seen
from gearmesh.load.runner import run_plan
from gearmesh.load.targets import Where, measure_batch1

STDOUT = Path("-")  # in place of a file: the report goes to standard output, and what people read to standard error
err = console(stderr=True)


class ReportFiles:
    """Where the report is written to."""

    def __init__(self, json_file: Path | None, plot: Path | None, progress: bool) -> None:
        self.json_file, self.plot, self.progress = json_file, plot, progress
        self.console = err if json_file == STDOUT else console()

    async def follow(
        self,
        plan: LoadTestPlan,
        targets: Mapping[str, LoadTarget],
        where: Where,
        processes: int,
        pids: Mapping[str, int] | None,
    ) -> list[PhaseRun]:
        """Runs the plan, with live counts if they are wanted. Raises: LoadError."""
        if not self.progress:
            return await run_plan(plan, targets, where, processes, lambda *_: None, pids)
        with Live(console=err, transient=True, refresh_per_second=4) as live:

            def show(phase: LoadPhase, at_s: float, seen: Seen) -> None:
                live.update(_progress(plan, phase, at_s, seen))

            return await run_plan(plan, targets, where, processes, show, pids)

    def write(self, plan: LoadTestPlan, runs: list[PhaseRun], **more: Any) -> int:
        """Prints the report and writes its files. Returns the exit code: 2 if the generator could not keep a rate.

        Raises: LoadError, if a file cannot be written.
        """
        from gearmesh.load.reporting.plot import draw
        from gearmesh.load.reporting.report import as_map, complaints, remarks, reports, show
        from gearmesh.telemetry.machine import describe

        found = reports(plan, runs)
        show(plan, runs, found, self.console)
        for sentence in remarks(runs, found):
            self.console.print(sentence, style="yellow")
        try:
            if self.json_file is not None:
                more = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "command": sys.argv[1:], **more}
                text = json.dumps(as_map(plan, runs, found, describe(), **more), indent=1, default=str, allow_nan=False)
                if self.json_file == STDOUT:
                    sys.stdout.write(text + "\n")
                else:
                    with self.json_file.open("x") as out:
                        out.write(text + "\n")
            if self.plot is not None:
                draw(plan, runs, found, self.plot)
        except OSError as error:
            raise LoadError(f"{error.filename}: cannot be written: {error.strerror}") from error
        return 2 if complaints(runs, found) else 0


async def carry_out(
    plan: LoadTestPlan,
    targets: Mapping[str, LoadTarget],
    where: Where,
    processes: int,
    outputs: ReportFiles,
    pids: Mapping[str, int] | None = None,
    **more: Any,
) -> int:
    """Runs and reports the plan. Returns the exit code. Raises: LoadError."""
    more["addresses"], more["processes"] = list(where.addresses), processes
    if plan.needs_batch1:
        targets = await measure_batch1(where, targets)
        more["batch1_ms"] = {name: target.batch1_ms for name, target in targets.items()}
    runs = await outputs.follow(plan, targets, where, processes, pids)
    return outputs.write(plan, runs, **more)


def _progress(plan: LoadTestPlan, phase: LoadPhase, at_s: float, seen: Seen) -> Table:
    came = [(OUTCOMES[i], count) for i, count in enumerate(seen.outcomes) if count or i == OK]
    table = Table("s", "sent", "per s", "in flight", *(name for name, _ in came), "sent late ms", box=None)
    table.title = (
        f"{plan.name}: {phase.name} ({[p.name for p in plan.phases].index(phase.name) + 1} of {len(plan.phases)})"
    )
    table.add_row(
        f"{max(0.0, at_s):.1f} of {phase.seconds:g}", f"{seen.sent:,}", f"{seen.sent / max(at_s, 0.1):,.0f}",
        f"{seen.in_flight:,}", *(f"{count:,}" for _, count in came), f"{seen.late_ms:.2f}",
    )  # fmt: skip
    return table
