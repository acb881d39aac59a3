"""What the scheduler wants done, and what it tells others. Pure data."""

from dataclasses import dataclass

from mesh import wire


@dataclass(slots=True)
class ToWorker:
    """The message goes to the worker."""

    worker: str
    message: wire.FromControllerToWorker


@dataclass(slots=True)
class ToFrontend:
    """The message goes to the frontend."""

    frontend: str
    message: wire.FromControllerToFrontend


@dataclass(slots=True)
class ToBroker:
    """The message goes to the broker."""

    message: wire.ToBroker


Order = ToWorker | ToFrontend | ToBroker
