"""mesh/net/links.py and mesh/net/transport.py: ports and links behave alike over ZeroMQ and in memory."""

import gc
import time
from typing import Any

import msgspec
import pytest
import zmq

from mesh import wire
from mesh.codes import LinkLoss
from mesh.errors import AddressInUse
from mesh.net.transport import BACKLOG_MAX, FRAME_BYTES_ZERO_COPY
from tests.loops import Told, on_loop
from tests.mesh.net.processes import LIMIT_MS, Calling, Listening, Processes, envelope, processes

HELLO = wire.FrontendHello(member="frontend-1", host="here", results=())
QUICK = {"heartbeat_ms": 15.0, "silence_ms_max": 120.0}  # when a peer has to be lost
STEADY = {"heartbeat_ms": 10.0, "silence_ms_max": 500.0}  # when no peer may be lost: no thread here waits that long
PATIENT = {"heartbeat_ms": 15.0, "silence_ms_max": 60_000.0}  # no peer is lost for its silence

QUIET = {"heartbeat_ms": 10_000.0, "silence_ms_max": 60_000.0}  # nobody says what a test does not make him say

both_makes = pytest.mark.parametrize("make", ["zeromq", "memory"])


def pair(made: Processes, make: str, **options: Any) -> tuple[Listening, Calling]:
    """A port and a link to it, in two processes or in one."""
    here = made.runtime()
    listening = made.port(here, **options)
    calling = made.link(here if make == "memory" else made.runtime(), listening.addresses, **options)
    assert (calling.link.sock is None) is (make == "memory")
    return listening, calling


def cancel(number: int) -> wire.Cancel:
    return wire.Cancel(request=number)


# -- messages ---------------------------------------------------------------------------------------------------------


@both_makes
@on_loop
async def test_messages_go_both_ways_in_order(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        for number in range(3):
            calling.link.send(cancel(number))
        assert await listening.messages(3) == [cancel(0), cancel(1), cancel(2)]
        assert {mail.peer for mail in listening.mail.items} == {"frontend-1"}
        answers = [wire.Introduce(), wire.Serving(added=("m:1",), removed=())]
        for answer in answers:
            assert listening.port.send("frontend-1", answer)
        assert await calling.messages(2) == answers
        assert {mail.peer for mail in calling.mail.items} == {"controller-1"}


@both_makes
@on_loop
async def test_what_is_sent_in_one_turn_arrives_as_one_mail(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        for number in range(100):
            calling.link.send(cancel(number))
        await listening.mail.count(1)
        assert [len(mail.messages) for mail in listening.mail.items] == [100]


@both_makes
@on_loop
async def test_every_peer_gets_its_own_mail(make: str) -> None:
    async with processes() as made:
        here = made.runtime()
        listening = made.port(here)
        callers = [
            made.link(here if make == "memory" else made.runtime(), listening.addresses, f"frontend-{i}")
            for i in range(3)
        ]
        for number, caller in enumerate(callers):
            caller.link.send(cancel(number))
        await listening.messages(3)
        assert {mail.peer: mail.messages for mail in listening.mail.items} == {
            f"frontend-{i}": [cancel(i)] for i in range(3)
        }
        for i in range(3):
            listening.port.send(f"frontend-{i}", wire.Serving(added=(f"m:{i}",), removed=()))
        for i, caller in enumerate(callers):
            assert await caller.messages(1) == [wire.Serving(added=(f"m:{i}",), removed=())]


@both_makes
@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES_ZERO_COPY - 1, FRAME_BYTES_ZERO_COPY, FRAME_BYTES_ZERO_COPY + 1])
@on_loop
async def test_large_tensors_follow_as_frames_in_the_order_of_their_messages(make: str, size: int) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        frames = [bytes([i]) * size for i in range(3)]
        calling.link.send(HELLO)
        calling.link.send(cancel(1), frames[:1])
        calling.link.send(cancel(2), [memoryview(frame) for frame in frames[1:]])
        await listening.messages(3)
        (mail,) = listening.mail.items
        assert [bytes(frame) for frame in mail.frames] == frames
        listening.port.send("frontend-1", wire.Introduce(), frames)
        listening.port.send("frontend-1", wire.Introduce())
        await calling.messages(2)
        (mail,) = calling.mail.items
        assert [bytes(frame) for frame in mail.frames] == frames


@both_makes
@on_loop
async def test_frames_do_not_stick_to_the_next_mail(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        calling.link.send(cancel(1), [b"tensor"])
        await listening.messages(1)
        calling.link.send(cancel(2))
        await listening.messages(2)
        assert [len(mail.frames) for mail in listening.mail.items] == [1, 0]


@on_loop
async def test_a_frame_that_arrived_outlives_the_array_it_was_sent_from() -> None:
    async with processes() as made:
        listening, calling = pair(made, "zeromq")
        calling.link.send(cancel(1), [bytearray(b"\7" * 200_000)])
        await listening.messages(1)
        gc.collect()
        assert bytes(listening.mail.items[0].frames[0]) == b"\7" * 200_000


@both_makes
@on_loop
async def test_the_ports_epoch_goes_out_with_every_mail_and_a_link_has_none(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        calling.link.send(HELLO)
        await listening.messages(1)
        listening.port.epoch = 7
        listening.port.send("frontend-1", wire.Introduce())
        await calling.messages(1)
        listening.port.epoch = 9
        listening.port.send("frontend-1", wire.Introduce())
        await calling.messages(2)
        assert [mail.epoch for mail in listening.mail.items] == [0]
        assert [mail.epoch for mail in calling.mail.items] == [7, 9]


@both_makes
@on_loop
async def test_both_ends_learn_that_their_clocks_are_the_same(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        began_s = time.monotonic()
        for number in range(1, 6):
            calling.link.send(cancel(number))
            await listening.messages(number)
            listening.port.send("frontend-1", wire.Introduce())
            await calling.messages(number)
        took_s = time.monotonic() - began_s
        for clock in (calling.link.clock, listening.port.clock("frontend-1")):
            assert abs(clock.offset_s) < took_s
        assert all(0.0 <= mail.age_s < took_s for mail in (*listening.mail.items, *calling.mail.items))
        with pytest.raises(KeyError):
            listening.port.clock("nobody")


@on_loop
async def test_the_offset_of_a_peer_with_another_clock_is_found() -> None:
    async with processes() as made:
        listening = made.port(made.runtime())
        sock = made.bare(zmq.DEALER, "frontend-1")
        sock.connect(listening.tcp)
        sock.send(envelope(HELLO, sent_s=1e6))
        await listening.messages(1)
        now = listening.mail.items[0].now
        listening.port.send("frontend-1", wire.Introduce())
        await listening.mail.count(1)
        # The peer's own delta: its clock is (1e6 - now) ahead of ours.
        sock.send(msgspec.msgpack.encode(wire.Envelope(1e6 + 1.0, 1e6 - now, 0, [cancel(1)])))
        await listening.messages(2)
        assert listening.port.clock("frontend-1").offset_s == pytest.approx(1e6 - now, abs=1.0)


@on_loop
async def test_a_link_may_call_before_its_peer_listens() -> None:
    async with processes() as made:
        address = made.port(made.runtime()).tcp
    async with processes() as made:
        calling = made.link(made.runtime(), (address,))
        calling.link.send(HELLO)
        listening = made.port(made.runtime(), number=int(address.rpartition(":")[2]))
        assert await listening.messages(1) == [HELLO]


@on_loop
async def test_a_port_that_is_taken_says_which_setting_to_change() -> None:
    async with processes() as made:
        number = int(made.port(made.runtime()).tcp.rpartition(":")[2])
        with pytest.raises(AddressInUse) as raised:
            made.port(made.runtime(), number=number)
        for named in (f"tcp://127.0.0.1:{number}", "GEARMESH_CONTROLLER_PORT"):
            assert named in str(raised.value)


# -- leaving ----------------------------------------------------------------------------------------------------------


@both_makes
@on_loop
async def test_a_link_whose_port_closes_is_lost_once_and_stays_closed(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        calling.link.send(HELLO)
        await listening.messages(1)
        listening.port.close()
        ((peer, why),) = await calling.lost.count(1)
        assert (peer, why) == ("controller-1", LinkLoss.CLOSED)
        assert not calling.link.open
        calling.link.send(cancel(1))  # does nothing
        calling.link.close()
        calling.link.close()
        assert len(calling.lost.items) == 1


@both_makes
@on_loop
async def test_a_port_loses_a_peer_whose_link_closed(make: str) -> None:
    async with processes(**PATIENT) as made:
        listening, calling = pair(made, make)
        calling.link.send(HELLO)
        await listening.messages(1)
        assert listening.port.knows("frontend-1")
        calling.link.close()
        ((peer, _),) = await listening.lost.count(1)
        assert peer == "frontend-1"
        assert not listening.port.knows("frontend-1")
        assert listening.port.send("frontend-1", wire.Introduce()) is False
        assert calling.lost.items == []


@both_makes
@on_loop
async def test_what_was_sent_before_closing_arrives(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        hub = calling.link.transport.hub
        calling.link.send(HELLO)
        calling.link.send(wire.Goodbye())
        hub.loop.call_soon(calling.link.close, 200)  # as the services do it: after the scheduled turn
        assert await listening.messages(2) == [HELLO, wire.Goodbye()]


@both_makes
@on_loop
async def test_a_closed_link_can_be_opened_anew_under_the_same_name(make: str) -> None:
    async with processes() as made:
        listening, first = pair(made, make)
        first.link.send(cancel(1))
        await listening.messages(1)
        first.link.close()
        here = listening.port.transport
        second = Calling(made.runtime() if make == "zeromq" else _Process(here), listening.addresses, "frontend-1")
        second.link.send(cancel(2))
        await listening.messages(2)
        assert listening.port.send("frontend-1", wire.Introduce())
        assert await second.messages(1) == [wire.Introduce()]
        assert first.mail.items == []


class _Process:
    """A process that exists already."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport


@on_loop
async def test_a_restarted_peer_takes_over_the_name_of_one_that_still_seems_there() -> None:
    async with processes() as made:
        listening, first = pair(made, "zeromq")
        first.link.send(cancel(1))
        await listening.messages(1)
        second = made.link(made.runtime(), listening.addresses)
        second.link.send(cancel(2))
        await listening.messages(2)
        listening.port.send("frontend-1", wire.Introduce())
        assert await second.messages(1) == [wire.Introduce()]
        assert first.mail.items == []


@both_makes
@on_loop
async def test_a_peer_that_was_never_heard_cannot_be_sent_to(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        assert listening.port.send("frontend-2", wire.Introduce()) is False
        assert not listening.port.knows("frontend-2")
        calling.link.send(HELLO)
        assert await listening.messages(1) == [HELLO]


@on_loop
async def test_a_peer_that_cannot_be_reached_is_lost_and_the_others_are_not() -> None:
    async with processes() as made:
        listening, staying = pair(made, "zeromq")
        staying.link.send(HELLO)
        leaving = made.bare(zmq.DEALER, "frontend-2")
        leaving.connect(listening.tcp)
        leaving.send(envelope(cancel(1)))
        await listening.messages(2)
        monitor = listening.port.sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        leaving.close(0)
        assert monitor.poll(LIMIT_MS)
        listening.port.sock.disable_monitor()
        monitor.close(0)
        assert listening.port.send("frontend-2", wire.Introduce())
        assert listening.port.send("frontend-1", wire.Introduce())
        ((peer, why),) = await listening.lost.count(1)
        assert peer == "frontend-2"
        assert why
        assert await staying.messages(1) == [wire.Introduce()]


@both_makes
@on_loop
async def test_a_forgotten_peer_that_is_heard_again_is_simply_new(make: str) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        calling.link.send(cancel(1))
        await listening.messages(1)
        listening.port.forget("frontend-1")
        listening.port.forget("nobody")
        assert listening.port.send("frontend-1", wire.Introduce()) is False
        calling.link.send(cancel(2))
        assert await listening.messages(2) == [cancel(1), cancel(2)]
        assert listening.port.send("frontend-1", wire.Introduce()) is True
        assert await calling.messages(1) == [wire.Introduce()]
        assert (listening.lost.items, calling.lost.items) == ([], [])


@on_loop
async def test_all_peers_but_those_kept_are_forgotten() -> None:
    async with processes() as made:
        here = made.runtime()
        listening = made.port(here)
        for i in range(3):
            made.link(here, listening.addresses, f"frontend-{i}").link.send(cancel(i))
        await listening.messages(3)
        listening.port.keep_only(["frontend-1", "stranger"])
        assert [listening.port.knows(f"frontend-{i}") for i in range(3)] == [False, True, False]
        assert not listening.port.knows("stranger")


# -- silence ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_idle_links_carry_heartbeats_and_nobody_is_lost() -> None:
    async with processes(**STEADY) as made:
        listening, calling = pair(made, "zeromq")
        calling.link.send(HELLO)
        enough = int(1.5 * STEADY["silence_ms_max"] / STEADY["heartbeat_ms"])  # longer than the longest silence
        for told in (listening.mail, calling.mail):
            await told.until(lambda mails: sum(mail.messages == [wire.Heartbeat()] for mail in mails) >= enough)
        assert (listening.lost.items, calling.lost.items) == ([], [])


@on_loop
async def test_two_links_of_one_process_to_one_peer_are_both_kept_alive() -> None:
    async with processes(**STEADY) as made:
        listening = made.port(made.runtime())
        here = made.runtime()  # like a worker process with several emulated devices
        callers = [made.link(here, listening.addresses, f"gpu_worker-{i}") for i in range(2)]
        for caller in callers:
            caller.link.send(HELLO)
        enough = int(1.5 * STEADY["silence_ms_max"] / STEADY["heartbeat_ms"])
        await listening.mail.until(
            lambda mails: (
                sum(mail.messages == [wire.Heartbeat()] for mail in mails) >= 2 * enough or listening.lost.items
            )
        )
        assert listening.lost.items == []
        assert [caller.lost.items for caller in callers] == [[], []]


@on_loop
async def test_closing_one_of_two_links_to_one_peer_leaves_the_other_watched() -> None:
    async with processes(**QUICK) as made:
        silent = made.bare(zmq.ROUTER)
        silent.bind("tcp://127.0.0.1:*")
        address = silent.getsockopt_string(zmq.LAST_ENDPOINT)
        here = made.runtime()
        first, second = (made.link(here, (address,), f"gpu_worker-{i}") for i in range(2))
        first.link.close()
        assert await second.lost.count(1) == [("controller-1", LinkLoss.SILENT)]
        assert first.lost.items == []


@on_loop
async def test_a_peer_that_falls_silent_is_lost_to_the_port() -> None:
    async with processes(**QUICK) as made:
        listening = made.port(made.runtime())
        sock = made.bare(zmq.DEALER, "frontend-1")
        sock.connect(listening.tcp)
        sock.send(envelope(HELLO))
        assert await listening.lost.count(1) == [("frontend-1", LinkLoss.SILENT)]
        assert not listening.port.knows("frontend-1")
        sock.send(envelope(cancel(1)))  # the peer counts as new when it sends again
        assert await listening.messages(2) == [HELLO, cancel(1)]
        assert listening.port.knows("frontend-1")


@on_loop
async def test_a_peer_that_never_answers_is_lost_to_the_link() -> None:
    async with processes(**QUICK) as made:
        sock = made.bare(zmq.ROUTER)
        sock.bind("tcp://127.0.0.1:*")
        calling = made.link(made.runtime(), (sock.getsockopt_string(zmq.LAST_ENDPOINT),))
        assert await calling.lost.count(1) == [("controller-1", LinkLoss.SILENT)]
        assert not calling.link.open


@on_loop
async def test_a_port_that_does_not_watch_loses_nobody_and_sends_no_heartbeats() -> None:
    async with processes(**QUICK) as made:
        here = made.runtime()
        unwatched, watched = made.port(here, "results", watch=False), made.port(here)
        socks = [made.bare(zmq.DEALER, "gpu_worker-1") for _ in range(2)]
        for sock, listening in zip(socks, (unwatched, watched), strict=True):
            sock.connect(listening.tcp)
            sock.send(envelope(HELLO))
        await watched.lost.count(1)
        await unwatched.messages(1)
        assert unwatched.lost.items == []
        assert unwatched.port.knows("gpu_worker-1")
        assert socks[0].poll(0) == 0


# -- bad peers --------------------------------------------------------------------------------------------------------

GARBAGE = {
    "empty": b"",
    "not msgpack": b"\xc1\xff\x00",
    "not an envelope": msgspec.msgpack.encode({"op": "ping"}),
    "unknown tag": msgspec.msgpack.encode([0.0, None, 0, [["frobnicate"]]]),
    "wrong type": msgspec.msgpack.encode([0.0, None, 0, [["cancel", "one"]]]),
    "wrong direction": msgspec.msgpack.encode([0.0, None, 0, [["serving", [], []]]]),
    "cut off": envelope(HELLO)[:-1],
    "more behind it": envelope(HELLO) + b"x",
    "nested": b"\x94\xcb" + bytes(8) + b"\xc0\x00" + b"\x91" * 5000,
    "not UTF-8": msgspec.msgpack.encode([0.0, None, 0, [["frontend_hello", "?", "h", []]]]).replace(
        b"\xa1?", b"\xa1\xff"
    ),
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
@on_loop
async def test_a_message_that_cannot_be_understood_does_a_port_no_harm(body: bytes) -> None:
    async with processes() as made:
        listening = made.port(made.runtime())
        sock = made.bare(zmq.DEALER, "frontend-1")
        sock.connect(listening.tcp)
        sock.send_multipart([body, b"frame"])
        sock.send(envelope(cancel(1)))
        assert await listening.messages(1) == [cancel(1)]
        assert listening.mail.items[0].frames == []
        assert listening.lost.items == []


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
@on_loop
async def test_a_message_that_cannot_be_understood_does_a_link_no_harm(body: bytes) -> None:
    async with processes() as made:
        sock = made.bare(zmq.ROUTER)
        sock.bind("tcp://127.0.0.1:*")
        calling = made.link(made.runtime(), (sock.getsockopt_string(zmq.LAST_ENDPOINT),))
        calling.link.send(HELLO)
        hub = calling.link.transport.hub
        await _until_it_can_be_read(hub.loop, sock)
        identity, *_ = sock.recv_multipart()
        if body.startswith(msgspec.msgpack.encode([0.0, None, 0, [["serving", [], []]]])):
            body = envelope(cancel(1))  # a message that a link must not get
        sock.send_multipart([identity, body, b"frame"])
        sock.send_multipart([identity, envelope(wire.Introduce())])
        assert await calling.messages(1) == [wire.Introduce()]
        assert calling.mail.items[0].frames == []
        assert calling.lost.items == []


async def _until_it_can_be_read(loop: Any, sock: "zmq.Socket[bytes]") -> None:
    """Runs the loop until the bare socket holds a message."""
    await loop.run_in_executor(None, sock.poll, LIMIT_MS)


@on_loop
async def test_a_peer_without_a_readable_name_is_refused_and_the_others_are_not() -> None:
    async with processes() as made:
        listening = made.port(made.runtime())
        for identity in (b"\xff\xfe", b"", "frontend-ü".encode()):
            sock = made.bare(zmq.DEALER, identity)
            sock.connect(listening.tcp)
            sock.send(envelope(HELLO))
        await listening.mail.until(lambda mails: any(mail.peer == "frontend-ü" for mail in mails))
        assert not any(mail.peer.startswith("\ufffd") for mail in listening.mail.items)


@on_loop
async def test_a_message_over_the_limit_closes_that_link_only() -> None:
    async with processes(message_bytes_max=2048) as made:
        listening, careful = pair(made, "zeromq")
        careful.link.send(cancel(1), [bytes(2048)])
        await listening.messages(1)
        careless = made.link(made.runtime(), listening.addresses, "frontend-2")
        careless.link.send(cancel(2), [bytes(2049)])
        assert await careless.lost.count(1) == [("controller-1", LinkLoss.CLOSED)]
        careful.link.send(cancel(3))
        assert await listening.messages(2) == [cancel(1), cancel(3)]


@on_loop
async def test_a_handler_that_fails_on_one_message_still_gets_the_next() -> None:
    async with processes() as made:
        faults = []

        def fail_once(mail: Any) -> None:
            if faults:
                listening.mail(mail)
                return
            while not listening.port.sock.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                pass  # the second message arrives in the meantime
            raise ZeroDivisionError

        listening = made.port(made.runtime(), "results", watch=False, received=fail_once)
        made_loop = listening.port.transport.hub.loop
        made_loop.set_exception_handler(lambda _, fault: faults.append(type(fault["exception"])))
        sock = made.bare(zmq.DEALER, "gpu_worker-1")
        sock.connect(listening.tcp)
        for number in range(3):
            sock.send(envelope(cancel(number)))
        assert await listening.messages(2) == [cancel(1), cancel(2)]
        assert faults == [ZeroDivisionError]


# -- peers that do not read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads_again", [True, False])
@on_loop
async def test_what_a_peer_does_not_read_waits_up_to_a_limit(reads_again: bool) -> None:
    async with processes(**QUIET) as made:
        listening = made.port(made.runtime())
        sock = made.bare(zmq.DEALER, "frontend-1")
        sock.setsockopt(zmq.RCVHWM, 1)
        sock.setsockopt(zmq.RCVBUF, 4096)
        sock.connect(listening.tcp)
        sock.send(envelope(HELLO))
        await listening.messages(1)
        hub, port, turns = listening.port.transport.hub, listening.port, Told()
        hub.on_turn(turns)
        sent = 0
        while port.backlog("frontend-1") < 2:  # one envelope a turn, until the pipe is full
            port.send("frontend-1", wire.Serving(added=(f"{sent}:1",), removed=("x" * 4000,)))
            sent += 1
            await turns.count(len(turns.items) + 1)
        if reads_again:
            while sent > 0:
                envelope_ = msgspec.msgpack.decode(sock.recv())
                sent -= len(envelope_[3])
                hub.schedule_turn()
                await turns.count(len(turns.items) + 1)
            assert port.backlog("frontend-1") == 0
            assert listening.lost.items == []
            return
        for _ in range(BACKLOG_MAX):
            listening.port.send("frontend-1", wire.Introduce())
        ((peer, why),) = await listening.lost.count(1)
        assert peer == "frontend-1"
        assert why not in ("", LinkLoss.SILENT)
