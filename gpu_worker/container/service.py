"""A container's shell: asks the broker which version its code is, then serves it as a worker.

The number comes first: containers with different code that start at the same time register under different numbers, and
code that was served before gets its former number.
"""

from typing import assert_never

import structlog

from gpu_worker.container.device import ContainerDevice
from gpu_worker.container.version import ContainerVersion
from gpu_worker.service import WorkerService
from mesh import wire
from mesh.net.links import Link
from mesh.net.registrar import DECODER
from mesh.net.transport import Mail
from mesh.process.ids import member_id
from mesh.process.readiness import ReadySignal
from mesh.process.runtime import Runtime

ALONE_S = 3.0  # without an answer of the broker: then whoever started the container by hand is told
CALL_AGAIN_S = 0.1
CANNOT = 2  # exit code: it can never serve like this
OUTDATED = 1  # exit code: it can serve once it is started again
log = structlog.get_logger("container")


class ContainerService:
    """The shell. `why`: what ended it, if the broker refused it or its code has changed.

    `ready`: given once a controller has welcomed it, from when on it serves.
    """

    def __init__(self, runtime: Runtime, device: ContainerDevice, ready: ReadySignal) -> None:
        self.why = ""
        self._ready = ready
        self._runtime = runtime
        self._device = device
        self._id = member_id("claim")
        self._broker: Link[wire.FromBroker, wire.ToBroker] | None = None  # while the broker is asked
        self._worker: WorkerService | None = None  # from the broker's answer on
        self._draining = False

    def start(self) -> None:
        """The broker is being asked for the version."""
        self._runtime.hub.loop.call_later(ALONE_S, self._alone)
        self._call()

    def drain(self) -> bool:
        """Takes no new work. Returns whether nothing is left to finish."""
        self._draining = True
        return self._worker is None or self._worker.drain()

    def stop(self) -> None:
        """The code's process has ended."""
        self._draining = True
        if self._worker is not None:
            self._worker.stop()
            return
        if self._broker is not None:
            self._broker.close()
        self._device.close()

    def _call(self) -> None:
        if self._draining:
            return
        link: Link[wire.FromBroker, wire.ToBroker] = Link(
            self._runtime.transport, self._id, "broker", DECODER, self._received, self._lost
        )
        self._broker = link.call((self._runtime.settings.broker_address,))
        self._claim()

    def _claim(self) -> None:
        assert self._broker is not None
        options = self._device.options
        self._broker.send(
            wire.ClaimVersion(call=1, name=options.model, content=self._device.content, version=options.version)
        )
        self._runtime.hub.schedule_turn()

    def _lost(self, peer: str, why: str) -> None:
        self._broker = None
        self._runtime.hub.loop.call_later(CALL_AGAIN_S, self._call)

    def _received(self, mail: Mail[wire.FromBroker]) -> None:
        for message in mail.messages:
            if self._worker is not None or self._draining or self.why:
                return  # it was answered: one that introduced itself again is answered twice
            match message:
                case wire.CallReply():
                    self._answered(message)
                case wire.Introduce():
                    self._claim()
                case wire.Table() | wire.CatalogueReply() | wire.CallWaits() | wire.Heartbeat() | wire.Goodbye():
                    pass
                case _:
                    assert_never(message)

    def _answered(self, reply: wire.CallReply) -> None:
        """The broker has said which version the code is, or that it refuses it."""
        assert self._broker is not None
        self._broker.send(wire.Goodbye())
        self._runtime.hub.loop.call_soon(self._broker.close, 200)
        if not reply.ok:
            self._refused(reply)
            return
        self._device.claimed(reply.version)
        log.info("claimed", ref=self._device.options.ref)
        offer = wire.Offer(ref=self._device.options.ref, spec=self._device.spec, code=self._device.content)
        version = ContainerVersion(offer, self._device.options.wording())
        self._worker = WorkerService(self._runtime, self._device, version, self._refused, self._ready.give)
        self._device.on_change(version.changed, self._outdated)
        self._worker.start()
        self._runtime.hub.schedule_turn()

    def _refused(self, reply: wire.CallReply) -> None:
        """The broker refuses what this container brings: the process ends."""
        self.why = f"{reply.message} ({reply.code})" if reply.code else reply.message
        self._runtime.end(CANNOT)

    def _outdated(self, why: str) -> None:
        """The code is not the claimed one any more: the process ends, and the next one serves it."""
        self.why = why
        self._runtime.end(OUTDATED)

    def _alone(self) -> None:
        if self._worker is None and not self._draining:
            advice = "is the mesh up? (gearmesh up)  it is served as soon as one is there"
            log.warning("no_broker", address=self._runtime.settings.broker_address, advice=advice)
