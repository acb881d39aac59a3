"""What the scheduler wants done, and what it tells others. Pure data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh import wire


@dataclass(slots=True)
class ToWorker:
    """The message goes to the worker; `frames` are large tensors that go beside it."""

    worker: str
    message: wire.FromControllerToWorker
    frames: Sequence[Any] = ()


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
