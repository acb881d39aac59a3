"""Measures one device through the worker's own lanes: the spread of EXEC, LOAD relative to a copy, the delay of starts.

    .venv/bin/python scripts/bench_worker.py --device cpu|cuda|cuda:N [--models NAME ...] [--batches N ...]
        [--runs N] [--seconds S] [--repository FOLDER] [--json]

Models and sizes run one after the other, so nothing else should run on the machine. With --json the last line is one
object. A percentile with fewer than ten values beyond it is null.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvloop
from rich.console import Console
from rich.table import Table

from gearmesh.telemetry.machine import MachineWatch, describe
from gpu_worker import tuning
from gpu_worker.devices.opening import open_device
from mesh import wire
from mesh.errors import GearmeshError
from mesh.process.configuration import read_settings
from mesh.process.repository import scan_repository
from mesh.process.settings import Settings
from scripts.build_models import DEMO
from scripts.rigs import worker_measurements as measure
from scripts.rigs.worker_measurements import Figures, Limits
from scripts.rigs.worker_rig import Rig

LIMITS = {"cpu": Limits(2000, 20.0), "cuda": Limits(20_000, 3.0)}
OTHERS_SHARE = 0.5  # of those limits, for what is measured once and not for every size
ESTIMATE_SHARE = 4.0  # times those limits for estimates: models and sizes are drawn at random, so it takes more runs


def bare_copy(device: str) -> Callable[[int], Callable[[], float]]:
    """bytes -> a copy without our code in between: memory to memory, or pinned memory to the GPU."""
    return _bare_copy_cuda(device) if device.startswith("cuda") else _bare_copy_cpu


def _bare_copy_cpu(size: int) -> Callable[[], float]:
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def copy() -> float:
        began_s = time.perf_counter()
        np.copyto(target, source)
        return time.perf_counter() - began_s

    return copy


def _bare_copy_cuda(device: str) -> Callable[[int], Callable[[], float]]:
    def make(size: int) -> Callable[[], float]:
        source = torch.ones(size, dtype=torch.uint8, pin_memory=True)
        target = torch.ones(size, dtype=torch.uint8, device=device)
        stream = torch.cuda.Stream(device)

        def copy() -> float:
            stream.synchronize()
            began_s = time.perf_counter()
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
            stream.synchronize()
            return time.perf_counter() - began_s

        return copy

    return make


async def bench(settings: Settings, refs: list[str], batches: list[int], limits: Limits, out: Console) -> Figures:
    """All measurements of one device. Raises: GearmeshError."""
    watch = MachineWatch({})
    tuned = tuning.apply(settings.cores, settings.real_time)
    rig = Rig(open_device(settings))
    try:
        rig.start()
        prepared = {
            wire.split_ref(ref)[0]: round(
                1e3 * await rig.prepare(settings.model_repository, ref, settings.factory_allow), 1
            )
            for ref in refs
        }
        tuning.freeze()
        info = rig.device.info
        out.print(f"{info.name}: {info.kind}, {info.pages} pages of {info.page_bytes >> 20} MiB")
        figures: Figures = {
            "device": settings.device,
            "kind": info.kind,
            "torch": torch.__version__,
            "machine": describe(),
            "tuning": tuned,
            "prepare_ms": prepared,
            "engines": {wire.split_ref(ref)[0]: rig.device.traits(ref).engine for ref in refs},
        }
        figures["exec"] = await _exec(rig, refs, batches, limits, out)
        figures |= await _others(rig, refs, batches, Limits(limits.runs, limits.seconds * OTHERS_SHARE), out)
    finally:
        rig.close()
    figures["watch"] = watch.stop()
    return figures


async def _exec(rig: Rig, refs: list[str], batches: list[int], limits: Limits, out: Console) -> list[Figures]:
    found = []
    table = Table("model", "batch", "n", "p50 ms", "p99", "p99.9", "max", title="EXEC", title_justify="left")
    for ref in refs:
        for batch in rig.sizes(rig.packages[ref]):
            if batches and batch not in batches:
                continue
            line = await measure.exec_spread(rig, ref, batch, limits)
            found.append(line)
            table.add_row(
                *(_shown(line[key]) for key in ("model", "batch", "n", "p50_ms", "p99_ms", "p999_ms", "max_ms"))
            )
    out.print(table)
    return found


async def _others(rig: Rig, refs: list[str], batches: list[int], limits: Limits, out: Console) -> Figures:
    by_size = sorted(refs, key=lambda ref: rig.packages[ref].image_bytes)
    small, large = by_size[0], by_size[-1]
    second = by_size[-2] if len(by_size) > 1 else large
    copy = bare_copy(rig.device.info.name)
    found: Figures = {"load": await measure.load_bandwidth(rig, large, copy, limits)}
    found["gather"] = await measure.gather_cost(rig, large, limits)
    rig.issue_s.clear()
    found["issue_late_us"] = await measure.issue_lateness(rig, small, limits)
    found["cold_ms"], found["warm_ms"] = await measure.cold_and_warm(rig, large, limits)
    if large != second:
        found["disturbance"] = await measure.disturbance(rig, second, large, limits)
    found["launch_us"] = {"n": len(rig.issue_s), **measure.spread(rig.issue_s, 1e-6)}
    found["estimate_error"] = await measure.estimate_error(
        rig, _that_fit(rig, refs), batches, Limits(limits.runs, limits.seconds * ESTIMATE_SHARE)
    )
    table = Table("", "", title="LOAD, starts and latency", title_justify="left", show_header=False)
    for name, value in found.items():
        table.add_row(name, "  ".join(f"{key} {_shown(item)}" for key, item in value.items()))
    out.print(table)
    return found


def _that_fit(rig: Rig, refs: list[str]) -> list[str]:
    """The first of the models that fit into the arena together."""
    room, chosen = rig.lanes.table.count, []
    for ref in refs:
        room -= rig.packages[ref].pages(rig.device.info.page_bytes)
        if room >= 0:
            chosen.append(ref)
    return chosen


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def find_models(repository: Path, names: list[str]) -> list[str]:
    """Refs of the models, each in its newest version. Raises: GearmeshError."""
    there = scan_repository(repository)
    wanted = names or [name for name in DEMO if name in there]
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise GearmeshError(
            f"{repository} has no {', '.join(missing) or 'demo models'}: scripts/build_models.py makes them"
        )
    return [wire.ref_of(name, max(there[name], key=int)) for name in wanted]


def main(given: Sequence[str] | None = None) -> int:
    """Measures. `given`: arguments in place of the command line's.

    Returns the exit code: 0, or 1 if the device or a model cannot be used. Wrong arguments end the process with 2.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="default: the demo models")
    parser.add_argument("--batches", nargs="+", type=int, default=[], metavar="N", help="default: all of the ladder")
    parser.add_argument("--runs", type=int, help="EXECs per model and size at most [2000 on cpu, 20000 on cuda]")
    parser.add_argument("--seconds", type=float, help="or so many seconds [20 on cpu, 3 on cuda]")
    parser.add_argument("--repository", type=Path)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args(given)
    default = LIMITS["cuda" if arguments.device.startswith("cuda") else "cpu"]
    limits = Limits(
        default.runs if arguments.runs is None else arguments.runs,
        default.seconds if arguments.seconds is None else arguments.seconds,
    )
    if limits.runs < 1 or limits.seconds <= 0:
        parser.error("--runs and --seconds must be positive")
    if any(batch < 1 for batch in arguments.batches):
        parser.error("--batches: a batch has one row at least")
    out = Console(width=None if sys.stdout.isatty() else 160)
    try:
        chosen: dict[str, Any] = {"device": arguments.device}
        if arguments.repository is not None:
            chosen["model_repository"] = arguments.repository
        settings = read_settings().model_copy(update=chosen)
        refs = find_models(settings.model_repository, arguments.models)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(bench(settings, refs, arguments.batches, limits, out))
    except GearmeshError as error:
        sys.stderr.write(f"bench_worker: {error}\n")
        return 1
    if arguments.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
