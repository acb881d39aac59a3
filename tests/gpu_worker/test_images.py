"""Weight images in host memory, on disk, and shared."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from broker.errors import PackageError
from gpu_worker.devices.executables import read_image
from gpu_worker.devices.images import DISK, HOST, DiskImage, Images, available_bytes, host_budget
from gpu_worker.packages import Package, read_package
from tests.gpu_worker.conftest import Repository


def window(package: Package) -> np.ndarray:
    return np.full(package.image_bytes + 64, 7, np.uint8)


def by_torch(package: Package) -> np.ndarray:
    image = np.zeros(package.image_bytes, np.uint8)
    read_image(package, image)
    return image


@pytest.mark.parametrize("ref", ["linear:1", "two:1", "folded:1", "tall:1", "echo:1"])
@pytest.mark.parametrize(("budget", "place"), [(1 << 30, HOST), (0, DISK)])
def test_an_image_is_the_same_from_memory_and_from_disk(
    repository: Repository, ref: str, budget: int, place: str
) -> None:
    package = repository.package(ref)
    image = Images(budget, read_image).take(package)
    target = window(package)
    image.copy_into(target)
    expected = by_torch(package)
    for weight in package.layout:
        piece = slice(weight.offset, weight.offset + weight.size)
        assert (target[piece] == expected[piece]).all()
    assert (target[package.image_bytes :] == 7).all()
    assert image.place == (place if package.image_bytes else HOST)


@pytest.mark.parametrize("ref", ["two:1", "folded:1", "tall:1"])
@pytest.mark.parametrize("piece", [1, 100, 256, 300, 1 << 20])
def test_an_image_on_disk_can_be_read_in_pieces_of_any_size(repository: Repository, ref: str, piece: int) -> None:
    package = repository.package(ref)
    image = Images(0, read_image).take(package)
    assert isinstance(image, DiskImage)
    target, expected = window(package), by_torch(package)
    step = max(piece, package.image_bytes // 500)
    for at in range(0, package.image_bytes, step):
        image.read(target[at : min(at + step, package.image_bytes)], at)
    for weight in package.layout:
        span = slice(weight.offset, weight.offset + weight.size)
        assert (target[span] == expected[span]).all(), weight.name
    assert (target[package.image_bytes :] == 7).all()


def test_what_goes_beyond_the_budget_stays_on_disk_and_room_is_used_again(repository: Repository) -> None:
    linear, tall, other = (repository.package(ref) for ref in ("linear:1", "tall:1", "tall:2"))
    images = Images(tall.image_bytes + linear.image_bytes - 1, read_image)
    assert [images.take(package).place for package in (linear, tall)] == [HOST, DISK]
    images.check()
    images.drop("linear:1")
    images.drop("linear:1")
    assert images.used_bytes == 0
    assert images.take(other).place == HOST
    images.check()
    assert images.take(linear).place == DISK


def test_versions_that_are_links_to_one_file_share_one_image(repository: Repository, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(repository.folder / "tall", tmp_path / name)
    weights = [tmp_path / name / "1" / "weights.safetensors" for name in ("a", "b", "c")]
    weights[1].unlink()
    os.link(weights[0], weights[1])
    images = Images(1 << 30, read_image)
    first, second, third = (images.take(read_package(tmp_path, f"{name}:1", ())) for name in ("a", "b", "c"))
    assert first is second
    assert third is not first
    assert images.used_bytes == 2 * first.size
    images.drop("a:1")
    images.check()
    assert images.used_bytes == 2 * first.size
    images.drop("b:1")
    images.check()
    assert images.used_bytes == third.size


@pytest.mark.parametrize("change", ["cut", "replaced", "gone"])
def test_a_file_that_changes_after_it_was_prepared_is_an_error_of_that_load(
    repository: Repository, tmp_path: Path, change: str
) -> None:
    shutil.copytree(repository.folder / "tall", tmp_path / "tall")
    package = read_package(tmp_path, "tall:1", ())
    image = Images(0, read_image).take(package)
    content = package.weights_file.read_bytes()
    if change == "cut":
        os.truncate(package.weights_file, 1000)
    else:
        package.weights_file.unlink()
    if change == "replaced":
        package.weights_file.write_bytes(content)
    with pytest.raises(OSError, match=r"weights\.safetensors"):
        image.copy_into(window(package))


def test_weights_that_are_gone_before_they_are_read_are_a_fault_of_the_package(
    repository: Repository, tmp_path: Path
) -> None:
    shutil.copytree(repository.folder / "tall", tmp_path / "tall")
    package = read_package(tmp_path, "tall:1", ())
    package.weights_file.unlink()
    with pytest.raises(PackageError, match=r"weights\.safetensors"):
        Images(0, read_image).take(package)


def test_the_budget_is_as_set_or_half_of_what_is_available() -> None:
    assert host_budget(3) == 3 << 20
    assert 0 < host_budget(0) < available_bytes()
