"""Compiles architectures ahead of time (AOTInductor) where there is a compiler and it pays; eager execution otherwise.

Compiling runs in its own process, which is ended when it takes too long: PREPARE stays bounded, and a compiler that
crashes ends nothing else. The result is kept under the data folder, by architecture and kind of device, and so is a
failure. `python -m gpu_worker.devices.execution.compiled GRAPH OUT THREADS` is that process.
"""

import contextlib
import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch
from torch.export import Dim

from gpu_worker.devices.execution.building import build, declared_of
from gpu_worker.devices.execution.executables import CPU, dtypes_of
from gpu_worker.devices.execution.rows import inputs_for
from gpu_worker.packages.comparing import same, tolerance
from gpu_worker.packages.package import Package
from gpu_worker.packages.reading import graphs
from gpu_worker.packages.reading.graphs import most_rows
from gpu_worker.packages.stored import ONNX
from mesh.process.files import disk_fault, not_written, write_whole

Forward = Callable[..., Sequence[torch.Tensor]]
COMPILERS = ("c++", "g++", "clang++")
GAIN_MIN = 0.05  # share by which a compiled executable must be faster; otherwise the simpler one is kept
SPREAD_MAX = 1.5  # its 90 % quantile may exceed its median by at most this times as much as the eager one's does
TRIAL_RUNS = (5, 40)  # runs at each size: at least, at most
TRIAL_S = 0.3  # per size and executable, once the minimum of runs is done
log = structlog.get_logger("worker")


@dataclass(slots=True)
class Compiler:
    """Finds or makes compiled executables. Only the PREPARE thread uses it."""

    folder: Path
    kind: str  # of the device; a compiled executable is valid for this kind alone
    seconds_max: float  # limit for one architecture; 0: nothing is compiled
    threads: int
    _tried: set[str] = field(default_factory=set)  # architectures

    def better(self, package: Package, eager: Forward, weights: Sequence[torch.Tensor]) -> Forward | None:
        """Returns a compiled executable that was measured to be faster than `eager` and as steady.

        None if there is none.
        """
        graph = package.graph
        if not self.seconds_max or graph is None or graph.suffix == ONNX or find_compiler() is None:
            return None
        if package.spec.dims:  # it is compiled with the batch alone open
            return None
        if package.architecture in self._tried:
            return None
        self._tried.add(package.architecture)
        try:
            file = self._file(package)
            if not file.exists() and not self._compile(graph, file):
                return None
            check_own(self.folder, file)
            compiled = open_executable(file)
            gain, steady = compare(package, weights, eager, compiled)
        except Exception as error:  # the compiler's output may raise anything; the eager executable remains
            log.warning("not_compiled", architecture=package.architecture, error=f"{type(error).__name__}: {error}")
            return None
        chosen = gain >= GAIN_MIN and steady
        log.info("compiled", architecture=package.architecture, gain=round(gain, 3), steady=steady, chosen=chosen)
        return compiled if chosen else None

    def _file(self, package: Package) -> Path:
        kind = re.sub(r"[^A-Za-z0-9.]+", "-", self.kind).strip("-").lower()
        return self.folder / f"{package.architecture}-{kind}.pt2"

    def _compile(self, graph: Path, file: Path) -> bool:
        failed = file.with_suffix(".failed")
        if failed.exists():
            return False
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.pt2")
        module = "gpu_worker.devices.execution.compiled"
        command = [sys.executable, "-P", "-m", module, str(graph), str(temporary), str(self.threads)]
        why = run_bounded(command, self.seconds_max)
        if not why and temporary.exists():
            temporary.chmod(0o600)
            os.replace(temporary, file)
            return True
        temporary.unlink(missing_ok=True)
        fault = disk_fault(self.folder)
        if fault is not None:  # then it says nothing about the architecture
            raise not_written(file, fault)
        write_whole(failed, f"{why}\nRemove this file to try again.\n".encode())
        log.warning("not_compiled", graph=str(graph), why=why.splitlines()[0])
        return False


def check_own(*paths: Path) -> None:
    """Nobody but this user and root can have written these files: what they hold is run. Raises: OSError."""
    for path in paths:
        found = path.lstat()
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or path.is_symlink():
            raise PermissionError(errno.EPERM, "others may write to it, so it is not run: remove it", str(path))


def find_compiler() -> str | None:
    """Returns the path of the C++ compiler; None if there is none."""
    named = os.environ.get("CXX")
    return next((path for name in ((named,) if named else COMPILERS) if (path := shutil.which(name))), None)


def run_bounded(command: Sequence[str], seconds_max: float) -> str:
    """Runs the command, and ends it with all its children after `seconds_max`. Returns "" or why it failed."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, errors = process.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"took longer than {seconds_max:g} s (GEARMESH_COMPILE_S_MAX)"
    if process.returncode:
        return f"exit code {process.returncode}: {errors.strip()[-2000:] or 'no word why'}"
    return ""


def compare(
    package: Package,
    weights: Sequence[torch.Tensor],
    eager: Forward,
    compiled: Forward,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, bool]:
    """Returns (share of time that `compiled` saves over all sizes, whether it is as steady as `eager`).

    Both run alternately. Raises: ValueError if their results differ.
    """

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return eager(*weights, *inputs)

    draw = inputs_for(package, run, CPU)
    close = tolerance({*dtypes_of(eager), *(weight.dtype for weight in weights), torch.float32}, CPU)
    times: dict[str, list[float]] = {"eager": [], "compiled": []}
    spreads: dict[str, list[float]] = {"eager": [], "compiled": []}
    for rows in sorted({1, max(1, package.spec.batch_max // 2), package.spec.batch_max}):
        inputs = draw(rows, torch.Generator().manual_seed(rows))
        _check_same(run(inputs), compiled(*weights, *inputs), close)
        runs: dict[str, list[float]] = {"eager": [], "compiled": []}
        began_s = clock()
        for n in range(TRIAL_RUNS[1]):
            if n >= TRIAL_RUNS[0] and clock() - began_s > 2 * TRIAL_S:
                break
            for name, forward in (("eager", eager), ("compiled", compiled)):
                start_s = clock()
                forward(*weights, *inputs)
                runs[name].append(clock() - start_s)
        for name, found in runs.items():
            found.sort()
            times[name].append(found[len(found) // 2])
            spreads[name].append(found[int(0.9 * len(found))] / found[len(found) // 2] - 1)
    gain = 1 - sum(c / e for c, e in zip(times["compiled"], times["eager"], strict=True)) / len(times["eager"])
    steady = sum(spreads["compiled"]) <= SPREAD_MAX * sum(spreads["eager"]) + 0.05 * len(times["eager"])
    return gain, steady


def _check_same(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], close: float) -> None:
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        if not same(one, other, close):
            raise ValueError(f"output {index} of the compiled executable differs from the eager one's")


def open_executable(file: Path) -> Forward:
    """What was compiled, as a function of weights and inputs."""
    compiled: Any = torch._inductor.aoti_load_package(str(file), run_single_threaded=True)
    loader = compiled.loader

    def forward(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs: Sequence[torch.Tensor] = loader.boxed_run(list(flat))
        return outputs

    return forward


def compile_graph(graph: Path, out: Path, threads: int) -> None:
    """`out` holds the compiled graph; its batch dimension is open."""
    import torch._inductor

    os.nice(10)
    torch.set_num_threads(threads)
    program = graphs.read(graph)
    module = build(program)
    taken = [declared_of(node) for node in module.graph.find_nodes(op="placeholder")]
    rows = Dim("rows", min=1, max=most_rows(program))
    inputs = tuple(torch.zeros([2 if n is None else n for n in v.shape], dtype=v.dtype) for v in taken if v is not None)
    shapes = tuple({i: rows for i, n in enumerate(v.shape) if n is None} for v in taken if v is not None)
    with torch.no_grad():
        exported = torch.export.export(module, inputs, dynamic_shapes=shapes)
    torch._inductor.aoti_compile_and_package(exported, package_path=str(out))


if __name__ == "__main__":
    compile_graph(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
