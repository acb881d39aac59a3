"""Everything that writes below the data folder or the repository, on a disk that takes nothing."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from frontend.admin.observer import Recording
from gearmesh.operations.containers import ContainerFile, KeptContainer
from gearmesh.telemetry.trace import TraceError, write
from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.locks import DeviceLock
from gpu_worker.packages.writing import staged
from gpu_worker.profiling import write_profile
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import NotWritten, PackageError
from mesh.process.files import ADVICE, disk_fault, write_whole
from tests.disks import CALLS, FAULTS, contents, refuse

every_fault = pytest.mark.parametrize("number", FAULTS, ids=os.strerror)
every_call = pytest.mark.parametrize("call", CALLS)


def profile(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_profile(folder, "cpu", wire.Profile(exec_s={1: 0.5}, load_s=0.5))


def put(folder: Path) -> None:
    ContainerFile(folder).put("m", KeptContainer(["--model", "m"], "/", 2))


def scale(folder: Path) -> None:
    ContainerFile(folder).scale("m", 3)


def tell_down(folder: Path) -> None:
    ContainerFile(folder).tell_down({"m.1": "why"})


def whole(folder: Path) -> None:
    write_whole(folder / "deep" / "file", b"new" * 100_000, flushed=True)


WRITERS: list[Callable[[Path], None]] = [profile, put, scale, tell_down, whole]


@every_fault
@every_call
@pytest.mark.parametrize("writer", WRITERS)
def test_what_cannot_be_written_is_named_with_what_to_do_and_nothing_of_it_is_left(
    writer: Callable[[Path], None], call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    if call != "mkdir" or writer is scale:  # what is to be scaled is there
        put(folder)
        writer(folder)
    before = contents(tmp_path)
    refuse(monkeypatch, tmp_path, call, number)
    if call == "mkdir" and writer is scale:
        writer(folder)  # it makes no folder
        return
    with pytest.raises((NotWritten, OSError)) as raised:
        writer(folder)
    assert contents(tmp_path) == before
    if writer is profile and call == "mkdir":
        return  # the version's own folder, which the test makes
    assert isinstance(raised.value, NotWritten)
    text = str(raised.value)
    assert str(folder) in text
    assert os.strerror(number) in text
    assert ADVICE[number] in text


@every_fault
def test_a_file_of_containers_that_nobody_could_lock_is_why_nobody_keeps_them(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ContainerFile(tmp_path)
    assert "gearmesh up" in kept.why_unwatched()
    refuse(monkeypatch, tmp_path, "open", number)
    assert os.strerror(number) in kept.why_unwatched()
    with pytest.raises(NotWritten, match=r"supervisor\.lock"), kept.watched():
        pass


@every_fault
@every_call
def test_a_device_is_driven_by_one_worker_whatever_its_disk_says(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lent = tmp_path / "data" / "locks", [tmp_path / "memory"]
    lent[0].mkdir()
    with monkeypatch.context() as broken:
        refuse(broken, tmp_path / "data", call, number)
        held = DeviceLock(folder, "cpu:0", lent)
        DeviceLock(folder, "cpu:1", lent).release()
        with pytest.raises(DeviceError, match=r"driven by another worker"):
            DeviceLock(folder, "cpu:0", lent)
    with pytest.raises(DeviceError, match=r"driven by another worker"):
        DeviceLock(folder, "cpu:0", lent)  # nor now that the disk takes files again
    held.release()
    again = DeviceLock(folder, "cpu:0", lent)
    refuse(monkeypatch, tmp_path / "data", call, number)
    with pytest.raises(DeviceError, match=rf"pid {os.getpid()}"):
        DeviceLock(folder, "cpu:0", lent)  # nor when it fails after it took one
    again.release()


@every_fault
def test_a_worker_starts_where_no_folder_takes_a_lock(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").mkdir()
    refuse(monkeypatch, tmp_path, "open", number)
    DeviceLock(tmp_path / "locks", "cpu:0", [tmp_path / "memory"]).release()


def test_a_folder_for_locks_that_is_anothers_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, tmp_path / "data", "mkdir", FAULTS[0])
    (tmp_path / "memory").mkdir()
    lent = [tmp_path / "memory"]
    DeviceLock(tmp_path / "data", "cpu:0", lent).release()
    (ours,) = lent[0].iterdir()
    (file,) = ours.iterdir()
    file.unlink()
    ours.rmdir()
    (tmp_path / "elsewhere").mkdir()
    ours.symlink_to(tmp_path / "elsewhere")
    DeviceLock(tmp_path / "data", "cpu:0", lent).release()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@every_fault
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_package_that_cannot_be_written_leaves_the_repository_as_it_was(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    refuse(monkeypatch, repository, call, number)
    with pytest.raises(PackageError) as raised, staged(repository, "m", "1"):
        raise RuntimeError("what a library says of a full disk in its own words")
    assert raised.value.code == PackageCode.NOT_WRITTEN
    assert str(repository) in str(raised.value)
    assert ADVICE[number] in str(raised.value)
    assert contents(tmp_path) == {}


def test_what_a_library_raises_for_other_reasons_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="its own"), staged(tmp_path, "m", "1"):
        raise RuntimeError("its own")
    assert contents(tmp_path) == {}


@every_fault
def test_a_timeline_that_cannot_be_written_says_so_and_leaves_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, tmp_path, "write", number)
    with pytest.raises(TraceError, match=os.strerror(number)):
        write(Recording(0.0, 1.0), tmp_path / "trace.json")
    assert contents(tmp_path) == {}


def test_a_disk_that_takes_files_has_no_fault(tmp_path: Path) -> None:
    assert disk_fault(tmp_path) is None
    assert contents(tmp_path) == {}


def test_a_disk_that_takes_a_part_of_a_small_file_only_is_full(tmp_path: Path) -> None:
    """So is one with a few blocks left: it takes what there is room for, and says nothing the first time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        fault = disk_fault(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert fault is not None
    assert fault.errno == errno.EFBIG
    assert disk_fault(tmp_path) is None
