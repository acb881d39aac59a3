"""What the benchmark of one device reports, and how it refuses."""

import asyncio
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import uvloop
from rich.console import Console

from gpu_worker.devices.cpu import CpuDevice
from mesh.errors import GearmeshError
from mesh.process.repository import scan_repository
from mesh.process.settings import Settings
from scripts.bench_worker import bench, find_models, main
from scripts.rigs.model_copies import make_copies
from scripts.rigs.worker_measurements import Limits, spread
from scripts.rigs.worker_rig import ActionFailed, Rig
from tests.gpu_worker.conftest import Repository
from tests.loops import LIMIT_S, on_loop


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    yield
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)


def settings(tmp_path: Path, repository: Repository, **fields: object) -> Settings:
    return Settings(
        data_dir=tmp_path, device="cpu", page_mb=1, arena_mb=16, model_repository=repository.folder, **fields
    )


def test_the_report_has_every_figure_and_null_where_the_runs_do_not_support_it(
    tmp_path: Path, repository: Repository
) -> None:
    chosen = settings(tmp_path, repository)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(
            bench(chosen, ["linear:1", "tall:1"], [1, 8], Limits(25, LIMIT_S), Console(file=io.StringIO()))
        )
    figures = json.loads(json.dumps(figures))
    assert (figures["device"], figures["torch"]) == ("cpu", torch.__version__)
    assert [(line["model"], line["batch"], line["n"]) for line in figures["exec"]] == [
        ("linear", 1, 25), ("linear", 8, 25), ("tall", 1, 25), ("tall", 8, 25),
    ]  # fmt: skip
    for line in figures["exec"]:
        assert 0 < line["p50_ms"] <= line["max_ms"]
        assert line["p99_ms"] is line["p999_ms"] is None
    load = figures["load"]
    assert load["ratio"] == pytest.approx(load["gb_per_s"] / load["copy_gb_per_s"], rel=0.01)
    for name in ("issue_late_us", "cold_ms", "estimate_error"):
        assert figures[name].keys() >= {"p50", "p99"}
        assert figures[name]["p50"] is not None
    assert figures["gather"]["n"] == 25
    assert figures["disturbance"]["load_under_exec_gb_per_s"] > 0


def test_models_whose_loads_end_at_once_are_measured_too(tmp_path: Path, repository: Repository) -> None:
    chosen = settings(tmp_path, repository)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        out = Console(file=io.StringIO())
        measured = bench(chosen, ["linear:1", "two:1"], [1], Limits(20, LIMIT_S), out)
        figures = runner.run(measured)
    assert figures["disturbance"]["load_under_exec_gb_per_s"] > 0


def test_a_percentile_needs_ten_values_beyond_it() -> None:
    assert spread([0.001] * 999, 1e-3) == {"p50": 1.0, "p99": None, "p999": None}
    assert spread([0.001] * 1000, 1e-3, "_ms") == {"p50_ms": 1.0, "p99_ms": 1.0, "p999_ms": None}
    assert spread([0.001] * 10_000, 1e-3)["p999"] == 1.0


def test_models_that_are_not_there_are_named(repository: Repository, tmp_path: Path) -> None:
    assert find_models(repository.folder, ["linear"]) == ["linear:2"]
    with pytest.raises(GearmeshError, match="nonsense"):
        find_models(repository.folder, ["linear", "nonsense"])
    with pytest.raises(GearmeshError, match=re.escape(str(tmp_path))):
        find_models(tmp_path, [])


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--device", "tpu"], 1, "auto, cpu"),
        (["--runs", "0"], 2, "--runs"),
        (["--seconds", "-1"], 2, "--seconds"),
        (["--batches", "0"], 2, "--batches"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_right(
    repository: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.setenv("GEARMESH_DATA_DIR", str(tmp_path))
    arguments = ["bench_worker", "--repository", str(repository.folder), "--models", "linear", *arguments]
    monkeypatch.setattr("sys.argv", arguments)
    try:
        ended = main()
    except SystemExit as stop:
        ended = int(stop.code or 0)
    assert ended == code
    assert told in capsys.readouterr().err


@on_loop
async def test_an_action_that_fails_ends_a_measurement_with_the_reason(tmp_path: Path, repository: Repository) -> None:
    rig = Rig(CpuDevice(settings(tmp_path, repository)))
    rig.start()
    await rig.prepare(repository.folder, "linear:1", ())
    for batch, code in ((0, "bad_batch"), (9, "bad_batch"), (1, "weights_missing")):
        with pytest.raises(ActionFailed, match=code):
            await rig.ran("linear:1", batch)
    await rig.resident("linear:1")
    assert (await rig.ran("linear:1", 8)).code == "ok"
    rig.close()


@on_loop
async def test_copies_share_what_executes_them_and_have_results_of_their_own(
    tmp_path: Path, repository: Repository
) -> None:
    package = repository.package("tall:1")
    for folder, alias in ((tmp_path / "own", False), (tmp_path / "links", True)):
        folder.mkdir()
        names = list(make_copies(package, folder, 3, alias=alias, seed=1))
        assert names == ["tall-0001", "tall-0002", "tall-0003"]
        assert list(scan_repository(folder)) == names
        device = CpuDevice(settings(tmp_path, repository))
        rig = Rig(device)
        rig.start()
        for name in names:
            await rig.prepare(folder, f"{name}:1", ())
        assert len(device._executables) == 1
        assert device._images.used_bytes == package.image_bytes * (1 if alias else 3)
        await rig.resident(*(f"{name}:1" for name in names))
        assert rig.lanes.table.free == 16 - 3 * 3
        contents = {(folder / name / "1" / "weights.safetensors").read_bytes() for name in names}
        assert len(contents) == (1 if alias else 3)
        rig.close()


@on_loop
async def test_weights_beyond_the_budget_are_loaded_from_disk_and_give_the_same_results(
    tmp_path: Path, repository: Repository
) -> None:
    device = CpuDevice(settings(tmp_path, repository, host_memory_mb=3))
    rig = Rig(device)
    rig.start()
    for ref in ("tall:1", "tall:2"):
        await rig.prepare(repository.folder, ref, ())
    assert [device.traits(ref).load_from for ref in ("tall:1", "tall:2")] == ["host", "disk"]
    await rig.resident("tall:1", "tall:2")
    x = torch.randn(2, 4)
    for ref in ("tall:1", "tall:2"):
        version = device._versions[ref]
        assert version.weights is not None
        assert torch.allclose(
            version.executable.forward(*version.weights, x)[0], repository.outputs(ref, x)[0], atol=1e-6
        )
    rig.close()
