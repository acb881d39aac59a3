"""mesh/net/links.py and mesh/net/transport.py: ports and links behave alike over ZeroMQ and in memory."""

import asyncio
import gc
import time
from typing import Any

import msgspec
import pytest
import zmq

from gearmesh.operations.ports import free_ports
from mesh import wire
from mesh.codes import LinkLoss
from mesh.errors import AddressInUse
from mesh.net.channels import FRAME_BYTES_ZERO_COPY
from mesh.net.sockets import DRAIN_S_MAX
from mesh.net.unsent import ENVELOPE_BYTES
from tests.loops import Told, on_loop
from tests.mesh.net.pairs import HELLO, PATIENT, QUIET, both_makes, cancel, pair
from tests.mesh.net.processes import Calling, envelope, processes, unreachable

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


@on_loop
async def test_between_mails_that_take_long_the_loop_goes_round_so_that_heartbeats_leave() -> None:
    order, heard = Told(), Told()

    def received(mail: Any) -> None:
        order("mail")
        asyncio.get_running_loop().call_soon(order, "round")
        ends_s = time.monotonic() + 2 * DRAIN_S_MAX
        while time.monotonic() < ends_s:
            pass
        heard(mail)

    async with processes(**QUIET) as made:
        listening = made.port(made.runtime(), received=received)
        for number in range(4):
            made.link(made.runtime(), listening.addresses, f"frontend-{number}").link.send(cancel(number))
        await heard.count(4)
        await order.count(8)
    assert order.items == ["mail", "round"] * 4


@both_makes
@on_loop
async def test_large_tensors_of_one_turn_leave_in_several_envelopes_each_a_sign_of_life(
    make: str,
) -> None:
    async with processes() as made:
        listening, calling = pair(made, make)
        tensors = [bytes([i]) * (ENVELOPE_BYTES // 2) for i in range(5)]
        for number, tensor in enumerate(tensors):
            calling.link.send(cancel(number), [tensor])
        assert await listening.messages(5) == [cancel(number) for number in range(5)]
        mails = [mail.messages for mail in listening.mail.items]
        assert [len(messages) for messages in mails] == ([5] if make == "memory" else [2, 2, 1])
        for mail in listening.mail.items:
            assert [bytes(frame) for frame in mail.frames] == [tensors[message.request] for message in mail.messages]


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
        sock = made.insider(zmq.DEALER, "frontend-1")
        sock.connect(listening.tcp)
        sock.send(envelope(HELLO, sent_s=1e6))
        await listening.messages(1)
        now = listening.mail.items[0].now
        listening.port.send("frontend-1", wire.Introduce())
        await listening.mail.count(1)
        # The peer's own delta: its clock is (1e6 - now) ahead of ours.
        sock.send(msgspec.msgpack.encode(wire.Envelope(1e6 + 0.05, 1e6 - now, 0, [cancel(1)])))
        await listening.messages(2)
        assert listening.port.clock("frontend-1").offset_s == pytest.approx(1e6 - now, abs=1.0)


@on_loop
async def test_a_link_may_call_before_its_peer_listens() -> None:
    (number,) = free_ports(1)
    async with processes() as made:
        calling = made.link(made.runtime(), (f"tcp://127.0.0.1:{number}",))
        calling.link.send(HELLO)
        listening = made.port(made.runtime(), number=number)
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
    async with processes(**QUIET) as made:
        listening, staying = pair(made, "zeromq")
        staying.link.send(HELLO)
        leaving = made.insider(zmq.DEALER, "frontend-2")
        leaving.connect(listening.tcp)
        leaving.send(envelope(cancel(1)))
        await listening.messages(2)
        leaving.close(0)
        await unreachable(listening.port.sock, b"frontend-2")
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
