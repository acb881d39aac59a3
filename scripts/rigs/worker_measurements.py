"""Measurements of one device: how much EXEC scatters, how fast LOAD copies, how late actions start."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from controller.core.estimation.estimates import Pace, Term, make_curve
from gearmesh.telemetry.machine import median, quantile
from mesh import wire
from scripts.rigs.worker_rig import Rig, good

WARM_RUNS = 3
PROFILE_RUNS = 5  # the estimator's prior is the median of so many runs,
PROFILE_SHARE = 0.05  # or of as many as fit into this share of the measurement's time, per size
GAP_S = (0.002, 0.006)  # from an order to its planned start, when lateness is measured
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
Figures = dict[str, Any]
BareCopy = Callable[[int], Callable[[], float]]  # bytes -> a function that copies them and returns the seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """When to end a measurement: after so many runs or so many seconds, whichever comes first."""

    runs: int
    seconds: float

    def over(self, n: int, began_s: float, *, now: float | None = None) -> bool:
        """Whether a measurement that began then (time.monotonic()) and has done n runs has seen enough."""
        return n >= self.runs or (time.monotonic() if now is None else now) - began_s >= self.seconds


def spread(seconds: list[float], unit: float, suffix: str = "") -> Figures:
    """p50, p99 and p99.9 in units of `unit` seconds; None where there are too few values for the percentile."""
    ordered = sorted(seconds)
    return {
        name + suffix: None if (value := quantile(ordered, share)) is None else round(value / unit, 5)
        for name, share in QUANTILES
    }


async def exec_spread(rig: Rig, ref: str, batch: int, limits: Limits) -> Figures:
    """Durations of EXEC, repeated on a device that does nothing else."""
    await rig.resident(ref)
    for _ in range(WARM_RUNS):
        await rig.ran(ref, batch)
    durations: list[float] = []
    clocks: list[float] = []
    began_s = time.monotonic()
    while not limits.over(len(durations), began_s):
        result = await rig.ran(ref, batch)
        durations.append(result.duration_s or 0.0)
        clocks.append(result.clock_mhz)
    figures = {"model": wire.split_ref(ref)[0], "batch": batch, "n": len(durations), **spread(durations, 1e-3, "_ms")}
    figures["max_ms"] = round(max(durations) * 1e3, 5)
    figures["clock_mhz"] = median(clocks) or None
    return figures


async def load_bandwidth(rig: Rig, ref: str, bare_copy: BareCopy, limits: Limits) -> Figures:
    """Bandwidth of LOAD, and of a bare copy of as many bytes right before each LOAD: both see the same machine."""
    size = rig.packages[ref].image_bytes
    copy = bare_copy(size)
    loads: list[float] = []
    copies: list[float] = []
    await rig.resident()
    began_s = time.monotonic()
    while not loads or not limits.over(len(loads), began_s):
        copies.append(copy())
        loads.append(good(await rig.load(ref)).duration_s or 0.0)
        rig.unload(ref)
    load, copied = median(loads), median(copies)
    return {
        "model": wire.split_ref(ref)[0],
        "bytes": size,
        "load_from": rig.device.traits(ref).load_from,
        "n": len(loads),
        "gb_per_s": round(size / load / 1e9, 3),
        "copy_gb_per_s": round(size / copied / 1e9, 3),
        "ratio": round(copied / load, 3),
        **spread(loads, 1e-3, "_ms"),
    }


async def gather_cost(rig: Rig, ref: str, limits: Limits) -> Figures:
    """EXEC of one row with the weights in the execution buffer already, and without."""
    await rig.resident(ref)
    warm: list[float] = []
    gathered: list[float] = []
    began_s = time.monotonic()
    while not limits.over(len(warm), began_s):
        rig.device.unloaded(ref)  # the device drops its views of the pages; the pages stay
        result = await rig.ran(ref, 1)
        if result.gathered:
            gathered.append(result.duration_s or 0.0)
        warm.append((await rig.ran(ref, 1)).duration_s or 0.0)
    cost = (median(gathered) - median(warm)) * 1e6 if gathered else None
    return {
        "model": wire.split_ref(ref)[0],
        "bytes": rig.packages[ref].image_bytes,
        "n": len(gathered),
        "warm_ms": round(median(warm) * 1e3, 5),
        "gathered_ms": round(median(gathered) * 1e3, 5) if gathered else None,
        "cost_us": None if cost is None else round(cost, 1),
    }


async def issue_lateness(rig: Rig, ref: str, limits: Limits) -> Figures:
    """Actual start of EXEC minus its planned start; the device is idle, and the order comes before the start."""
    await rig.resident(ref)
    rng = np.random.default_rng(3)
    late: list[float] = []
    began_s = time.monotonic()
    while not limits.over(len(late), began_s):
        planned_s = time.monotonic() + float(rng.uniform(*GAP_S))
        result = good(await rig.infer(ref, 1, earliest_s=planned_s))
        late.append((result.begin_s or 0.0) - planned_s)
    return {"n": len(late), **spread(late, 1e-6), "max": round(max(late) * 1e6, 1)}


async def cold_and_warm(rig: Rig, ref: str, limits: Limits) -> tuple[Figures, Figures]:
    """Time from the order to the outputs of one row: cold, with LOAD and INFER ordered together, and warm."""
    cold: list[float] = []
    warm: list[float] = []
    began_s = time.monotonic()
    while not limits.over(len(cold), began_s):
        await rig.resident()
        start_s = time.monotonic()
        loaded, answered = rig.load(ref), rig.infer(ref, 1)
        good(await loaded)
        good(await answered)
        cold.append(time.monotonic() - start_s)
        start_s = time.monotonic()
        await rig.ran(ref, 1)
        warm.append(time.monotonic() - start_s)
    name = wire.split_ref(ref)[0]
    return (
        {"model": name, "n": len(cold), **spread(cold, 1e-3)},
        {"model": name, "n": len(warm), **spread(warm, 1e-3)},
    )


async def disturbance(rig: Rig, runs: str, loads: str, limits: Limits) -> Figures:
    """EXEC of one model alone and beside a stream of LOADs of another one, and that stream alone and beside EXEC."""
    await rig.resident(runs)
    alone = await _repeat_exec(rig, runs, limits)
    quiet = await _repeat_load(rig, loads, limits, asyncio.Event())
    done = asyncio.Event()
    stream = asyncio.ensure_future(_repeat_load(rig, loads, None, done))
    under = await _repeat_exec(rig, runs, limits)
    done.set()
    busy = await stream
    size = rig.packages[loads].image_bytes
    return {
        "exec": wire.split_ref(runs)[0],
        "load": wire.split_ref(loads)[0],
        "exec_ms": spread(alone, 1e-3),
        "exec_under_load_ms": spread(under, 1e-3),
        "load_gb_per_s": round(size / median(quiet) / 1e9, 3),
        "load_under_exec_gb_per_s": round(size / median(busy) / 1e9, 3),
    }


async def _repeat_exec(rig: Rig, ref: str, limits: Limits) -> list[float]:
    durations: list[float] = []
    began_s = time.monotonic()
    while not limits.over(len(durations), began_s):
        durations.append((await rig.ran(ref, 1)).duration_s or 0.0)
        await asyncio.sleep(0)  # a run that ends at once does not yield, and the other stream has to go on
    return durations


async def _repeat_load(rig: Rig, ref: str, limits: Limits | None, done: asyncio.Event) -> list[float]:
    durations: list[float] = []
    began_s = time.monotonic()
    while not durations or not (done.is_set() or (limits and limits.over(len(durations), began_s))):
        durations.append(good(await rig.load(ref)).duration_s or 0.0)
        rig.unload(ref)
        await asyncio.sleep(0)
    return durations


async def estimate_error(rig: Rig, refs: list[str], batches: list[int], limits: Limits) -> Figures:
    """Relative error of the controller's estimate before each EXEC. Models and batch sizes are drawn at random.

    `batches`: the sizes in the profile, the largest of which is the largest that is run; empty: all of the ladder.
    """
    await rig.resident(*refs)
    device, pace = Term(), Pace()
    curves = {}
    for ref in refs:
        package = rig.packages[ref]
        sizes = [batch for batch in rig.sizes(package) if not batches or batch in batches] or [1]
        exec_s = {batch: await _profiled(rig, ref, batch, limits.seconds * PROFILE_SHARE) for batch in sizes}
        profile = wire.Profile(exec_s=exec_s, load_s=1.0)
        curves[ref] = make_curve(profile, package.spec.batch_max, rig.device.info.any_batch, device, pace)
    rng = np.random.default_rng(5)
    errors: list[float] = []
    began_s = time.monotonic()
    while not errors or not limits.over(len(errors), began_s):
        ref = refs[int(rng.integers(len(refs)))]
        rows = int(rng.integers(1, curves[ref].sizes[-1] + 1))
        batch = curves[ref].padded(rows)
        expected_s = curves[ref].exec_s(batch)
        result = await rig.ran(ref, batch)
        actual_s = result.duration_s or 0.0
        errors.append(abs(expected_s - actual_s) / actual_s)
        pace.seen(result.clock_mhz)
        curves[ref].learn(batch, actual_s)
    return {"n": len(errors), **spread(errors, 1.0)}


async def _profiled(rig: Rig, ref: str, batch: int, seconds: float) -> float:
    """The median of up to PROFILE_RUNS runs after a first one, or of fewer where they take longer than `seconds`."""
    began_s = time.monotonic()
    await rig.ran(ref, batch)
    times: list[float] = []
    while not times or (len(times) < PROFILE_RUNS and time.monotonic() - began_s < seconds):
        times.append((await rig.ran(ref, batch)).duration_s or 0.0)
    return median(times)
