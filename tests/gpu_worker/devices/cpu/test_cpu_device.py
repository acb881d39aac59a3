"""The CPU device itself: what it says of itself, who holds it, and how it is opened by its name."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
import torch

from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.devices.opening import open_device
from mesh.process.settings import Settings
from tests.gpu_worker.devices.cpu_builders import attached
from tests.loops import on_loop


def test_a_device_says_what_it_is(device: CpuDevice) -> None:
    info = device.info
    assert (info.name, info.pages, info.page_bytes, info.any_batch) == ("cpu:0", 8, 1 << 20, True)
    assert info.kind.startswith("cpu ")
    assert f"1 threads, torch {torch.__version__}" in info.kind


def test_two_workers_do_not_drive_one_device(settings: Settings, device: CpuDevice) -> None:
    with pytest.raises(DeviceError, match=f"pid {os.getpid()}"):
        CpuDevice(settings)


def test_an_arena_beyond_the_memory_there_is_is_refused_before_it_is_allocated(settings: Settings) -> None:
    with pytest.raises(DeviceError, match=r"100000000.*\d+ MiB.*ARENA_MB"):
        CpuDevice(settings.model_copy(update={"arena_mb": 100_000_000}))
    CpuDevice(settings).close()  # its lock is free again


def test_a_closed_device_is_free_for_another_worker(settings: Settings) -> None:
    CpuDevice(settings).close()
    CpuDevice(settings).close()


@on_loop
async def test_a_device_leaves_no_thread_behind(settings: Settings) -> None:
    before = set(threading.enumerate())
    device, _ = attached(settings)
    assert len(set(threading.enumerate()) - before) == 2
    device.close()
    assert set(threading.enumerate()) - before == set()
    await asyncio.get_running_loop().create_task(nothing())


async def nothing() -> None:
    """Returns at once, if the loop still runs."""


# -- opened by its name -----------------------------------------------------------------------------------------------


def test_auto_claims_the_next_free_one_of_as_many_as_there_are_cores(settings: Settings) -> None:
    automatic = settings.model_copy(update={"device": "auto"})
    count = os.cpu_count() or 1
    held = [open_device(automatic) for _ in range(count)]
    assert [one.info.name for one in held] == [f"cpu:{i}" for i in range(count)]
    with pytest.raises(DeviceError, match="cpu:0"):
        open_device(automatic)
    for one in held:
        one.close()


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "tpu:0", "emulated"])
def test_a_device_that_there_is_not_is_refused_with_those_there_are(settings: Settings, name: str) -> None:
    with pytest.raises(DeviceError, match="auto, cpu"):
        open_device(settings.model_copy(update={"device": name}))


def test_a_device_that_an_installed_package_brings_is_opened_by_its_name(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clay.py").write_text("from gpu_worker.devices.cpu import CpuDevice\n")
    about = tmp_path / "clay-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: clay\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[gearmesh.devices]\nclay = clay:CpuDevice\nbroken = clay:Nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    opened = open_device(settings.model_copy(update={"device": "clay:0"}))
    assert isinstance(opened, CpuDevice)
    opened.close()
    with pytest.raises(DeviceError, match=r"'broken'.*clay:Nothing.*AttributeError"):
        open_device(settings.model_copy(update={"device": "broken"}))
    with pytest.raises(DeviceError, match=r"PROFILE\.json, broken, clay"):
        open_device(settings.model_copy(update={"device": "mud"}))
