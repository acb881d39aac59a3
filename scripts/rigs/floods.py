"""Clients that send at a given rate, whatever is answered: requests, or junk.

    python -P floods.py PLAN      as a process of its own; imports nothing of gearmesh

PLAN is a FloodPlan as JSON. Prints "ready" once it is connected, and begins when standard input has a line. At the end
of its time, and of a while in which what is open is answered, it prints one line of JSON: FloodSeen.
"""

import json
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import msgpack
import msgspec
import numpy as np

AFTER_S = 3.0  # until what was not answered is given up
ROUND_MS = 1  # between two looks at what is due
BATCH_MAX = 512  # of one connection, sent in one go
BUFFER_BYTES = 1 << 13  # that the kernel keeps of what is sent: what finds no room is not sent, and counted
FIRST = 1 << 16  # the first number: all have five bytes in msgpack
ID = b"\xce\xff\xff\xff\xff"  # stands in a request where its number goes
LONG = struct.Struct(">Q")
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
IS_LONG, IS_COMMAND = 2, 4  # flags of a frame. Source: ZeroMQ RFC 23, ZMTP 3.0


@dataclass(frozen=True, slots=True)
class FloodPlan:
    """What one process sends."""

    address: str
    model: str
    floats: int  # of each request's one row
    per_s: float
    seconds: float
    slo_ms: float = 100.0
    connections: int = 4
    junk: bool = False


@dataclass(slots=True)
class FloodSeen:
    """What it saw."""

    sent: int = 0
    unsent: int = 0  # there was no room for them in the connection
    unanswered: int = 0
    doubled: int = 0  # answers to what was answered already
    outcomes: dict[str, int] = field(default_factory=dict)  # {ok | status and code: answers}
    ok_ms: list[float] = field(default_factory=list)  # latencies by this process's clock, from the sending
    refused_ms: list[float] = field(default_factory=list)  # the same of rejected requests
    late_ms: list[float] = field(default_factory=list)  # beyond the deadline by the frontend's clock, where it was
    cpu_s: float = 0.0  # that this process took
    wall_s: float = 0.0  # while it sent


class AnswerError(msgspec.Struct):
    """Of an answer."""

    code: str


class FloodAnswer(msgspec.Struct):
    """What is read of an answer."""

    id: int | str | None
    status: str
    latency_ms: float | None = None
    error: AnswerError | None = None


def frame_of(body: bytes, flags: int = 0) -> bytes:
    """The body as ZMTP sends it."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | IS_LONG,)) + LONG.pack(len(body)) + body


def request_of(plan: FloodPlan) -> bytes:
    """The frame of every request, with ID where its number goes."""
    tensor = {"name": "x", "dtype": "float32", "shape": [1, plan.floats], "data": bytes(4 * plan.floats)}
    body: bytes = msgpack.packb(
        {
            "op": "infer", "id": 0xFFFFFFFF, "model": plan.model, "slo_ms": plan.slo_ms, "cache": False,
            "inputs": [tensor],
        }
    )  # fmt: skip
    return frame_of(body)


JUNK_BODIES = (
    b"\xc1",
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    msgpack.packb({"op": "nothing", "id": 1}),
    msgpack.packb({"op": "ping", "id": "x" * 5000}),
    msgpack.packb({"op": "infer", "id": 2, "inputs": []}),
    msgpack.packb({"op": "infer", "id": 3, "model": "nobody", "inputs": []}),
    msgpack.packb({"op": "infer", "id": 4, "model": 5, "inputs": {}}),
    msgpack.packb({str(i): i for i in range(2000)}),
    msgpack.packb({"id": 6, "op": "ping", **{str(i): [i] for i in range(200)}}),
    b"\x91" * 400,
    bytes(range(256)),
)  # undecodable, wrong, unknown, oversized
JUNK = tuple(map(frame_of, JUNK_BODIES))


class FloodConnection:
    """One client's TCP connection, which speaks ZMTP 3.0 as a DEALER does: with the least that this takes."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.connect()

    def connect(self) -> None:
        """It is there, or there anew, and has been answered once."""
        url = urlsplit(self._address)
        assert url.hostname is not None
        assert url.port is not None
        self._out = memoryview(b"")  # did not find room yet
        self._in = b""  # the beginning of a frame
        self.sock = sock = socket.create_connection((url.hostname, url.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(GREETING + frame_of(READY, IS_COMMAND))
        while len(self._in) < len(GREETING):
            self._in += sock.recv(1 << 16)
        self._in = self._in[len(GREETING) :]
        sock.sendall(frame_of(msgpack.packb({"op": "ping", "id": "connected"})))
        while not list(self.frames()):
            pass
        sock.setblocking(False)

    @property
    def waits(self) -> bool:
        """Whether something is not sent yet: then no more may be."""
        return bool(self._out)

    def send(self, data: bytes = b"") -> None:
        """Sends this, or what was not sent yet; what finds no room waits."""
        out = memoryview(data) if data else self._out
        try:
            self._out = out[self.sock.send(out) :]
        except BlockingIOError:
            self._out = out

    def frames(self) -> Iterator[memoryview]:
        """What has arrived, but for commands, of which a PING is answered."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError
        data = self._in + data
        view, at, end = memoryview(data), 0, len(data)
        while at + 9 <= end or (at + 2 <= end and not data[at] & IS_LONG):
            flags = data[at]
            if flags & IS_LONG:
                begin, size = at + 9, LONG.unpack_from(data, at + 1)[0]
            else:
                begin, size = at + 2, data[at + 1]
            if begin + size > end:
                break
            at = begin + size
            if not flags & IS_COMMAND:
                yield view[begin:at]
            elif data[begin : begin + 5] == b"\x04PING":
                self._out = memoryview(bytes(self._out) + frame_of(b"\x04PONG" + data[begin + 7 : at], IS_COMMAND))
        self._in = data[at:]


class Flood:
    """One process's clients."""

    def __init__(self, plan: FloodPlan) -> None:
        self._plan = plan
        self.seen = FloodSeen()
        self._connections = [FloodConnection(plan.address) for _ in range(plan.connections)]
        self._poll = select.poll()
        self._by_descriptor = {connection.sock.fileno(): connection for connection in self._connections}
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.POLLIN)
        request = request_of(plan)
        self._at = request.index(ID) + 1
        self._requests = np.tile(np.frombuffer(request, np.uint8), (BATCH_MAX, 1))
        self._sent_s: list[float] = []  # {number - FIRST: when it was sent; 0 once it is answered}
        self._open = 0
        self._decode = msgspec.msgpack.Decoder(FloodAnswer).decode

    def _again(self, connection: FloodConnection) -> None:
        """The frontend has closed the connection, which is there anew after that. Only junk may bring that about."""
        if not self._plan.junk:
            raise ConnectionResetError
        descriptor = connection.sock.fileno()
        self._poll.unregister(descriptor)
        del self._by_descriptor[descriptor]
        connection.sock.close()
        connection.connect()
        self._by_descriptor[connection.sock.fileno()] = connection
        self._poll.register(connection.sock.fileno(), select.POLLIN)

    def run(self) -> FloodSeen:
        """Sends for its time, and waits for what is not answered then."""
        seen, plan = self.seen, self._plan
        began_cpu_s, began_s = _cpu_s(), time.monotonic()
        ends_s, done = began_s + plan.seconds, 0
        while (now := time.monotonic()) < ends_s:
            due = int((now - began_s) * plan.per_s)
            self._send(due - done, now)
            done = due
            self._receive(ROUND_MS)
        seen.wall_s, seen.cpu_s = time.monotonic() - began_s, _cpu_s() - began_cpu_s
        while time.monotonic() < ends_s + AFTER_S and self._open:
            for connection in self._connections:
                if connection.waits:
                    connection.send()
            self._receive(ROUND_MS)
        seen.unanswered = self._open
        for connection in self._connections:
            connection.sock.close()
        return seen

    def _send(self, count: int, now: float) -> None:
        """Each connection sends its part of so many, unless it has not sent all of the last time."""
        of_each, more = divmod(count, len(self._connections))
        for i, connection in enumerate(self._connections):
            mine = of_each + (i < more)
            try:
                if connection.waits:
                    connection.send()
                sent = 0 if connection.waits else min(mine, BATCH_MAX)
                self.seen.unsent += mine - sent
                if sent:
                    self.seen.sent += sent
                    connection.send(self._junk(sent) if self._plan.junk else self._numbered(sent, now))
            except ConnectionError:
                self._again(connection)
        self._connections.append(self._connections.pop(0))  # what is left over is another one's, the next time

    def _numbered(self, count: int, now: float) -> bytes:
        """Requests that nobody has sent yet."""
        first = FIRST + len(self._sent_s)
        numbers = np.arange(first, first + count, dtype=">u4").view(np.uint8).reshape(count, 4)
        self._requests[:count, self._at : self._at + 4] = numbers
        self._sent_s += [now] * count
        self._open += count
        return self._requests[:count].tobytes()

    def _junk(self, count: int) -> bytes:
        return b"".join(JUNK[i % len(JUNK)] for i in range(self.seen.sent, self.seen.sent + count))

    def _receive(self, patience_ms: int) -> None:
        """Takes answers; waits for some for so long."""
        for descriptor, _ in self._poll.poll(patience_ms):
            now, connection = time.monotonic(), self._by_descriptor[descriptor]
            try:
                for frame in connection.frames():
                    self._note(self._decode(frame), now)
            except ConnectionError:
                self._again(connection)

    def _note(self, answer: FloodAnswer, now: float) -> None:
        seen = self.seen
        outcome = answer.status if answer.error is None else f"{answer.status} {answer.error.code}"
        seen.outcomes[outcome] = seen.outcomes.get(outcome, 0) + 1
        if self._plan.junk or not isinstance(answer.id, int):
            return
        at_s = self._sent_s[answer.id - FIRST]
        if not at_s:
            seen.doubled += 1
            return
        self._sent_s[answer.id - FIRST] = 0.0
        self._open -= 1
        if answer.status == "ok":
            seen.ok_ms.append((now - at_s) * 1e3)
        elif answer.status == "rejected":
            seen.refused_ms.append((now - at_s) * 1e3)
        late_ms = (answer.latency_ms or 0.0) - self._plan.slo_ms
        if late_ms > 0:
            seen.late_ms.append(late_ms)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Runs the plan, once standard input has a line."""
    flood = Flood(FloodPlan(**json.loads(sys.argv[1])))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps(asdict(flood.run())) + "\n")


if __name__ == "__main__":
    main()
