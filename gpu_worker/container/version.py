"""The one version that a container serves: prepared and resident from the start, reported anew when its code dies."""

from gpu_worker.core.jobs import Servable
from gpu_worker.core.outputs import row_bytes
from gpu_worker.core.pump import Pump
from gpu_worker.versions import Tell
from mesh import wire
from mesh.codes import PackageCode


class ContainerVersion:
    """See gpu_worker.versions.Versions. It is never forgotten: it may be wanted again, and nothing needs its room."""

    def __init__(self, offer: wire.Offer, batching: wire.Batching) -> None:
        self.offer: wire.Offer | None = offer
        self._served = offer
        self._batching = batching
        self._report = self._make_report(())
        self._tell: Tell | None = None

    def attach(self, pump: Pump, tell: Tell) -> None:
        """See Versions. The version has its page from now on."""
        self._tell = tell
        ref, spec = self._served.ref, self._served.spec
        pump.lanes.prepared(ref, Servable(1, spec.batch_max, None, row_bytes(spec.outputs)))
        pump.lanes.table.take(ref, 1)
        pump.lanes.table.loaded(ref)

    def changed(self, faults: tuple[str, ...]) -> None:
        """The container's code died, for these reasons; or, without faults, it serves again."""
        self._report = self._make_report(faults)
        self._send(self._report)

    def reports(self) -> tuple[wire.Prepared, ...]:
        """See Versions."""
        return (self._report,)

    def prepare(self, ref: str, content: str) -> None:
        """See Versions. The controller hears how the version is, whatever content it asks for."""
        if ref == self._served.ref:
            self._send(self._report)
            return
        faults = (f"this container serves {self._served.ref}, and nothing else",)
        self._send(wire.Prepared(ref=ref, ok=False, faults=faults, code=PackageCode.BAD_PACKAGE))

    def forget(self, ref: str) -> None:
        """See Versions."""

    def executed(self, action: wire.Load | wire.Infer, duration_s: float) -> None:
        """See Versions. Nothing is measured: the controller learns from the batches of clients."""

    def withdraw(self, ref: str, why: str) -> None:
        """See Versions. A container whose code has changed ends instead."""

    def device_lost(self, why: str) -> None:
        """See Versions."""

    @property
    def pending(self) -> tuple[str, ...]:
        """See Versions."""
        return ()

    def close(self) -> None:
        """See Versions."""

    def _make_report(self, faults: tuple[str, ...]) -> wire.Prepared:
        return wire.Prepared(
            ref=self._served.ref,
            ok=not faults,
            faults=faults,
            spec=self._served.spec,
            pages=1,
            batching=self._batching,
        )

    def _send(self, report: wire.Prepared) -> None:
        assert self._tell is not None
        self._tell(report)
