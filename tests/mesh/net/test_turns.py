"""mesh/net/transport.py: what becomes of one line in a turn changes nothing for the others."""

from typing import Any

import msgspec
import pytest
import zmq

from mesh import wire
from mesh.codes import LinkLoss
from mesh.net.channels import NO_ROOM
from mesh.net.ports import Port
from mesh.net.transport import BACKLOG_BYTES_MAX, Line
from mesh.net.unsent import ENVELOPE_BYTES
from mesh.refusals import CUT_AT
from tests.loops import Told, on_loop
from tests.mesh.net.pairs import HELLO, PATIENT, QUIET, cancel, pair
from tests.mesh.net.processes import TO_CONTROLLER, envelope, hears, processes, unreachable


class FaultyChannel:
    """A channel on which every send fails in this way."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.sends = 0

    def send(self, *args: Any) -> int:
        self.sends += 1
        return self.code


class FaultyEnd:
    """The owner of a line whose socket fails."""

    def __init__(self, code: int) -> None:
        self.sock: Any = object()  # the hub does not know it, and does not look at it
        self.channel: Any = FaultyChannel(code)
        self.lost = Told()

    def take(self, mail: Any) -> None:
        raise AssertionError

    def beat(self, line: Line) -> object:
        return wire.Heartbeat()

    def line_lost(self, line: Line, why: str) -> None:
        self.lost(line.peer, why)


EXPECTED = {
    "unreachable": int(zmq.EHOSTUNREACH),
    "invalid": int(zmq.EINVAL),
    "closed": int(zmq.ENOTSOCK),
    "a state that forbids it": int(zmq.EFSM),
}


@pytest.mark.parametrize("code", EXPECTED.values(), ids=EXPECTED)
@pytest.mark.parametrize("place", range(3))
@on_loop
async def test_mail_of_all_others_leaves_though_one_line_fails(code: int, place: int) -> None:
    async with processes(**PATIENT) as made:
        here = made.runtime()
        listening = made.port(made.runtime())
        good = [made.link(here, listening.addresses, f"frontend-{i}") for i in range(2)]
        owner = FaultyEnd(code)
        bad = Line("bad", owner)
        senders = [lambda each=each: each.link.send(HELLO) for each in good]
        senders.insert(place, lambda: here.transport.queue(bad, cancel(1), [b"tensor"]))
        for send in senders:
            send()
        await listening.messages(2)
        ((peer, why),) = await owner.lost.count(1)
        assert (peer, bool(why)) == ("bad", True)
        good[0].link.send(cancel(2))
        await listening.messages(3)
        assert (owner.channel.sends, len(owner.lost.items)) == (1, 1)


@pytest.mark.parametrize("place", range(3))
@on_loop
async def test_mail_of_all_others_leaves_before_a_fault_of_ours_is_raised(place: int) -> None:
    async with processes(**PATIENT) as made:
        here = made.runtime()
        faults = Told()
        here.hub.loop.set_exception_handler(lambda _, fault: faults(type(fault["exception"])))
        listening = made.port(made.runtime())
        calling = [made.link(here, listening.addresses, f"frontend-{i}") for i in range(3)]
        for i, each in enumerate(calling):
            each.link.send(object() if i == place else HELLO)  # what no encoder knows
        await listening.messages(2)
        assert await faults.count(1) == [TypeError]


@on_loop
async def test_who_hears_that_a_line_is_lost_may_close_and_use_the_others() -> None:
    async with processes(**PATIENT) as made:
        here = made.runtime()
        listening = made.port(made.runtime())
        staying, leaving = (made.link(here, listening.addresses, f"frontend-{i}") for i in (1, 2))

        class Ending(FaultyEnd):
            def line_lost(self, line: Line, why: str) -> None:
                super().line_lost(line, why)
                leaving.link.close(linger_ms=200)
                staying.link.send(cancel(3))

        owner = Ending(int(zmq.EHOSTUNREACH))
        here.transport.queue(Line("bad", owner), cancel(1))
        leaving.link.send(HELLO)  # in the same turn, after the one that fails: it leaves before anybody is told
        staying.link.send(cancel(2))
        messages = await listening.messages(3)
        assert sorted(map(str, messages)) == sorted(map(str, [HELLO, cancel(2), cancel(3)]))


@on_loop
async def test_two_lines_that_fail_in_one_turn_are_told_of_once_each_though_one_closes_the_other() -> None:
    async with processes(**QUIET) as made:
        here = made.runtime()
        lost: list[str] = []

        def forget_all(peer: str, why: str) -> None:
            lost.append(peer)
            port.keep_only([])

        mail = Told()
        port: Port[Any, Any] = Port(here.transport, "control", TO_CONTROLLER, mail, forget_all)
        address = port.listen("127.0.0.1", 0, "GEARMESH_CONTROLLER_PORT")[-1]
        leaving = [made.insider(zmq.DEALER, f"frontend-{i}") for i in (1, 2)]
        for sock in leaving:
            sock.connect(address)
            sock.send(envelope(HELLO))
        await mail.count(2)
        assert port.sock is not None
        for i, sock in enumerate(leaving, 1):
            sock.close(0)
            await unreachable(port.sock, b"frontend-%d" % i)
        turns = Told()
        here.hub.on_turn(turns)
        for i in (1, 2):
            port.send(f"frontend-{i}", wire.Introduce())
        await turns.count(1)
        here.hub.schedule_turn()
        await turns.count(2)  # nor is anybody told in the next one
        assert lost == ["frontend-1"]
        port.close()


@on_loop
async def test_mail_in_memory_beyond_the_rounds_of_a_turn_is_delivered_in_the_next() -> None:
    async with processes(**PATIENT) as made:
        here = made.runtime()
        played = Told()

        def play(mail: Any) -> None:
            played(mail.messages[0].request)
            if mail.messages[0].request < 100:
                listening.port.send("frontend-1", wire.Introduce())

        listening = made.port(here, received=play)
        turn = iter(range(2, 1000))
        calling = made.link(here, listening.addresses, received=lambda mail: calling.link.send(cancel(next(turn))))
        calling.link.send(cancel(1))
        assert (await played.count(100))[-1] == 100


@on_loop
async def test_a_peer_for_which_too_many_bytes_wait_is_lost() -> None:
    async with processes(**PATIENT, message_bytes_max=2 * BACKLOG_BYTES_MAX) as made:
        here = made.runtime()
        owner = FaultyEnd(NO_ROOM)
        line = Line("full", owner)
        here.transport.queue(line, cancel(1))
        turns = Told()
        here.hub.on_turn(turns)
        await turns.count(3)  # it is tried again
        assert owner.channel.sends >= 2
        assert line.waiting == 1
        tensor = memoryview(bytes(BACKLOG_BYTES_MAX // 4))
        here.transport.queue(line, cancel(2), [tensor] * 5)
        ((peer, why),) = await owner.lost.count(1)
        assert (peer, str(5 * len(tensor) // 10_000) in why) == ("full", True)
        assert line.waiting == 0


@on_loop
async def test_what_a_full_peer_was_sent_is_encoded_once_and_arrives_in_order() -> None:
    async with processes(**QUIET) as made:
        listening = made.port(made.runtime())
        sock = made.insider(zmq.DEALER, "frontend-1")
        sock.setsockopt(zmq.RCVHWM, 1)
        sock.setsockopt(zmq.RCVBUF, 4096)
        sock.connect(listening.tcp)
        sock.send(envelope(HELLO))
        await listening.messages(1)
        hub, port, turns = listening.port.transport.hub, listening.port, Told()
        hub.on_turn(turns)
        sent = 0
        while port.backlog("frontend-1") < 3:
            port.send("frontend-1", wire.Serving(added=(str(sent),), removed=("x" * 4000,)), [b"%d" % sent])
            sent += 1
            await turns.count(len(turns.items) + 1)
        decoded: list[str] = []
        frames: list[bytes] = []
        while len(decoded) < sent:
            await hears(sock)  # the loop goes on: what waits for room leaves only so
            body, *more = sock.recv_multipart()
            frames += more
            decoded += [message[1][0] for message in envelope_messages(body)]
            hub.schedule_turn()
            await turns.count(len(turns.items) + 1)
        assert decoded == [str(i) for i in range(sent)]
        assert frames == [b"%d" % i for i in range(sent)]


class HaltingChannel:
    """A channel that has room for one envelope, and then for none until it is tried again."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[int], list[int]]] = []  # (requests, first byte of each frame), of each envelope
        self.full = False

    def send(self, to: bytes | None, body: bytes, frames: list[bytes]) -> int:
        self.full = not self.full
        if not self.full:
            return NO_ROOM
        self.sent.append(([message[1] for message in envelope_messages(body)], [frame[0] for frame in frames]))
        return 0


@on_loop
async def test_envelopes_for_which_there_is_no_room_leave_later_in_order_and_each_once() -> None:
    async with processes(**PATIENT) as made:
        here = made.runtime()
        owner = FaultyEnd(NO_ROOM)
        owner.channel = channel = HaltingChannel()
        line = Line("full", owner)
        turns = Told()
        here.hub.on_turn(turns)
        for number in range(6):
            here.transport.queue(line, cancel(number), [bytes([number]) * (ENVELOPE_BYTES // 2)])
        while line.waiting:
            await turns.count(len(turns.items) + 1)
        assert channel.sent == [([0, 1], [0, 1]), ([2, 3], [2, 3]), ([4, 5], [4, 5])]
        assert owner.lost.items == []


def envelope_messages(body: bytes) -> Any:
    return msgspec.msgpack.decode(body)[3]


@on_loop
async def test_what_was_handed_over_before_a_port_closed_arrives() -> None:
    async with processes(**PATIENT) as made:
        listening = made.port(made.runtime())
        sock = made.insider(zmq.DEALER, "frontend-1")
        sock.connect(listening.tcp)
        sock.send(envelope(HELLO))
        await listening.messages(1)
        for i in range(200):
            listening.port.send("frontend-1", wire.Serving(added=(str(i),), removed=("x" * 1000,)))
        turns = Told()
        listening.port.transport.hub.on_turn(turns)
        await turns.count(1)
        listening.port.close()
        assert listening.port.send("frontend-1", wire.Introduce()) is False
        found: list[str] = []
        while len(found) < 200:  # a heartbeat may come before
            found += [message[1][0] for message in envelope_messages(sock.recv()) if len(message) > 1 and message[1]]
        assert found == [str(i) for i in range(200)]


# -- peers that send what nobody understands --------------------------------------------------------------------------


@pytest.mark.parametrize("member", [True, False])
@on_loop
async def test_a_peer_that_goes_on_sending_garbage_is_cut_off_and_others_are_not(member: bool) -> None:
    async with processes(**PATIENT) as made:
        listening, calling = pair(made, "zeromq")
        calling.link.send(cancel(1))
        await listening.messages(1)
        sock = made.insider(zmq.DEALER, "frontend-9")
        monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        sock.connect(listening.tcp)
        if member:
            sock.send(envelope(HELLO))
            await listening.messages(2)
        for _ in range(CUT_AT + 10):
            sock.send_multipart([b"\xc1 garbage", b"frame"])
        await hears(monitor)
        monitor.close(0)
        sock.disable_monitor()
        lost = [("frontend-9", LinkLoss.GARBAGE)] if member else []
        assert listening.lost.items == lost
        assert listening.port.refusals.cuts == 1
        calling.link.send(cancel(2))
        assert (await listening.messages(2 + member))[-1] == cancel(2)
        assert calling.lost.items == []


@on_loop
async def test_a_link_whose_peer_goes_on_sending_garbage_is_given_up() -> None:
    async with processes(**PATIENT) as made:
        sock = made.bare(zmq.ROUTER)
        sock.bind("tcp://127.0.0.1:*")
        calling = made.link(made.trusting(), (sock.getsockopt_string(zmq.LAST_ENDPOINT),))
        calling.link.send(HELLO)
        await hears(sock)
        identity, *_ = sock.recv_multipart()
        for _ in range(CUT_AT):
            sock.send_multipart([identity, b"\xc1"])
        assert await calling.lost.count(1) == [("controller-1", LinkLoss.GARBAGE)]
