"""The benchmark of one device: its figures are the device's, and what cannot be measured is refused with the reason."""

import asyncio
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import uvloop
from rich.console import Console

from gpu_worker.devices.cpu import CpuDevice
from mesh.codes import ActionCode
from mesh.errors import GearmeshError
from mesh.process.repository import scan_repository
from mesh.process.settings import Settings
from scripts.bench_worker import bench, find_models, main
from scripts.rigs.model_copies import make_copies
from scripts.rigs.worker_measurements import Limits, spread
from scripts.rigs.worker_rig import ActionFailed, Rig
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import infer_job, run
from tests.loops import LIMIT_S, on_loop

pytestmark = pytest.mark.usefixtures("torch_as_it_was")
MB_PER_S = 100  # of LOADs on the device that is emulated here
RUNS = 20


def settings(tmp_path: Path, repository: Repository, **fields: Any) -> Settings:
    chosen = {"device": "cpu", "page_mb": 1, "arena_mb": 16, **fields}
    return Settings(data_dir=tmp_path, model_repository=repository.folder, **chosen)


def emulated(tmp_path: Path) -> str:
    """A device on which one row of any model takes 1 ms, and each further one 0.1 ms."""
    file = tmp_path / "device.json"
    exec_ms = {"intercept": 0.9, "slope": 0.1}
    profile = {"name": "p", "memory_mb": 16, "page_mb": 1, "load_gb_per_s": MB_PER_S / 1e3, "load_fixed_ms": 0.0}
    file.write_text(json.dumps({**profile, "default": {"exec_ms": exec_ms}}))
    return f"emulated:{file}"


def measured(chosen: Settings, refs: list[str], batches: Sequence[int], runs: int = RUNS) -> dict[str, Any]:
    """The report, as JSON gives it."""
    out = Console(file=io.StringIO())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(bench(chosen, refs, list(batches), Limits(runs, LIMIT_S), out))
    found: dict[str, Any] = json.loads(json.dumps(figures))
    return found


def test_the_figures_are_what_the_device_takes(tmp_path: Path, repository: Repository) -> None:
    small, large = repository.package("linear:1"), repository.package("tall:1")
    found = measured(settings(tmp_path, repository, device=emulated(tmp_path)), ["linear:1", "tall:1"], [1, 8])
    assert {(line["model"], line["batch"], line["n"]): line["p50_ms"] for line in found["exec"]} == {
        ("linear", 1, RUNS): 1.0,
        ("linear", 8, RUNS): 1.7,
        ("tall", 1, RUNS): 1.0,
        ("tall", 8, RUNS): 1.7,
    }
    assert {line["max_ms"] for line in found["exec"]} == {1.0, 1.7}
    load = found["load"]
    assert (load["model"], load["bytes"], load["gb_per_s"]) == ("tall", large.image_bytes, MB_PER_S / 1e3)
    assert load["p50_ms"] == pytest.approx(large.image_bytes / MB_PER_S / 1e3, rel=1e-3)
    together = found["disturbance"]
    assert (together["exec"], together["load"]) == ("linear", "tall")
    assert together["exec_ms"]["p50"] == together["exec_under_load_ms"]["p50"] == 1.0
    assert together["load_gb_per_s"] == together["load_under_exec_gb_per_s"] == MB_PER_S / 1e3
    assert found["estimate_error"]["p50"] == pytest.approx(0.0, abs=1e-4)
    assert small.image_bytes < large.image_bytes


def test_latencies_are_no_less_than_the_work_in_them_and_nothing_starts_before_its_time(
    tmp_path: Path, repository: Repository
) -> None:
    found = measured(settings(tmp_path, repository, device=emulated(tmp_path)), ["tall:1"], [1])
    load_ms = repository.package("tall:1").image_bytes / MB_PER_S / 1e3
    assert found["warm_ms"]["p50"] >= 1.0
    assert found["cold_ms"]["p50"] >= load_ms + 1.0
    assert found["issue_late_us"]["p50"] >= 0.0
    assert "disturbance" not in found  # one model cannot disturb another one


def test_a_device_that_gathers_no_weights_has_no_cost_of_that(tmp_path: Path, repository: Repository) -> None:
    found = measured(settings(tmp_path, repository, device=emulated(tmp_path)), ["tall:1"], [1])
    assert (found["gather"]["n"], found["gather"]["cost_us"], found["gather"]["warm_ms"]) == (0, None, 1.0)


def test_the_processor_is_measured_too_though_its_small_loads_end_at_once(
    tmp_path: Path, repository: Repository
) -> None:
    found = measured(settings(tmp_path, repository), ["linear:1", "two:1"], [1])
    assert found["device"] == "cpu"
    assert all(0 < line["p50_ms"] <= line["max_ms"] for line in found["exec"])
    assert found["gather"]["n"] == RUNS  # each EXEC whose views were dropped makes them again
    assert found["disturbance"]["load_under_exec_gb_per_s"] > 0
    load = found["load"]
    assert load["ratio"] == pytest.approx(load["gb_per_s"] / load["copy_gb_per_s"], rel=0.05)


def test_percentiles_that_so_few_runs_do_not_support_are_null(tmp_path: Path, repository: Repository) -> None:
    found = measured(settings(tmp_path, repository, device=emulated(tmp_path)), ["linear:1"], [1])
    (line,) = found["exec"]
    assert line["p99_ms"] is line["p999_ms"] is None


def test_a_percentile_needs_ten_values_beyond_it() -> None:
    assert spread([0.001] * 999, 1e-3) == {"p50": 1.0, "p99": None, "p999": None}
    assert spread([0.001] * 1000, 1e-3, "_ms") == {"p50_ms": 1.0, "p99_ms": 1.0, "p999_ms": None}
    assert spread([0.001] * 10_000, 1e-3)["p999"] == 1.0


@pytest.mark.parametrize(
    ("runs", "seconds", "n", "after_s", "over"),
    [(5, 10.0, 4, 9.9, False), (5, 10.0, 5, 0.0, True), (5, 10.0, 0, 10.0, True)],
)
def test_a_measurement_ends_after_so_many_runs_or_seconds_whichever_come_first(
    runs: int, seconds: float, n: int, after_s: float, over: bool
) -> None:
    assert Limits(runs, seconds).over(n, 100.0, now=100.0 + after_s) is over


def test_models_that_are_not_there_are_named(repository: Repository, tmp_path: Path) -> None:
    assert find_models(repository.folder, ["linear"]) == ["linear:2"]
    with pytest.raises(GearmeshError, match="nonsense"):
        find_models(repository.folder, ["linear", "nonsense"])
    with pytest.raises(GearmeshError, match=re.escape(str(tmp_path))):
        find_models(tmp_path, [])


def test_a_device_that_there_is_not_is_refused_with_those_there_are(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEARMESH_DATA_DIR", str(tmp_path))
    assert main(["--repository", str(repository.folder), "--models", "linear", "--device", "tpu"]) == 1
    assert "auto, cpu" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--runs", "0"], ["--seconds", "-1"], ["--batches", "0"]])
def test_wrong_arguments_are_refused_by_name(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err


# -- the rig ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_an_action_that_fails_ends_a_measurement_with_the_reason(tmp_path: Path, repository: Repository) -> None:
    rig = Rig(CpuDevice(settings(tmp_path, repository)))
    rig.start()
    await rig.prepare(repository.folder, "linear:1", ())
    for batch, code in ((0, ActionCode.BAD_BATCH), (9, ActionCode.BAD_BATCH), (1, ActionCode.WEIGHTS_MISSING)):
        with pytest.raises(ActionFailed) as caught:
            await rig.ran("linear:1", batch)
        assert caught.value.code == code
    await rig.resident("linear:1")
    assert (await rig.ran("linear:1", 8)).code == ActionCode.OK
    rig.close()


@on_loop
async def test_the_arena_holds_what_a_measurement_asked_for_last_and_nothing_else(
    tmp_path: Path, repository: Repository
) -> None:
    rig = Rig(CpuDevice(settings(tmp_path, repository)))
    rig.start()
    for ref in ("linear:1", "tall:1"):
        await rig.prepare(repository.folder, ref, ())
    await rig.resident("linear:1", "tall:1")
    assert rig.lanes.table.free == 16 - 1 - 3
    await rig.resident("tall:1")
    assert rig.lanes.table.resident() == ("tall:1",)
    rig.close()


def results(rig: Rig, ref: str, x: torch.Tensor) -> torch.Tensor:
    """What the device makes of x with the weights in the arena: [rows, 140,000] float32."""
    job = infer_job(ref, rig.lanes.table.pages_of(ref), x)
    assert isinstance(rig.device, CpuDevice)
    return run(rig.device, job, (len(x), 140_000))[0]


@pytest.mark.parametrize(("alias", "load_from"), [(True, ["host"] * 3), (False, ["host", "disk", "disk"])])
@on_loop
async def test_copies_are_models_of_their_own_and_links_take_the_memory_of_one(
    tmp_path: Path, repository: Repository, alias: bool, load_from: list[str]
) -> None:
    package = repository.package("tall:1")
    folder = tmp_path / "copies"
    folder.mkdir()
    names = list(make_copies(package, folder, 3, alias=alias, seed=1))
    assert names == list(scan_repository(folder)) == ["tall-0001", "tall-0002", "tall-0003"]
    refs = [f"{name}:1" for name in names]
    rig = Rig(CpuDevice(settings(tmp_path, repository, host_memory_mb=3)))  # one image takes more than 2 of them
    rig.start()
    for ref in refs:
        await rig.prepare(folder, ref, ())
    assert {rig.packages[ref].architecture for ref in refs} == {package.architecture}
    assert [rig.device.traits(ref).load_from for ref in refs] == load_from
    await rig.resident(*refs)
    assert rig.lanes.table.free == 16 - 3 * 3
    x = torch.randn(2, 4)
    outputs = [results(rig, ref, x) for ref in refs]
    assert len({tuple(output[0, :100].tolist()) for output in outputs}) == (1 if alias else 3)
    rig.close()


@on_loop
async def test_weights_beyond_the_budget_are_loaded_from_disk_and_give_the_same_results(
    tmp_path: Path, repository: Repository
) -> None:
    rig = Rig(CpuDevice(settings(tmp_path, repository, host_memory_mb=3)))
    rig.start()
    for ref in ("tall:1", "tall:2"):
        await rig.prepare(repository.folder, ref, ())
    assert [rig.device.traits(ref).load_from for ref in ("tall:1", "tall:2")] == ["host", "disk"]
    await rig.resident("tall:1", "tall:2")
    x = torch.randn(2, 4)
    for ref in ("tall:1", "tall:2"):
        assert torch.allclose(results(rig, ref, x), repository.outputs(ref, x)[0], atol=1e-6)
    rig.close()
