"""What the scheduler wants done, and what it has to tell. Pure data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh import wire


@dataclass(slots=True)
class ToWorker:
    """This message goes to this worker; `frames` are large tensors that go with it."""

    worker: str
    message: wire.FromControllerToWorker
    frames: Sequence[Any] = ()


@dataclass(slots=True)
class ToFrontend:
    """This message goes to this frontend."""

    frontend: str
    message: wire.FromControllerToFrontend


@dataclass(slots=True)
class ToBroker:
    """This message goes to the broker."""

    message: wire.ToBroker


Order = ToWorker | ToFrontend | ToBroker
