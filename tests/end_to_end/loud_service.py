"""A service of the mesh that also prints without end, if told so, and in which a callback raises at SIGUSR1.

python loud_service.py ROLE [loud]
"""

import signal
import sys
import threading
import time

from broker.service import BrokerService
from controller.service import ControllerService
from frontend.service import FrontendService
from gearmesh.operations.compact import services
from gpu_worker.main import make_worker
from mesh.process.runtime import Runtime, Service, serve

LINE = "x" * 10_000 + "\n"
PAUSE_S = 0.005  # 2 MB/s


def print_without_end() -> None:
    """As a library may."""
    while True:
        sys.stdout.write(LINE)
        time.sleep(PAUSE_S)


class Failing:
    """Fails as a callback of the loop, when asked to."""

    def __init__(self, runtime: Runtime) -> None:
        self.loop = runtime.hub.loop

    def start(self) -> None:
        self.loop.add_signal_handler(signal.SIGUSR1, self.fail)

    def fail(self) -> None:
        peer = "somebody"
        raise ZeroDivisionError(f"asked by {peer}")

    def drain(self) -> bool:
        return True

    def stop(self) -> None:
        """Nothing is open."""


def make(role: str, runtime: Runtime) -> list[Service]:
    """The services of that role."""
    match role:
        case "broker":
            return [BrokerService(runtime)]
        case "controller":
            return [ControllerService(runtime)]
        case "frontend":
            return [FrontendService(runtime)]
        case "mesh":
            return services(runtime)
        case _:
            return [make_worker(runtime)]


if __name__ == "__main__":
    role, *loud = sys.argv[1:]
    del sys.argv[1:]
    if loud:
        threading.Thread(target=print_without_end, daemon=True).start()
    serve(role, lambda runtime: [*make(role, runtime), Failing(runtime)])
