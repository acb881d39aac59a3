"""Broker, controller and frontend in one process: `gearmesh up --compact`. Same code, same messages, fewer wake-ups."""

from broker.service import BrokerService
from controller.service import ControllerService
from frontend.service import FrontendService
from mesh.process.runtime import Runtime, Service, serve


def services(runtime: Runtime) -> list[Service]:
    """The three services, which call each other in memory."""
    settings = runtime.settings
    broker = (f"memory://{settings.broker_port}/broker", settings.broker_address)
    return [BrokerService(runtime), ControllerService(runtime, broker), FrontendService(runtime, broker)]


def main() -> None:
    """Runs all three until a signal. Exits 0, or 2 with the reason if they cannot start."""
    serve("mesh", services)


if __name__ == "__main__":
    main()
