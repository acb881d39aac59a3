"""Runs a scenario for policies x seeds, in parallel on all cores; and finds how many devices a load needs."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from controller.core.policies.registry import make_policy
from controller.core.state import ShardState
from gearmesh.simulation.arrivals.loads import Trace, arrivals
from gearmesh.simulation.engine import Simulation
from gearmesh.simulation.outcome import Outcome
from gearmesh.simulation.scenario import Scenario

Progress = Callable[[float], None]  # called with the share that is done
DEVICES_MAX = 4096  # no more are tried
BOUND, TIGHT = "bound", "tight bound"  # names that stand for a bound instead of a policy
CLAIRVOYANT = " + Belady"  # appended to a policy's name: with clairvoyant evictions


@dataclass(frozen=True, slots=True)
class Task:
    """One run: a policy, or a bound, with a seed."""

    scenario: Scenario
    seed: int
    what: str  # a policy, possibly with CLAIRVOYANT appended; or BOUND or TIGHT


def check_policies(scenario: Scenario, names: Sequence[str]) -> None:
    """Raises SettingsError if a policy does not exist, or its parameters in the scenario are wrong."""
    for name in names:
        make_policy(name, ShardState(), scenario.parameters.get(name, {}))


def span_s(scenario: Scenario, trace: Trace) -> float:
    """Duration of the load in seconds; an uncut log ends with its last request."""
    given = scenario.load.seconds
    return given if math.isfinite(given) else max(float(trace.time_s[-1]), 1e-9)


def play(scenario: Scenario, policy: str, seed: int, progress: Progress | None = None) -> tuple[Outcome, Trace]:
    """The outcome of every request. Raises: ScenarioError, SettingsError."""
    trace = arrivals(scenario, seed)
    name = policy.removesuffix(CLAIRVOYANT)
    parameters = scenario.parameters.get(name, {})
    simulation = Simulation(scenario, trace, name, seed, parameters, clairvoyant=name != policy, progress=progress)
    return simulation.run(), trace


def run(task: Task, progress: Progress | None = None) -> dict[str, Any]:
    """The record of a policy's run, or {"seed", "attainment"} of a bound. Raises: ScenarioError, SettingsError."""
    if task.what not in (BOUND, TIGHT):
        outcome, trace = play(task.scenario, task.what, task.seed, progress)
        return outcome.record(task.what, task.seed, task.scenario.devices.count, span_s(task.scenario, trace))
    from gearmesh.simulation.bounds.bound import interval_bound, packing_bound  # imports scipy, which takes a while

    bound = interval_bound if task.what == BOUND else packing_bound
    found = bound(task.scenario, arrivals(task.scenario, task.seed))
    return {"seed": task.seed, "attainment": found.attainment}


def run_all(tasks: Sequence[Task], jobs: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index of the task, its record) as they finish; `jobs` processes, by default one per core."""
    jobs = min(jobs or os.cpu_count() or 1, len(tasks))
    if jobs <= 1:
        for index, task in enumerate(tasks):
            yield index, run(task)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("forkserver")) as pool:
        futures = {pool.submit(run, task): index for index, task in enumerate(tasks)}
        try:
            left = set(futures)
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class DevicesNeeded:
    """The number of devices that a load needs."""

    policy: str
    devices: int | None  # None: DEVICES_MAX are not enough
    tried: dict[int, float]  # {devices: attainment over all seeds}


def find_devices(
    scenario: Scenario, policy: str, target: float, seeds: int, tell: Callable[[int, float], None] | None = None
) -> DevicesNeeded:
    """The fewest devices with which at least the share `target` of all requests is answered in time.

    Doubles from one until they suffice, then bisects; correct if more devices never do worse. Raises: ScenarioError,
    SettingsError.
    """
    tried: dict[int, float] = {}

    def enough(count: int) -> bool:
        devices = replace(scenario.devices, count=count)
        faults = tuple(fault for fault in scenario.faults if fault.device < count)
        sized = replace(scenario, devices=devices, faults=faults)
        records = [run(Task(sized, seed, policy)) for seed in range(seeds)]
        offered = sum(record["offered"] for record in records)
        tried[count] = sum(record["attainment"] * record["offered"] for record in records) / max(1, offered)
        if tell is not None:
            tell(count, tried[count])
        return tried[count] >= target

    high = 1
    while not enough(high):
        if high >= DEVICES_MAX:
            return DevicesNeeded(policy, None, tried)
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return DevicesNeeded(policy, high, tried)
