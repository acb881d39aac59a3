"""Versions whose preparation ended the worker: the record before, after, and for the next worker."""

import json
import os
import shutil
from pathlib import Path

import pytest

from gpu_worker.devices import attempts
from gpu_worker.devices.attempts import DEATHS_MAX, RECORDS_MAX, Attempt, Attempts, begun, died, ended
from gpu_worker.packages.package import Package, read_package
from mesh.errors import PackageError
from tests.disks import CALLS, FAULTS, contents, refuse
from tests.gpu_worker.conftest import Repository
from tests.messages import names

FILES = {"weights.safetensors": (100, 7), "graph.pt2": (10, 8)}
NOW_S = 1_790_000_000.0
KIND = "cuda NVIDIA X, torch 2, driver 5"


def record(deaths: int = 0, began_s: float | None = None, last_s: float | None = None, **other: object) -> Attempt:
    fields = {"ref": "m:1", "kind": KIND, "files": FILES, **other}
    return Attempt(**fields, deaths=deaths, began_s=began_s, last_s=last_s)


# -- rules ------------------------------------------------------------------------------------------------------------


def test_a_version_is_on_record_while_it_is_prepared_and_not_afterwards() -> None:
    first = begun(None, record(), now=NOW_S)
    assert first == record(began_s=NOW_S)
    assert ended(first, well=True) is None
    assert ended(first, well=False) is None, "refused in good order: that says nothing against trying again"


def test_a_worker_that_ended_meanwhile_counts_and_the_second_one_is_the_last() -> None:
    found = None
    for deaths in range(1, DEATHS_MAX + 1):
        attempt = begun(found, record(), now=NOW_S + deaths)
        assert attempt is not None
        found = died(attempt)
        assert found == record(deaths=deaths, last_s=NOW_S + deaths)
    assert DEATHS_MAX == 2
    assert begun(found, record(), now=NOW_S + 9) is None


def test_a_preparation_that_went_well_forgives_what_was_before_and_a_refusal_does_not() -> None:
    again = begun(record(deaths=1, last_s=NOW_S), record(), now=NOW_S + 5)
    assert again == record(deaths=1, last_s=NOW_S, began_s=NOW_S + 5)
    assert ended(again, well=True) is None
    assert ended(again, well=False) == record(deaths=1, last_s=NOW_S)


def test_a_worker_that_ended_while_it_prepared_nothing_counts_against_nobody() -> None:
    assert died(record(deaths=1, last_s=NOW_S)) is None
    assert died(record(began_s=0.0)) == record(deaths=1, last_s=0.0), "whatever the clock said"


@pytest.mark.parametrize(
    "other",
    [
        {"files": {**FILES, "graph.pt2": (11, 8)}},
        {"files": {**FILES, "graph.pt2": (10, 9)}},
        {"kind": f"{KIND}, tf32 all"},
        {"ref": "m:2"},
    ],
)
def test_other_files_or_another_device_begin_anew(other: dict[str, object]) -> None:
    wanted = record(**other)
    assert begun(record(deaths=9, last_s=NOW_S), wanted, now=NOW_S) == record(began_s=NOW_S, **other)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(repository: Repository) -> Package:
    """Any package."""
    return repository.package("linear:1")


class Life:
    """One worker's life: the records that it finds, and a version that it prepares."""

    def __init__(self, folder: Path) -> None:
        self.attempts = Attempts(folder, "cuda:0", clock=lambda: NOW_S)
        self.attempts.open()


def test_the_worker_that_comes_back_twice_refuses_the_version_and_names_the_file(
    tmp_path: Path, package: Package
) -> None:
    for _ in range(DEATHS_MAX):
        Life(tmp_path).attempts.begin(package, KIND)  # the worker ends during the preparation
    third = Life(tmp_path).attempts
    with pytest.raises(PackageError) as raised:
        third.begin(package, KIND)
    file = tmp_path / "cuda-0" / "linear@1.json"
    (fault,) = raised.value.faults
    assert names(fault, "cuda:0", 2, "2026-09-21 14:13:20", file)
    assert [other.name for other in file.parent.iterdir()] == [file.name]
    file.unlink()
    third.begin(package, KIND)
    third.end(package.ref, well=True)
    assert list(file.parent.iterdir()) == []


def test_a_refusal_is_no_attempt(tmp_path: Path, package: Package) -> None:
    """Otherwise the next worker would count it."""
    for _ in range(DEATHS_MAX):
        Life(tmp_path).attempts.begin(package, KIND)
    for _ in range(3):
        life = Life(tmp_path).attempts
        with pytest.raises(PackageError, match=r"\b2\b"):
            life.begin(package, KIND)
        life.close()


def test_a_worker_that_ends_as_it_should_leaves_nothing_against_what_it_was_preparing(
    tmp_path: Path, package: Package
) -> None:
    for _ in range(5):
        life = Life(tmp_path)
        life.attempts.begin(package, KIND)
        life.attempts.close()
        life.attempts.begin(package, KIND)  # its thread began only after the close
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "graph.pt2", "model.toml"])
def test_a_file_that_was_changed_is_tried_again(tmp_path: Path, repository: Repository, name: str) -> None:
    shutil.copytree(repository.folder / "linear", tmp_path / "linear")
    package = read_package(tmp_path, "linear:1", ())
    for _ in range(DEATHS_MAX):
        Life(tmp_path).attempts.begin(package, KIND)
    (file,) = (path for path in (package.manifest, package.graph, package.weights_file) if path and path.name == name)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    Life(tmp_path).attempts.begin(package, KIND)


def test_devices_have_records_of_their_own(tmp_path: Path, package: Package) -> None:
    for _ in range(DEATHS_MAX):
        Life(tmp_path).attempts.begin(package, KIND)
    Life(tmp_path)
    other = Attempts(tmp_path, "cuda:1")
    other.open()
    other.begin(package, KIND)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"ref": "linear:1"}', b"\xff\xfe"])
def test_a_record_that_cannot_be_read_says_nothing(tmp_path: Path, package: Package, content: bytes) -> None:
    file = tmp_path / "cuda-0" / "linear@1.json"
    file.parent.mkdir()
    file.write_bytes(content)
    life = Life(tmp_path).attempts
    life.begin(package, KIND)
    assert json.loads(file.read_bytes())["began_s"] == NOW_S


def test_a_folder_that_cannot_be_written_keeps_no_version_from_being_prepared(
    tmp_path: Path, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cuda-0").write_text("no folder")
    life = Life(tmp_path).attempts
    life.begin(package, KIND)
    life.end(package.ref, well=True)
    assert "preparation_not_recorded" in capsys.readouterr().out


def test_records_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "RECORDS_MAX", 3)
    folder = tmp_path / "cuda-0"
    folder.mkdir()
    for number in range(5):
        (folder / f"m@{number}.json").write_text("{}")
        os.utime(folder / f"m@{number}.json", ns=(number, number))
    (folder / "half.tmp").write_text("written by a worker that ended meanwhile")
    Life(tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == ["m@2.json", "m@3.json", "m@4.json"]
    assert RECORDS_MAX == 200


@pytest.mark.parametrize("number", FAULTS, ids=os.strerror)
@pytest.mark.parametrize("call", CALLS)
def test_a_preparation_goes_on_where_no_record_can_be_kept(
    call: str, number: int, tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Attempts(tmp_path / "attempts", "cuda:0")
    refuse(monkeypatch, tmp_path, call, number)
    kept.open()
    kept.begin(repository.package("linear:1"), KIND)
    kept.end("linear:1", well=True)
    kept.close()
    assert contents(tmp_path) == {}
