"""Nothing in a package runs, whoever reads it, and whatever it holds takes no more memory than it has on disk."""

import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from gearmesh.operations.adoption import order
from gpu_worker.core.measuring import Measurement
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.devices.execution.building import build
from gpu_worker.packages.package import read_package
from gpu_worker.packages.reading.serialized import decode
from gpu_worker.preparing import Preparer
from gpu_worker.profiling import profile_file, read_profile, write_profile
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.ids import host_id
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import linear, put
from tests.gpu_worker.packages import hostile
from tests.gpu_worker.packages.hostile import Hostile
from tests.messages import names

TENSOR = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 4))
SPEC = wire.ModelSpec(inputs=(TENSOR,), outputs=(TENSOR,), batch_max=8, slo_ms=50.0)
ALLOWED = ("torch.nn",)  # factories
MEMORY_MAX = 48 << 20  # bytes that Python takes
SAFE = [case for case in hostile.ALL if case.code is None]
REFUSED = [case for case in (*hostile.ALL, *hostile.LATE) if case.code is not None]
UNSAFE = [case for case in hostile.ALL if case.code is PackageCode.UNSAFE_PACKAGE]


def named(case: Hostile) -> str:
    return case.name


@pytest.fixture
def version(repository: Repository, tmp_path: Path) -> Path:
    """The folder of a sound copy of linear:1, to be spoiled."""
    shutil.copytree(repository.folder / "linear" / "1", tmp_path / "r" / "linear" / "1")
    return tmp_path / "r" / "linear" / "1"


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The folder that is there if anything in the package has run."""
    return tmp_path / "ran"


def spoiled(case: Hostile, version: Path, ran: Path) -> Path:
    """Returns the repository with the spoiled package."""
    case.spoil(version, f"__import__('os').mkdir({str(ran)!r})")
    return version.parents[1]


def deployed(folder: Path, repository: Path) -> None:
    """What `gearmesh deploy FOLDER` does before it asks the broker."""
    repository.mkdir()
    inode = repository.stat().st_ino
    told = wire.CatalogueReply(call=1, models=(), repository=str(repository), host=host_id(), machine="", inode=inode)
    order(str(folder), None, told, repository, ALLOWED)


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_a_worker_refuses_it_and_runs_nothing_of_it(case: Hostile, version: Path, ran: Path, device: CpuDevice) -> None:
    folder = spoiled(case, version, ran)
    tracemalloc.start()
    try:
        with pytest.raises(PackageError) as caught:
            Preparer(folder, ALLOWED, device).prepare("linear:1", "")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not ran.exists()
    assert caught.value.code == case.code, str(caught.value)
    assert all("\n" not in fault and len(fault) < 1000 for fault in caught.value.faults), str(caught.value)
    assert peak < MEMORY_MAX


@pytest.mark.parametrize("case", UNSAFE, ids=named)
def test_deploying_it_is_refused_before_anything_is_copied(
    case: Hostile, version: Path, ran: Path, tmp_path: Path
) -> None:
    folder = spoiled(case, version, ran)
    with pytest.raises(PackageError) as caught:
        deployed(folder / "linear", tmp_path / "served")
    assert caught.value.code == case.code, str(caught.value)
    assert not ran.exists()
    assert list((tmp_path / "served").iterdir()) == []


@pytest.mark.parametrize("case", SAFE, ids=named)
def test_what_is_hostile_in_it_is_never_read(
    case: Hostile, version: Path, ran: Path, device: CpuDevice, repository: Repository, tmp_path: Path
) -> None:
    folder = spoiled(case, version, ran)
    deployed(folder / "linear", tmp_path / "served")
    Preparer(tmp_path / "served", (), device).prepare("linear:1", "")
    put(device, "linear:1", (0,))
    x = torch.randn(2, 4)
    assert torch.allclose(linear(device, "linear:1", (0,), x), repository.outputs("linear:1", x)[0])
    assert not ran.exists()


@pytest.mark.parametrize("case", hostile.GRAPHS, ids=named)
def test_building_a_graph_that_nobody_has_checked_runs_nothing_either(case: Hostile, version: Path, ran: Path) -> None:
    spoiled(case, version, ran)
    entries = hostile.entries_of(version / "graph.pt2")
    try:
        module = build(decode(entries[hostile.root_of(entries) + hostile.MODEL]))
        module(torch.zeros(3, 4), torch.zeros(3), torch.zeros(2, 4))
    except (ValueError, RuntimeError, TypeError):
        pass
    assert not ran.exists()


def test_weights_that_no_arena_holds_are_refused_before_they_are_read(version: Path, device: CpuDevice) -> None:
    hostile.sparse(version, "")
    with pytest.raises(PackageError) as caught:
        Preparer(version.parents[1], ALLOWED, device).prepare("linear:1", "")
    assert names(caught.value.faults[0], "pages", "GEARMESH_ARENA_MB")


@pytest.mark.parametrize("value", ["NaN", "-1.0", "1e300", "null", '"x"', "[" * 50_000])
def test_durations_that_nobody_can_have_measured_are_measured_again(version: Path, value: str) -> None:
    write_profile(version, "k", wire.Profile(exec_s=dict.fromkeys(Measurement(8).sizes, 0.25), load_s=0.125))
    assert read_profile(version, "k", SPEC) is not None
    file = profile_file(version, "k")
    good = file.read_text()
    assert "0.125" in good
    file.write_text(good.replace("0.125", value))
    assert read_profile(version, "k", SPEC) is None
    file.write_text(good.replace("0.25", value, 1))
    assert read_profile(version, "k", SPEC) is None


def test_a_pipe_among_the_profiles_keeps_nobody_waiting(version: Path, tmp_path: Path) -> None:
    (version / "profiles").mkdir()
    hostile.pipe("profiles/k.json")(version, "")
    assert read_profile(version, "k", SPEC) is None
    deployed(version.parent, tmp_path / "served")
    assert list((tmp_path / "served" / "linear" / "1" / "profiles").iterdir()) == []


def test_files_that_are_no_part_of_a_package_are_not_copied(version: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the one who deploys")
    (version / "notes").symlink_to(tmp_path / "secret")
    hostile.pipe("waits")(version, "")
    (version / "profiles").symlink_to(tmp_path)
    deployed(version.parent, tmp_path / "served")
    copied = tmp_path / "served" / "linear" / "1"
    assert {file.name for file in copied.iterdir()} == set(hostile.FILES)
    assert read_package(tmp_path / "served", "linear:1", ()).ref == "linear:1"
