"""mesh/net/links.py: peers that say nothing, say what they may not, or do not read."""

from typing import Any

import msgspec
import pytest
import zmq

from mesh import wire
from mesh.codes import LinkLoss
from mesh.net.transport import BACKLOG_MAX
from tests.loops import Told, on_loop
from tests.mesh.net.pairs import HELLO, QUICK, QUIET, STEADY, cancel, pair
from tests.mesh.net.processes import LIMIT_MS, envelope, hears, processes

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
        here = made.trusting()
        first, second = (made.link(here, (address,), f"gpu_worker-{i}") for i in range(2))
        first.link.close()
        assert await second.lost.count(1) == [("controller-1", LinkLoss.SILENT)]
        assert first.lost.items == []


@on_loop
async def test_a_peer_that_falls_silent_is_lost_to_the_port() -> None:
    async with processes(**QUICK) as made:
        listening = made.port(made.runtime())
        sock = made.insider(zmq.DEALER, "frontend-1")
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
        calling = made.link(made.trusting(), (sock.getsockopt_string(zmq.LAST_ENDPOINT),))
        assert await calling.lost.count(1) == [("controller-1", LinkLoss.SILENT)]
        assert not calling.link.open


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
        sock = made.insider(zmq.DEALER, "frontend-1")
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
        calling = made.link(made.trusting(), (sock.getsockopt_string(zmq.LAST_ENDPOINT),))
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
            sock = made.insider(zmq.DEALER, identity)
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

        listening = made.port(made.runtime(), "results", received=fail_once)
        made_loop = listening.port.transport.hub.loop
        made_loop.set_exception_handler(lambda _, fault: faults.append(type(fault["exception"])))
        sock = made.insider(zmq.DEALER, "gpu_worker-1")
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
        sock = made.insider(zmq.DEALER, "frontend-1")
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
                await hears(sock)  # the loop goes on: what waits for room leaves only so
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
