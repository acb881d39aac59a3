"""The worker's links to the frontends: each batch's outputs go straight to the frontends whose requests are in it.

What a frontend has not confirmed goes out again on the link that replaces a lost one (`core/unacknowledged.py`). Large
outputs for a frontend on this machine lie in shared memory until they are confirmed; others leave as frames.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, assert_never

import msgspec
import structlog

from gpu_worker.core.jobs import Job
from gpu_worker.core.outputs import outputs_by_frontend
from gpu_worker.core.unacknowledged import Unacknowledged
from mesh import wire
from mesh.addresses import address_fault
from mesh.doubling import Doubling
from mesh.folding import Folding
from mesh.net.links import Link
from mesh.net.transport import Mail, Transport
from mesh.process.ids import host_id
from mesh.process.segments import SegmentWriter
from mesh.roles import PortKind
from mesh.wire import Buffer

DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromResults])
REOPEN_S, REOPEN_S_MAX = 0.02, 2.0  # pause before a lost link is opened again: the first, and the longest
log = structlog.get_logger("worker")
ResultsLink = Link[wire.FromResults, wire.ToResults]


class InputListener(Protocol):
    """Who is told what becomes of inputs that frontends were asked for."""

    def fetched(self, frontend: str, message: wire.Fetched, frames: Iterator[Buffer], now: float) -> None:
        """The frontend has answered. The inputs are the next of the frames, of which each message has its own."""

    def link_opened(self, frontend: str) -> None:
        """A link replaces one that was lost: what was asked there has to be asked again."""

    def link_gone(self, frontend: str) -> None:
        """The frontend is gone."""


class OutputLinks:
    """One link per frontend, opened when there is first something for it."""

    def __init__(self, transport: Transport, member: str, device: str, writer: SegmentWriter | None = None) -> None:
        """`writer`: of memory for large outputs; None: they leave as frames."""
        self._transport = transport
        self._member = member  # our id
        self._device = device  # its name, for the answers
        self._writer = writer
        self._host = host_id()
        self._beside: set[str] = set()  # frontends on this machine
        self._ending = False
        self._listener: InputListener | None = None
        self._addresses: dict[str, tuple[str, ...]] = {}  # {frontend: where it takes outputs}, of those to be called
        self._links: dict[str, FrontendLink] = {}  # {frontend: link}, of those that have had an answer
        self._dropped = Folding()

    def know(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        """These are all frontends, with the addresses at which they take outputs."""
        known = {}
        for frontend, given in addresses.items():
            fault = address_fault(given)
            if not fault:
                known[frontend] = given
            elif given != self._addresses.get(frontend):
                self._tell_dropped(frontend, fault, 0)
        self._addresses = known
        for frontend, link in list(self._links.items()):
            link.wanted(known.get(frontend))

    def tell(self, listener: InputListener) -> None:
        """The listener hears of inputs from now on."""
        self._listener = listener

    def know_hosts(self, members: Sequence[wire.Member]) -> None:
        """These are all members: large outputs for those on this machine go into shared memory."""
        if not self._ending:
            self._beside = {member.id for member in members if member.role == "frontend" and member.host == self._host}

    def ask(self, frontend: str, message: wire.Fetch) -> bool:
        """The frontend is asked for inputs. Returns False if it is gone."""
        link = self._link(frontend)
        if link is None:
            return False
        link.ask(message)
        return True

    def tidy(self) -> None:
        """Shared memory that was not used for long is given back. To be called now and then."""
        if self._writer is not None:
            self._writer.trim()

    def send(self, job: Job) -> None:
        """The outputs of this INFER, which ended well, leave for its frontends."""
        action = job.action
        assert isinstance(action, wire.Infer)
        assert job.exec is not None
        shares = outputs_by_frontend(action, job.outputs, self._device, job.exec.duration_s, job.cut)
        # all of it stays in memory while a part is kept
        size = sum(map(len, job.outputs)) if job.cut is None else job.cut.held_bytes
        for frontend, (message, frames) in shares.items():
            link = self._link(frontend)
            if link is None:
                self._tell_dropped(frontend, "it is gone", len(message.answers))
            elif frames and self._writer is not None and frontend in self._beside and link.takes_slots(frames):
                link.send(*_in_slots(message, frames, size, self._writer))
            else:
                link.send(message, frames, size)

    @property
    def frontends(self) -> int:
        """How many frontends have a link, or will have one again."""
        return len(self._links)

    @property
    def unconfirmed(self) -> int:
        """Messages that frontends have not confirmed, and that would be sent again."""
        return sum(link.unconfirmed for link in self._links.values())

    def share_no_more(self) -> bool:
        """We are about to end: large outputs leave as frames from now on. True once none lies in our memory any more.

        Who has not opened that memory before we end could not read what it was told of last.
        """
        self._beside = set()
        self._ending = True
        return self._writer is None or not self._writer.bytes_used

    def close(self) -> None:
        """All links are closed; what was sent has a moment to leave."""
        for link in self._links.values():
            link.leave()
        if self._writer is not None:
            self._writer.close()

    def _link(self, frontend: str) -> "FrontendLink | None":
        link = self._links.get(frontend)
        if link is None and frontend in self._addresses:
            link = FrontendLink(
                self._transport, self._member, frontend, self._addresses[frontend], self._gone, self._writer,
                self._listener,
            )  # fmt: skip
            self._links[frontend] = link
        return link

    def _gone(self, frontend: str) -> None:
        self._links.pop(frontend, None)
        if self._listener is not None:
            self._listener.link_gone(frontend)

    def _tell_dropped(self, frontend: str, why: str, requests: int) -> None:
        times = self._dropped.happened(frontend, time.monotonic())
        if times:
            log.warning("outputs_dropped", frontend=frontend, why=why, requests=requests, times=times)


class FrontendLink:
    """The link to one frontend. When it is lost, another one is opened, until the frontend is gone.

    A controller that has just started does not know all frontends yet: a link is used for as long as it is alive,
    whether the frontend is named or not.
    """

    def __init__(
        self,
        transport: Transport,
        member: str,
        frontend: str,
        addresses: tuple[str, ...],
        gone: Callable[[str], None],
        writer: SegmentWriter | None,
        listener: InputListener | None,
    ) -> None:
        """`gone` is called when the link is lost of a frontend that is named no longer. `writer`: where outputs lie."""
        self._transport = transport
        self._member = member
        self._frontend = frontend
        self._addresses: tuple[str, ...] | None = addresses  # None: it is not named at present
        self._called = addresses  # those of the present link, or of the last one
        self._gone = gone
        self._writer = writer
        self._listener = listener
        self._reads = True  # whether the frontend has not said that it cannot read slots
        self._sent = Unacknowledged(int(time.monotonic() * 1e6))  # beyond all numbers of an earlier link, if any
        self._told_given_up = 0  # of those given up, how many the log knows of
        self._pauses = Doubling(REOPEN_S, REOPEN_S_MAX)
        self._silences = Doubling(transport.silence_s_max / 2, 2 * transport.silence_s_max)
        self._closed = False
        self._settled = True  # all that is kept was sent on this link; else that follows its first confirmation
        self._link: ResultsLink | None = None  # None: it is to be opened again
        self._opened = False  # whether there was a link already
        self._open()

    def send(self, message: wire.Outputs, frames: Sequence[Buffer], size: int) -> None:
        """The message leaves now, or as soon as there is a link. `size`: bytes that it holds in memory."""
        link, sent = self._link, self._sent
        if link is not None and link.in_memory:
            link.send(sent.pass_by(message), frames)
            return
        numbered = sent.add(message, frames, size, time.monotonic())
        self._free()
        if link is not None and self._settled:
            link.send(numbered, frames)

    def ask(self, message: wire.Fetch) -> None:
        """The frontend is asked for inputs; if there is no link now, whoever asks is told when there is one."""
        if self._link is not None:
            self._link.send(message)

    def takes_slots(self, outputs: Sequence[Buffer]) -> bool:
        """Whether these may lie in shared memory: on a link within this process they pass by as they are.

        Where so much is kept that something would be given up they leave as frames, as what lies in slots has to stay
        until it was read.
        """
        link = self._link
        return self._reads and link is not None and not link.in_memory and self._sent.has_room(sum(map(len, outputs)))

    @property
    def unconfirmed(self) -> int:
        """Messages that are kept, to be sent again."""
        return len(self._sent)

    def leave(self) -> None:
        """The frontend is told that we leave."""
        if self._link is not None:
            self._link.send(wire.Goodbye())
            self._transport.hub.loop.call_soon(self._link.close, 200)
        self._closed = True

    def wanted(self, addresses: tuple[str, ...] | None) -> None:
        """The frontend listens there; what it has not confirmed is sent there. None: it is not named any more."""
        moved = addresses is not None and addresses != self._called
        self._addresses = addresses
        if moved and self._link is not None:
            self._link.close()
            self._link = None
        if moved or self._link is None:
            self._open()

    def _open(self) -> None:
        if self._closed or self._link is not None:
            return
        if self._addresses is None:
            self._closed = True
            self._sent.clear()
            self._free()
            self._gone(self._frontend)
            return
        link: ResultsLink = Link(
            self._transport, self._member, self._frontend, DECODER, self._received, self._lost,
            to=PortKind.RESULTS, silence_s=self._silences.next(),
        )  # fmt: skip
        self._called = self._addresses
        self._link = link.call(self._called)
        self._settled = len(self._sent) == 0 or link.in_memory
        if not self._settled:
            link.send(wire.Heartbeat())  # the answer says what has to be sent again
        if self._opened and self._listener is not None:
            self._listener.link_opened(self._frontend)
        self._opened = True

    def _lost(self, peer: str, why: str) -> None:
        given_up = self._sent.given_up - self._told_given_up
        self._told_given_up = self._sent.given_up
        unheard = self._link is not None and self._link.heard_s is None
        expected = self._transport.ending or (unheard and self._addresses is None)  # we end, or it has ended
        told = log.info if expected else log.warning
        told("results_link_lost", frontend=peer, why=why, unconfirmed=len(self._sent), given_up=given_up)
        self._link = None
        self._transport.hub.loop.call_later(self._pauses.next(), self._open)

    def _free(self) -> None:
        """Slots that nobody will be told of any more may be used anew."""
        freed = self._sent.freed()
        if freed and self._writer is not None:
            for slot in freed:
                self._writer.free(slot)

    def _copies(self, kept: wire.Kept) -> Sequence[Buffer] | None:
        return None if self._writer is None or kept.slot is None else self._writer.copy_of(kept.slot, kept.sizes)

    def _received(self, mail: Mail[wire.FromResults]) -> None:
        frames = iter(mail.frames)
        for message in mail.messages:
            match message:
                case wire.Taken():
                    self._sent.confirmed(message.number)
                    if message.slots is not self._reads:
                        self._may_read(message.slots)
                    self._free()
                    self._pauses.reset()
                    self._silences.reset()
                    if not self._settled:
                        self._send_again()
                case wire.Fetched():
                    if self._listener is not None:
                        self._listener.fetched(self._frontend, message, frames, mail.now)
                case wire.Introduce():
                    self._send_again()
                case wire.Heartbeat():
                    pass
                case _:
                    assert_never(message)

    def _may_read(self, reads: bool) -> None:
        """The frontend can read slots from now on, or cannot: then it has taken nothing since, and gets frames."""
        self._reads = reads
        if not reads:
            log.info("outputs_not_shared", frontend=self._frontend)
            self._sent.unshare(self._copies)
            if self._settled:
                self._send_again()

    def _send_again(self) -> None:
        """All that is not confirmed goes out on this link, in order; what is new follows."""
        self._settled = True
        again = self._sent.again()
        if again:
            log.info("outputs_sent_again", frontend=self._frontend, messages=len(again))
        if self._link is not None:
            for message, frames in again:
                self._link.send(message, frames)


def _in_slots(
    message: wire.Outputs, frames: list[memoryview], size: int, writer: SegmentWriter
) -> tuple[wire.Outputs, list[memoryview], int]:
    """The message with its frames in slots, as far as there is room; the other frames; and bytes that it holds."""
    at, held, left, answers = 0, 0, [], []
    for answer in message.answers:
        pieces = frames[at : at + answer.frames]
        at += answer.frames
        slot = writer.put(pieces) if pieces else None
        if slot is None:
            left.extend(pieces)
            answers.append(answer)
            continue
        sizes = tuple(map(len, pieces))
        held += sum(sizes)
        answers.append(msgspec.structs.replace(answer, frames=0, kept=wire.Kept(sizes=sizes, slot=slot)))
    if left:  # all outputs of the batch stay in memory for these
        held += size
    else:  # nor do they for the small ones that ride inside the message
        answers = [_copied(answer) if answer.inline else answer for answer in answers]
        for answer in answers:
            held += sum(map(len, answer.inline))
    return msgspec.structs.replace(message, answers=tuple(answers)), left, held


def _copied(answer: wire.Answer) -> wire.Answer:
    """The same, with tensors that are no views of others."""
    return msgspec.structs.replace(answer, inline=tuple([bytes(tensor) for tensor in answer.inline]))
