"""DNN serving with predictable latency.

    from gearmesh import Client

    with Client("tcp://127.0.0.1:5555") as client:
        prediction = client.infer("digits_mlp", pixels, slo_ms=50)

`Client`, `AsyncClient` and their errors need pyzmq, msgpack and numpy. `write_package` needs the extra `serve` (torch).
Each name is imported when it is first used. `from gearmesh import *` leaves `write_package` out, so that it needs no
torch.
"""

from typing import TYPE_CHECKING, Any

from gearmesh.loading import load

if TYPE_CHECKING:
    from frontend.client.async_client import AsyncClient as AsyncClient
    from frontend.client.client import Client as Client
    from frontend.client.conversation import Disconnected as Disconnected
    from frontend.client.conversation import Failed as Failed
    from frontend.client.conversation import Invalid as Invalid
    from frontend.client.conversation import Prediction as Prediction
    from frontend.client.conversation import Rejected as Rejected
    from frontend.client.conversation import RequestError as RequestError
    from frontend.client.conversation import TimedOut as TimedOut
    from gpu_worker.packages.export import write_package as write_package
    from mesh.errors import PackageError as PackageError

    __version__: str

__all__ = [
    "AsyncClient", "Client", "Disconnected", "Failed", "Invalid", "PackageError", "Prediction", "Rejected",
    "RequestError", "TimedOut",
]  # fmt: skip
MODULES = {  # {name: where it lives}
    "AsyncClient": "frontend.client.async_client",
    "Client": "frontend.client.client",
    "Disconnected": "frontend.client.conversation",
    "Failed": "frontend.client.conversation",
    "Invalid": "frontend.client.conversation",
    "PackageError": "mesh.errors",
    "Prediction": "frontend.client.conversation",
    "Rejected": "frontend.client.conversation",
    "RequestError": "frontend.client.conversation",
    "TimedOut": "frontend.client.conversation",
    "write_package": "gpu_worker.packages.export",
}


def __getattr__(name: str) -> Any:
    """The public name, imported now. Raises: AttributeError; ImportError with the extra to install."""
    if name == "__version__":
        return _version()
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(load(MODULES[name]), name)
    except ModuleNotFoundError as error:
        from mesh.process.extras import advice

        told = advice(error)
        if told is None:
            raise
        raise ImportError(f"gearmesh.{name}: {told}", name=error.name) from error
    globals()[name] = found
    return found


def _version() -> str:
    """The version that is installed; "unknown" if the files are only on Python's path."""
    from importlib import metadata  # here: it costs more than all else of `import gearmesh`

    try:
        return metadata.version("gearmesh")
    except metadata.PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES, "__version__"})
