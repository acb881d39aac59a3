"""What a worker that was started ahead imports while it waits: all that its device will need, and nothing opened."""

from contextlib import suppress
from importlib import import_module

from mesh.errors import SettingsError
from mesh.process.configuration import read_settings

EMULATED = ("gpu_worker.devices.emulated",)
CPU = (
    "gpu_worker.devices.cpu",
    # what torch imports only where a graph is loaded: some 1700 modules
    "torch.export.pt2_archive",
    "torch.fx.experimental.validator",
    "torch._inductor.sizevars",
    "torch._functorch._aot_autograd.autograd_cache",
    "networkx",
)
CUDA = ("gpu_worker.devices.cuda.opening",)  # which asks no driver for anything before it opens a GPU


def preload() -> None:
    """The modules of the device that the settings name are imported; no device is opened, and no lock taken.

    Settings that are wrong, and what cannot be imported, are left to the process once it begins.
    """
    try:
        device = read_settings().device
    except SettingsError:
        return
    for module in _modules(device):
        with suppress(ImportError):  # of another release of torch: then it is imported where it is needed
            import_module(module)


def _modules(device: str) -> tuple[str, ...]:
    if device.startswith("emulated:"):
        return EMULATED
    if device == "cpu":
        return CPU
    if device in ("auto", "cuda") or device.startswith(
        "cuda:"
    ):  # which GPUs there are is asked only when one is opened
        return CPU + CUDA
    return ()  # of another package, which imports what it needs when it is opened
