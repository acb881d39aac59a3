"""Prepares a paper experiment: model packages, a mesh on ports of its own, the time ratio; then runs it."""

import json
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from gearmesh.load.errors import LoadError
from gearmesh.load.outputs import ReportFiles
from gearmesh.load.paper import RESNET, V100_BATCH1_MS, ExperimentSetup, default_scale, experiment
from gearmesh.load.plan import LoadPhase, LoadTestPlan
from gearmesh.load.results import PhaseRun
from gearmesh.load.targets import Where, find_targets, measure_batch1, mesh_pids
from gearmesh.operations.meshes import NotReady, mesh
from gpu_worker.core.emulation import DeviceProfile, ModelTimes

PROFILE = Path(__file__).resolve().parents[1] / "simulation" / "profiles" / "paper.json"
DEVICES = ("auto", "cpu", "cuda", "emulated")
WIDTH = 2240  # of the MLP that replaces ResNet50: 20 MB, a few ms on one core
FLOATS = 64
BATCH_MAX = 16
MANIFEST = """
batch_max = {batch_max}
slo_ms = 1000.0
cache = false
[architecture]
factory = "pytorchcv.models.resnet:resnet50"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, {floats}]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, 10]
"""


async def run_scenario(
    name: str,
    scale: float | None,
    device: str | None,
    seconds: float | None,
    seed: int,
    processes: int,
    back_off: bool,
    outputs: ReportFiles,
) -> int:
    """Runs and reports the experiment. Returns the exit code. Raises: LoadError."""
    profile = msgspec.json.decode(PROFILE.read_bytes(), type=DeviceProfile)
    chosen = experiment(name, list(profile.models))
    if scale is None:
        scale = default_scale(os.cpu_count() or 1)
    if not 0 < scale <= 10:
        raise LoadError(f"--scale: must be above 0 and at most 10; got {scale:g}")
    if seconds is not None and not 0 < seconds <= 86_400:
        raise LoadError(f"--seconds: must be above 0; got {seconds:g}")
    device = device or chosen.device
    if device not in DEVICES:
        raise LoadError(f"--device: must be one of {', '.join(DEVICES)}; got {device!r}")
    setups = chosen.setups(scale, seconds or chosen.seconds)
    most = max(setup.devices for setup in setups)
    if device == "cpu" and most > 1:
        raise LoadError(f"--device {device}: this scenario needs {most} devices at this --scale; emulated has so many")
    runs: list[PhaseRun] = []
    phases: list[LoadPhase] = []
    ratios = {}
    for setup in setups:
        with tempfile.TemporaryDirectory(prefix="gearmesh-paper-") as folder:
            plan = LoadTestPlan(chosen.name, (), seed=seed, back_off=back_off)
            try:
                plan, setup_runs, ratio = await _run_setup(
                    setup, profile, device, Path(folder), plan, processes, outputs
                )
            except NotReady as error:
                raise LoadError(str(error)) from error
        runs += setup_runs
        phases += plan.phases
        ratios[setup.name] = ratio
    note = f"{chosen.name}: {chosen.title}. Device: {device}. Scale {scale:g} of: {chosen.scaled}."
    times = ", ".join(f"{setup} x{ratio:.2f}" for setup, ratio in ratios.items() if ratio != 1.0)
    notes = [note, *([f"Budgets stretched, rates shrunk by batch-1 time / the paper's: {times}."] if times else [])]
    whole = LoadTestPlan(chosen.name, tuple(phases), seed=seed, notes=tuple(notes))
    return outputs.write(whole, runs, scale=scale, device=device, time_ratios=ratios, processes=processes)


async def _run_setup(
    setup: ExperimentSetup,
    profile: DeviceProfile,
    device: str,
    folder: Path,
    plan: LoadTestPlan,
    processes: int,
    outputs: ReportFiles,
) -> tuple[LoadTestPlan, list[PhaseRun], float]:
    """(plan, its runs, time ratio)."""
    repository = folder / "models"
    settings: dict[str, Any] = {"slo_ms_max": 200_000_000, "log_level": "warning"}
    if device == "emulated":
        write_emulated(repository, setup.models, profile)
        settings |= {"device": f"emulated:{write_profile(folder / 'v100.json', setup, profile)}"}
        settings |= {"emulated_count": setup.devices}
        formation: Mapping[str, int] = {}
    else:
        model_bytes = write_mlps(repository, setup.models)
        held = setup.resident or len(setup.models)
        settings |= {"device": device, "arena_mb": -(-held * (model_bytes + (4 << 20)) >> 20)}
        formation = {"gpu_worker": setup.devices}
    outputs.console.print(
        f"{setup.name}: {len(setup.models):,} models, {setup.devices} devices ({device}); starting a mesh", style="dim"
    )
    async with mesh(repository, folder / "data", formation=formation, **settings) as running:
        where = Where((running.address,))
        targets = await find_targets(where, [model for model, _ in setup.models])
        ratio = 1.0
        if device != "emulated":
            first = next(iter(targets))
            measured = (await measure_batch1(where, {first: targets[first]}))[first].batch1_ms
            assert measured is not None
            ratio = measured / V100_BATCH1_MS
        plan = replace(plan, phases=setup.phases(ratio))
        runs = await outputs.follow(plan, targets, where, processes, await mesh_pids(where))
        return plan, runs, ratio


def write_emulated(repository: Path, models: Sequence[tuple[str, str]], profile: DeviceProfile) -> None:
    """Writes a package for each model, with weights of the paper's size in sparse files, which take no disk space."""
    weights: dict[str, Path] = {}
    for name, kind in models:
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        (repository / name / "model.toml").write_text(MANIFEST.format(batch_max=BATCH_MAX, floats=FLOATS))
        file = folder / "weights.safetensors"
        if kind in weights:
            os.link(weights[kind], file)
        else:
            _write_hollow(file, round((profile.models[kind].weights_mb or 1.0) * 1e6) // 4)
            weights[kind] = file


def _write_hollow(file: Path, floats: int) -> None:
    """Writes a sparse safetensors file with one tensor of zeros."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]}}).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        out.truncate(8 + len(header) + 4 * floats)


def write_profile(file: Path, setup: ExperimentSetup, profile: DeviceProfile) -> Path:
    """Writes the profile of the emulated devices: the paper's V100, with memory for `setup.resident` models if set."""
    memory_mb = profile.memory_mb
    if setup.resident is not None:
        page_bytes = profile.page_bytes
        pages = -(-round((profile.models[RESNET].weights_mb or 1.0) * 1e6) // page_bytes)
        memory_mb = setup.resident * pages * profile.page_mb
    times: dict[str, ModelTimes] = {name: profile.models[kind] for name, kind in setup.models}
    made = msgspec.structs.replace(profile, memory_mb=memory_mb, models=times, default=None)
    file.write_bytes(msgspec.json.encode(made))
    return file


def write_mlps(repository: Path, models: Sequence[tuple[str, str]]) -> int:
    """Writes a package for each model, all with the same MLP. Returns the bytes of its weights."""
    import torch
    from torch import nn

    from gpu_worker.packages.export import write_package

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(FLOATS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
    )
    first = models[0][0]
    package = write_package(
        repository, first, "1", module, inputs={"x": ("float32", (FLOATS,))}, outputs=["y"], batch_max=BATCH_MAX,
        slo_ms=1000.0, cache=False, description="stands in for ResNet50",
    )  # fmt: skip
    for name, _ in models[1:]:
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        for file in (repository / first / "1").iterdir():
            os.link(file, folder / file.name)
    return package.image_bytes
