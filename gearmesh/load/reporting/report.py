"""The report as tables for people, and as a map for a file. Pure except for printing."""

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from gearmesh.load.plan import LoadTestPlan, Open, Replay
from gearmesh.load.reporting.records import OUTCOMES
from gearmesh.load.reporting.statistics import LATE_MS, PhaseReport, Quantiles, report
from gearmesh.load.results import PhaseRun

FORMAT = 2
OF_THE_STREAM = ("seconds", "slo_ms", "slo_draw", "clients", "think_s")  # of the simulator's load; the stream's count


def reports(plan: LoadTestPlan, runs: Sequence[PhaseRun]) -> list[PhaseReport]:
    """The report of each phase."""
    return [
        report(
            run.phase.name, run.records, run.codes, [s.name for s in run.phase.streams], plan.models,
            seconds=run.phase.seconds, warmup_s=run.phase.warmup_s,
        )
        for run in runs
    ]  # fmt: skip


def as_map(
    plan: LoadTestPlan, runs: Sequence[PhaseRun], found: Sequence[PhaseReport], machine: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """The whole report as a map, complete for readers who did not see the run."""
    phases = []
    for run, one in zip(runs, found, strict=True):
        phases.append(
            {
                **msgspec.to_builtins(one),
                "generator": {
                    "cpu_s": run.generator_cpu_s,
                    "scheduled": run.scheduled,
                    "stray_answers": run.stray,
                    "connections_lost": run.broken,
                    "full": run.full,
                },
                "machine": run.watched,
            }
        )
    return {"format": FORMAT, "machine": machine, **more, "plan": _plan_map(plan), "phases": phases}


def _plan_map(plan: LoadTestPlan) -> dict[str, Any]:
    """The plan with the kind of each source; of a recorded log only the number of requests."""
    built: dict[str, Any] = msgspec.to_builtins(plan)
    for phase, own in zip(built["phases"], plan.phases, strict=True):
        for stream, source in zip(phase["streams"], (stream.source for stream in own.streams), strict=True):
            found = stream["source"]
            if isinstance(source, Open):
                found = {key: value for key, value in found["load"].items() if key not in OF_THE_STREAM}
            elif isinstance(source, Replay):
                found = {"requests": len(source.lines), "rate_rps": source.rate_rps}
            stream["source"] = {"loop": type(source).__name__.lower(), **found}
    return built


def show(plan: LoadTestPlan, runs: Sequence[PhaseRun], found: Sequence[PhaseReport], console: Console) -> None:
    """Prints all tables."""
    for note in plan.notes:
        console.print(note)
    console.print(_overview(found))
    console.print(_attainment(found))
    for one in found:
        console.print(_outcomes(one))
        _show_facts(one, console)
    console.print(_generator(runs, found))
    for sentence in complaints(runs, found):
        console.print(sentence, style="bold red")


def complaints(runs: Sequence[PhaseRun], found: Sequence[PhaseReport]) -> list[str]:
    """Faults of the generator that make the numbers unreliable: it could not keep its rate."""
    said = []
    for run, one in zip(runs, found, strict=True):
        late = one.lateness
        if not late.kept:
            said.append(
                f"THE GENERATOR COULD NOT KEEP THE RATE in phase {one.name!r}: {late.late_share:.1%} of the requests "
                f"left over {LATE_MS:g} ms late, and {late.unread_share:.1%} of the answers may have lain unread for "
                f"longer; {late.sent_per_s:,.0f} of {one.offered_per_s:,.0f} requests a second were sent before the "
                "phase was over. Latencies count from when they were due until they were read. Use more --processes, "
                "or a lower rate."
            )
        if run.full:
            said.append(
                f"THE CLIENTS STOPPED ASKING in phase {one.name!r}: a generator process cannot note more requests than "
                "that. Use more --processes, or fewer --seconds."
            )
    return said


def remarks(runs: Sequence[PhaseRun], found: Sequence[PhaseReport]) -> list[str]:
    """Notes for a careful reader that are not faults of the generator."""
    said = []
    for run, one in zip(runs, found, strict=True):
        if run.broken:
            said.append(f"phase {one.name!r}: connections to the mesh were lost, {run.broken} times")
        least_ms = min((slo.slo_ms for slo in one.by_slo), default=None)
        p99_ms = one.lateness.ms.p99_ms
        if least_ms is not None and p99_ms is not None and one.lateness.kept and p99_ms > 0.1 * least_ms:
            said.append(
                f"phase {one.name!r}: the generator's own lateness (p99 {p99_ms:.2f} ms) is more than a tenth of the "
                f"smallest budget ({least_ms:g} ms)"
            )
    return said


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _cells(q: Quantiles) -> list[str]:
    return [f"{q.n:,}", _ms(q.mean_ms), _ms(q.p50_ms), _ms(q.p99_ms), _ms(q.p999_ms), _ms(q.max_ms)]


def _overview(found: Sequence[PhaseReport]) -> Table:
    table = Table("phase", "seconds", "offered/s", "answered/s", "goodput/s", "in time", "mean batch", "cold starts")
    table.title = "load"
    for one in found:
        table.add_row(
            one.name, f"{one.seconds:g}", f"{one.offered_per_s:,.1f}", f"{one.answered_per_s:,.1f}",
            f"{one.goodput_per_s:,.1f}", _percent(one.attainment),
            "-" if one.mean_batch is None else f"{one.mean_batch:.2f}",
            "not told" if one.cold_starts is None else f"{one.cold_starts:,}",
        )  # fmt: skip
    return table


def _attainment(found: Sequence[PhaseReport]) -> Table:
    table = Table("phase", "SLO ms", "requests", "in time", "attainment", "goodput/s", title="by SLO")
    for one in found:
        for slo in one.by_slo:
            table.add_row(
                one.name, f"{slo.slo_ms:.4g}", f"{slo.n:,}", f"{slo.in_time:,}", f"{slo.attainment:.2%}",
                f"{slo.goodput_per_s:,.1f}",
            )  # fmt: skip
    return table


def _outcomes(one: PhaseReport) -> Table:
    title = f"{one.name}: latency by outcome, ms, from when the request was due"
    table = Table("outcome", "requests", "share", "mean", "p50", "p99", "p99.9", "max", title=title)
    for outcome in OUTCOMES:
        q = one.outcomes.get(outcome)
        if q is not None:
            cells = _cells(q)
            table.add_row(outcome, cells[0], f"{q.n / one.n:.2%}", *cells[1:])
    return table


def _show_facts(one: PhaseReport, console: Console) -> None:
    if one.rejections:
        codes = ", ".join(f"{count:,} {code}" for code, count in sorted(one.rejections.items(), key=lambda kv: -kv[1]))
        quick = one.rejected_within
        console.print(
            f"not served: {codes}; refusals within p50 {_ms(quick.p50_ms)}, p99 {_ms(quick.p99_ms)}, max "
            f"{_ms(quick.max_ms)} ms"
        )
    over, under = one.over_predicted, one.under_predicted
    if over.n + under.n:
        console.print(
            f"prediction: above by p50 {_ms(over.p50_ms)}, p99 {_ms(over.p99_ms)} ms ({over.n:,} requests); below by "
            f"p50 {_ms(under.p50_ms)}, p99 {_ms(under.p99_ms)}, max {_ms(under.max_ms)} ms ({under.n:,})"
        )
    if one.by_size:
        table = Table(
            "size", "requests", "in time", "goodput/s", "p99 ms", title=f"{one.name}: by quartile of the sizes"
        )
        for sized in one.by_size:
            table.add_row(
                f"{sized.least:,} to {sized.most:,}", f"{sized.n:,}", _percent(sized.attainment),
                f"{sized.goodput_per_s:,.1f}", _ms(sized.p99_ms),
            )  # fmt: skip
        console.print(table)
    parts = one.by_stream if len(one.by_stream) > 1 else one.by_model if 1 < one.models_asked <= 20 else []
    if parts:
        table = Table("stream" if len(one.by_stream) > 1 else "model", "requests", "in time", "p50 ms", "p99 ms")
        for part in parts:
            table.add_row(part.name, f"{part.n:,}", _percent(part.attainment), _ms(part.p50_ms), _ms(part.p99_ms))
        console.print(table)


def _generator(runs: Sequence[PhaseRun], found: Sequence[PhaseReport]) -> Table:
    title = "the generator itself: sent behind due, and answers unread for at most, ms; and the machine meanwhile"
    table = Table(
        "phase", "late p50", "p99", "max", f"over {LATE_MS:g} ms", "unread p99", f"over {LATE_MS:g} ms", "kept",
        "cpu of each", "foreign", "steal", title=title,
    )  # fmt: skip
    for run, one in zip(runs, found, strict=True):
        late = one.lateness
        cpu = " ".join(f"{used / run.phase.seconds:.0%}" for used in run.generator_cpu_s)
        table.add_row(
            one.name, _ms(late.ms.p50_ms), _ms(late.ms.p99_ms), _ms(late.ms.max_ms), f"{late.late_share:.2%}",
            _ms(late.unread.p99_ms), f"{late.unread_share:.2%}",
            "yes" if late.kept else "NO", cpu, f"{run.watched['foreign']}", f"{run.watched['steal']}",
        )  # fmt: skip
    return table
