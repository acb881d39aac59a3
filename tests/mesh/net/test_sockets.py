"""mesh/net/sockets.py: in a turn, everything that has arrived is drained before anything is decided."""

import contextlib
import errno
import os
import select
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import zmq

from mesh import wire
from scripts.rigs.meshes import until
from tests.loops import LIMIT_S, Told, on_loop
from tests.mesh.net.pairs import QUIET, cancel
from tests.mesh.net.processes import Listening, envelope, messages_of, processes


@on_loop
async def test_all_that_has_arrived_is_in_before_anything_is_decided() -> None:
    async with processes() as made:
        here = made.runtime()
        listening = made.port(here)
        senders = [made.insider(zmq.DEALER, f"frontend-{i}") for i in range(5)]
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
        sock = made.insider(zmq.DEALER, "frontend-2")
        sock.connect(listening.tcp)
        sock.send(envelope(wire.Cancel(request=2)))
        await listening.mail.until(lambda mails: any(mail.peer == "frontend-2" for mail in mails))
        ended.append(True)


@on_loop
async def test_a_socket_that_has_more_is_drained_once_in_a_round_of_the_loop_however_often_it_is_told_of() -> None:
    async with processes() as made:
        hub = made.runtime().hub
        rounds, drained, all_drained = [0], list[int](), Told()

        def tick() -> None:
            rounds[0] += 1
            if not all_drained.items:
                hub.loop.call_soon(tick)

        def drain() -> bool:
            drained.append(rounds[0])
            hub.look_again(sock)
            if len(drained) == 20:
                all_drained(True)
            return len(drained) < 20

        sock, sender = (hub.socket(kind, size_max=-1) for kind in (zmq.PULL, zmq.PUSH))
        sock.bind("inproc://here")
        sender.connect("inproc://here")
        sender.send(b"nobody takes it")
        hub.read(sock, drain)
        tick()
        for _ in range(5):
            hub.read_again(sock)
        await all_drained.count(1)
        assert len(set(drained)) == 20
        sender.close(0)


def policies() -> dict[tuple[int, str, str], int]:
    """{(number, moment of its start, name) of a thread: its scheduling policy} of this process.

    Other tests' threads may begin and end meanwhile, and a number may be another thread's by then.
    """
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            policy = os.sched_getscheduler(int(task.name))
            name, rest = (task / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            found[int(task.name), rest.split()[19], name] = policy
    return found


def added_by_zeromq(before: Mapping[tuple[int, str, str], int]) -> list[int]:
    """The policies of ZeroMQ's threads that were not there before; they have them before their names."""
    return [policy for thread, policy in policies().items() if thread not in before and thread[2].startswith("ZMQbg")]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="there is one on Linux only")
@pytest.mark.parametrize("flag", [0, getattr(os, "SCHED_RESET_ON_FORK", 0)])
@on_loop
async def test_threads_of_zeromq_do_not_interrupt_and_this_one_stays_as_it_was(flag: int) -> None:
    with contextlib.suppress(PermissionError):  # who has the flag may not be allowed to take it back
        os.sched_setscheduler(0, os.SCHED_OTHER | flag, os.sched_param(0))
    before = policies()
    async with processes() as made:
        made.port(made.runtime())
        await until(lambda: added_by_zeromq(before).count(os.SCHED_BATCH) >= 2)  # for traffic, and for what is closed
        now = policies()
        assert {thread: now[thread] for thread in before if thread in now} == {
            thread: policy for thread, policy in before.items() if thread in now
        }


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="there is one on Linux only")
@on_loop
async def test_without_leave_to_set_it_threads_are_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    before = policies()
    async with processes() as made:
        calling = made.runtime()
        listening = made.port(calling)
        other = made.link(made.runtime(), listening.addresses, "frontend-1")
        other.link.send(wire.Cancel(request=1))
        await listening.mail.count(1)  # they run, then, with the policy that they took at their start
        assert set(added_by_zeromq(before)) == {os.SCHED_OTHER}


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


# -- a send that fails consumes the edge that announces what others have sent -----------------------------------------


def arrives_just_before_the_sends_of_a_turn(listening: Listening, sender: "zmq.Socket[bytes]") -> None:
    """One turn, in which the sender's message is there before something is sent to frontend-1, but not yet read."""
    port, once = listening.port, [cancel(2)]

    def decide(now: float) -> None:
        while once:
            sender.send(envelope(once.pop()))
            assert select.select([port.sock.getsockopt(zmq.FD)], [], [], LIMIT_S)[0]
            be_busy()
            port.send("frontend-1", wire.Introduce())

    port.transport.hub.on_turn(decide)
    port.transport.hub.schedule_turn()


def be_busy() -> None:
    """ZeroMQ looks for what has arrived at the next send. Source: libzmq, max_command_delay, 3 million cycles."""
    until_s = time.monotonic() + 0.01
    while time.monotonic() < until_s:
        pass


def is_gone(sock: "zmq.Socket[bytes]", peer: bytes) -> bool:
    """Whether the socket has noticed that the peer is not there any more."""
    try:
        sock.send_multipart([peer, envelope()])
    except zmq.ZMQError as error:
        return error.errno == errno.EHOSTUNREACH
    return False


@on_loop
async def test_what_arrives_before_a_send_to_a_peer_that_is_gone_is_received() -> None:
    async with processes(**QUIET) as made:
        listening = made.port(made.runtime())  # no heartbeat looks again within 5 s
        leaving, staying = (made.insider(zmq.DEALER, f"frontend-{i}") for i in (1, 2))
        for sock in (leaving, staying):
            sock.connect(listening.tcp)
            sock.send(envelope(cancel(1)))
        await listening.messages(2)
        leaving.close(0)
        while not is_gone(listening.port.sock, b"frontend-1"):
            pass
        arrives_just_before_the_sends_of_a_turn(listening, staying)
        assert await listening.messages(3) == [cancel(1), cancel(1), cancel(2)]
        assert [peer for peer, _ in listening.lost.items] == ["frontend-1"]


@on_loop
async def test_what_arrives_before_a_send_to_a_peer_that_does_not_read_is_received() -> None:
    async with processes(**QUIET) as made:
        listening = made.port(made.runtime())  # no heartbeat looks again within 5 s
        lazy, keen = (made.insider(zmq.DEALER, f"frontend-{i}") for i in (1, 2))
        lazy.setsockopt(zmq.RCVHWM, 1)
        lazy.setsockopt(zmq.RCVBUF, 4096)
        for sock in (lazy, keen):
            sock.connect(listening.tcp)
            sock.send(envelope(cancel(1)))
        await listening.messages(2)
        hub, port, turns = listening.port.transport.hub, listening.port, Told()
        hub.on_turn(turns)
        while port.backlog("frontend-1") < 2:  # one envelope a turn, until the pipe is full
            port.send("frontend-1", wire.Serving(added=("x" * 4000,), removed=()))
            await turns.count(len(turns.items) + 1)
        arrives_just_before_the_sends_of_a_turn(listening, keen)
        assert await listening.messages(3) == [cancel(1), cancel(1), cancel(2)]
