"""Weight images in host memory, on disk, and shared."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_worker.devices.executables import read_image
from gpu_worker.devices.images import DISK, HOST, DiskImage, Image, Images, WeightsChanged, available_bytes, host_budget
from gpu_worker.packages.package import Package, read_package
from mesh.errors import PackageError
from tests.gpu_worker.conftest import Repository


def memory_for(package: Package) -> np.ndarray:
    return np.full(package.image_bytes + 64, 7, np.uint8)


def assert_loaded(image: Image, package: Package) -> None:
    """The image copies what is in the package's file now, and writes nothing after it."""
    target, expected = memory_for(package), by_torch(package)
    image.copy_into(target)
    for weight in package.layout:
        piece = slice(weight.offset, weight.offset + weight.size)
        assert (target[piece] == expected[piece]).all(), weight.name
    assert (target[package.image_bytes :] == 7).all()


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
    assert_loaded(image, package)
    assert image.place == (place if package.image_bytes else HOST)


@pytest.mark.parametrize("ref", ["two:1", "folded:1", "tall:1"])
@pytest.mark.parametrize("piece", [1, 100, 256, 300, 1 << 20])
def test_an_image_on_disk_can_be_read_in_pieces_of_any_size(repository: Repository, ref: str, piece: int) -> None:
    package = repository.package(ref)
    image = Images(0, read_image).take(package)
    assert isinstance(image, DiskImage)
    target, expected = memory_for(package), by_torch(package)
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


def test_versions_whose_weights_are_equal_share_one_image_be_they_links_or_copies(
    repository: Repository, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(repository.folder / "tall", tmp_path / name)
    shutil.copytree(repository.folder / "tall" / "2", tmp_path / "d" / "1")
    weights = [tmp_path / name / "1" / "weights.safetensors" for name in ("a", "b", "c")]
    weights[1].unlink()
    os.link(weights[0], weights[1])
    images = Images(1 << 30, read_image)
    first, second, third, fourth = (images.take(read_package(tmp_path, f"{name}:1", ())) for name in "abcd")
    assert first is second is third
    assert fourth is not first
    assert images.used_bytes == 2 * first.size
    for name in "abc":
        assert images.used_bytes == 2 * first.size
        images.drop(f"{name}:1")
        images.check()
    assert images.used_bytes == fourth.size


def test_a_file_in_the_place_of_another_whose_inode_size_and_time_it_has_is_another_image(
    repository: Repository, tmp_path: Path
) -> None:
    shutil.copytree(repository.folder / "tall", tmp_path / "tall")
    images = Images(1 << 30, read_image)
    first = images.take(read_package(tmp_path, "tall:1", ()))
    file = tmp_path / "tall" / "1" / "weights.safetensors"
    overwrite(file, (tmp_path / "tall" / "2" / "weights.safetensors").read_bytes())
    shutil.rmtree(tmp_path / "tall" / "2")
    (tmp_path / "tall" / "1").rename(tmp_path / "tall" / "2")
    package = read_package(tmp_path, "tall:2", ())
    second = images.take(package)
    assert second is not first
    assert_loaded(second, package)


def test_images_on_disk_are_not_shared_as_the_file_of_one_may_go_and_of_the_other_stay(
    repository: Repository, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shutil.copytree(repository.folder / "tall", tmp_path / name)
    images = Images(0, read_image)
    packages = [read_package(tmp_path, f"{name}:1", ()) for name in "ab"]
    _, other = (images.take(package) for package in packages)
    images.check()
    images.drop("a:1")
    images.check()
    shutil.rmtree(tmp_path / "a")
    other.copy_into(memory_for(packages[1]))


def overwrite(file: Path, content: bytes) -> None:
    """Overwrites the file in place and sets its time back, as `touch -r` does."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def on_disk(repository: Repository, tmp_path: Path) -> tuple[Package, DiskImage]:
    """Returns a package and its image, which is read at every LOAD."""
    shutil.copytree(repository.folder / "tall", tmp_path / "tall")
    package = read_package(tmp_path, "tall:1", ())
    image = Images(0, read_image).take(package)
    assert isinstance(image, DiskImage)
    return package, image


@pytest.mark.parametrize("change", ["cut", "gone", "replaced", "overwritten"])
def test_an_image_on_disk_is_not_loaded_from_a_file_that_is_not_the_version_s_any_more(
    on_disk: tuple[Package, DiskImage], change: str
) -> None:
    package, image = on_disk
    file = package.weights_file
    others = (file.parent.parent / "2" / file.name).read_bytes()
    if change == "cut":
        os.truncate(file, 1000)
    elif change == "overwritten":
        overwrite(file, others)
    else:
        file.unlink()
    if change == "replaced":
        file.write_bytes(others)
    for _ in range(2):
        with pytest.raises(WeightsChanged, match=r"weights\.safetensors"):
            image.copy_into(memory_for(package))


@pytest.mark.parametrize("change", ["replaced", "overwritten", "touched", "put back"])
def test_an_image_on_disk_goes_on_from_a_file_with_the_same_bytes(
    on_disk: tuple[Package, DiskImage], change: str
) -> None:
    package, image = on_disk
    file = package.weights_file
    content = file.read_bytes()
    if change == "put back":
        overwrite(file, bytes(len(content)))
        with pytest.raises(WeightsChanged):
            image.copy_into(memory_for(package))
    if change == "touched":
        file.touch()
    elif change == "replaced":
        file.unlink()
        file.write_bytes(content)
    else:
        overwrite(file, content)
    assert_loaded(image, package)


def test_what_is_written_while_an_image_is_read_is_seen(
    on_disk: tuple[Package, DiskImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    package, image = on_disk
    contents: list[bytes] = []  # that are written before the next read of the file
    read = os.preadv

    def preadv(*arguments: Any) -> int:
        if contents:
            overwrite(package.weights_file, contents.pop())
        return read(*arguments)

    monkeypatch.setattr(os, "preadv", preadv)
    contents.append(package.weights_file.read_bytes())
    assert_loaded(image, package)
    contents.append(bytes(len(package.weights_file.read_bytes())))
    with pytest.raises(WeightsChanged):
        image.copy_into(memory_for(package))
    assert contents == []


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
