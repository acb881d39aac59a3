"""Clients that send at a given rate, whatever is answered: requests, or junk.

    python -P floods.py PLAN      as a process of its own; imports nothing of gearmesh

PLAN is a FloodPlan as JSON. Prints "ready" once it is connected, and begins when standard input has a line. At the end
of its time, and of a while in which what is open is answered, it prints one line of JSON: FloodSeen.
"""

import json
import resource
import struct
import sys
import time
from dataclasses import asdict, dataclass, field

import msgpack
import msgspec
import zmq

TICK_S = 0.001  # between two looks at what is due
AFTER_S = 3.0  # until what was not answered is given up
BATCH_MAX = 256  # sent, and received, in one go
SEND_MAX, RECEIVE_MAX = 1000, 0  # messages in ZeroMQ; what finds no room is not sent, and counted
ID = b"\xce\xff\xff\xff\xff"  # stands in a request where its number goes
WORD = struct.Struct(">I")


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
    unsent: int = 0  # there was no room for them in ZeroMQ
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


def request_of(plan: FloodPlan) -> tuple[bytes, bytes]:
    """What comes before and behind the number in every request."""
    tensor = {"name": "x", "dtype": "float32", "shape": [1, plan.floats], "data": bytes(4 * plan.floats)}
    body: bytes = msgpack.packb(
        {
            "op": "infer", "id": 0xFFFFFFFF, "model": plan.model, "slo_ms": plan.slo_ms, "cache": False,
            "inputs": [tensor],
        }
    )  # fmt: skip
    head, _, rest = body.partition(ID)
    return head, rest


JUNK = (
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


class Flood:
    """One process's clients."""

    def __init__(self, plan: FloodPlan) -> None:
        self._plan = plan
        self.seen = FloodSeen()
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._socks = [self._connected() for _ in range(plan.connections)]
        self._head, self._rest = request_of(plan)
        self._sent_s: dict[int, float] = {}  # {number: when it was sent} of what is not answered
        self._decode = msgspec.msgpack.Decoder(FloodAnswer).decode
        self._number = 0

    def run(self) -> FloodSeen:
        """Sends for its time, and waits for what is not answered then."""
        seen, plan = self.seen, self._plan
        began_cpu_s, began_s = _cpu_s(), time.monotonic()
        ends_s = began_s + plan.seconds
        while (now := time.monotonic()) < ends_s:
            self._send(min(int((now - began_s) * plan.per_s) - self._number, BATCH_MAX), now)
            if not self._receive(0):
                self._poller.poll(1)
        seen.wall_s, seen.cpu_s = time.monotonic() - began_s, _cpu_s() - began_cpu_s
        while time.monotonic() < ends_s + AFTER_S and self._sent_s:
            self._receive(10)
        seen.unanswered = len(self._sent_s)
        for sock in self._socks:
            sock.close(0)
        self._context.term()
        return seen

    def _connected(self) -> "zmq.Socket[bytes]":
        sock = self._context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDHWM, SEND_MAX)
        sock.setsockopt(zmq.RCVHWM, RECEIVE_MAX)
        sock.connect(self._plan.address)
        sock.send(msgpack.packb({"op": "ping", "id": "connected"}))
        sock.recv()
        self._poller.register(sock, zmq.POLLIN)
        return sock

    def _send(self, count: int, now: float) -> None:
        for _ in range(count):
            self._number += 1
            number = self._number
            junk = self._plan.junk
            body = JUNK[number % len(JUNK)] if junk else b"".join((self._head, b"\xce", WORD.pack(number), self._rest))
            try:
                self._socks[number % len(self._socks)].send(body, zmq.NOBLOCK)
            except zmq.Again:
                self.seen.unsent += 1
                continue
            self.seen.sent += 1
            if not junk:
                self._sent_s[number] = now

    def _receive(self, patience_ms: int) -> bool:
        """Takes answers. Returns whether there were any."""
        readable = self._poller.poll(patience_ms)
        for sock, _ in readable:
            for _ in range(BATCH_MAX):
                try:
                    answer = self._decode(sock.recv(zmq.NOBLOCK))
                except zmq.Again:
                    break
                self._note(answer, time.monotonic())
        return bool(readable)

    def _note(self, answer: FloodAnswer, now: float) -> None:
        seen = self.seen
        outcome = answer.status if answer.error is None else f"{answer.status} {answer.error.code}"
        seen.outcomes[outcome] = seen.outcomes.get(outcome, 0) + 1
        if self._plan.junk:
            return
        at_s = self._sent_s.pop(answer.id, None)  # type: ignore[arg-type]  # of none that was asked, then
        if at_s is None:
            seen.doubled += 1
            return
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
