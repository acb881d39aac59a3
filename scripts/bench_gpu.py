"""All checks and measurements for a GPU, in one command of less than 8 minutes, without network.

    python3 -m scripts.bench_gpu [--device cuda|cpu] [--repository FOLDER] [--results FOLDER] [--minutes M] [--quick]
    python3 -m scripts.bench_gpu wheels FOLDER [--python 3.12]

Runs the tests marked `cuda`, the probes of the device itself and scripts/bench_worker.py, and writes
docs/results/DEVICE-DATE.json and a table beside it. Without a GPU the same steps run on the processor (the tests and
probes on the host driver); those results say nothing about a GPU.

What it needs besides torch and numpy is listed in scripts/rigs/gpu_needs.py, and checked first. `wheels` downloads all
of it where a registry can be reached, for a machine without network.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gearmesh.telemetry.machine import describe
from scripts import ROOT
from scripts.rigs.gpu_needs import PYTHON, complaint, fetch, missing
from scripts.rigs.gpu_tables import table

TESTS = "tests/gpu_worker"  # those named test_cuda_*
MINUTES = 7.5
SPARE_S = 5.0  # reserved for writing the results
BUILD_S_MAX = 120.0
DEMO = ("digits_linear", "digits_mlp", "digits_cnn", "resnet18", "resnet50")
Figures = dict[str, Any]


class Clock:
    """The time left for all steps."""

    def __init__(self, minutes: float) -> None:
        self._began_s = time.monotonic()
        self._end_s = self._began_s + minutes * 60.0 - SPARE_S

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return max(1.0, self._end_s - time.monotonic())

    @property
    def spent_s(self) -> float:
        """Seconds spent."""
        return time.monotonic() - self._began_s


def run(arguments: list[str], limit_s: float) -> Figures:
    """{code, took_s, out, error} of the command in a process of its own, which is ended at the limit."""
    began_s = time.monotonic()
    ours = environment(os.environ)
    try:
        done = subprocess.run(
            arguments, cwd=ROOT, env=ours, capture_output=True, text=True, timeout=limit_s, check=False
        )
        code, out, error = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        code, out, error = None, _text(late.stdout), f"{_text(late.stderr)}\nended after {limit_s:.0f} s"
    return {"code": code, "took_s": round(time.monotonic() - began_s, 1), "out": out, "error": error}


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: finds our packages and the project; loads no pytest plugins that are not needed."""
    paths = [*filter(None, ours.get("PYTHONPATH", "").split(os.pathsep)), str(ROOT)]
    return {**ours, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _text(raw: str | bytes | None) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw or ""


def files_of_tests() -> list[str]:
    """All test files of the device with graphs."""
    return sorted(map(str, (ROOT / TESTS).rglob("test_cuda_*.py")))


def run_tests(limit_s: float) -> Figures:
    """{passed, failed, skipped, reasons, failures} of the tests of the device with graphs."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        quiet = ["-p", "no:cacheprovider", "-W", "default"]  # another release of torch may have other warnings
        done = run([sys.executable, "-m", "pytest", *files_of_tests(), *quiet, f"--junitxml={report}"], limit_s)
        if not report.exists():
            return {"ok": False, "took_s": done["took_s"], "error": (done["out"] + done["error"])[-2000:]}
        counts = {"passed": 0, "failed": 0, "skipped": 0}
        failures, reasons = [], set()
        for case in xml.etree.ElementTree.parse(report).getroot().iter("testcase"):
            broken = next((child for child in case if child.tag in ("failure", "error")), None)
            skipped = case.find("skipped")
            counts["failed" if broken is not None else "skipped" if skipped is not None else "passed"] += 1
            if broken is not None:
                failures.append({"test": case.get("name"), "why": (broken.text or "")[-1500:]})
            if skipped is not None:
                reasons.add(skipped.get("message") or "")
    return {
        "ok": done["code"] == 0, "took_s": done["took_s"], **counts, "reasons": sorted(reasons), "failures": failures
    }  # fmt: skip


def run_json(arguments: list[str], limit_s: float) -> Figures:
    """{ok, took_s, figures} of a command whose last line is one object, or {ok, took_s, error}."""
    done = run(arguments, limit_s)
    lines = done["out"].strip().splitlines()
    if done["code"] == 0 and lines:
        try:
            return {"ok": True, "took_s": done["took_s"], "figures": json.loads(lines[-1])}
        except ValueError:
            return {"ok": False, "took_s": done["took_s"], "error": f"its last line is no JSON: {lines[-1][:200]}"}
    return {"ok": False, "took_s": done["took_s"], "error": (done["error"] or done["out"])[-2000:]}


def steps(device: str, repository: Path, clock: Clock, quick: bool) -> Iterator[tuple[str, Figures]]:
    """Yields (name, results) of one step after the other."""
    gpu = device == "cuda"
    yield "tests", run_tests(min(150.0, clock.left_s))
    driver, seconds = ("cuda" if gpu else "host"), ("0.05" if quick else "1.0" if gpu else "0.3")
    probes = [sys.executable, "-m", "scripts.gpu_probes", "--driver", driver, "--seconds", seconds]
    probes += ["--budget", f"{min(90.0, clock.left_s / 3):.0f}"]
    yield "probes", _all_or_not(run_json(probes, min(150.0, clock.left_s)))
    models = [name for name in DEMO if (repository / name).is_dir()]
    if not models:
        yield "models", build_models(repository, min(BUILD_S_MAX, clock.left_s))
        models = [name for name in DEMO if (repository / name).is_dir()]
    if (ROOT / "scripts" / "bench_worker.py").exists():
        limits = ["--runs", "50", "--seconds", "0.1"] if quick else ["--seconds", f"{_seconds_each(clock, models):.2f}"]
        command = [sys.executable, "-m", "scripts.bench_worker", "--device", device, "--json"]
        command += ["--repository", str(repository), *limits]
        yield "worker", run_json(command, clock.left_s)
    else:
        yield "worker", {"ok": False, "took_s": 0.0, "error": "scripts/bench_worker.py is not there"}


def _all_or_not(probes: Figures) -> Figures:
    """The results; not ok if one figure failed, but the others are kept."""
    failed = probes.get("figures", {}).get("failed", {})
    return {**probes, "ok": False, "error": "; ".join(map(": ".join, failed.items()))} if failed else probes


def build_models(repository: Path, limit_s: float) -> Figures:
    """{ok, took_s, error}: builds each demo model by itself, as one may lack a package; ok if at least one exists."""
    end_s, took_s, faults = time.monotonic() + limit_s, 0.0, []
    for name in DEMO:
        command = [sys.executable, "-m", "scripts.build_models", "--repository", str(repository), "--only", name]
        build = run(command, max(1.0, end_s - time.monotonic()))
        took_s += build["took_s"]
        if build["code"] != 0:
            faults.append(f"{name}: {(build['error'].strip().splitlines() or ['no word why'])[-1]}")
    ok = any((repository / name).is_dir() for name in DEMO)
    return {"ok": ok, "took_s": round(took_s, 1), "error": "; ".join(faults)}


def _seconds_each(clock: Clock, models: list[str]) -> float:
    """Seconds for one model and batch size, so that all together take two thirds of the time left; at most 3."""
    sizes = 9 * max(1, len(models))
    return min(3.0, max(0.1, clock.left_s * 2 / 3 / sizes))


def name_of(device: str) -> str:
    """The device's name as part of a file name."""
    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fetch_wheels(words: list[str]) -> int:
    """`wheels FOLDER`: the exit code of the download."""
    parser = argparse.ArgumentParser(prog="bench_gpu wheels", description="Fetches what the steps need as wheels.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=PYTHON, help=f"version of the machine with the GPU [{PYTHON}]")
    arguments = parser.parse_args(words)
    return fetch(arguments.folder, arguments.python)


def main() -> int:
    """Runs all steps. Exit code 0; 1 if a step failed; 2 if the device or packages are missing."""
    if sys.argv[1:2] == ["wheels"]:
        return fetch_wheels(sys.argv[2:])
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default=there)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for everything [{MINUTES}]")
    parser.add_argument("--quick", action="store_true", help="a few runs of each: shows that it works, not how fast")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and there != "cuda":
        sys.stderr.write(f"bench_gpu: torch {torch.__version__} finds no GPU here; --device cpu runs the same steps\n")
        return 2
    lacking = missing()
    sys.stderr.write(complaint(lacking))
    if any(not need.gives for need in lacking):
        return 2
    clock = Clock(arguments.minutes)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found: Figures = {
        "device": arguments.device, "name": name_of(arguments.device), "date": today, "quick": arguments.quick,
        "torch": torch.__version__, "cuda": torch.version.cuda, "machine": describe(),
        "missing": [need.name for need in lacking], "steps": {},
    }  # fmt: skip
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / f"{found['name']}-{today}.json"
    for name, step in steps(arguments.device, arguments.repository.resolve(), clock, arguments.quick):
        found["steps"][name] = step
        found["took_s"] = round(clock.spent_s, 1)
        print(
            f"{name:<8} {'ok' if step['ok'] else 'FAILED':<7} {step['took_s']:>6.1f} s  {step.get('error', '')[-600:]}"
        )
        sys.stdout.flush()
        file.write_text(json.dumps(found, indent=1) + "\n")  # saved after each step, so that nothing known is lost
    text = table(found)
    file.with_suffix(".md").write_text(text)
    print(f"\n{text}\n{file}")
    return 0 if all(step["ok"] for step in found["steps"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
