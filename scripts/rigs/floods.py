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
    late_ms: dict[str, list[float]] = field(
        default_factory=dict
    )  # {outcome: beyond the deadline by the frontend's clock}, where it was
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


def flood(plan: FloodPlan) -> FloodSeen:
    """Sends for its time."""
    context = zmq.Context()
    socks = [context.socket(zmq.DEALER) for _ in range(plan.connections)]
    poller = zmq.Poller()
    for sock in socks:
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDHWM, SEND_MAX)
        sock.setsockopt(zmq.RCVHWM, RECEIVE_MAX)
        sock.connect(plan.address)
        sock.send(msgpack.packb({"op": "ping", "id": "connected"}))
        sock.recv()
        poller.register(sock, zmq.POLLIN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    seen = FloodSeen()
    head, rest = request_of(plan)
    sent_s: dict[int, float] = {}
    decode = msgspec.msgpack.Decoder(FloodAnswer).decode
    began_cpu = _cpu_s()
    began_s = time.monotonic()
    ends_s = began_s + plan.seconds
    number = 0

    def send_due(now: float) -> None:
        nonlocal number
        due = min(int((now - began_s) * plan.per_s) - number, BATCH_MAX)
        for _ in range(due):
            number += 1
            body = JUNK[number % len(JUNK)] if plan.junk else b"".join((head, b"\xce", WORD.pack(number), rest))
            try:
                socks[number % len(socks)].send(body, zmq.NOBLOCK)
            except zmq.Again:
                seen.unsent += 1
                continue
            seen.sent += 1
            if not plan.junk:
                sent_s[number] = now

    def receive(sock: "zmq.Socket[bytes]") -> None:
        for _ in range(BATCH_MAX):
            try:
                answer = decode(sock.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            note(answer, time.monotonic())

    def note(answer: FloodAnswer, now: float) -> None:
        outcome = answer.status if answer.error is None else f"{answer.status} {answer.error.code}"
        seen.outcomes[outcome] = seen.outcomes.get(outcome, 0) + 1
        if plan.junk:
            return
        at_s = sent_s.pop(answer.id, None)  # type: ignore[arg-type]  # of none that was asked, then
        if at_s is None:
            seen.doubled += 1
            return
        if answer.status == "ok":
            seen.ok_ms.append((now - at_s) * 1e3)
        elif answer.status == "rejected":
            seen.refused_ms.append((now - at_s) * 1e3)
        late_ms = (answer.latency_ms or 0.0) - plan.slo_ms
        if late_ms > 0:
            seen.late_ms.setdefault(outcome, []).append(late_ms)

    while (now := time.monotonic()) < ends_s:
        send_due(now)
        readable = poller.poll(0)
        for sock, _ in readable:
            receive(sock)
        if not readable:
            poller.poll(1)
    seen.wall_s = time.monotonic() - began_s
    seen.cpu_s = _cpu_s() - began_cpu
    while time.monotonic() < ends_s + AFTER_S and (sent_s or plan.junk):
        for sock, _ in poller.poll(10):
            receive(sock)
        if plan.junk:
            break
    seen.unanswered = len(sent_s)
    for sock in socks:
        sock.close(0)
    context.term()
    return seen


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(flood(FloodPlan(**json.loads(sys.argv[1]))))) + "\n")
