"""Which versions a worker serves: one interface, with one make for repositories and one for containers."""

from collections.abc import Callable
from typing import Protocol

from gpu_worker.core.pump import Pump
from mesh import wire

Tell = Callable[[wire.Prepared], None]  # sends a report to the controller; without a controller, nothing is sent


class Versions(Protocol):
    """What a worker does when the controller asks for a version, and what it tells the controller of its versions.

    All methods are called on the event loop's thread, and none of them waits.
    """

    offer: wire.Offer | None  # what the worker brings to the mesh itself; None: it serves what it is asked for

    def attach(self, pump: Pump, tell: Tell) -> None:
        """Called once, before everything else. `pump` learns what can be executed, `tell` carries the reports."""

    def reports(self) -> tuple[wire.Prepared, ...]:
        """The last report of each version that is prepared: part of a worker's hello."""

    def prepare(self, ref: str, content: str) -> None:
        """The controller asks for a version, with this content if one is named. It will be told how that went."""

    def forget(self, ref: str) -> None:
        """The controller does not want the version any more."""

    def executed(self, action: wire.Load | wire.Infer, duration_s: float, memory_bytes: int = 0) -> None:
        """An action ended well. `memory_bytes`: what EXEC took; 0: that was not seen."""

    def did_not_fit(self, action: wire.Infer) -> None:
        """EXEC ended because there was not enough memory."""

    def withdraw(self, ref: str, why: str) -> None:
        """The files of the version have changed: it is not served any more until the controller asks for it again."""

    def device_lost(self, why: str) -> None:
        """The device can do nothing more for this process: no preparation begins, and those under way are given up."""

    @property
    def pending(self) -> tuple[str, ...]:
        """Refs of the versions that are being prepared."""

    def close(self) -> None:
        """Nothing is prepared any more."""
