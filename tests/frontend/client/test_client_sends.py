"""frontend/client/client.py: requests that a connection has no room for, and what arrives while they wait."""

import asyncio
import select
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from frontend.client import connection as module
from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, Rejected
from frontend.client.conversation import RequestTarget
from tests.frontend.client.fakes import ROW, Asked, FakeFrontend, ok
from tests.loops import LIMIT_S, on_loop

BYTES = 16 << 20  # of one request: more than the kernel's buffers of a connection hold
STUCK = 8  # requests of this size: the frontend holds two, one is on the wire, one in the socket; the others wait
ROUNDS = 5


class KnownReaders(asyncio.SelectorEventLoop):
    """A loop that keeps which file descriptors it reads, oldest first."""

    def __init__(self) -> None:
        self.read: list[int] = []
        super().__init__()

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        """Adds the reader."""
        self.read.append(fd)
        super().add_reader(fd, callback, *args)


class LazyFrontend:
    """A frontend that reads only when it is told to, so that a client's connection to it becomes full."""

    def __init__(self, sock: "zmq.Socket[bytes]", address: str) -> None:
        self._sock, self.address = sock, address

    def read(self) -> Asked:
        """The next message, once it is there."""
        assert self._sock.poll(int(LIMIT_S * 1e3))
        peer, header, *frames = self._sock.recv_multipart()
        return Asked(msgpack.unpackb(header), frames, peer)

    def answer(self, asked: Asked, header: dict[str, Any]) -> None:
        """Sends the answer to that message."""
        self._sock.send_multipart([asked.peer, msgpack.packb(header)])


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> Iterator[LazyFrontend]:
    """A frontend that reads when it is told to; clients queue one request per connection in ZeroMQ."""
    monkeypatch.setattr(module, "SENDING_MAX", 1)
    context = zmq.Context()
    sock = context.socket(zmq.ROUTER)
    sock.setsockopt(zmq.RCVHWM, 1)
    sock.setsockopt(zmq.RCVBUF, 1 << 16)
    port = sock.bind_to_random_port("tcp://127.0.0.1")
    yield LazyFrontend(sock, f"tcp://127.0.0.1:{port}")
    context.destroy(linger=0)


class Hook:
    """In place of `packed`: calls `packing` when a request of context c is packed, again just before it is sent."""

    def __init__(self, packed: Callable[[Any], bytes]) -> None:
        self._packed = packed
        self.packing: Callable[[], None] | None = None

    def __call__(self, message: Any) -> bytes:
        """The message in msgpack."""
        if message.get("context") == "c":
            packing, self.packing = self.packing, None
            if packing is not None:
                packing()
        return self._packed(message)


def be_busy() -> None:
    """ZeroMQ looks for what has arrived at the next send. Source: libzmq, max_command_delay, 3 million cycles."""
    until_s = time.monotonic() + 0.01
    while time.monotonic() < until_s:
        pass


def test_an_answer_that_comes_just_before_a_vain_try_to_send_is_received(
    lazy: LazyFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = Hook(module.packed)
    monkeypatch.setattr(module, "packed", hook)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, KnownReaders)
        seen = len(loop.read)
        async with AsyncClient(lazy.address) as client:
            socket_fd = loop.read[seen]
            early = [client.submit("m", ROW * i, slo_ms=60_000) for i in range(ROUNDS)]
            asked = [await asyncio.to_thread(lazy.read) for _ in early]
            x = np.zeros((BYTES >> 4, 4), np.float32)
            for _ in range(STUCK):
                client.submit("m", x, slo_ms=600_000, context="c")

            def comes(question: Asked) -> None:
                """The answer is there, and not read yet, when the client tries to send."""
                lazy.answer(question, ok(question)[0])
                assert select.select([socket_fd], [], [], LIMIT_S)[0]
                be_busy()

            for i, one in enumerate(early):
                hook.packing = partial(comes, asked[i])
                late = client.submit("m", ROW, slo_ms=600_000)
                outcome = await one
                assert isinstance(outcome, Prediction)
                np.testing.assert_array_equal(outcome["y"], ROW * 2 * i)
                assert not late.done()

    with asyncio.Runner(loop_factory=KnownReaders) as runner:
        runner.run(asyncio.wait_for(scenario(), LIMIT_S))


def test_more_than_may_wait_for_a_frontend_are_refused_at_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    monkeypatch.setattr(module, "UNSENT_MAX", 0)
    with make(address) as client:
        for ask in (lambda: client.infer("m", ROW), client.models, lambda: client.call("ping")):
            with pytest.raises(Rejected, match=address) as raised:
                ask()
            assert (raised.value.code, raised.value.retry_after_ms) == ("client_full", 100.0)


@on_loop
async def test_of_many_requests_those_that_may_not_wait_get_it_as_their_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    monkeypatch.setattr(module, "UNSENT_MAX", 3)
    async with AsyncClient(address) as client:
        futures = [client.submit("m", ROW, slo_ms=60_000) for _ in range(5)]
        assert [future.done() for future in futures] == [False, False, False, True, True]
        assert all(isinstance(future.result(), Rejected) for future in futures[3:])
        later = FakeFrontend()
        later.address = address
        with later:
            assert all(isinstance(outcome, Prediction) for outcome in await asyncio.gather(*futures[:3]))


@pytest.mark.parametrize("rows", [1, 100_000])
def test_what_is_asked_faster_than_it_is_read_waits_and_is_answered(
    make: Any, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(module, "SENDING_MAX", 2)
    with FakeFrontend() as frontend, make(frontend.address) as client:
        client.models()
        outcomes = client.infer_many([("m", np.repeat(ROW * i, rows, axis=0)) for i in range(40)], slo_ms=60_000)
        assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(40)]


@on_loop
async def test_requests_of_one_turn_leave_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER_MAX", 3)
    with FakeFrontend() as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            futures = [client.submit("m", ROW * i, slo_ms=60_000) for i in range(8)]
            await asyncio.gather(*futures)
            assert [asked.array()[0, 0] for asked in frontend.infers()] == [float(i) for i in range(8)]


def test_a_request_that_is_given_up_before_the_end_of_its_turn_never_leaves() -> None:
    connection = module.Connection("tcp://127.0.0.1:9", None)
    first, second = (connection.infer(RequestTarget("m"), ROW, 60_000, None, {}) for _ in range(2))
    for flight in (first, second):
        connection.ask(flight, together=True)
    connection.cancel(first)
    assert connection.send_together() == []
    assert list(connection.flights.values()) == [second]
    assert (first.late, second.late) == (False, True), "only one was tried; there is no frontend"
    connection.close()


@on_loop
async def test_requests_that_wait_for_the_end_of_a_turn_are_refused_there_if_too_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SENDING_MAX", 1)
    monkeypatch.setattr(module, "UNSENT_MAX", 2)
    monkeypatch.setattr(module, "TOGETHER_MAX", 4)
    with FakeFrontend() as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            futures = [client.submit("m", np.repeat(ROW * i, 100_000, axis=0), slo_ms=60_000) for i in range(30)]
            outcomes = await asyncio.wait_for(asyncio.gather(*futures), LIMIT_S)
            answered = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Prediction)]
            refused = [outcome.code for outcome in outcomes if isinstance(outcome, Rejected)]
            assert len(answered) + len(refused) == 30
            assert set(refused) == {"client_full"}
            assert [asked.array()[0, 0] for asked in frontend.infers()] == [float(i) for i in answered]
