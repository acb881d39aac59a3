"""Measures a GPU below the worker: copies, gathers, launches, events, pinning, lateness. Prints one JSON object.

    .venv/bin/python -m scripts.gpu_probes [--driver cuda|host] [--seconds S]

With `host` the same steps run on this process's memory: only the device differs. Each figure has its number of runs n;
a percentile with fewer than ten values beyond it is null.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from gearmesh.telemetry.machine import describe
from gpu_worker.devices.cuda.driver import Driver, Event, Stream
from gpu_worker.devices.cuda.graphs import build
from gpu_worker.devices.cuda.nvidia import index_gather
from gpu_worker.devices.cuda.plans import MIB
from gpu_worker.devices.cuda.transfer.loads import PIECE_BYTES
from gpu_worker.devices.execution.executables import read_image
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package
from scripts.rigs.gpu_figures import PAGE, ROOM, Figures, open_driver, spread
from scripts.rigs.gpu_serving import device_figures, disk_figures

PHOTO_BYTES = 3 * 224 * 224 * 4
RUNS_MAX = 20_000


def copying(target: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
    """A function that copies `source` to `target`."""

    def work() -> None:
        target.copy_(source, non_blocking=True)

    return work


class Bench:
    """One driver, and how long one figure may take."""

    def __init__(self, driver: Driver, seconds: float) -> None:
        self.driver, self.seconds = driver, seconds
        self.streams = {name: driver.stream(name) for name in ("load", "input", "exec", "output")}
        self.events = [driver.event(sleeps=False) for _ in range(64)]

    def timed(
        self, stream: Stream, work: Callable[[], None], runs_max: int = RUNS_MAX, share: float = 1.0
    ) -> tuple[list[float], float]:
        """(durations by the device's clock, the host's time from first to last) of repeated runs of `work`.

        Two are outstanding at a time. Stops after `runs_max` runs, or after this share of the time for one figure.
        """
        durations: list[float] = []
        free = deque(self.events)
        waiting: deque[tuple[Event, Event]] = deque()
        began_s = time.perf_counter()
        count = 0
        while count < runs_max and (count < 3 or time.perf_counter() - began_s < self.seconds * share):
            begin, end = free.popleft(), free.popleft()
            stream.record(begin)
            stream.run(work)
            stream.record(end)
            waiting.append((begin, end))
            count += 1
            if len(waiting) == 2:
                self._collect(waiting, free, durations)
        while waiting:
            self._collect(waiting, free, durations)
        return durations, time.perf_counter() - began_s

    def _collect(self, waiting: deque[tuple[Event, Event]], free: deque[Event], durations: list[float]) -> None:
        begin, end = waiting.popleft()
        end.synchronize()
        durations.append(self.driver.seconds(begin, end))
        free.extend((begin, end))

    # -- memory -------------------------------------------------------------------------------------------------------

    def copies(self) -> list[Figures]:
        """Copies from pinned memory to the device and back, by size of the piece, two outstanding."""
        pinned, there = self.driver.pin(64 * MIB), self.driver.allocate(64 * MIB)
        found = []
        for direction in ("to_device", "from_device"):
            for mib in (4, 8, 16, 64):
                here, away = pinned.tensor[: mib * MIB], there[: mib * MIB]
                target, source = (away, here) if direction == "to_device" else (here, away)
                durations, wall_s = self.timed(self.streams["load"], copying(target, source))
                rate = len(durations) * mib * MIB / wall_s / 1e9
                found.append(
                    {"direction": direction, "mib": mib, "gb_per_s": round(rate, 2), "ms": spread(durations, 1e-3)}
                )
        return found

    def gathers(self) -> list[Figures]:
        """Copies seven pages into the execution buffer: with the driver's gather, torch's, and one copy per page."""
        arena = self.driver.allocate(ROOM.arena_bytes).view(torch.int64).view(ROOM.pages, -1)
        execution_buffer = self.driver.allocate(ROOM.buffer_bytes).view(torch.int64).view(ROOM.buffer_pages, -1)
        chosen = [11, 2, 13, 5, 0, 8, 3]
        pages = torch.tensor(chosen).to(self.driver.place)

        def one_by_one() -> None:
            for i, page in enumerate(chosen):
                execution_buffer[i].copy_(arena[page], non_blocking=True)

        found = []
        for name, work in (
            ("driver", partial(self.driver.gather, arena, execution_buffer, pages)),
            ("index_select", partial(index_gather, arena, execution_buffer, pages)),
            ("copies", one_by_one),
        ):
            self.timed(self.streams["exec"], work, 3)
            durations, _ = self.timed(self.streams["exec"], work)
            median = sorted(durations)[len(durations) // 2]
            rate = round(len(chosen) * PAGE / median / 1e9, 1)
            found.append({"how": name, "gb_per_s": rate, "us": spread(durations, 1e-6)})
        return found

    def pinning(self) -> Figures:
        """Time to pin host memory, which happens only while a version is prepared."""
        began_s = time.perf_counter()
        held = self.driver.pin(256 * MIB)
        took_s = time.perf_counter() - began_s
        return {"gib_per_s": round(len(held.tensor) / 2**30 / took_s, 3)}

    def input_behind_load(self) -> list[Figures]:
        """Time of an INPUT of one photo that waits behind two pieces of a LOAD."""
        pinned, there = self.driver.pin(64 * MIB), self.driver.allocate(64 * MIB)
        photo, target = self.driver.pin(PHOTO_BYTES), self.driver.allocate(PHOTO_BYTES)
        load, end = self.streams["load"], self.events[0]
        found = []
        for mib in (0, 4, 8, 16, 64):
            latencies: list[float] = []
            began_s = time.perf_counter()
            while len(latencies) < 1000 and time.perf_counter() - began_s < self.seconds:
                for _ in range(2 if mib else 0):
                    load.run(copying(there[: mib * MIB], pinned.tensor[: mib * MIB]))
                load.record(self.events[1])
                issued_s = time.perf_counter()
                self.streams["input"].run(copying(target, photo.tensor))
                self.streams["input"].record(end)
                end.synchronize()
                latencies.append(time.perf_counter() - issued_s)
                self.events[1].synchronize()
            found.append({"behind_mib": mib, "us": spread(latencies, 1e-6)})
        return found

    # -- launches -----------------------------------------------------------------------------------------------------

    def noticing(self) -> Figures:
        """From issuing an empty operation until the host knows that it is done, by kind of event."""
        found = {}
        for sleeps in (False, True):
            event, times = self.driver.event(sleeps=sleeps), []
            for _ in range(2000):
                issued_s = time.perf_counter()
                self.streams["exec"].record(event)
                event.synchronize()
                times.append(time.perf_counter() - issued_s)
            found["sleeps" if sleeps else "spins"] = spread(times, 1e-6)
        return found

    def graphs(self, package: Package, *, every: bool) -> Figures:
        """Replays of graphs: time of the device for each size, time of the issuing thread, memory.

        Sizes: those of the ladder, or with `every` all sizes, as kernels may have steps between.
        """
        image = self.driver.pin(package.image_bytes)
        read_image(package, image.tensor.numpy())
        execution_buffer = self.driver.allocate(ROOM.buffer_bytes)
        execution_buffer[: package.image_bytes].copy_(image.tensor)
        began_s = time.perf_counter()
        chosen = range(1, package.spec.batch_max + 1) if every else ()
        executable = build(self.driver, package, image.tensor, execution_buffer, chosen)
        built_s = time.perf_counter() - began_s
        sizes = []
        for cell, replay in sorted(executable.replays.items()):
            durations, _ = self.timed(self.streams["exec"], replay, share=0.25 if every else 1.0)
            size, _ = cell
            sizes.append({"batch": size, "ms": spread(durations, 1e-3)})
        issue: list[float] = []
        began_s = time.perf_counter()
        while len(issue) < 2000 and time.perf_counter() - began_s < self.seconds:
            issued_s = time.perf_counter()
            self.streams["exec"].run(executable.replays[1, ()])
            issue.append(time.perf_counter() - issued_s)
            self.streams["exec"].record(self.events[0])
            self.events[0].synchronize()
        return {
            "model": package.ref,
            "weights_mb": round(package.image_bytes / 1e6, 1),
            "captured_in_s": round(built_s, 2),
            "mb_per_graph": round(executable.graph_bytes / len(executable.replays) / 1e6, 3),
            "issue_us": spread(issue, 1e-6),
            "replay": sizes,
        }


def make_models(folder: Path, batch_max: int) -> list[Package]:
    """A network that reads 50 MB of weights, and one that is bound by computation."""
    torch.manual_seed(1)
    wide = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(2048, 2048), nn.ReLU())))
    convolutions = [nn.Conv2d(3, 64, 7, 4), nn.ReLU()]
    for _ in range(3):
        convolutions += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    deep = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1000))
    return [
        write_package(
            folder, "wide", "1", wide, inputs={"x": ("float32", (2048,))}, outputs=["y"], batch_max=batch_max
        ),
        write_package(
            folder, "deep", "1", deep, inputs={"x": ("float32", (3, 224, 224))}, outputs=["y"], batch_max=batch_max
        ),
    ]  # fmt: skip


def probe(name: str, seconds: float, budget_s: float) -> Figures:
    """All figures that can be begun within the budget. `left_out` names the others, `failed` the errors."""
    began_s = time.monotonic()
    driver, _ = open_driver(name)
    driver.enter()
    bench = Bench(driver, seconds)
    found: Figures = {
        "device": driver.name, "kind": driver.kind, "torch": torch.__version__, "machine": describe(),
        "piece_mib": PIECE_BYTES // MIB, "clock_mhz": driver.clock_mhz(), "left_out": [], "failed": {},
        "gather_kernel": getattr(getattr(driver, "_gather", index_gather), "__module__", ""),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        wide, deep = make_models(Path(folder), 32 if name == "cuda" else 4)
        for key, work in (
            ("copies", bench.copies),
            ("gathers", bench.gathers),
            ("graphs_wide", partial(bench.graphs, wide, every=False)),
            ("device_warm", partial(_serve, name, wide, seconds, keep_warm=True)),
            ("input_behind_load", bench.input_behind_load),
            ("graphs_deep", partial(bench.graphs, deep, every=True)),
            ("device_resting", partial(_serve, name, wide, seconds, keep_warm=False)),
            ("load_from_disk", partial(_load_from_disk, name, wide, seconds)),
            ("noticing_us", bench.noticing),
            ("pinning", bench.pinning),
        ):
            if time.monotonic() - began_s > budget_s:
                found["left_out"].append(key)
                continue
            try:
                found[key] = work()
            except Exception as error:  # one figure that fails must not stop the others
                found["failed"][key] = f"{type(error).__name__}: {error}"[:1000]
            sys.stderr.write(f"{time.monotonic() - began_s:.1f} s: {key}\n")
        driver.close()
    return found


def _serve(name: str, package: Package, seconds: float, *, keep_warm: bool) -> Figures:
    driver, helper = open_driver(name)
    return asyncio.run(device_figures(driver, helper, package, seconds, keep_warm))


def _load_from_disk(name: str, package: Package, seconds: float) -> Figures:
    driver, helper = open_driver(name)
    return asyncio.run(disk_figures(driver, helper, package, seconds))


def main() -> int:
    """Prints the figures. Exit code 0, or 1 with the reason if the device cannot be opened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", choices=["cuda", "host"], default="cuda" if torch.cuda.is_available() else "host")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure, at most")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds after which no other figure is begun")
    arguments = parser.parse_args()
    print(json.dumps(probe(arguments.driver, arguments.seconds, arguments.budget)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
