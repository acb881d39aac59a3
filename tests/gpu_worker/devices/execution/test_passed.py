"""gpu_worker/devices/execution/passed.py: what passed the checks once is not checked again by a worker that returns."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from gpu_worker.devices import cpu
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.devices.execution import passed
from gpu_worker.devices.execution.executables import check_by_running
from gpu_worker.packages.package import Package, read_package
from mesh.errors import PackageError
from mesh.process.settings import Settings
from tests.disks import refuse
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import linear, put

REF = "linear:1"
Life = Callable[..., list[str]]


@pytest.fixture
def folder(repository: Repository, tmp_path: Path) -> Path:
    """A repository that a test may change."""
    shutil.copytree(repository.folder, tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture
def life(settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    """One life of a worker, which prepares the version; returns the versions that were checked in it."""

    def live(ref: str = REF, **more: Any) -> list[str]:
        tried: list[str] = []

        def check(package: Package, *args: Any, **options: Any) -> None:
            tried.append(package.ref)
            check_by_running(package, *args, **options)

        monkeypatch.setattr(cpu, "check_by_running", check)
        with closing(CpuDevice(settings.model_copy(update=more))) as device:
            device.prepare(read_package(folder, ref, ()))
        return tried

    return live


def test_a_worker_that_returns_serves_without_checking_again(
    life: Life, settings: Settings, folder: Path, repository: Repository
) -> None:
    assert [life(), life(), life("linear:2"), life("linear:2")] == [[REF], [], ["linear:2"], []]
    with closing(CpuDevice(settings)) as device:
        device.prepare(read_package(folder, REF, ()))
        put(device, REF, (0,))
        x = torch.randn(3, 4)
        assert torch.allclose(linear(device, REF, (0,), x), repository.outputs(REF, x)[0])


def other_weights(folder: Path) -> None:
    file = folder / "linear" / "1" / "weights.safetensors"
    save_file({name: torch.from_numpy(array) + 1 for name, array in load_file(file).items()}, file)


def larger_batch(folder: Path) -> None:
    for manifest in (folder / "linear").rglob("model.toml"):
        manifest.write_text(manifest.read_text().replace("batch_max = 8", "batch_max = 16"))


def another_example(folder: Path) -> None:
    save_file({"x": torch.ones(2, 4)}, folder / "linear" / "1" / "example.safetensors")


@pytest.mark.parametrize("change", [other_weights, larger_batch, another_example])
def test_what_the_outcome_depends_on_in_the_package_is_checked_when_it_changes(
    change: Callable[[Path], None], life: Life, folder: Path
) -> None:
    assert life() == [REF]
    change(folder)
    assert [life(), life()] == [[REF], []]


def test_another_kind_of_device_checks_for_itself(life: Life) -> None:
    assert [life(), life(threads=2), life(threads=2), life()] == [[REF], [REF], [], []]


def test_other_code_that_checks_checks_again(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    assert life() == [REF]
    monkeypatch.setattr(passed, "CHECKING", ("packages",))
    assert [life(), life()] == [[REF], []]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100])
def test_an_entry_that_is_damaged_is_not_believed(content: bytes, life: Life, settings: Settings) -> None:
    assert life() == [REF]
    (entry,) = (settings.data_dir / "checked").iterdir()
    assert json.loads(entry.read_bytes())["batch_max"] == 8
    entry.write_bytes(content)
    assert life() == [REF]


def test_a_version_that_fails_is_checked_every_time(life: Life, folder: Path) -> None:
    for manifest in (folder / "linear").rglob("model.toml"):
        manifest.write_text(manifest.read_text().replace("[-1, 3]", "[-1, 2]"))
    for _ in range(2):
        with pytest.raises(PackageError):
            life()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=os.strerror)
def test_where_nothing_can_be_kept_everything_is_served_and_checked_each_time(
    number: int, life: Life, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, settings.data_dir / "checked", "mkdir", number)
    assert [life(), life()] == [[REF], [REF]]


def test_so_many_entries_are_kept_and_the_oldest_leave(
    life: Life, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passed, "KEPT_MAX", 4)
    kept = settings.data_dir / "checked"
    for number, ref in enumerate((REF, "linear:2", "twin:1", "other:1")):
        life(ref)
        for entry in kept.iterdir():
            os.utime(entry, (number, number) if entry.stat().st_mtime > 1000 else None)
    oldest = min(kept.iterdir(), key=lambda entry: entry.stat().st_mtime)
    life("echo:1")
    assert len(list(kept.iterdir())) == 4
    assert not oldest.exists()
    assert life("echo:1") == []
