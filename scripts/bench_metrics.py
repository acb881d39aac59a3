"""What a scrape costs a gateway: making the text of all metrics on a thread, and how long the loop beside it waits.

    .venv/bin/python scripts/bench_metrics.py [--models 4000] [--rounds 5] [--json FILE]

One frontend and one controller count 20 requests of each of so many models; all that have a label have every series.
The wait is how much longer a sleep of 1 ms takes while the text is made. The last line is JSON.
"""

import argparse
import json
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from controller.core.telemetry.models import BOUNDS, ModelTable
from frontend.admin.metrics import metrics_text
from frontend.core.open_calls import Call
from frontend.core.outcomes import Outcomes
from frontend.gateway.watch import PAUSE_S
from gearmesh.telemetry.machine import describe
from mesh import wire
from mesh.facts import JournalState, Snapshot, Spread

REQUESTS = 20  # of each model
SPEC = wire.ModelSpec(inputs=(), outputs=(), batch_max=1, slo_ms=1000.0)
NOTHING = Spread(count=0)


def counted(models: int) -> tuple[Snapshot, dict[str, Any]]:
    """A controller's snapshot, and what a frontend tells in `status`, after requests of so many models."""
    rng = random.Random(0)
    names = [f"model_{i}" for i in range(models)]
    outcomes, table = Outcomes(), ModelTable()
    entries = (wire.ModelEntry(name=n, current="1", target=None, versions=("1",), owner=None) for n in names)
    outcomes.table_changed(wire.Table(epoch=1, members=(), models=tuple(entries)))
    table.deploy([wire.ref_of(name, "1") for name in names])
    for name in names:
        ref = wire.ref_of(name, "1")
        for _ in range(REQUESTS):
            call = Call("client", 1, ref, SPEC, 1, 0.0, 1.0, False)
            outcomes.served(call, rng.random(), cached=False, cold=False)
            label = table.of(ref).label
            label.in_time += 1
            for field in BOUNDS:
                getattr(label, field).add(rng.random())
    snapshot = Snapshot(
        controller="controller-1", policy="atc", now_s=0.0, uptime_s=0.0, frontends=1, waiting=0, open=0, submitted=0,
        in_time=0, late=0, cancelled=0, cold=0, refused={}, failed_actions={}, batches=0, batched_rows=0, loads=0,
        unloads=0, latency_s=NOTHING, exec_error=NOTHING, load_error=NOTHING, latency_error=NOTHING, devices=(),
        models=(), models_total=models, journal=JournalState(on=False), bounds=dict(BOUNDS), records=table.records(),
    )  # fmt: skip
    cache = dict.fromkeys(("hits", "misses", "coalesced", "evicted", "bytes"), 0)
    applications = {"feedback_held": 0, "apps": {}}
    status = {
        "outcomes": outcomes.told(), "in_flight": 0, "answers": {}, "cache": cache, "applications": applications,
    }  # fmt: skip
    return snapshot, status


def scrape(snapshot: Snapshot, status: dict[str, Any], pause_s: float) -> dict[str, float]:
    """Seconds that the text took, its lines, and what the thread beside it waited, in ms."""
    done, found = threading.Event(), dict[str, float]()

    def make() -> None:
        began_s = time.perf_counter()
        text = metrics_text({"broker": True}, [snapshot], {"frontend-1": status}, pause_s=pause_s)
        found.update(seconds=time.perf_counter() - began_s, lines=text.count(b"\n"))
        done.set()

    waits = []
    thread = threading.Thread(target=make)
    thread.start()
    while not done.is_set():
        began_s = time.perf_counter()
        time.sleep(0.001)
        waits.append((time.perf_counter() - began_s - 0.001) * 1e3)
    thread.join()
    return {**found, "wait_ms_p50": statistics.median(waits), "wait_ms_max": max(waits)}


def main() -> int:
    """Runs the benchmark. Returns exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": describe(), "seed": 0, "rounds": arguments.rounds, "results": {}}
    for models in (10, arguments.models):
        snapshot, status = counted(models)
        for pause_s in (0.0, PAUSE_S):
            rounds = [scrape(snapshot, status, pause_s) for _ in range(arguments.rounds)]
            one = {name: [round(found[name], 4) for found in rounds] for name in rounds[0]}
            results["results"][f"{models} models, pauses of {pause_s * 1e6:.0f} us"] = one
            print(f"{models} models, pauses of {pause_s * 1e6:.0f} us:")
            for name, values in one.items():
                print(f"  {name}: median {statistics.median(values):.3f}, from {min(values):.3f} to {max(values):.3f}")
    text = json.dumps(results)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
