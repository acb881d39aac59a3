"""What a device has read is what its digest is of; whatever happens to the files meanwhile is noticed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.devices.emulated import EmulatedDevice
from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.package import Package, read_package
from gpu_worker.preparing import Preparer
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.settings import Settings
from tests.gpu_worker.conftest import Repository

REF = "linear:1"


class Meddled:
    """A device; somebody does something to the files before, and when it has read them."""

    def __init__(self, device: CpuDevice, before: Callable[[], object], after: Callable[[], object]) -> None:
        self._device, self._before, self._after = device, before, after
        self.prepared: list[str] = []

    def prepare(self, package: Package) -> wire.Profile | None:
        """The version is prepared; the files were meddled with before and after."""
        self._before()
        profile = self._device.prepare(package)
        self.prepared.append(package.ref)
        self._after()
        return profile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


@pytest.fixture
def folder(repository: Repository, tmp_path: Path) -> Path:
    """linear:1, to be changed."""
    shutil.copytree(repository.folder / "linear" / "1", tmp_path / "r" / "linear" / "1")
    return tmp_path / "r"


def nothing() -> None:
    """Nobody does anything."""


def preparer(
    folder: Path, device: CpuDevice, before: Callable[[], object] = nothing, after: Callable[[], object] = nothing
) -> tuple[Preparer, Meddled]:
    meddled = Meddled(device, before, after)
    return Preparer(folder, (), meddled), meddled


def other_weights(folder: Path) -> None:
    """Other numbers, as another file in the old one's place."""
    file = folder / "linear" / "1" / "weights.safetensors"
    save_file({name: np.ones_like(array) for name, array in load_file(file).items()}, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def refused(made: Preparer, content: str = "") -> str:
    with pytest.raises(PackageError) as caught:
        made.prepare(REF, content)
    return caught.value.code


def test_a_version_is_prepared_with_the_digest_of_its_content(folder: Path, device: CpuDevice) -> None:
    made, _ = preparer(folder, device)
    first = made.prepare(REF, "")
    assert first.content == ContentDigests().of(read_package(folder, REF, ()))
    assert made.prepare(REF, first.content).content == first.content


def test_other_files_than_those_asked_for_do_not_reach_the_device(folder: Path, device: CpuDevice) -> None:
    made, meddled = preparer(folder, device)
    content = made.prepare(REF, "").content
    other_weights(folder)
    assert refused(made, content) == PackageCode.CONTENT_CHANGED
    assert meddled.prepared == [REF]
    assert made.prepare(REF, "").content != content  # nobody asked for the old ones


def labels(folder: Path) -> None:
    file = folder / "linear" / "1" / "model.toml"
    file.write_text(file.read_text().replace("labels = []", f"labels = {json.dumps(['a', 'b', 'c'])}"))


def cut_short(folder: Path) -> None:
    os.truncate(folder / "linear" / "1" / "weights.safetensors", 7)


@pytest.mark.parametrize("change", [other_weights, labels, cut_short])
@pytest.mark.parametrize("when", ["before", "after"])
def test_files_that_change_while_they_are_read_are_refused(
    folder: Path, device: CpuDevice, change: Callable[[Path], None], when: str
) -> None:
    made, _ = preparer(folder, device, **{when: lambda: change(folder)})
    code = refused(made)
    noticed = (change, when) == (cut_short, "before")  # by the device itself
    assert noticed or code == PackageCode.CONTENT_CHANGED


def test_files_that_change_and_come_back_while_they_are_read_are_refused(folder: Path, device: CpuDevice) -> None:
    file = folder / "linear" / "1" / "weights.safetensors"

    def away() -> None:
        os.rename(file, file.with_suffix(".old"))
        shutil.copy(file.with_suffix(".old"), file)
        other_weights(folder)

    made, _ = preparer(folder, device, away, lambda: shutil.copy(file.with_suffix(".old"), file))
    assert refused(made) == PackageCode.CONTENT_CHANGED


def test_a_link_to_a_file_and_other_options_are_no_change(folder: Path, device: CpuDevice, tmp_path: Path) -> None:
    version = folder / "linear" / "1"

    def meddle() -> None:
        os.link(version / "weights.safetensors", tmp_path / f"a copy, {len(os.listdir(tmp_path))}")
        manifest = version / "model.toml"
        manifest.write_text(manifest.read_text().replace("slo_ms = 1000.0", "slo_ms = 5.0"))

    made, _ = preparer(folder, device, after=meddle)
    assert made.prepare(REF, "").package.spec.slo_ms == 1000.0
    assert made.prepare(REF, "").package.spec.slo_ms == 5.0


def test_a_version_that_stays_on_disk_has_its_digest_too(folder: Path, settings: Settings) -> None:
    device = CpuDevice(settings, host_bytes_max=0)
    made, _ = preparer(folder, device)
    assert made.prepare(REF, "").content == ContentDigests().of(read_package(folder, REF, ()))
    assert device.traits(REF).load_from == "disk"
    device.close()


def test_a_device_that_reads_no_weights_has_no_digest(folder: Path, settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    profile = {"name": "p", "memory_mb": 64, "page_mb": 1, "load_gb_per_s": 1.0}
    file.write_text(json.dumps({**profile, "default": {"exec_ms": {"intercept": 1.0, "slope": 0.1}}}))
    made = Preparer(folder, (), EmulatedDevice(settings, file)).prepare(REF, "another")
    assert made.content == ""
    assert made.profile is not None
