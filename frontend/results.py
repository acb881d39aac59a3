"""Where workers send the outputs of batches."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, assert_never

import msgspec
import structlog

from frontend.core.open_calls import Call, Completed
from frontend.core.requests import RequestTable
from frontend.core.taken import Arrival, TakenOutputs
from mesh import wire
from mesh.codes import LinkLoss
from mesh.folding import Folding
from mesh.losses import Losses
from mesh.net.ports import Port
from mesh.net.transport import Mail, Transport
from mesh.roles import PortKind
from mesh.wire import Buffer

RESULTS = msgspec.msgpack.Decoder(wire.Envelope[wire.ToResults])
log = structlog.get_logger("frontend")


class ResultsPort:
    """One port for all workers. Outputs enter the request table; calls that end by them are told to the service.

    Each worker's outputs are taken once and in order, and confirmed: see `frontend/core/taken.py`.
    """

    def __init__(
        self,
        transport: Transport,
        member: str,
        requests: RequestTable,
        completed: Callable[[Completed, float], None],
        malformed: Callable[[Call, str], None],
    ) -> None:
        self._transport = transport
        self._requests = requests
        self.for_nobody = 0  # outputs that came after their calls had ended: computed for nobody
        self.rows_for_nobody = 0  # rows of these
        self.taken = TakenOutputs(member)
        self.losses = Losses()  # links of workers that were lost
        self._completed = completed  # called with a call that has all its outputs, and the instant of their arrival
        self._malformed = malformed  # called with a call that was sent outputs of another form, and the worker's device
        self._strays = Folding()
        self._superseded = 0  # links of workers that newer ones took the place of, as far as they were counted as lost
        self._keys: dict[str, str] = {}  # {member: the key with which it has registered}, of the table
        self._port: Port[wire.ToResults, wire.FromResults] = Port(
            transport,
            "results",
            RESULTS,
            self._received,
            self._lost,
            kind=PortKind.RESULTS,
            me=member,
            key_of=lambda member: self._keys.get(member, ""),
            met=self._met,
            beat=self.taken.confirm,
        )

    def listen(self, host: str) -> tuple[str, ...]:
        """Opens the port and returns its addresses."""
        return self._port.listen(host, 0, "GEARMESH_HOST")

    def keep_only(self, members: Iterable[wire.Member]) -> None:
        """Forgets what it knew of workers that are not among these members, unless they have a link.

        The members are heard with the keys of these only.
        """
        self._keys = {member.id: member.key for member in members}
        self._port.recheck()
        keep = {*self._keys, *self._port.peers()}
        self.taken.keep_only(keep)
        self.losses.keep_only(keep)

    def close(self) -> None:
        """The port is closed."""
        self._port.close()

    def describe(self, workers: Iterable[str], now: float) -> list[dict[str, Any]]:
        """How the links of these workers, and of all that have one, are: for the answer to `status`."""
        described = []
        linked = self._port.peers()
        for worker in dict.fromkeys((*linked, *workers)):
            loss = self.losses.of(worker)
            if loss is None and worker not in linked:
                continue  # it has had nothing for us yet
            heard_s = self._port.heard_s(worker) if worker in linked else None
            described.append(
                {
                    "peer": worker,
                    "role": "gpu_worker",
                    "up": worker in linked,
                    "heard_ago_s": None if heard_s is None else now - heard_s,
                    "lost": 0 if loss is None else loss.count,
                    "lost_ago_s": None if loss is None else now - loss.at_s,
                    "why": None if loss is None else loss.why,
                    "resent": self.taken.resent_by(worker),
                }
            )
        return described

    @property
    def refused(self) -> int:
        """Envelopes that could not be understood, or were not for us."""
        return self._port.refusals.total

    def _met(self, worker: str) -> None:
        """A worker has a new link: it learns at once how far its outputs were taken."""
        if self._port.superseded > self._superseded:
            self._superseded = self._port.superseded
            self.losses.lost(worker, LinkLoss.SUPERSEDED, time.monotonic())
        self.taken.met(worker)
        self._port.send(worker, self.taken.confirm(worker))

    def _lost(self, worker: str, why: str) -> None:
        self.losses.lost(worker, why, time.monotonic())
        told = log.info if self._transport.ending else log.warning
        told("results_link_lost", worker=worker, why=why)

    def _received(self, mail: Mail[wire.ToResults]) -> None:
        frames = iter(mail.frames)
        size = sum(map(len, mail.frames)) if mail.frames else 0
        for message in mail.messages:
            match message:
                case wire.Outputs():
                    self._outputs(mail.peer, message, frames, size, mail.now)
                    size = 0
                case wire.Fetch():
                    pass  # TODO(inputs): it is sent
                case wire.Heartbeat():
                    pass
                case wire.Goodbye():
                    self._port.forget(mail.peer)
                    return
                case _:
                    assert_never(message)
        if self.taken.due(mail.peer):
            self._port.send(mail.peer, self.taken.confirm(mail.peer))

    def _outputs(self, worker: str, message: wire.Outputs, frames: Iterator[Buffer], size: int, now: float) -> None:
        arrival = self.taken.arrived(worker, message, size)
        if arrival is Arrival.TAKE:
            self._take(message, frames, now)
            return
        for _ in islice(frames, sum(answer.frames for answer in message.answers if not answer.inline)):
            pass  # the frames behind them belong to the next message
        if arrival is Arrival.GAP:
            log.warning("outputs_missing", worker=worker, before=message.number)
            self._port.send(worker, wire.Introduce())
        elif arrival is Arrival.OTHERS:
            times = self._strays.happened(worker, now)
            if times:
                log.warning("outputs_of_others", worker=worker, frontend=message.frontend, times=times)

    def _take(self, message: wire.Outputs, frames: Iterator[Buffer], now: float) -> None:
        """Answers that are complete with these leave. `frames`: the mail's, as far as they are not taken yet."""
        padded, rows = message.batch, message.rows or message.batch
        for answer in message.answers:
            outputs: Sequence[Buffer] = answer.inline or list(islice(frames, answer.frames))
            if not self._requests.awaits(answer.request):
                self.for_nobody += 1
                self.rows_for_nobody += answer.rows
                continue
            malformed = self._requests.end_if_malformed(answer.request, outputs, answer.shapes)
            if malformed is not None:
                self._malformed(malformed, message.device)
                continue
            completed = self._requests.outputs(
                answer.request, outputs, rows, answer.predicted_s, message.device, answer.cold, padded
            )
            if completed is not None:
                self._completed(completed, now)
