"""mesh/net/channels.py: the channel in Python and the one in C do the same, for messages of every shape."""

import errno
import itertools
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import zmq

from mesh.net import channels
from mesh.net.channels import CLOSED, FRAME_BYTES_ZERO_COPY, NO_PEER, NO_ROOM, Channel, PlainChannel
from mesh.wire import Buffer

LARGE = FRAME_BYTES_ZERO_COPY
MAKES = [pytest.param(PlainChannel, id="python")]
if channels.COMPILED is not None:
    MAKES.append(pytest.param(channels.COMPILED, id="c"))
every_make = pytest.mark.parametrize("make", MAKES)
WAIT_MS = 10_000  # nothing here takes so long


class Sockets:
    """A ROUTER that listens on TCP, and DEALERs that call it."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []
        self._numbers = itertools.count()
        self.router = self.new(zmq.ROUTER)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.router.bind("tcp://127.0.0.1:*")
        self.address = self.router.getsockopt_string(zmq.LAST_ENDPOINT)

    def new(self, kind: int) -> "zmq.Socket[bytes]":
        sock: zmq.Socket[bytes] = self.context.socket(kind)
        sock.setsockopt(zmq.LINGER, 0)
        self._made.append(sock)
        return sock

    def close(self) -> None:
        for sock in self._made:
            sock.close()
        self.context.term()

    def dealer(self, name: bytes = b"") -> "zmq.Socket[bytes]":
        sock = self.new(zmq.DEALER)
        sock.setsockopt(zmq.ROUTING_ID, name or b"dealer-%d" % next(self._numbers))
        sock.connect(self.address)
        return sock


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close()


def taken(channel: Channel, sock: "zmq.Socket[bytes]") -> tuple[bytes, Buffer, list[Buffer]]:
    """The next message, once it is there."""
    while (message := channel.take()) is None:
        assert sock.poll(WAIT_MS)
    return message


def as_bytes(parts: list[Buffer]) -> list[bytes]:
    return [bytes(part) for part in parts]


def pattern(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


SHAPES = [
    [b""],
    [b"body"],
    [b"", b""],
    [b"", b"header"],
    [b"header", b""],
    [b"", b"", b"", b"x"],
    [pattern(i) for i in range(40)],
    [pattern(29), pattern(30), pattern(33), pattern(34), pattern(8_191), pattern(8_192), pattern(8_193)],
    [pattern(LARGE - 1), pattern(LARGE), pattern(LARGE + 1)],
    [pattern(600_000)],
    [pattern(600_000), b"", pattern(3), pattern(600_001)],
]


@every_make
@pytest.mark.parametrize("parts", SHAPES, ids=lambda parts: "-".join(str(len(part)) for part in parts[:8]))
def test_a_message_of_any_shape_arrives_as_it_was_sent(sockets: Sockets, make: type, parts: list[bytes]) -> None:
    dealer = sockets.dealer(b"me")
    inward, outward = make(sockets.router), make(dealer)
    assert outward.send(None, parts[0], parts[1:]) == 0
    name, body, more = taken(inward, sockets.router)
    assert (name, bytes(body), as_bytes(more)) == (b"me", parts[0], parts[1:])
    assert inward.send(name, body, more) == 0  # and back, views and all
    name, body, more = taken(outward, dealer)
    assert (name, bytes(body), as_bytes(more)) == (b"", parts[0], parts[1:])
    assert inward.take() is None
    assert outward.take() is None


@every_make
def test_what_is_small_comes_as_bytes_and_what_is_large_as_views_that_outlive_the_socket(make: type) -> None:
    made = Sockets()
    dealer = made.dealer()
    dealer.send_multipart([pattern(LARGE), pattern(LARGE - 1), pattern(LARGE)])
    channel = make(made.router)
    _, body, more = taken(channel, made.router)
    assert [type(part) for part in (body, *more)] == [memoryview, bytes, memoryview]
    assert isinstance(body, memoryview)
    assert (body.readonly, body.format, body.ndim, body.itemsize) == (False, "B", 1, 1)
    assert channel.take() is None
    made.close()
    assert as_bytes([body, *more]) == [pattern(LARGE), pattern(LARGE - 1), pattern(LARGE)]


@every_make
def test_messages_come_in_their_order_and_none_is_taken_before_it_is_asked_for(sockets: Sockets, make: type) -> None:
    dealer = sockets.dealer()
    for i in range(100):
        dealer.send_multipart([b"%d" % i, b"more"] if i % 3 else [b"%d" % i])
    dealer.send(b"last")
    channel = make(sockets.router)
    for i in range(100):
        _, body, more = taken(channel, sockets.router)
        assert (body, more) == (b"%d" % i, [b"more"] if i % 3 else [])
    assert sockets.router.poll(WAIT_MS)
    assert channel.readable()
    assert sockets.router.recv_multipart()[1] == b"last"  # nothing of it was read ahead
    assert not channel.readable()


@every_make
def test_a_ROUTER_knows_the_connection_of_the_message_that_was_taken_last(sockets: Sockets, make: type) -> None:
    channel = make(sockets.router)
    assert (channel.descriptor(), channel.said("Peer-Address")) == (None, "")
    descriptors = set()
    for size in (1, 1_000, LARGE):
        dealer = sockets.dealer()
        dealer.send_multipart([pattern(size), b"more"])
        taken(channel, sockets.router)
        assert channel.said("Peer-Address") == "127.0.0.1"
        assert channel.said("Socket-Type") == "DEALER"
        assert channel.said("User-Id") == ""
        assert channel.said("no such property") == ""
        descriptor = channel.descriptor()
        assert descriptor is not None
        descriptors.add(descriptor)
    assert len(descriptors) == 3
    assert channel.take() is None
    assert (channel.descriptor(), channel.said("Peer-Address")) == (None, "")


@every_make
def test_a_peer_without_room_refuses_whole_messages(sockets: Sockets, make: type) -> None:
    dealer = sockets.new(zmq.DEALER)
    dealer.setsockopt(zmq.SNDHWM, 3)
    dealer.connect("tcp://127.0.0.1:9")  # nobody listens
    channel = make(dealer)
    codes = [channel.send(None, b"body", [b"frame", pattern(LARGE)]) for _ in range(5)]
    assert codes == [0, 0, 0, NO_ROOM, NO_ROOM]


@every_make
def test_a_ROUTER_with_a_full_pipe_refuses_that_peers_messages_and_no_others(sockets: Sockets, make: type) -> None:
    sockets.router.setsockopt(zmq.SNDHWM, 2)
    sockets.router.bind("inproc://full")
    named = {}
    for name in (b"slow", b"quick"):
        named[name] = sockets.new(zmq.DEALER)
        named[name].setsockopt(zmq.ROUTING_ID, name)
        named[name].setsockopt(zmq.RCVHWM, 2)
        named[name].connect("inproc://full")
        named[name].send(b"here")
    channel = make(sockets.router)
    assert {taken(channel, sockets.router)[0] for _ in named} == set(named)
    pairs = [(b"slow", b"%d" % i) for i in range(6)] + [(b"quick", b"0"), (b"nobody", b""), (b"quick", b"1")]
    codes = [channel.send(to, body) for to, body in pairs]
    assert codes == [0, 0, 0, 0, NO_ROOM, NO_ROOM, 0, NO_PEER, 0]
    assert channel.send(b"slow", b"body", [b"more"]) == NO_ROOM
    assert channel.send(b"nobody", b"body", [b"more"]) == NO_PEER
    assert [named[b"quick"].recv() for _ in range(2)] == [b"0", b"1"]
    assert [named[b"slow"].recv() for _ in range(4)] == [b"0", b"1", b"2", b"3"]
    assert not channel.readable()  # which takes note of the room
    assert channel.send(b"slow", b"body", [b"more"]) == 0  # nothing of those that were refused is in its way
    assert named[b"slow"].recv_multipart() == [b"body", b"more"]


@every_make
def test_a_message_with_a_frame_that_is_none_leaves_nothing_behind(sockets: Sockets, make: type) -> None:
    dealer = sockets.dealer()
    channel = make(dealer)
    with pytest.raises(TypeError):
        channel.send(None, b"body", [b"frame", "text"])
    with pytest.raises(BufferError):
        channel.send(None, b"body", [memoryview(bytes(10))[::2]])
    assert channel.send(None, b"whole", [bytearray(b"array"), memoryview(b"view")[1:]]) == 0
    assert sockets.router.recv_multipart()[1:] == [b"whole", b"array", b"iew"]


@every_make
def test_a_closed_socket_is_empty_and_takes_nothing(sockets: Sockets, make: type) -> None:
    dealer = sockets.dealer(b"me")
    dealer.send(b"body")
    channel = make(sockets.router)
    taken(channel, sockets.router)
    dealer.send(b"unread")
    assert sockets.router.poll(WAIT_MS)
    sockets.router.close()
    assert channel.take() is None
    assert channel.readable() is False
    assert channel.send(b"me", b"body") == CLOSED
    assert channel.descriptor() is None
    with pytest.raises(ValueError, match="closed"):
        make(sockets.router)


@every_make
def test_an_ended_context_is_an_error_of_ZeroMQs(sockets: Sockets, make: type) -> None:
    sock = sockets.new(zmq.PAIR)
    channel = make(sock)
    assert channel.take() is None
    assert channel.send(None, b"to nobody") == NO_ROOM
    request = sockets.new(zmq.REQ)
    wrong = make(request)
    with pytest.raises(zmq.ZMQError) as told:
        wrong.take()  # nothing was asked yet
    assert told.value.errno == zmq.EFSM


@every_make
def test_taking_from_an_empty_socket_uses_the_edge_up_and_a_message_makes_the_next(
    sockets: Sockets, make: type
) -> None:
    dealer = sockets.dealer()
    channel = make(sockets.router)
    for _ in range(3):
        while channel.take() is not None:
            pass
        dealer.send(b"body")
        assert select.select([sockets.router.getsockopt(zmq.FD)], [], [], WAIT_MS / 1e3)[0]
        taken(channel, sockets.router)


@every_make
def test_a_buffer_is_held_until_it_was_sent_and_no_longer(sockets: Sockets, make: type) -> None:
    dealer = sockets.dealer(b"me")
    channel, far = make(dealer), make(sockets.router)
    data = bytearray(pattern(LARGE))
    assert channel.send(None, b"body", [data]) == 0
    _, _, (frame,) = taken(far, sockets.router)
    assert bytes(frame) == data
    for _ in range(1000):  # ZeroMQ's thread lets it go a moment later
        channel.take()
        try:
            data.append(0)
        except BufferError:
            dealer.poll(1)
        else:
            break
    assert len(data) == LARGE + 1


@every_make
def test_signals_part_no_message_and_lose_none(sockets: Sockets, make: type) -> None:
    dealer = sockets.dealer(b"me")
    inward, outward = make(sockets.router), make(dealer)
    assert outward.send(None, b"here") == 0
    taken(inward, sockets.router)
    told = []
    before = signal.signal(signal.SIGALRM, lambda *_: told.append(1))
    signal.setitimer(signal.ITIMER_REAL, 5e-5, 5e-5)  # they end libzmq's calls, also those that do not wait
    try:
        while len(told) < 2_000:
            assert inward.send(b"me", b"body", [b"frame", b"last"]) == 0
            assert inward.send(b"me", b"single") == 0
            assert taken(outward, dealer) == (b"", b"body", [b"frame", b"last"])
            assert taken(outward, dealer) == (b"", b"single", [])
            assert outward.send(None, b"back", [b"frame"]) == 0
            while not inward.readable():
                assert sockets.router.poll(WAIT_MS)
            assert inward.take() == (b"me", b"back", [b"frame"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


MEMORY = """
import resource, sys, zmq
from mesh.net import channels
make = channels.PlainChannel if sys.argv[1] == "python" else channels.COMPILED
context = zmq.Context()
router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
router.setsockopt(zmq.ROUTER_MANDATORY, 1)
dealer.setsockopt(zmq.ROUTING_ID, b"me")
router.bind("tcp://127.0.0.1:*")
dealer.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
here, there = make(router), make(dealer)
bodies = [b"x" * 1000, b"y" * 70_000, b"z" * 700_000]
def once():
    for body in bodies:
        assert there.send(None, body, [body, b"small"]) == 0
        while (message := here.take()) is None:
            router.poll(10_000)
        name, first, more = message
        assert here.send(name, first, more) == 0
        assert (here.send(b"me", b"a"), here.send(b"nobody", b"b")) == (0, channels.NO_PEER)
        for _ in range(2):
            while there.take() is None:
                dealer.poll(10_000)
    try:
        there.send(None, b"body", [body, "text"])
    except TypeError:
        pass
for _ in range(50): once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(150): once()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@every_make
def test_memory_stays_flat_whatever_is_sent_and_taken(make: type) -> None:
    kind = "python" if make is PlainChannel else "c"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) < 64  # MiB; 350 MB have passed in each direction


def test_GEARMESH_PURE_chooses_the_one_in_Python() -> None:
    code = "from mesh.net import channels; print(channels.COMPILED)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "GEARMESH_PURE": "1"},
    )
    assert done.stdout.strip() == "None"


def test_the_reasons_are_the_numbers_of_ZeroMQ() -> None:
    assert (NO_ROOM, NO_PEER, CLOSED) == (errno.EAGAIN, errno.EHOSTUNREACH, errno.ENOTSOCK)
