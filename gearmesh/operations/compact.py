"""Broker, controller and frontend in one process: `gearmesh up --compact`. Same code, same messages, fewer wake-ups.

With `worker`, as `gearmesh up` starts it where the one device is the processor, the worker is in it, too. What the
worker computes for longer than a moment runs in threads, which give up the interpreter meanwhile.
"""

import sys

from broker.service import BrokerService
from controller.service import ControllerService
from frontend.service import FrontendService
from mesh.process.extras import start
from mesh.process.output import leave
from mesh.process.runtime import Runtime, Service, serve

WITH_WORKER = "worker"  # the argument that asks for the worker, too


def services(runtime: Runtime, *, worker: bool = False) -> list[Service]:
    """The services, which call each other in memory. Raises: DeviceError, SettingsError."""
    settings = runtime.settings
    broker = (f"memory://{settings.broker_port}/broker", settings.broker_address)
    made: list[Service] = [
        BrokerService(runtime),
        ControllerService(runtime, broker),
        FrontendService(runtime, broker),
    ]
    if worker:
        from gpu_worker.main import make_worker  # imported only where it is needed, as it imports torch

        made.append(make_worker(runtime, broker))
    return made


def main() -> None:
    """Runs all of them until a signal. Exits 0, or 2 with the reason if they cannot start."""
    worker = sys.argv[1:2] == [WITH_WORKER]
    if worker:
        del sys.argv[1]  # what follows are settings
        import gpu_worker.devices.cpu  # noqa: F401 - what is not installed is told before anything is begun
    serve("mesh", lambda runtime: services(runtime, worker=worker))
    if worker:
        leave(0)  # nobody waits for a version that is still being prepared


if __name__ == "__main__":
    start("gearmesh.operations.compact", "mesh", preload="gpu_worker.preloading")
