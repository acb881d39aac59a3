"""mesh/net/sockets.py: in a turn, everything that has arrived is drained before anything is decided."""

import zmq

from mesh import wire
from tests.loops import Told, on_loop
from tests.mesh.net.processes import envelope, messages_of, processes


@on_loop
async def test_all_that_has_arrived_is_in_before_anything_is_decided() -> None:
    async with processes() as made:
        here = made.runtime()
        listening = made.port(here)
        senders = [made.bare(zmq.DEALER, f"frontend-{i}") for i in range(5)]
        for i, sender in enumerate(senders):
            sender.connect(listening.tcp)
            for number in range(10):
                sender.send(envelope(wire.Cancel(request=10 * i + number)))
        seen = Told()
        here.hub.on_turn(lambda now: seen(len(messages_of(listening.mail.items))))
        here.hub.schedule_turn()
        here.hub.schedule_turn()
        counts = await seen.until(lambda counts: counts and counts[-1] == 50)
        assert len(counts) <= 51  # one more than there are messages, in case each arrives by itself
        arrived = messages_of(listening.mail.items)
        assert sorted(message.request for message in arrived) == list(range(50))


@on_loop
async def test_scheduling_a_turn_again_and_again_makes_one() -> None:
    async with processes() as made:
        hub = made.runtime().hub
        turns = Told()
        hub.on_turn(turns)
        for _ in range(5):
            hub.schedule_turn()
        await turns.count(1)
        hub.schedule_turn()
        await turns.count(2)
        assert len(turns.items) == 2
        assert turns.items == sorted(turns.items)


@on_loop
async def test_messages_in_memory_that_cause_each_other_leave_the_sockets_their_turn() -> None:
    async with processes() as made:
        here = made.runtime()
        ended = []

        def answer(mail: object) -> None:  # endless: each in-memory message causes the next
            if not ended:
                calling.link.send(wire.Cancel(request=1))

        def ask(mail: object) -> None:
            listening.mail(mail)
            listening.port.send("frontend-1", wire.Introduce())

        listening = made.port(here, received=ask)
        calling = made.link(here, listening.addresses, "frontend-1", received=answer)
        calling.link.send(wire.Cancel(request=0))
        await listening.mail.count(1)
        sock = made.bare(zmq.DEALER, "frontend-2")
        sock.connect(listening.tcp)
        sock.send(envelope(wire.Cancel(request=2)))
        await listening.mail.until(lambda mails: any(mail.peer == "frontend-2" for mail in mails))
        ended.append(True)


@on_loop
async def test_a_closed_hub_has_no_more_turns() -> None:
    async with processes() as made:
        runtime = made.runtime()
        turns = Told()
        runtime.hub.on_turn(turns)
        runtime.hub.schedule_turn()
        runtime.transport.close()
        runtime.hub.close()
        runtime.hub.schedule_turn()
        done = runtime.hub.loop.create_future()
        runtime.hub.loop.call_soon(done.set_result, None)
        await done
        assert turns.items == []
