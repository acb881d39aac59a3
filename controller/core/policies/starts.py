"""When EXEC of a model could start on a device. Pure."""

from controller.core.devices.base import RemoteDevice
from controller.core.estimation.fetching import NOTHING, FarBytes
from controller.core.state import Model


def start_of(device: RemoteDevice, model: Model, now: float) -> float:
    """When EXEC of the model could start on the device, after a LOAD if it is not resident."""
    if model.ref in device.residency.models:
        return device.start_s(model.ref, now)
    there_s = device.load.free_at(now) + device.loads[model.ref].load_s() + device.dispatch.value_s
    return max(there_s, device.exec.free_at(now))


def start_of_fetched(device: RemoteDevice, size: FarBytes, free_s: float, now: float) -> float:
    """When EXEC can start on the device, which is free then, of a batch of which so many bytes have to be fetched."""
    return free_s if size == NOTHING else max(free_s, device.fetched_s(size, now))
