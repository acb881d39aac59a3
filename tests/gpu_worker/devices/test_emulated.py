"""A device that takes its times from a profile, on a real loop."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.emulated import EmulatedDevice
from gpu_worker.devices.opening import open_device
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.codes import ActionCode
from mesh.errors import PackageError
from mesh.process.settings import Settings
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.worker_builders import infer, load, never
from tests.loops import Told, on_loop

PROFILE: dict[str, Any] = {
    "name": "test", "memory_mb": 4, "page_mb": 1, "load_gb_per_s": 0.56, "load_fixed_ms": 1.0,
    "models": {"linear": {"exec_ms": {"1": 4.0, "8": 11.0}}, "tall": {"exec_ms": {"intercept": 3.0, "slope": 1.0}}},
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A profile on disk."""
    made = tmp_path / "test.json"
    made.write_text(json.dumps(PROFILE))
    return made


def opened(file: Path) -> EmulatedDevice:
    device = open_device(Settings(data_dir=file.parent, device=f"emulated:{file}"))
    assert isinstance(device, EmulatedDevice)
    return device


def attached(file: Path) -> tuple[EmulatedDevice, Told]:
    device = opened(file)
    told = Told()
    device.attach(told, never)
    return device, told


def test_a_device_says_what_it_pretends_to_be(file: Path) -> None:
    first, second = opened(file), opened(file)
    assert (first.info.kind, first.info.pages, first.info.page_bytes) == ("emulated test", 4, 1 << 20)
    assert first.info.name.startswith("emulated:test/")
    assert first.info.name != second.info.name
    assert not first.measured


def test_the_profile_of_a_version_is_that_of_the_file(file: Path, repository: Repository) -> None:
    profile = opened(file).prepare(repository.package("linear:1"))
    assert profile is not None
    assert list(profile.exec_s) == [1, 2, 3, 4, 6, 8]
    assert list(profile.exec_s.values()) == pytest.approx([0.004, 0.005, 0.006, 0.007, 0.009, 0.011])
    assert profile.load_s == pytest.approx(0.001 + 512 / 0.56e9)


def test_a_model_that_is_not_in_the_file_is_refused(file: Path, repository: Repository) -> None:
    with pytest.raises(PackageError, match=r"'test'.*'other'"):
        opened(file).prepare(repository.package("other:1"))


def test_a_model_larger_than_the_memory_is_refused(file: Path, repository: Repository) -> None:
    for memory_mb in (3, 2):
        file.write_text(json.dumps(PROFILE | {"memory_mb": memory_mb}))
        if memory_mb == 3:
            opened(file).prepare(repository.package("tall:1"))
        else:
            with pytest.raises(PackageError, match=r"\b3\b.*\b2\b"):
                opened(file).prepare(repository.package("tall:1"))


@pytest.mark.parametrize("content", [None, "{", '{"name": "x"}', "\x00"])
def test_a_file_that_is_no_profile_is_refused_by_name(file: Path, content: str | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(DeviceError, match=r"GEARMESH_DEVICE=emulated:.*test\.json"):
        opened(file)


def test_a_file_that_is_no_text_is_refused_by_name(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DeviceError, match=r"GEARMESH_DEVICE=emulated:.*test\.json"):
        opened(file)


@on_loop
async def test_exec_and_load_take_the_time_that_the_file_says(file: Path, repository: Repository) -> None:
    device, told = attached(file)
    device.prepare(repository.package("tall:1"))
    began_s = time.monotonic()
    exec_job, load_job = Job(infer(1, "tall:1", batch=8), 0.0, 0), Job(load(2, "tall:1"), 0.0, 0)
    assert device.begin(Phase.LOAD, load_job) is None
    assert device.begin(Phase.EXEC, exec_job) is None
    items = await told.count(2)
    ended_s = time.monotonic()
    done = {phase: (job, done) for phase, job, done in items}
    image_bytes = repository.package("tall:1").image_bytes
    for phase, job, duration_s in (
        (Phase.LOAD, load_job, 0.001 + image_bytes / 0.56e9),
        (Phase.EXEC, exec_job, 0.011),
    ):
        ended, how = done[phase]
        assert ended is job
        assert how.code == ActionCode.OK
        assert how.duration_s == pytest.approx(duration_s)
        assert how.end_s - how.begin_s == pytest.approx(duration_s)
        assert began_s <= how.begin_s
        assert how.end_s <= ended_s
    device.close()


@on_loop
async def test_executions_run_one_after_the_other(file: Path, repository: Repository) -> None:
    device, told = attached(file)
    device.prepare(repository.package("linear:1"))
    jobs = [Job(infer(number, "linear:1"), 0.0, 0) for number in range(3)]
    assert [device.begin(Phase.EXEC, job) for job in jobs] == [None] * 3
    items = await told.count(3)
    assert [job for _, job, _ in items] == jobs
    dones: list[Done] = [done for _, _, done in items]
    assert dones[1].begin_s == dones[0].end_s
    assert dones[2].begin_s == dones[1].end_s
    device.close()


@on_loop
async def test_what_comes_to_its_turn_after_its_window_is_late_at_once(file: Path, repository: Repository) -> None:
    device, told = attached(file)
    device.prepare(repository.package("linear:1"))
    device.begin(Phase.EXEC, Job(infer(1, "linear:1"), 0.0, 0))
    done = device.begin(Phase.EXEC, Job(infer(2, "linear:1", latest_s=time.monotonic()), 0.0, 0))
    assert done is not None
    assert (done.code, done.duration_s) == (ActionCode.LATE, 0.0)
    await told.count(1)
    device.close()


@on_loop
async def test_inputs_and_outputs_take_no_time_and_outputs_are_zeros_of_the_right_size(
    file: Path, repository: Repository
) -> None:
    device, _ = attached(file)
    device.prepare(repository.package("linear:1"))
    job = Job(infer(1, "linear:1", batch=5), 0.0, 0)
    for phase in (Phase.INPUT, Phase.OUTPUT):
        done = device.begin(phase, job)
        assert done is not None
        assert (done.code, done.duration_s) == (ActionCode.OK, 0.0)
    assert [bytes(output) for output in job.outputs] == [bytes(5 * 3 * 4)]
    device.close()


@on_loop
async def test_a_version_that_is_forgotten_while_it_executes_ends_as_it_began(
    file: Path, repository: Repository
) -> None:
    """Its frontend may be gone, and nobody else wants it: the worker must continue."""
    device, told = attached(file)
    device.prepare(repository.package("linear:1"))
    job = Job(infer(1, "linear:1"), 0.0, 0)
    device.begin(Phase.EXEC, job)
    device.forget("linear:1")
    await told.count(1)
    assert device.begin(Phase.OUTPUT, job) is not None
    device.close()


@on_loop
async def test_a_closed_device_tells_nothing_more(file: Path, repository: Repository) -> None:
    device, told = attached(file)
    device.prepare(repository.package("linear:1"))
    device.begin(Phase.EXEC, Job(infer(1, "linear:1"), 0.0, 0))
    device.close()
    other, other_told = attached(file)
    other.prepare(repository.package("linear:1"))
    other.begin(Phase.EXEC, Job(infer(1, "linear:1"), 0.0, 0))
    await other_told.count(1)
    assert told.items == []
    other.close()


# -- open dimensions --------------------------------------------------------------------------------------------------

DIM = wire.Dim(name="seq", least=1, most=64)


def open_package(repository: Repository) -> Package:
    """The package of `tall` as if its input had an open dimension."""
    package = repository.package("tall:1")
    ids = wire.TensorSpec(name="x", dtype="float32", shape=(-1, -1), dims=("seq",))
    return replace(package, spec=msgspec.structs.replace(package.spec, inputs=(ids,), dims=(DIM,)))


def sized(file: Path, **times: Any) -> EmulatedDevice:
    return opened(written(file, **times))


def written(file: Path, **times: Any) -> Path:
    """The file, with these times of `tall`."""
    file.write_text(json.dumps(PROFILE | {"models": {"tall": times}}))
    return file


def test_the_profile_of_an_open_version_has_durations_by_extents(file: Path, repository: Repository) -> None:
    formula = {"intercept": 1.0, "element": 0.01}
    profile = sized(file, exec_ms=formula, elements_max=128).prepare(open_package(repository))
    assert profile is not None
    assert (profile.sizes[0].extents, profile.sizes[-1].extents) == ((1,), (64,))
    assert profile.sizes[0].exec_s[8] == pytest.approx(0.00108)
    assert profile.sizes[-1].exec_s == pytest.approx({1: 0.00164, 2: 0.00228})
    assert profile.exec_s == profile.sizes[-1].exec_s
    tables = [{"extents": [size], "exec_ms": {"1": size / 10, "8": size / 2}} for size in (16, 64)]
    profile = sized(file, sizes=tables).prepare(open_package(repository))
    assert profile is not None
    assert [cell.extents for cell in profile.sizes] == [(16,), (64,)]


def test_an_open_version_whose_longest_row_has_no_room_is_refused(file: Path, repository: Repository) -> None:
    device = sized(file, exec_ms={"intercept": 1.0, "element": 0.01}, elements_max=63)
    with pytest.raises(PackageError, match=r"no room.*64"):
        device.prepare(open_package(repository))


@on_loop
async def test_exec_takes_as_long_as_the_extents_require(file: Path, repository: Repository) -> None:
    device, told = attached(written(file, exec_ms={"intercept": 1.0, "element": 0.1}))
    device.prepare(open_package(repository))
    action = msgspec.structs.replace(infer(1, "tall:1", batch=2), extents=(40,))
    assert device.begin(Phase.EXEC, Job(action, 0.0, 0)) is None
    ((_, _, done),) = await told.count(1)
    assert done.duration_s == pytest.approx(0.009)
    device.close()
