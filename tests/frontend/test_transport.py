"""frontend/transport.py: the clients' socket, which has to withstand any client."""

import asyncio
import functools
import select
import time
from collections.abc import Callable
from typing import Any

import pytest
import zmq

from frontend import outbox
from frontend import transport as module
from frontend.transport import ANSWERS_QUEUED_MAX, ClientId, ClientPort
from gearmesh.operations.ports import free_ports
from mesh.errors import AddressInUse
from tests.loops import LIMIT_S, Told, on_loop
from tests.mesh.net.processes import Processes, processes

SIZE_MAX = 4096


class Listening:
    """An open port for clients, which records (client, header, frames) of all messages."""

    def __init__(self, made: Processes, *, number: int = 0, size_max: int = SIZE_MAX) -> None:
        self.hub = made.runtime().hub
        self.said, self.turns = Told(), Told()
        self.arrived_s = 0.0  # of the latest message: it did not come before
        self.hub.on_turn(self.turns)
        self.port = ClientPort(self.hub, self._hear, lambda *_: True)
        self.address = self.port.listen("127.0.0.1", number, size_max)

    def _hear(self, who: ClientId, header: bytes, frames: list[Any], arrived_s: float) -> None:
        self.arrived_s = arrived_s
        self.said(who, header, frames)

    def answer(self, *answer: Any) -> None:
        """Answers at once, and not only at the end of the turn."""
        self.port.answer(*answer)
        self.port.flush()

    async def messages(self, count: int) -> list[tuple[bytes, list[bytes]]]:
        """(header, frames) of all messages, once there are `count`."""
        said: list[tuple[ClientId, bytes, list[Any]]] = await self.said.count(count)
        return [(header, [bytes(frame) for frame in frames]) for _, header, frames in said]

    async def until(self, holds: Any) -> None:
        """Returns after the turn in which `holds` became true."""
        await self.turns.until(lambda _: holds())


def client(made: Processes, listening: Listening, kind: int = zmq.DEALER) -> "zmq.Socket[bytes]":
    sock = made.bare(kind)
    sock.connect(listening.address)
    return sock


@on_loop
async def test_a_message_is_a_header_and_its_frames_and_so_is_an_answer() -> None:
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send_multipart([b"header"])
        sock.send_multipart([b"header", b"one", b"", b"three"])
        assert await listening.messages(2) == [(b"header", []), (b"header", [b"one", b"", b"three"])]
        who = listening.said.items[0][0]
        assert who == ClientId(who.identity, delimited=False) == listening.said.items[1][0]
        listening.answer(who, b"answer")
        listening.answer(who, b"answer", [b"one", memoryview(bytes(100_000)), b"three"])
        assert sock.recv_multipart() == [b"answer"]
        assert sock.recv_multipart() == [b"answer", b"one", bytes(100_000), b"three"]


@on_loop
async def test_a_req_socket_is_answered_with_the_empty_frame_that_it_expects() -> None:
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening, zmq.REQ)
        sock.send_multipart([b"header", b"frame"])
        assert await listening.messages(1) == [(b"header", [b"frame"])]
        ((who, _, _),) = listening.said.items
        assert who.delimited
        listening.answer(who, b"answer", [b"one"])
        assert sock.recv_multipart() == [b"answer", b"one"]


@on_loop
async def test_after_an_answer_that_leaves_at_once_the_socket_is_looked_at_again() -> None:
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send(b"header")
        await listening.messages(1)
        turns = len(listening.turns.items)
        listening.hub.schedule_turn()
        await listening.turns.count(turns + 1)
        listening.port.answer(listening.said.items[0][0], bytes(outbox.TOGETHER_BYTES_MAX))
        assert sock.recv() == bytes(outbox.TOGETHER_BYTES_MAX)  # it did not wait for the end of a turn
        await listening.turns.count(turns + 2)


@on_loop
async def test_an_empty_message_is_handed_on_as_one() -> None:
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send(b"")
        sock.send_multipart([b"", b""])
        sock.send_multipart([b"", b"", b""])
        assert await listening.messages(3) == [(b"", []), (b"", []), (b"", [b""])]
        assert [who.delimited for who, _, _ in listening.said.items] == [False, True, True]


@on_loop
async def test_every_client_gets_its_own_answers() -> None:
    async with processes() as made:
        listening = Listening(made)
        socks = [client(made, listening) for _ in range(3)]
        for i, sock in enumerate(socks):
            sock.send(b"%d" % i)
        for who, header, _ in await listening.said.count(3):
            listening.answer(who, header * 2)
        assert [sock.recv() for sock in socks] == [b"00", b"11", b"22"]


@on_loop
async def test_what_was_not_read_yet_can_be_had_at_the_end_in_order_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SLICE_S", 0.0)
    async with processes() as made:
        listening = Listening(made)
        socks = [client(made, listening) for _ in range(3)]
        for sock in socks:
            sock.send(b"first")
        await listening.messages(3)
        heard = len(listening.said.items)
        for i in range(200):  # the loop does not go on meanwhile: nobody reads them
            for sock in socks:
                sock.send(b"%d" % i)
        found: dict[bytes, list[bytes]] = {}
        ends_s = time.monotonic() + LIMIT_S
        while sum(map(len, found.values())) < 600 and time.monotonic() < ends_s:
            for who, header in listening.port.waiting():
                found.setdefault(who.identity, []).append(header)
                listening.answer(who, header)
        assert list(found.values()) == [[b"%d" % i for i in range(200)]] * 3
        assert len(listening.said.items) == heard
        assert [sock.recv() for sock in socks] == [b"0"] * 3
        await listening.until(lambda: True)
        assert len(listening.said.items) == heard


@pytest.mark.parametrize("frames", [[b"x" * SIZE_MAX], [b"x", b"y" * SIZE_MAX]])
@on_loop
async def test_a_frame_of_the_largest_size_is_taken(frames: list[bytes]) -> None:
    async with processes() as made:
        listening = Listening(made)
        client(made, listening).send_multipart(frames)
        assert await listening.messages(1) == [(frames[0], frames[1:])]


@pytest.mark.parametrize("frames", [[b"x" * (SIZE_MAX + 1)], [b"x", b"y" * (SIZE_MAX + 1)]])
@on_loop
async def test_a_larger_frame_closes_that_connection_and_no_other(frames: list[bytes]) -> None:
    async with processes() as made:
        listening = Listening(made)
        careful, careless = client(made, listening), client(made, listening)
        careful.send(b"before")
        await listening.messages(1)
        careless.send_multipart(frames)
        await listening.until(lambda: listening.port.reception.disconnections == 1)
        careful.send(b"after")
        assert await listening.messages(2) == [(b"before", []), (b"after", [])]


@on_loop
async def test_work_for_others_while_a_client_says_nothing_is_no_wait_of_its_next_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quiet client of a process with heartbeats to answer was refused after some seconds."""
    for seconds in ("CHARGED_S", "NEWS_S", "UNSEEN_S"):
        monkeypatch.setattr(module, seconds, 0.0)
    awake_s = [0.0]
    monkeypatch.setattr(module.AwakeTime, "seconds", lambda _: awake_s[0])
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send(b"first")
        await listening.messages(1)
        awake_s[0] = 1000.0  # since then the process has not slept
        turns = len(listening.turns.items)
        quiet_s = time.monotonic()
        listening.hub.schedule_turn()
        await listening.turns.count(turns + 1)
        sock.send(b"second")
        await listening.messages(2)
        assert listening.arrived_s >= quiet_s


@on_loop
async def test_connections_and_disconnections_are_counted() -> None:
    async with processes() as made:
        listening = Listening(made)
        socks = [client(made, listening) for _ in range(3)]
        await listening.until(lambda: listening.port.reception.connections == 3)
        assert listening.port.reception.disconnections == 0
        for sock in socks[:2]:
            sock.close(0)
        await listening.until(lambda: listening.port.reception.disconnections == 2)
        assert listening.port.reception.connections == 3


@on_loop
async def test_answers_of_a_turn_leave_at_its_end_in_the_order_of_their_making() -> None:
    async with processes() as made:
        listening = Listening(made)
        one, two = client(made, listening), client(made, listening)
        one.send(b"one")
        ((first, _, _),) = await listening.said.count(1)
        two.send(b"two")
        (_, (second, _, _)) = await listening.said.count(2)
        for i in range(3):
            listening.port.answer(first, b"%d" % i, [b"frame"] if i == 1 else ())
            listening.port.answer(second, b"%d" % i)
        assert not one.poll(0)
        await listening.turns.count(len(listening.turns.items) + 1)
        assert [one.recv_multipart() for _ in range(3)] == [[b"0"], [b"1", b"frame"], [b"2"]]
        assert [two.recv_multipart() for _ in range(3)] == [[b"0"], [b"1"], [b"2"]]


@pytest.mark.parametrize("bounded", ["TOGETHER_MAX", "TOGETHER_BYTES_MAX"])
@on_loop
async def test_many_answers_do_not_wait_for_the_end_of_the_turn(bounded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, bounded, 4)
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send(b"header")
        ((who, _, _),) = await listening.said.count(1)
        for i in range(3 if bounded == "TOGETHER_BYTES_MAX" else 4):
            listening.port.answer(who, b"%d" % i, [b"x"] if i == 2 else ())
        listening.port.answer(who, b"later")
        assert sock.recv_multipart() == [b"0"]
        await listening.turns.count(len(listening.turns.items) + 1)
        said = [sock.recv_multipart()]
        while said[-1] != [b"later"]:
            said.append(sock.recv_multipart())
        assert said[:2] == [[b"1"], [b"2", b"x"]]


@on_loop
async def test_what_was_answered_leaves_when_the_port_is_closed() -> None:
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send(b"header")
        ((who, _, _),) = await listening.said.count(1)
        listening.port.answer(who, b"the last one")
        listening.port.close()
        assert sock.recv() == b"the last one"


@on_loop
async def test_a_large_header_is_not_copied() -> None:
    async with processes() as made:
        listening = Listening(made, size_max=1 << 20)
        sock, req = client(made, listening), client(made, listening, zmq.REQ)
        for body in (bytes(1000), bytes(100_000)):
            sock.send(body)
        req.send(bytes(100_000))
        said = await listening.said.count(3)
        kinds = {(who.delimited, len(header)): type(header) for who, header, _ in said}
        assert kinds == {(False, 1000): bytes, (False, 100_000): memoryview, (True, 100_000): memoryview}


@on_loop
async def test_an_answer_to_a_client_that_is_gone_is_dropped_and_counted() -> None:
    async with processes() as made:
        listening = Listening(made)
        leaving, staying = client(made, listening), client(made, listening)
        leaving.send(b"leaving")
        await listening.messages(1)
        staying.send(b"staying")
        (gone, _, _), (there, _, _) = await listening.said.count(2)
        leaving.close(0)
        await listening.until(lambda: listening.port.reception.disconnections == 1)
        while listening.port.outbox.dropped == 0:  # the socket notices a moment after the monitor
            listening.answer(gone, b"answer")
            listening.answer(there, b"answer")
            assert staying.recv_multipart() == [b"answer"]
        listening.answer(gone, b"answer", [b"x" * 100_000])
        listening.answer(there, b"answer")
        assert staying.recv_multipart() == [b"answer"]
        assert listening.port.outbox.dropped == 2


@on_loop
async def test_a_client_that_is_slow_to_read_gets_every_answer_in_order() -> None:
    answers = [b"%d" % i + bytes(2_000) for i in range(8_000)]  # 16 MB: more than ZeroMQ and the kernel can queue
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send(b"header")
        ((who, _, _),) = await listening.said.count(1)
        for answer in answers:
            listening.answer(who, answer)
        assert listening.port.outbox.waiting > 0
        read: list[bytes] = []
        while len(read) < len(answers):
            read += [await asyncio.to_thread(sock.recv)]
        assert read == answers
        assert (listening.port.outbox.waiting, listening.port.outbox.dropped) == (0, 0)


@on_loop
async def test_what_waits_keeps_no_message_of_which_it_was_a_small_part() -> None:
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send(b"header")
        ((who, _, _),) = await listening.said.count(1)
        while not listening.port.outbox.waiting:
            listening.answer(who, bytes(20_000))
        message = bytearray(b"small, of a large message")
        listening.answer(who, b"last", [memoryview(message)[:5]])
        message.clear()  # nobody has a view of it
        parts = [b""]
        while parts[0] != b"last":
            parts = await asyncio.to_thread(sock.recv_multipart)
        assert parts == [b"last", b"small"]


@on_loop
async def test_what_waits_for_a_client_that_leaves_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERS_QUEUED_MAX", 2)
    async with processes() as made:
        listening = Listening(made)
        sock = client(made, listening)
        sock.send(b"header")
        ((who, _, _),) = await listening.said.count(1)
        while listening.port.outbox.waiting < 25:  # MB: more than ZeroMQ and the kernel still have room for
            listening.answer(who, bytes(1 << 20))
        sock.close(0)
        await listening.until(lambda: listening.port.outbox.waiting == 0)
        assert listening.port.outbox.dropped > 0


@on_loop
async def test_a_client_that_does_not_read_loses_its_own_answers_only() -> None:
    async with processes() as made:
        listening = Listening(made)
        lazy, keen = client(made, listening), client(made, listening)
        lazy.setsockopt(zmq.RCVHWM, 1)
        lazy.send(b"lazy")
        await listening.messages(1)
        keen.send(b"keen")
        (lazy_one, _, _), (keen_one, _, _) = await listening.said.count(2)
        answers = 0
        while listening.port.outbox.dropped == 0:
            listening.answer(lazy_one, b"x" * 20_000)
            answers += 1
            assert answers < 10 * ANSWERS_QUEUED_MAX
        assert answers > ANSWERS_QUEUED_MAX
        listening.answer(keen_one, b"answer")
        assert keen.recv() == b"answer"
        assert listening.port.outbox.dropped == 1


class HandTimers:
    """A loop whose timers ring when a test calls them, and whose readers are known."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.timers: list[Callable[[], None]] = []
        self.read: list[int] = []  # file descriptors
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay_s: float, call: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """Keeps the call."""
        self.timers.append(functools.partial(call, *args))
        return self._loop.call_later(LIMIT_S, call, *args)

    def add_reader(self, fd: int, *call: Any) -> None:
        """Adds the reader."""
        self.read.append(fd)
        self._loop.add_reader(fd, *call)


@on_loop
async def test_a_request_that_comes_before_a_vain_try_to_send_waiting_answers_is_received() -> None:
    async with processes() as made:
        listening = Listening(made)
        listening.port.close()
        loop = listening.hub.loop = HandTimers(listening.hub.loop)  # type: ignore[assignment]
        listening.address = listening.port.listen("127.0.0.1", 0, SIZE_MAX)
        lazy, keen = client(made, listening), client(made, listening)
        lazy.setsockopt(zmq.RCVHWM, 1)
        lazy.send(b"lazy")
        await listening.messages(1)
        keen.send(b"keen")
        (lazy_one, _, _), _ = await listening.said.count(2)
        while listening.port.outbox.dropped == 0:
            listening.answer(lazy_one, b"x" * 20_000)
        listening.hub.schedule_turn()
        await listening.turns.count(len(listening.turns.items) + 1)
        keen.send(b"again")
        assert select.select([loop.read[-1]], [], [], LIMIT_S)[0]
        loop.timers[-1]()
        assert (await listening.messages(3))[2] == (b"again", [])


@on_loop
async def test_while_a_strained_port_rests_the_loop_may_sleep_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_S", 0.0)
    monkeypatch.setattr(module, "UNSEEN_S", 0.0)
    async with processes() as made:
        listening = Listening(made)
        listening.port.close()
        loop = listening.hub.loop = HandTimers(listening.hub.loop)  # type: ignore[assignment]
        listening.address = listening.port.listen("127.0.0.1", 0, SIZE_MAX)
        sock = client(made, listening)
        sock.send(b"one")
        await listening.messages(1)
        listening.port.strained = True
        timers = len(loop.timers)
        sock.send(b"two")
        await listening.messages(2)
        assert len(loop.timers) == timers + 1  # the rest has begun
        sock.send(b"three")
        assert select.select([loop.read[-1]], [], [], LIMIT_S)[0]
        turns = len(listening.turns.items)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(listening.turns.items) - turns <= 3
        assert len(listening.said.items) == 2
        loop.timers[-1]()
        assert (await listening.messages(3))[2] == (b"three", [])


@on_loop
async def test_a_closed_port_is_free_for_another_and_may_be_answered_on_and_closed_again() -> None:
    async with processes() as made:
        (number,) = free_ports(1)  # nobody else gets it between two lives
        listening = Listening(made, number=number)
        sock = client(made, listening)
        sock.send(b"header")
        ((who, _, _),) = await listening.said.count(1)
        with pytest.raises(AddressInUse, match="GEARMESH_FRONTEND_PORT"):
            Listening(made, number=number)
        listening.port.close()
        listening.port.close()
        listening.answer(who, b"nobody listens")
        listening.hub.close()
        Listening(made, number=number)
