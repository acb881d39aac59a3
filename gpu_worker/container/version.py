"""The one version that a container serves: prepared and resident from the start, reported anew when its code dies."""

from gpu_worker.core.fitting import servable
from gpu_worker.core.pump import Pump
from gpu_worker.versions import Tell
from mesh import wire
from mesh.codes import PackageCode
from mesh.wire.ranges import cut_all


class ContainerVersion:
    """The `Versions` of a container. Its one version is never forgotten, because it may be wanted again."""

    def __init__(self, offer: wire.Offer, batching: wire.Batching) -> None:
        self.offer: wire.Offer | None = offer
        self._served = offer
        self._batching = batching
        self._report = self._make_report(())
        self._tell: Tell | None = None

    def attach(self, pump: Pump, tell: Tell) -> None:
        """The version has its page from now on, and its reports go to `tell`."""
        self._tell = tell
        ref, spec = self._served.ref, self._served.spec
        pump.lanes.prepared(ref, servable(spec, 1, None))
        pump.lanes.table.take(ref, 1)
        pump.lanes.table.loaded(ref)

    def changed(self, faults: tuple[str, ...]) -> None:
        """The container's code died, for these reasons; or, without faults, it serves again."""
        self._report = self._make_report(faults)
        self._send(self._report)

    def reports(self) -> tuple[wire.Prepared, ...]:
        """The last report of the one version: part of the worker's hello."""
        return (self._report,)

    def prepare(self, ref: str, content: str) -> None:
        """The controller hears how the version is, whatever content it asks for."""
        if ref == self._served.ref:
            self._send(self._report)
            return
        faults = (f"this container serves {self._served.ref}, and nothing else",)
        self._send(wire.Prepared(ref=ref, ok=False, faults=faults, code=PackageCode.BAD_PACKAGE))

    def forget(self, ref: str) -> None:
        """Nothing changes: the version stays prepared for a controller that wants it again."""

    def executed(self, action: wire.Load | wire.Infer, duration_s: float, memory_bytes: int = 0) -> None:
        """Nothing is measured: the controller learns from the batches of clients."""

    def did_not_fit(self, action: wire.Infer) -> None:
        """Nothing changes, for the same reason."""

    def withdraw(self, ref: str, why: str) -> None:
        """Nothing changes: a container whose code has changed ends instead."""

    def device_lost(self, why: str) -> None:
        """Nothing changes: no preparation was under way."""

    @property
    def pending(self) -> tuple[str, ...]:
        """No version: the only one was prepared before the worker started."""
        return ()

    def close(self) -> None:
        """Nothing changes: nothing is ever being prepared."""

    def _make_report(self, faults: tuple[str, ...]) -> wire.Prepared:
        return wire.Prepared(
            ref=self._served.ref,
            ok=not faults,
            faults=cut_all(faults),
            spec=self._served.spec,
            pages=1,
            batching=self._batching,
        )

    def _send(self, report: wire.Prepared) -> None:
        assert self._tell is not None
        self._tell(report)
