"""The results of scripts/bench_gpu.py as a Markdown page."""

from collections.abc import Iterable, Sequence
from typing import Any

Figures = dict[str, Any]
SPREAD = ("n", "p50", "p99", "p999", "max")


def table(found: Figures) -> str:
    """The page in Markdown."""
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
    """A table, followed by an empty line."""
    made = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    made += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in body]
    return [*made, ""]


def shown(value: Any) -> str:
    """The text of a cell."""
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
    lines = [f"## The device itself: {found['kind']}", ""]
    if found["left_out"]:
        lines += [f"Left out, for want of time: {', '.join(found['left_out'])}.", ""]
    lines += [f"Failed: {key}: {shown(why)}." for key, why in found["failed"].items()]
    lines += [""] if found["failed"] else []
    if "copies" in found:
        lines += ["Pinned copies, two outstanding, ms for each:", ""]
        lines += rows(
            ("direction", "MiB", "GB/s", *SPREAD),
            ((c["direction"], c["mib"], c["gb_per_s"], *_spread(c["ms"])) for c in found["copies"]),
        )
    if "gathers" in found:
        lines += [f"Gather of seven pages (the driver's is {found['gather_kernel']}), us:", ""]
        lines += rows(
            ("how", "GB/s", *SPREAD), ((g["how"], g["gb_per_s"], *_spread(g["us"])) for g in found["gathers"])
        )
    if "input_behind_load" in found:
        lines += ["INPUT of one photo behind two pieces of a LOAD, us:", ""]
        lines += rows(("MiB", *SPREAD), ((b["behind_mib"], *_spread(b["us"])) for b in found["input_behind_load"]))
    if "noticing_us" in found:
        lines += ["Noticing the end of nothing, by event, us:", ""]
        lines += rows(("event", *SPREAD), ((name, *_spread(each)) for name, each in found["noticing_us"].items()))
    if "pinning" in found:
        lines += [f"Pinning: {found['pinning']['gib_per_s']} GiB/s.", ""]
    if "load_from_disk" in found:
        lines += [f"LOAD from disk: {found['load_from_disk']['gb_per_s']} GB/s, ms:", ""]
        lines += rows(SPREAD, [_spread(found["load_from_disk"]["ms"])])
    for key in ("graphs_wide", "graphs_deep"):
        lines += _graphs(found[key]) if key in found else []
    for key in ("device_warm", "device_resting"):
        lines += _served(found[key]) if key in found else []
    return lines


def _graphs(found: Figures) -> list[str]:
    return [
        f"Replay of {found['model']} ({found['weights_mb']} MB of weights; {found['mb_per_graph']} MB of the device "
        f"for each graph; captured in {found['captured_in_s']} s; issue {found['issue_us']['p50']} us, p99 "
        f"{found['issue_us']['p99']} us), ms by the device's clock:",
        "",
        *rows(("batch", *SPREAD), ((each["batch"], *_spread(each["ms"])) for each in found["replay"])),
    ]


def _served(found: Figures) -> list[str]:
    body = [("cold, ms", *_spread(found["cold_ms"])), ("warm, ms", *_spread(found["warm_ms"]))]
    body += [
        (f"EXEC after {idle} ms idle, ms ({each['clock_mhz']:.0f} MHz)", *_spread(each))
        for idle, each in found["exec_after_idle_ms"].items()
    ]
    body += [(f"late, us: {name}", *_spread(each)) for name, each in found["issue_late_us"].items()]
    return [
        f"Through the device, clock {'kept up' if found['keep_warm'] else 'left alone'} (LOAD {found['load_gb_per_s']} "
        "GB/s):",
        "",
        *rows(("", *SPREAD), body),
    ]


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
