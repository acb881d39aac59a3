"""Findings of scripts/bench_gpu.py as a page to read."""

from collections.abc import Iterable, Sequence
from typing import Any

Figures = dict[str, Any]
SPREAD = ("n", "p50", "p99", "p999", "max")


def table(found: Figures) -> str:
    """The page, in Markdown."""
    steps = found["steps"]
    lines = [
        f"# {found['name']}, {found['date']}",
        "",
        f"`scripts/bench_gpu.py --device {found['device']}`{' --quick' if found['quick'] else ''}, "
        f"torch {found['torch']}, CUDA {found['cuda'] or 'none'}, {found['machine']['cpu']}, "
        f"{found['machine']['cores']} cores; {found.get('took_s', 0)} s.",
        "",
    ]
    if found["device"] != "cuda":
        lines += ["No GPU was there: nothing on this page says anything of one.", ""]
    if found["quick"]:
        lines += ["A quick run: it shows that everything works, not how fast.", ""]
    lines += rows(("step", "", "s", ""), ((name, *_outcome(step)) for name, step in steps.items()))
    for failure in steps.get("tests", {}).get("failures", []):
        lines += [f"### failed: {failure['test']}", "", "```", failure["why"], "```", ""]
    probes = steps.get("probes", {}).get("figures")
    if probes:
        lines += _probes(probes)
    worker = steps.get("worker", {}).get("figures")
    if worker:
        lines += _worker(worker)
    return "\n".join(lines)


def rows(heads: Sequence[str], body: Iterable[Sequence[Any]]) -> list[str]:
    """A table, and a free line behind it."""
    made = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    made += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in body]
    return [*made, ""]


def shown(value: Any) -> str:
    """A cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("\n", " ").replace("|", "/")


def _outcome(step: Figures) -> tuple[str, float, str]:
    said = step.get("error", "")[-300:]
    if "passed" in step:
        said = f"{step['passed']} passed, {step['failed']} failed, {step['skipped']} skipped"
        said += f" ({'; '.join(step['reasons'])})" if step["reasons"] else ""
    return "ok" if step["ok"] else "FAILED", step["took_s"], said


def _spread(values: Figures) -> list[Any]:
    return [values[key] for key in SPREAD]


def _probes(found: Figures) -> list[str]:
    lines = [f"## The device itself: {found['kind']}", "", "Pinned copies, two outstanding, ms for each:", ""]
    lines += rows(
        ("direction", "MiB", "GB/s", *SPREAD),
        ((c["direction"], c["mib"], c["gb_per_s"], *_spread(c["ms"])) for c in found["copies"]),
    )
    lines += [f"Gather of seven pages (the driver's is {found['gather_kernel']}), us:", ""]
    lines += rows(("how", "GB/s", *SPREAD), ((g["how"], g["gb_per_s"], *_spread(g["us"])) for g in found["gathers"]))
    lines += ["INPUT of one photo behind two pieces of a LOAD, us:", ""]
    lines += rows(("MiB", *SPREAD), ((b["behind_mib"], *_spread(b["us"])) for b in found["input_behind_load"]))
    lines += ["Noticing the end of nothing, by event, us:", ""]
    lines += rows(("event", *SPREAD), ((name, *_spread(values)) for name, values in found["noticing_us"].items()))
    lines += [f"Pinning: {found['pinning']['gib_per_s']} GiB/s.", ""]
    for graph in found["graphs"]:
        lines += [
            f"Replay of {graph['model']} ({graph['weights_mb']} MB of weights; {graph['mb_per_graph']} MB of the "
            f"device for each graph; captured in {graph['captured_in_s']} s; issue {graph['issue_us']['p50']} us, "
            f"p99 {graph['issue_us']['p99']} us), ms by the device's clock:",
            "",
        ]
        lines += rows(("batch", *SPREAD), ((r["batch"], *_spread(r["ms"])) for r in graph["replay"]))
    for served in found["devices"]:
        lines += [f"Through the device, clock {'kept up' if served['keep_warm'] else 'left alone'}:", ""]
        body = [("cold, ms", *_spread(served["cold_ms"])), ("warm, ms", *_spread(served["warm_ms"]))]
        body += [
            (f"EXEC after {idle} ms idle, ms ({values['clock_mhz']:.0f} MHz)", *_spread(values))
            for idle, values in served["exec_after_idle_ms"].items()
        ]
        body += [(f"late, us: {name}", *_spread(values)) for name, values in served["issue_late_us"].items()]
        lines += rows(("", *SPREAD), body)
    return lines


def _worker(found: Figures) -> list[str]:
    lines = ["## The worker", ""]
    keys = ("model", "batch", "n", "p50_ms", "p99_ms", "p999_ms", "max_ms")
    lines += rows((*keys, "p99.9 / p50"), ((*(line[key] for key in keys), _ratio(line)) for line in found["exec"]))
    rest = {key: value for key, value in found.items() if isinstance(value, dict) and key not in ("machine", "watch")}
    lines += rows(
        ("", ""),
        ((key, ", ".join(f"{name} {shown(item)}" for name, item in value.items())) for key, value in rest.items()),
    )
    return lines


def _ratio(line: Figures) -> float | None:
    return line["p999_ms"] / line["p50_ms"] if line["p999_ms"] and line["p50_ms"] else None
