"""Makes the device of a worker that says hello. Pure."""

from controller.core.devices import black_box
from controller.core.devices.base import RemoteDevice
from controller.core.devices.black_box import BlackBox
from controller.core.devices.paged import PagedDevice
from controller.core.residency import Residency
from mesh import wire


def make_device(hello: wire.WorkerHello, *, dispatch_s: float, noise: float, now: float) -> RemoteDevice:
    """The device that the worker drives, with nothing on it and nothing sent to it.

    `dispatch_s`, `noise`: what its margins start from; the times of a container scatter more than `noise`.
    """
    info = hello.device
    residency = Residency(info.pages, info.pages)
    device: RemoteDevice
    if info.container:
        device = BlackBox(hello.member, info, residency)
        noise = black_box.NOISE
    else:
        device = PagedDevice(hello.member, info, residency)
    device.host = hello.host
    device.exec.free_s = device.load.free_s = now
    device.dispatch.value_s = dispatch_s
    device.noise.value_s = noise
    return device
