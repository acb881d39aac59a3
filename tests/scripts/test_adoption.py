"""scripts/adoption.py: packages from elsewhere, whole or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from broker import wire
from broker.errors import PackageError
from gpu_worker.contents import Contents
from gpu_worker.export import write_package
from gpu_worker.packages import read_package
from scripts.adoption import adopt_package, check_current


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The folder of a package with versions 1 and 2."""
    for version in ("1", "2"):
        torch.manual_seed(int(version))
        inputs = {"x": ("float32", (4,))}
        write_package(tmp_path / "elsewhere", "m", version, nn.Linear(4, 3), inputs=inputs, outputs=["y"])
    return tmp_path / "elsewhere" / "m"


def other_weights(version: Path) -> None:
    file = version / "weights.safetensors"
    save_file({name: np.ones_like(array) for name, array in load_file(file).items()}, file)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.stat().st_ino, file.read_bytes()) for file in found}


def refused(elsewhere: Path, repository: Path) -> str:
    with pytest.raises(PackageError) as caught:
        adopt_package(elsewhere, repository, ())
    return caught.value.code


def test_all_versions_are_there_and_the_same_again_change_nothing(elsewhere: Path, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    assert adopt_package(elsewhere, repository, ()) == "m"
    before = files(repository)
    assert {name.split("/")[1] for name in before} == {"1", "2"}
    assert adopt_package(elsewhere, repository, ()) == "m"
    assert files(repository) == before


@pytest.mark.parametrize("changed", ["1", "2"])
def test_where_one_version_is_another_one_no_version_is_adopted(elsewhere: Path, tmp_path: Path, changed: str) -> None:
    repository = tmp_path / "r"
    shutil.copytree(elsewhere / changed, repository / "m" / changed)
    other_weights(elsewhere / changed)
    before = files(repository)
    assert refused(elsewhere, repository) == "version_exists"
    assert files(repository) == before


def test_a_damaged_package_is_told_as_that_and_not_adopted(elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / "2" / "weights.safetensors").write_bytes(b"junk")
    assert refused(elsewhere, tmp_path / "r") == "bad_package"
    assert refused(tmp_path, tmp_path / "r") == "bad_package"  # which is no package
    assert not (tmp_path / "r").exists()


def test_a_package_in_the_repository_is_left_where_it_is(elsewhere: Path) -> None:
    before = files(elsewhere)
    assert adopt_package(elsewhere, elsewhere.parent, ()) == "m"
    assert files(elsewhere) == before


def current(repository: Path, version: str) -> wire.ModelEntry:
    content = Contents().of(read_package(repository, f"m:{version}", ()))
    return wire.ModelEntry(
        name="m", current=version, target=None, versions=("1", "2"), owner=None, contents={version: content}
    )


@pytest.mark.parametrize("asked", ["2", None])
def test_a_current_version_whose_files_were_changed_in_place_is_refused(elsewhere: Path, asked: str | None) -> None:
    entry = current(elsewhere.parent, "2")
    check_current(entry, asked, elsewhere.parent, ())
    other_weights(elsewhere / "2")
    with pytest.raises(PackageError) as caught:
        check_current(entry, asked, elsewhere.parent, ())
    assert caught.value.code == "content_changed"


def test_other_versions_are_for_the_workers_to_look_at(elsewhere: Path, tmp_path: Path) -> None:
    entry = current(elsewhere.parent, "1")
    other_weights(elsewhere / "1")
    other_weights(elsewhere / "2")
    check_current(entry, "2", elsewhere.parent, ())
    check_current(entry, None, elsewhere.parent, ())  # the newest, which is to be current
    check_current(entry, "1", tmp_path / "another machine's", ())
