"""Whether `gearmesh up --compact` takes the worker into the one process, too, or leaves it one of its own, and why."""

from collections.abc import Callable, Mapping
from pathlib import Path

from gearmesh.operations.spares import service_of
from mesh.process.settings import Settings

WORKER = "gpu_worker"  # its name in a Procfile
GPU_FILES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "dxg")  # below /dev, where there may be a GPU: a driver made them


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether the machine may have a GPU. To ask torch would take seconds."""
    return any(True for pattern in GPU_FILES for _ in devices.glob(pattern))


def why_apart(
    settings: Settings,
    processes: Mapping[str, str],
    formation: Mapping[str, int],
    has_gpu: Callable[[], bool] = has_gpu,
) -> str:
    """Why the worker has a process of its own beside the compact one; empty: it is taken in.

    `processes`: {name: command} of the Procfile. `formation`: {name: count} that the user asked for.
    """
    if WORKER in formation:
        return f"-f {WORKER}={formation[WORKER]} asks for it"
    if WORKER not in processes:
        return "the Procfile has no line for it"
    if service_of(processes[WORKER]) != WORKER:
        return "its line in the Procfile does more than start it"
    if settings.device not in ("auto", "cpu"):
        return f"its device is {settings.device}"
    if settings.device == "auto" and has_gpu():
        return "there is a GPU (GEARMESH_DEVICE=cpu leaves it alone)"
    if settings.cores or settings.real_time:
        return "GEARMESH_CORES and GEARMESH_REAL_TIME are for it alone"
    if settings.factory_allow != Settings.model_fields["factory_allow"].default:
        return "packages run code of yours (GEARMESH_FACTORY_ALLOW), and only the worker is to end by it"
    return ""
