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
from mesh.process.segments import SegmentReader
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
        reader: SegmentReader | None = None,
    ) -> None:
        """`reader`: of workers' memory; another one for tests."""
        self._transport = transport
        self._requests = requests
        self._reader = reader or SegmentReader()
        self.for_nobody = 0  # outputs that came after their calls had ended: computed for nobody
        self.rows_for_nobody = 0  # rows of these
        self.fetched = 0  # times that a worker was sent the inputs of a request
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
        """The port is closed, and the memory of workers is forgotten."""
        self._port.close()
        self._reader.close()

    def forget_gone(self) -> None:
        """The memory of workers that have ended is given back. To be called now and then."""
        self._reader.sweep()

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
                    self._fetched(mail.peer, message)
                case wire.Heartbeat():
                    pass
                case wire.Goodbye():
                    self._port.forget(mail.peer)
                    return
                case _:
                    assert_never(message)
        if self.taken.due(mail.peer):
            self._port.send(mail.peer, self.taken.confirm(mail.peer))

    def _fetched(self, worker: str, asked: wire.Fetch) -> None:
        """The worker gets the inputs, or learns that their request has ended. Nothing is copied."""
        tensors = self._requests.inputs(asked.request)
        if tensors:
            self.fetched += 1
        self._port.send(
            worker, wire.Fetched(request=asked.request, attempt=asked.attempt, frames=len(tensors)), tensors
        )

    def _outputs(self, worker: str, message: wire.Outputs, frames: Iterator[Buffer], size: int, now: float) -> None:
        kept = [answer.kept for answer in message.answers if answer.kept is not None]
        if kept and not all(each.slot is not None and self._reader.can_open(each.slot.segment) for each in kept):
            told = self.taken.unreadable(worker)
            if told is not None:
                log.warning("slots_unreadable", worker=worker)
                self._port.send(worker, told)
            self._skip(message, frames)
            return
        for each in kept:
            size += sum(each.sizes)
        arrival = self.taken.arrived(worker, message, size)
        if arrival is Arrival.TAKE:
            self._take(message, frames, now)
            return
        self._skip(message, frames)
        if arrival is Arrival.GAP:
            log.warning("outputs_missing", worker=worker, before=message.number)
            self._port.send(worker, wire.Introduce())
        elif arrival is Arrival.OTHERS:
            times = self._strays.happened(worker, now)
            if times:
                log.warning("outputs_of_others", worker=worker, frontend=message.frontend, times=times)

    def _skip(self, message: wire.Outputs, frames: Iterator[Buffer]) -> None:
        """Nothing of the message is taken; the frames behind its own belong to the next one."""
        for _ in islice(frames, sum(answer.frames for answer in message.answers if not answer.inline)):
            pass

    def _copied(self, kept: wire.Kept) -> list[bytes] | None:
        """Outputs out of the worker's memory; None: they are not there any more. Once confirmed, they may be."""
        if kept.slot is None:
            return None
        views = self._reader.read(kept.slot, kept.sizes)
        if views is None:
            return None
        outputs = [bytes(view) for view in views]
        return outputs if self._reader.holds(kept.slot) else None

    def _take(self, message: wire.Outputs, frames: Iterator[Buffer], now: float) -> None:
        """Answers that are complete with these leave. `frames`: the mail's, as far as they are not taken yet."""
        padded, rows = message.batch, message.rows or message.batch
        for answer in message.answers:
            outputs: Sequence[Buffer] = answer.inline or list(islice(frames, answer.frames))
            if not self._requests.awaits(answer.request):
                self.for_nobody += 1
                self.rows_for_nobody += answer.rows
                continue
            if answer.kept is not None:
                copied = self._copied(answer.kept)
                if copied is None:  # the worker has given them up: the call's deadline answers it
                    log.warning("outputs_given_up", worker=message.device, request=answer.request)
                    continue
                outputs = copied
            malformed = self._requests.end_if_malformed(answer.request, outputs, answer.shapes)
            if malformed is not None:
                self._malformed(malformed, message.device)
                continue
            completed = self._requests.outputs(
                answer.request, outputs, rows, answer.predicted_s, message.device, answer.cold, padded
            )
            if completed is not None:
                self._completed(completed, now)
