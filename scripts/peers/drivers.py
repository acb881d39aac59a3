"""Drives a server over HTTP, or gearmesh over its own protocol, with the same closed and open loops.

Callbacks only, one request template, on uvloop; so the client costs about the same for every system.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from gearmesh.load.generating.messages import Template, read_answer
from gearmesh.telemetry.machine import quantile

DRAIN_S = 10.0  # after the last request is due; what is unanswered then is given up
Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Samples:
    """The results of one run; latencies count from when requests were due."""

    seconds: float
    sent: int = 0
    ok_s: list[float] = field(default_factory=list)  # latencies of requests answered ok
    ok_numbers: list[int] = field(default_factory=list)  # which these were
    first: int = 1  # number of the first request
    refused_s: list[float] = field(default_factory=list)  # from sending to the refusal
    failed: int = 0  # other answers, or none
    late_s: list[float] = field(default_factory=list)  # delays of the client's own sending

    def summary(self, slos_ms: tuple[float, ...]) -> dict[str, Any]:
        """Rates per second over the run, quantiles in ms (None if there are too few values), shares in time."""
        latencies, refused, late = sorted(self.ok_s), sorted(self.refused_s), sorted(self.late_s)

        def ms(values: list[float], share: float) -> float | None:
            found = quantile(values, share)
            return None if found is None else found * 1e3

        return {
            "n": self.sent,
            "ok": len(latencies),
            "refused": len(refused),
            "failed": self.failed,
            "done_per_s": len(latencies) / self.seconds,
            **{f"p{name}_ms": ms(latencies, share) for name, share in (("50", 0.5), ("99", 0.99), ("999", 0.999))},
            "refused_p50_ms": ms(refused, 0.5),
            "refused_p99_ms": ms(refused, 0.99),
            "late_p99_ms": ms(late, 0.99),
            "goodput": {
                f"{slo:g}": {
                    "share": sum(s * 1e3 <= slo for s in latencies) / max(1, self.sent),
                    "per_s": sum(s * 1e3 <= slo for s in latencies) / self.seconds,
                }
                for slo in slos_ms
            },
        }


class Driver:
    """The loops; a subclass sends the requests."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.slo_ms = 1000.0
        self._flights: dict[int, tuple[float, float]] = {}  # {number: (due, sent)}
        self._number = 0
        self._samples = Samples(0.0)
        self._again_until_s = 0.0  # closed loop: an answer before this instant is followed by another request
        self._due: deque[float] = deque()  # open loop: times of the requests still to be sent
        self._pausing = 0  # closed loop: clients that pause before their next request
        self._over: asyncio.Future[None] | None = None
        self.on_body: Callable[[bytes], None] | None = None  # gets the body of every answer, if answers are checked

    async def closed(self, in_flight: int, seconds: float, slo_ms: float) -> Samples:
        """Keeps this many requests in flight for this time."""
        now = self._begin(seconds, slo_ms)
        self._again_until_s = now + seconds
        for _ in range(in_flight):
            self._ask(time.perf_counter())
        return await self._end(seconds)

    async def open(self, due_s: Floats, seconds: float, slo_ms: float) -> Samples:
        """Sends requests at these times from now on, regardless of the server."""
        now = self._begin(seconds, slo_ms)
        self._again_until_s = 0.0
        self._due = deque((due_s + now).tolist())
        self._send_due()
        return await self._end(seconds)

    def send(self, number: int) -> None:
        """Sends the request of that number; implemented by a subclass."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the sockets; implemented by a subclass."""
        raise NotImplementedError

    def answered(self, number: int, status: str, pause_s: float = 0.0) -> None:
        """Called by a subclass with the answer: ok, rejected, or anything else.

        `pause_s`: before the client's next request.
        """
        flight = self._flights.pop(number, None)
        if flight is None:
            return
        due, sent = flight
        now = time.perf_counter()
        if status == "ok":
            self._samples.ok_s.append(now - due)
            self._samples.ok_numbers.append(number)
        elif status == "rejected":
            self._samples.refused_s.append(now - sent)
        else:
            self._samples.failed += 1
        if now + pause_s < self._again_until_s:
            if pause_s > 0:
                self._pausing += 1
                self.loop.call_later(pause_s, self._resume)
            else:
                self._ask(now)
        elif (
            not self._flights
            and not self._due
            and not self._pausing
            and self._over is not None
            and not self._over.done()
        ):
            self._over.set_result(None)

    def _resume(self) -> None:
        self._pausing -= 1
        self._ask(time.perf_counter())

    def wanted(self, number: int) -> bool:
        """Whether the request is still waiting for its answer."""
        return number in self._flights

    def _begin(self, seconds: float, slo_ms: float) -> float:
        self._samples, self.slo_ms = Samples(seconds, first=self._number + 1), slo_ms
        self._flights.clear()
        self._due.clear()
        self._over = self.loop.create_future()
        return time.perf_counter()

    async def _end(self, seconds: float) -> Samples:
        assert self._over is not None
        timer = self.loop.call_later(seconds + DRAIN_S, self._give_up, self._over)
        await self._over
        timer.cancel()
        self._samples.failed += len(self._flights)
        self._flights.clear()
        return self._samples

    def _give_up(self, over: "asyncio.Future[None]") -> None:
        self._samples.failed += len(self._due)
        self._samples.sent += len(self._due)
        self._due.clear()
        if not over.done():
            over.set_result(None)

    def _ask(self, due: float) -> None:
        self._number += 1
        now = time.perf_counter()
        self._flights[self._number] = (due, now)
        self._samples.sent += 1
        self._samples.late_s.append(now - due)
        self.send(self._number)

    def _send_due(self) -> None:
        now = time.perf_counter()
        while self._due and self._due[0] <= now:
            self._ask(self._due.popleft())
            now = time.perf_counter()
        if self._due:
            self.loop.call_later(self._due[0] - now, self._send_due)


class MeshDriver(Driver):
    """Drives gearmesh over one DEALER socket."""

    def __init__(self, address: str, *templates: Template, back_off: bool = False) -> None:
        """`templates`: of the requests, in turn; none of their inputs is so large that it needs a frame of its own.

        `back_off`: a refused client waits for the time in the refusal; otherwise it sends the next one at once.
        """
        super().__init__()
        self._back_off = back_off
        self._templates = templates
        self._context = zmq.Context()
        self._sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._sock.setsockopt(zmq.LINGER, 0)
        self._sock.setsockopt(zmq.SNDHWM, 100_000)
        self._sock.setsockopt(zmq.RCVHWM, 100_000)
        self._sock.connect(address)
        self._fd = int(self._sock.getsockopt(zmq.FD))
        self.loop.add_reader(self._fd, self._readable)
        self._scheduled = False

    def send(self, number: int) -> None:
        """Sends the request of that number."""
        template = self._templates[number % len(self._templates)]
        self._sock.send(template.encode(number, self.slo_ms), zmq.NOBLOCK)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._readable)

    def close(self) -> None:
        """Closes the socket."""
        self.loop.remove_reader(self._fd)
        self._sock.close(0)
        self._context.term()

    def _readable(self) -> None:
        self._scheduled = False
        while True:
            try:
                body = self._sock.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            answer = read_answer(body)
            if self.on_body is not None:
                self.on_body(body)
            if isinstance(answer.id, int):
                told_ms = answer.error.retry_after_ms if self._back_off and answer.error is not None else None
                self.answered(answer.id, answer.status, (told_ms or 0.0) / 1e3)
