"""The worker's links to the frontends: each batch's outputs go straight to the frontends whose requests are in it."""

from collections.abc import Mapping

import msgspec
import structlog

from gpu_worker.core.jobs import Job
from gpu_worker.core.outputs import outputs_by_frontend
from mesh import wire
from mesh.net.links import Link
from mesh.net.transport import Mail, Transport
from mesh.roles import PortKind

DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromResults])
log = structlog.get_logger("worker")
ResultsLink = Link[wire.FromResults, wire.ToResults]


class OutputLinks:
    """One link per frontend, opened when a batch first has an answer for it."""

    def __init__(self, transport: Transport, member: str, device: str) -> None:
        self._transport = transport
        self._member = member  # our id
        self._device = device  # its name, for the answers
        self._addresses: dict[str, tuple[str, ...]] = {}  # {frontend: where it takes outputs}
        self._links: dict[str, ResultsLink] = {}  # {frontend: link}

    def know(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        """These are all frontends, with the addresses at which they take outputs."""
        self._addresses = dict(addresses)
        for gone in self._links.keys() - self._addresses.keys():
            self._links.pop(gone).close()

    def send(self, job: Job) -> None:
        """The outputs of this INFER, which ended well, leave for its frontends."""
        action = job.action
        assert isinstance(action, wire.Infer)
        assert job.exec is not None
        shares = outputs_by_frontend(action, job.outputs, self._device, job.exec.duration_s)
        for frontend, (message, frames) in shares.items():
            link = self._link(frontend)
            if link is None:
                requests = len(message.answers)
                log.warning("outputs_dropped", frontend=frontend, why="it is gone", requests=requests)
                continue
            link.send(message, frames)

    def close(self) -> None:
        """All links are closed; what was sent has a moment to leave."""
        for link in self._links.values():
            link.close(linger_ms=200)

    def _link(self, frontend: str) -> ResultsLink | None:
        link = self._links.get(frontend)
        if link is not None and link.open:
            return link
        addresses = self._addresses.get(frontend)
        if addresses is None:
            return None
        link = Link(
            self._transport, self._member, frontend, DECODER, _ignore, self._lost, watch=False, to=PortKind.RESULTS
        )
        self._links[frontend] = link.call(addresses)
        return link

    def _lost(self, peer: str, why: str) -> None:
        self._links.pop(peer, None)


def _ignore(mail: Mail[wire.FromResults]) -> None:
    """A frontend only says that it is there."""
