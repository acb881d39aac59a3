"""adoption.py: what is deployed; packages from other folders are copied completely or not at all."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from gearmesh.operations.adoption import check_content, order
from gearmesh.operations.repositories import command_for
from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import read_package
from mesh import wire
from mesh.errors import PackageError
from mesh.process.ids import host_id
from tests.messages import names


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


def told(repository: Path, *models: wire.KnownModel, **other: Any) -> wire.CatalogueReply:
    """The reply of this repository's broker."""
    inode = repository.stat().st_ino if repository.exists() else 0
    fields: dict[str, Any] = {"repository": str(repository), "host": host_id(), "machine": "here", "inode": inode}
    return wire.CatalogueReply(call=1, models=models, **{**fields, **other})


def known(repository: Path, *versions: str, **fields: Any) -> wire.KnownModel:
    """Model m with these versions, all of which were served."""
    contents = {version: ContentDigests().of(read_package(repository, f"m:{version}", ())) for version in versions}
    return wire.KnownModel(name="m", current=versions[-1], previous=None, contents=contents, **fields)


def ordered(model: Path | str, version: str | None, said: wire.CatalogueReply) -> tuple[str, str | None]:
    found = order(str(model), version, said, Path("model_repository"), ())
    return found.name, found.version


def refused(act: Callable[[], object]) -> PackageError:
    with pytest.raises(PackageError) as caught:
        act()
    return caught.value


# -- a folder ---------------------------------------------------------------------------------------------------------


def test_all_versions_are_there_and_the_same_again_change_nothing(elsewhere: Path, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    assert ordered(elsewhere, None, told(repository)) == ("m", "2")
    before = files(repository)
    assert {name.split("/")[1] for name in before} == {"1", "2"}
    assert ordered(elsewhere, None, told(repository, known(repository, "1", "2"))) == ("m", "2")
    assert files(repository) == before


@pytest.mark.parametrize("changed", ["1", "2"])
def test_where_one_version_is_another_one_no_version_is_adopted(elsewhere: Path, tmp_path: Path, changed: str) -> None:
    repository = tmp_path / "r"
    shutil.copytree(elsewhere / changed, repository / "m" / changed)
    other_weights(elsewhere / changed)
    before = files(repository)
    error = refused(lambda: ordered(elsewhere, None, told(repository)))
    assert error.code == "version_exists"
    assert all(str(folder / changed) in error.faults[0] for folder in (elsewhere, repository / "m"))
    assert files(repository) == before


def test_another_content_than_was_served_is_not_adopted_though_its_folder_is_gone(
    elsewhere: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "r"
    ordered(elsewhere, None, told(repository))
    said = told(repository, known(repository, "1", "2"))
    shutil.rmtree(repository / "m" / "2")
    other_weights(elsewhere / "2")
    before = files(repository)
    assert refused(lambda: ordered(elsewhere, None, said)).code == "version_exists"
    assert files(repository) == before


def test_the_newest_version_of_the_folder_is_meant_or_one_that_it_has(elsewhere: Path, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    ordered(elsewhere, None, told(repository))
    shutil.rmtree(elsewhere / "2")
    (elsewhere / "\u00b2").mkdir()  # a digit, but not a number
    said = told(repository, known(repository, "1", "2"))
    assert ordered(elsewhere, None, said) == ("m", "1")
    assert ordered(elsewhere, "1", said) == ("m", "1")
    assert refused(lambda: ordered(elsewhere, "2", said)).code == "bad_package"


def test_an_option_that_differs_is_told(elsewhere: Path, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    ordered(elsewhere, None, told(repository))
    manifest = elsewhere / "2" / "model.toml"
    manifest.write_text(manifest.read_text().replace("slo_ms = 1000.0", "slo_ms = 77.0"))
    found = order(str(elsewhere), None, told(repository, known(repository, "2")), repository, ())
    assert ["slo_ms" in note for note in found.notes] == [True]


def test_a_damaged_package_is_told_as_that_and_not_adopted(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "2" / "weights.safetensors").write_bytes(b"junk")
    (elsewhere / "no").mkdir()
    for folder in (elsewhere, elsewhere / "no", elsewhere / "gone"):
        assert refused(lambda folder=folder: ordered(folder, None, told(tmp_path / "r"))).code == "bad_package"

    def closed(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert refused(lambda: ordered(elsewhere, None, told(tmp_path / "r"))).code == "bad_package"
    monkeypatch.undo()
    assert not (tmp_path / "r").exists()


def test_a_link_to_a_package_gives_it_the_link_s_name(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(elsewhere)
    assert ordered(tmp_path / "mine", None, told(tmp_path / "r")) == ("mine", "2")
    assert {name.split("/")[0] for name in files(tmp_path / "r")} == {"mine"}


def test_a_package_with_the_name_of_a_container_is_refused_before_anything_is_copied(
    elsewhere: Path, tmp_path: Path
) -> None:
    container = wire.KnownModel(name="m", current="2", previous=None, contents={"2": "abc"}, container=True)
    assert refused(lambda: ordered(elsewhere, None, told(tmp_path / "r", container))).code == "name_taken"
    assert not (tmp_path / "r").exists()


def test_a_package_in_the_repository_is_left_where_it_is(elsewhere: Path) -> None:
    before = files(elsewhere)
    assert ordered(elsewhere, None, told(elsewhere.parent)) == ("m", "2")
    assert ordered(elsewhere, "1", told(elsewhere.parent)) == ("m", "1")
    assert files(elsewhere) == before


@pytest.mark.parametrize("other", [{"inode": 1}, {"inode": 0, "host": "another"}])
def test_nothing_is_copied_into_a_folder_that_only_has_the_path_of_the_broker_s(
    elsewhere: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    error = refused(lambda: ordered(elsewhere, None, told(tmp_path / "r", machine="far away", **other)))
    assert "far away" in error.faults[0]
    assert not (tmp_path / "r").exists()


def test_a_repository_that_another_machine_shares_is_the_broker_s(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    assert ordered(elsewhere, None, told(tmp_path / "r", host="another")) == ("m", "2")
    assert (tmp_path / "r" / "m" / "2").is_dir()


# -- a name -----------------------------------------------------------------------------------------------------------


def test_a_package_that_lies_in_this_shell_s_repository_alone_is_hinted_at(elsewhere: Path, tmp_path: Path) -> None:
    found = order("m", None, told(tmp_path / "r"), elsewhere.parent, ())
    assert (found.name, found.version, str(elsewhere) in found.hint) == ("m", None, True)
    assert order("m", None, told(elsewhere.parent), elsewhere.parent, ()).hint == ""
    assert order("x", None, told(tmp_path / "r"), elsewhere.parent, ()).hint == ""


@pytest.mark.parametrize(("asked", "refuses"), [("1", False), ("2", True), (None, True)])
@pytest.mark.parametrize("damage", ["other", "junk", "gone"])
@pytest.mark.parametrize("by", ["name", "folder"])
def test_a_version_whose_files_are_not_what_was_served_is_refused_whatever_is_current(
    elsewhere: Path, asked: str | None, refuses: bool, damage: str, by: str
) -> None:
    said = told(elsewhere.parent, known(elsewhere.parent, "2", "1"))
    model = "m" if by == "name" else elsewhere
    assert ordered(model, asked, said)[0] == "m"
    weights = elsewhere / "2" / "weights.safetensors"
    if damage == "other":
        other_weights(elsewhere / "2")
    elif damage == "junk":
        weights.write_bytes(b"junk")
    else:
        weights.unlink()
    if refuses:
        assert refused(lambda: ordered(model, asked, said)).code == "content_changed"
    else:
        assert ordered(model, asked, said)[0] == "m"


def test_a_rollback_to_a_version_whose_folder_is_gone_is_refused(elsewhere: Path) -> None:
    said = told(elsewhere.parent, known(elsewhere.parent, "1", "2"))
    check_content("m", "1", said)
    shutil.rmtree(elsewhere / "1")
    assert refused(lambda: check_content("m", "1", said)).code == "content_changed"


def test_what_was_never_served_or_is_not_seen_from_here_is_for_others_to_look_at(
    elsewhere: Path, tmp_path: Path
) -> None:
    one, both = known(elsewhere.parent, "1"), known(elsewhere.parent, "1", "2")
    other_weights(elsewhere / "2")
    assert ordered("m", None, told(elsewhere.parent, one)) == ("m", None)
    assert ordered("m", None, told(elsewhere.parent)) == ("m", None)
    assert ordered("m", "2", told(elsewhere.parent, both, inode=1)) == ("m", "2")
    assert ordered("m", "9", told(elsewhere.parent, both)) == ("m", "9")


def test_files_that_this_person_may_not_read_are_not_said_to_be_others(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told(elsewhere.parent, known(elsewhere.parent, "1", "2"))
    other_weights(elsewhere / "2")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "weights.safetensors")
    assert ordered("m", "2", said) == ("m", "2")


# -- what serves it ---------------------------------------------------------------------------------------------------


def test_the_command_that_serves_a_package_depends_on_whose_repository_it_is_in(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = elsewhere.parent
    new, old = (read_package(repository, f"m:{version}", ()) for version in ("2", "1"))
    assert command_for(new, repository, told(repository)) == "gearmesh deploy m"
    assert command_for(old, repository, told(repository)) == "gearmesh deploy m --version 1"
    assert command_for(new, repository, told(tmp_path / "r")) == f"gearmesh deploy {elsewhere}"
    monkeypatch.chdir(repository)
    assert command_for(new, Path(), None) == "gearmesh deploy ./m"
    monkeypatch.chdir(tmp_path)
    assert command_for(new, Path("elsewhere"), None) == "gearmesh deploy elsewhere/m"


def test_code_that_a_version_makes_workers_run_is_told(elsewhere: Path, tmp_path: Path) -> None:
    factory = 'factory = "torch.nn:Linear"\nfactory_args = {in_features = 4, out_features = 3}'
    manifest = elsewhere / "2" / "model.toml"
    manifest.write_text(manifest.read_text().replace('graph = "graph.pt2"', factory))
    served = tmp_path / "served"
    served.mkdir()
    for model in (str(elsewhere), "m"):
        (note,) = order(model, "2", told(served), served, ("torch.nn",)).notes
        assert names(note, "torch.nn:Linear", "in_features=4", "out_features=3")
        assert order(model, "1", told(served), served, ("torch.nn",)).notes == ()
