"""Claims a GPU and sets it up as the settings say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpu_worker.devices.attempts import Attempts
from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cuda import nvidia
from gpu_worker.devices.cuda.device import CudaDevice
from gpu_worker.devices.cuda.plans import MIB, make_room
from gpu_worker.devices.cuda.threads import Helper
from gpu_worker.devices.images import host_budget
from gpu_worker.devices.locks import DeviceLock, claim_first

if TYPE_CHECKING:
    from mesh.process.settings import Settings

PAGE_MB = 16


def open_cuda(settings: Settings, indices: Sequence[int]) -> CudaDevice:
    """Returns the first of these GPUs that no worker drives. Raises: DeviceError."""
    for index in indices:
        nvidia.check_index(settings.device, index)
    folder = settings.data_dir / "locks"
    if len(indices) == 1:
        index, lock = indices[0], DeviceLock(folder, f"cuda:{indices[0]}")
    else:
        name, lock = claim_first(folder, [f"cuda:{i}" for i in indices])
        index = int(name.partition(":")[2])
    try:
        return _open(settings, index, lock)
    except BaseException:
        lock.release()
        raise


def _open(settings: Settings, index: int, lock: DeviceLock) -> CudaDevice:
    helper = Helper("helper")
    driver = nvidia.NvidiaDriver(index, helper.do, settings.tf32)
    free, total = driver.memory()
    host_bytes_max = host_budget(settings.host_memory_mb)
    room = make_room(
        driver.name,
        free=free,
        total=total,
        page_bytes=(settings.page_mb or PAGE_MB) * MIB,
        arena_bytes=settings.arena_mb * MIB,
        buffer_bytes=settings.window_mb * MIB,
    )
    attempts = Attempts(settings.data_dir / "attempts", driver.name)
    attempts.open()
    try:
        return CudaDevice(driver, room, helper, lock, host_bytes_max=host_bytes_max, attempts=attempts)
    except RuntimeError as error:
        raise DeviceError(f"{driver.name}: cannot be set up ({free // MIB} MiB were free): {error}") from error
