"""One worker for each device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.locks import DeviceLock, claim_first
from tests.loops import LIMIT_S
from tests.memory import open_files

HOLD = """
import sys
from pathlib import Path
from gpu_worker.devices.locks import DeviceLock
lock = DeviceLock(Path(sys.argv[1]), "cpu:0")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_worker_for_a_device_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    first = DeviceLock(tmp_path / "locks", "cpu:0")
    with pytest.raises(DeviceError, match=rf"cpu:0.*pid {os.getpid()}"):
        DeviceLock(tmp_path / "locks", "cpu:0")
    first.release()


def test_a_refused_worker_does_not_take_the_lock_from_its_holder(tmp_path: Path) -> None:
    first = DeviceLock(tmp_path, "cpu:0")
    for _ in range(3):
        with pytest.raises(DeviceError, match=f"pid {os.getpid()}"):
            DeviceLock(tmp_path, "cpu:0")
    first.release()


def test_a_device_that_was_released_may_be_driven_by_another(tmp_path: Path) -> None:
    DeviceLock(tmp_path, "cpu:0").release()
    DeviceLock(tmp_path, "cpu:0").release()


def test_locks_of_other_devices_and_of_other_meshes_are_other_locks(tmp_path: Path) -> None:
    locks = [DeviceLock(tmp_path / folder, device) for folder in ("a", "b") for device in ("cpu:0", "cpu:1", "cuda:0")]
    for lock in locks:
        lock.release()


def test_a_refusal_leaves_no_descriptor_open(tmp_path: Path) -> None:
    first = DeviceLock(tmp_path, "cpu:0")
    before = open_files()
    with pytest.raises(DeviceError):
        DeviceLock(tmp_path, "cpu:0")
    assert open_files() - before == set()
    first.release()


def test_a_lock_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DeviceError, match=f"pid {process.pid}"):
            DeviceLock(tmp_path, "cpu:0")
        process.kill()
        process.wait(LIMIT_S)
    DeviceLock(tmp_path, "cpu:0").release()


def test_the_first_device_that_nobody_drives_is_claimed(tmp_path: Path) -> None:
    devices = ["cpu:0", "cpu:1", "cpu:2"]
    held = [claim_first(tmp_path, devices) for _ in devices]
    assert [name for name, _ in held] == devices
    with pytest.raises(DeviceError, match="cpu:0, cpu:1, cpu:2"):
        claim_first(tmp_path, devices)
    held[1][1].release()
    name, lock = claim_first(tmp_path, devices)
    assert name == "cpu:1"
    for one in (held[0][1], lock, held[2][1]):
        one.release()
