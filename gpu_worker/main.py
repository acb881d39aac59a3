"""`python -m gpu_worker`: a worker for one device, or for several emulated ones."""

from gpu_worker.devices.opening import open_device
from gpu_worker.preparation import RepositoryVersions
from gpu_worker.service import WorkerService
from mesh.process.output import leave
from mesh.process.runtime import Runtime, Service, serve


def workers(runtime: Runtime) -> list[Service]:
    """One service per device: one, unless the devices are emulated. Raises: DeviceError, SettingsError."""
    emulated = runtime.settings.device.startswith("emulated:")
    count = runtime.settings.emulated_count if emulated else 1
    return [make_worker(runtime) for _ in range(count)]


def make_worker(runtime: Runtime, broker: tuple[str, ...] = ()) -> WorkerService:
    """A worker for the device and the repository that the settings name. Raises: DeviceError, SettingsError.

    `broker`: where to call the broker, if not where the settings say.
    """
    settings = runtime.settings
    device = open_device(settings)
    versions = RepositoryVersions(runtime.hub.loop, device, settings.model_repository, settings.factory_allow)
    return WorkerService(runtime, device, versions, broker=broker)


def main() -> None:
    """Runs a worker until a signal; exits 0, or 2 with the reason if it cannot start."""
    serve("gpu_worker", workers)
    leave(0)  # nobody waits for a version that is still being prepared
