"""`python -m gpu_worker`: one device (or, emulated, several)."""

import os
import sys

from gpu_worker.devices.opening import open_device
from gpu_worker.service import WorkerService
from mesh.process.runtime import Runtime, Service, serve


def workers(runtime: Runtime) -> list[Service]:
    """One service per device: one, unless they are emulated. Raises: DeviceError."""
    emulated = runtime.settings.device.startswith("emulated:")
    count = runtime.settings.emulated_count if emulated else 1
    return [WorkerService(runtime, open_device(runtime.settings)) for _ in range(count)]


def main() -> None:
    """Runs a worker until a signal; exits 0, or 2 with the reason if it cannot start."""
    serve("gpu_worker", workers)
    sys.stdout.flush()
    os._exit(0)  # a version that is still being prepared is not waited for
