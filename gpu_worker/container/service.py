"""A container's shell: has its code started, asks the broker which version that is, then serves it as a worker.

The broker knows of it from the first second, as a member whose code is being started. The number comes before it
serves: containers with different code that start at the same time register under different numbers, and code that was
served before gets its former number.
"""

import os
from typing import Any

import msgspec
import structlog

from gpu_worker.container.device import ContainerDevice
from gpu_worker.container.keeper import ChildKeeper
from gpu_worker.container.specs import ContainerError, ContainerOptions
from gpu_worker.container.version import ContainerVersion
from gpu_worker.service import WorkerService
from mesh import wire
from mesh.net.registrar import Registrar
from mesh.process.ids import host_id, member_id
from mesh.process.readiness import ReadySignal
from mesh.process.runtime import Runtime

ALONE_S = 3.0  # without a table of the broker: then whoever started the container by hand is told
CANNOT = 2  # exit code: it can never serve like this
OUTDATED = 1  # exit code: it can serve once it is started again
log = structlog.get_logger("container")


class ContainerService:
    """The shell. `why`: what ended it, if its code cannot be served, the broker refused it, or its code has changed.

    `ready`: given once a controller has welcomed it, from when on it serves.
    """

    def __init__(self, runtime: Runtime, options: ContainerOptions, ready: ReadySignal, *, start_s: float) -> None:
        """`start_s`: how long importing the code may take."""
        self.why = ""
        self._ready = ready
        self._runtime = runtime
        self._options = options
        self._keeper = ChildKeeper(options, start_s, self._cannot, self._changed)
        self._member = wire.Member(
            id=member_id("container"), role="container", host=host_id(), pid=os.getpid(), child=self._keeper.state()
        )
        address = (runtime.settings.broker_address,)
        self._starting: Registrar | None = Registrar(  # until the worker has taken its place in the table
            runtime.transport, address, self._member, self._table_changed, self._answered
        )
        self._device: ContainerDevice | None = None  # from the first time that the code is ready
        self._worker: WorkerService | None = None  # from the broker's answer on
        self._draining = False

    @property
    def device(self) -> ContainerDevice | None:
        """The code as a device; None until it is imported."""
        return self._device

    def start(self) -> None:
        """The code is being started, and the broker is told so."""
        assert self._starting is not None
        self._starting.start()
        self._runtime.hub.loop.call_later(ALONE_S, self._alone)
        self._keeper.start(self)

    def drain(self) -> bool:
        """Takes no new work. Returns whether nothing is left to finish."""
        self._draining = True
        return self._worker is None or self._worker.drain()

    def stop(self) -> None:
        """The code's process has ended."""
        self._draining = True
        self._leave_start()
        if self._worker is not None:
            self._worker.stop()
        elif self._device is not None:
            self._device.close()
        self._keeper.close()

    # -- the code, before it is a device ------------------------------------------------------------------------------

    def ready(self, message: dict[str, Any]) -> None:
        """The code is imported: it is a device now, and the broker is asked for its version."""
        try:
            self._device = ContainerDevice(self._options, self._keeper, message)
        except ContainerError as error:
            self._keeper.close()
            self._cannot(str(error))
            return
        self._claim()

    def ran(self, message: dict[str, Any]) -> None:
        """Never called: no batch is run before there is a device."""
        raise AssertionError(message)

    def died(self, why: str) -> None:
        """Nothing was promised to anybody yet; the keeper starts another process."""

    def _changed(self, state: wire.ChildState) -> None:
        """The code is starting, has printed another line, serves, or died: others are to know."""
        if self._worker is not None:
            self._worker.describe(state)
        elif self._starting is not None:
            self._member = msgspec.structs.replace(self._member, child=state)
            self._starting.update(self._member)
            self._runtime.hub.schedule_turn()

    def _cannot(self, why: str) -> None:
        """It can never be served like this: the process ends."""
        self.why = why
        self._runtime.end(CANNOT)

    # -- the broker ---------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Asks for the version, again if the broker may not have heard: code that asks twice has one number."""
        if self._device is None or self._worker is not None or self._starting is None:
            return
        options = self._options
        claim = wire.ClaimVersion(call=1, name=options.model, content=self._device.content, version=options.version)
        self._starting.send(claim)
        self._runtime.hub.schedule_turn()

    def _table_changed(self, table: wire.Table) -> None:
        """The broker has heard of us, perhaps after it was started again."""
        if self._worker is None:
            self._claim()
        elif any(member.id == self._worker.member.id for member in table.members):
            self._runtime.hub.loop.call_soon(self._leave_start)

    def _leave_start(self) -> None:
        """The member that was starting is none any more."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.stop()
            self._runtime.hub.schedule_turn()

    def _answered(self, reply: wire.CallReply) -> None:
        """The broker has said which version the code is, or that it refuses it."""
        if self._worker is not None or self._device is None or self._draining or self.why:
            return  # it was answered: one that asked again is answered twice
        if not reply.ok:
            self._refused(reply)
            return
        device = self._device
        device.claimed(reply.version)
        log.info("claimed", ref=device.options.ref)
        offer = wire.Offer(ref=device.options.ref, spec=device.spec, code=device.content)
        version = ContainerVersion(offer, device.options.wording())
        self._worker = WorkerService(self._runtime, device, version, self._refused, self._ready.give)
        self._worker.describe(self._keeper.state())
        device.on_change(version.changed, self._outdated)
        self._worker.start()
        self._runtime.hub.schedule_turn()

    def _refused(self, reply: wire.CallReply) -> None:
        """The broker refuses what this container brings: the process ends."""
        self._cannot(f"{reply.message} ({reply.code})" if reply.code else reply.message)

    def _outdated(self, why: str) -> None:
        """The code is not the claimed one any more: the process ends, and the next one serves it."""
        self.why = why
        self._runtime.end(OUTDATED)

    def _alone(self) -> None:
        if self._starting is not None and self._starting.table is None and not self._draining:
            advice = "is the mesh up? (gearmesh up)  it is served as soon as one is there"
            log.warning("no_broker", address=self._runtime.settings.broker_address, advice=advice)
