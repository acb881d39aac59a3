"""When EXEC of a model could start on a device. Pure."""

from controller.core.devices.base import RemoteDevice
from controller.core.state import Model


def start_of(device: RemoteDevice, model: Model, now: float) -> float:
    """When EXEC of the model could start on the device, after a LOAD if it is not resident."""
    if model.ref in device.residency.models:
        return device.start_s(model.ref, now)
    there_s = device.load.free_at(now) + device.loads[model.ref].load_s() + device.dispatch.value_s
    return max(there_s, device.exec.free_at(now))
