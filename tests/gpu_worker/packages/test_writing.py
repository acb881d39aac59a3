"""Versions are put into a repository whole, or not at all, and never over another."""

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package, read_package
from gpu_worker.packages.writing import OptionsKept, adopt, check_free
from mesh.codes import PackageCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import ROW, Repository


def written(repository: Path, *, seed: int = 0, version: str = "1", **options: object) -> Package:
    torch.manual_seed(seed)
    return write_package(repository, "m", version, nn.Linear(4, 3), inputs=ROW, outputs=["y"], **options)  # type: ignore[arg-type]


def files(repository: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file.relative_to(repository)): (file.stat().st_ino, file.read_bytes())
        for file in repository.rglob("*")
        if file.is_file()
    }


def refused(code: str, act: object) -> PackageError:
    with pytest.raises(PackageError) as caught:
        act()  # type: ignore[operator]
    assert caught.value.code == code
    return caught.value


HALF = "\ud800"  # a lone surrogate: half of a character
WRONG: list[tuple[str, object, str]] = [
    *[("labels", value, PackageCode.BAD_ARGUMENT) for value in (5, [1], "abc", {"a"}, [HALF])],
    *[("inputs", value, PackageCode.BAD_ARGUMENT) for value in ([("x", "float32", 4)], None, {}, {"x": "float32"})],
    *[("inputs", {"x": about}, PackageCode.BAD_ARGUMENT) for about in (
        ("float32", 4), ("float32", None), ("float32", (True,)), ("float32", (4.0,)), ("float", (4,)), ([], (4,)),
        ("float32", (10**13,)), ("float32", "4"), ("float32", (0,)), 7,
    )],
    *[("inputs", {name: ("float32", (4,))}, PackageCode.BAD_NAMES) for name in (5, "", "x" * 65, HALF, None)],
    *[("outputs", value, PackageCode.BAD_ARGUMENT) for value in (5, "ab")],
    *[("outputs", value, PackageCode.BAD_NAMES) for value in ([1], [HALF], [""], [None])],
    *[("batch_max", value, PackageCode.BAD_ARGUMENT) for value in (True, 0, 2.0, None, "8", 1025)],
    *[("slo_ms", value, PackageCode.BAD_ARGUMENT) for value in (True, 0, None, float("nan"), "5")],
    *[("cache", value, PackageCode.BAD_ARGUMENT) for value in (1, "yes", None)],
    *[("description", value, PackageCode.BAD_ARGUMENT) for value in (5, HALF, b"x")],
    *[("version", value, PackageCode.BAD_ARGUMENT) for value in (1, "", HALF)],
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "code"), WRONG)
def test_what_is_said_of_a_model_is_looked_at_before_anything_else(
    tmp_path: Path, field: str, value: object, code: str
) -> None:
    given = {"version": "1", "inputs": ROW} | {field: value}
    error = refused(code, lambda: write_package(tmp_path, "m", module=nn.Linear(4, 3), **given))  # type: ignore[arg-type]
    assert field in error.faults[0] or field.removesuffix("s") in error.faults[0]
    str(error).encode()
    assert list(tmp_path.iterdir()) == []


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    error = refused(PackageCode.BAD_ARGUMENT, lambda: written(tmp_path, batch_max=0, slo_ms=-1, labels=7, cache=None))
    assert len(error.faults) == 4


def test_no_labels_and_no_description_are_none(tmp_path: Path) -> None:
    assert written(tmp_path, labels=None, description=None) == written(tmp_path)


def test_the_same_module_written_again_is_the_version_that_is_there(tmp_path: Path) -> None:
    first = written(tmp_path)
    before = files(tmp_path)
    assert written(tmp_path) == first
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "weights.safetensors"),
        ({"batch_max": 7}, "batch_max"),  # for which the graph was made
        ({"labels": ["a", "b", "c"]}, "labels"),
    ],
)
def test_another_module_graph_or_label_under_a_version_that_is_there_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    written(tmp_path)
    before = files(tmp_path)
    error = refused(PackageCode.VERSION_EXISTS, lambda: written(tmp_path, **change))  # type: ignore[arg-type]
    assert named in str(error)
    assert "2" in str(error)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [("slo_ms", 77.0, "slo_ms"), ("cache", False, "cache"), ("description", "better", "description")],
)
def test_the_same_module_with_another_option_is_the_version_that_is_there_and_the_option_is_told(
    tmp_path: Path, option: str, value: object, kept: str
) -> None:
    first = written(tmp_path)
    before = files(tmp_path)
    with pytest.warns(OptionsKept, match=rf"{kept} in {first.manifest}"):
        assert written(tmp_path, **{option: value}) == first
    assert files(tmp_path) == before
    elsewhere, notes = written(tmp_path / "elsewhere", **{option: value}), list[str]()
    adopt(elsewhere, tmp_path, notes=notes)
    assert [kept in note for note in notes] == [True]
    assert files(tmp_path).items() >= before.items()


def test_another_example_is_told_and_the_old_one_kept(tmp_path: Path) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    first = written(tmp_path, example={"x": rows})
    assert first.example_file is not None
    with pytest.warns(OptionsKept, match=str(first.example_file)):
        assert written(tmp_path, example={"x": rows + 1}) == first


def test_all_files_have_the_mode_that_new_files_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        package = written(tmp_path / "one")
        package.weights_file.chmod(0o600)
        package.folder.chmod(0o700)
        adopt(package, tmp_path / "two")
        copy = read_package(tmp_path / "two", "m:1", ())
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in copy.folder.iterdir()} == {0o640}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (copy.folder, copy.folder.parent)} == {0o750}


@pytest.mark.parametrize("repository", ["file", "file/below", "/proc/nope", "taken"])
def test_a_repository_that_cannot_be_written_is_said_and_named(tmp_path: Path, repository: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "m").write_text("")  # in the place of the model's folder
    error = refused(PackageCode.NOT_WRITTEN, lambda: written(tmp_path / repository))
    assert str(tmp_path / repository) in error.faults[0]
    assert list((tmp_path / "taken").iterdir()) == [tmp_path / "taken" / "m"]


def test_a_number_is_free_after_all_that_there_are_and_were(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    package = written(tmp_path / "other", seed=1)
    written(repository)
    (repository / "m" / "\u00b2").mkdir()  # a digit that is not a number
    error = refused(PackageCode.VERSION_EXISTS, lambda: check_free(package, repository, (), {"4": "abc"}))
    assert error.faults[0].endswith(" 5")
    assert all(str(folder / "m" / "1") in error.faults[0] for folder in (repository, tmp_path / "other"))
    gone = written(tmp_path / "other", seed=1, version="3")
    refused(PackageCode.VERSION_EXISTS, lambda: check_free(gone, repository, (), {"3": "abc"}))
    assert check_free(gone, repository, (), {"3": ContentDigests().of(gone)}) == ""


def test_a_new_version_leaves_what_others_promise_as_it_was(tmp_path: Path) -> None:
    first = written(tmp_path, batch_max=5)
    written(tmp_path, version="2", seed=1, batch_max=9)
    assert read_package(tmp_path, "m:1", ()) == first


def test_a_package_from_elsewhere_is_adopted_whole_and_once(repository: Repository, tmp_path: Path) -> None:
    package = repository.package("two:1")
    adopt(package, tmp_path)
    before = files(tmp_path)
    adopt(package, tmp_path)
    assert files(tmp_path) == before
    copy = read_package(tmp_path, "two:1", ())
    assert ContentDigests().of(copy) == ContentDigests().of(package)
    assert (copy.example_file is None) == (package.example_file is None)


def test_other_bytes_from_elsewhere_are_not_adopted(repository: Repository, tmp_path: Path) -> None:
    adopt(repository.package("linear:1"), tmp_path / "r")
    shutil.copytree(repository.folder / "linear", tmp_path / "other" / "linear")
    file = tmp_path / "other" / "linear" / "1" / "weights.safetensors"
    save_file({name: np.ones_like(array) for name, array in load_file(file).items()}, file)
    before = files(tmp_path / "r")
    error = refused(
        PackageCode.VERSION_EXISTS, lambda: adopt(read_package(tmp_path / "other", "linear:1", ()), tmp_path / "r")
    )
    assert "weights.safetensors" in str(error)
    assert files(tmp_path / "r") == before


def test_the_content_is_that_of_the_bytes_whatever_the_file_s_times(tmp_path: Path) -> None:
    contents = ContentDigests()
    package = written(tmp_path)
    stat = package.weights_file.stat()
    first = contents.of(package)
    assert contents.of(package) == first
    changed = {name: array + 1 for name, array in load_file(package.weights_file).items()}
    save_file(changed, package.weights_file)
    os.utime(package.weights_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert contents.of(package) != first


def test_how_a_version_is_served_is_not_its_content(tmp_path: Path) -> None:
    package = written(tmp_path)
    manifest = package.manifest
    manifest.write_text(manifest.read_text().replace("slo_ms = 1000.0", "slo_ms = 77.0"))
    other = read_package(tmp_path, "m:1", ())
    assert other.spec.slo_ms == 77.0
    assert ContentDigests().of(other) == ContentDigests().of(package)
    assert ContentDigests().differing(other, package) == []
    assert ContentDigests().options_differing(other, package) == ["slo_ms"]
