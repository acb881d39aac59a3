"""The requests of one generator: sends those of its share when they are due, and notes what becomes of them.

An open loop never waits: a request that is sent late has its latency counted from when it was due, and a budget shorter
by the lateness. How long an answer may have lain unread is noted with it, lest the mesh be blamed for a generator that
has too much to do.
"""

import asyncio
import gc
import heapq
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from gearmesh.load.generating.jobs import Progress, Run, StartGenerator, tell
from gearmesh.load.generating.messages import Template, read_answer, templates
from gearmesh.load.generating.port import GeneratorSocket
from gearmesh.load.generating.schedule import Arrival, Arrivals, draws, first_asked, unpacked
from gearmesh.load.generating.unread import Unread
from gearmesh.load.reporting.records import NO_ANSWER, OUTCOMES, Recorder

GRACE_S = 1.0  # a request without an answer is given up so long after its budget; the frontend promises 20 ms
SWEEP_S = 0.25
PROGRESS_S = 0.5
ROWS_MAX = 20_000_000  # requests that one process can record in one phase (60 bytes each)
READS_MAX, SENDS_MAX = 128, 256  # in a row; then the other kind has its turn
CLIENTS_SPREAD_S = 0.01  # the first requests of closed loops are spread over this time
LEAST_SLO_MS = 0.001


@dataclass(frozen=True, slots=True)
class ClosedLoopClient:
    """One client of a closed loop."""

    stream: int
    draws: Iterator[tuple[int, float, float]]  # (model, slo_s, pause after the answer); shared by its group


class SentRequest(NamedTuple):
    """A request without an answer."""

    row: int  # of the recorder
    sent_s: float
    until_s: float  # instant at which it is given up
    client: ClosedLoopClient | None  # None: of an open loop
    pause_s: float  # pause of the client after the answer


class Generator:
    """The requests in flight and the next ones. All instants are seconds since the phase began."""

    def __init__(self, start: StartGenerator) -> None:
        self._loop = asyncio.get_running_loop()
        self._start = start
        self._port = GeneratorSocket(start.addresses, start.keys_dir)
        self._rng = np.random.default_rng(start.seed)
        self._templates: dict[tuple[int, int], list[Template]] = {}  # {(model, rows): one for each distinct input}
        self._number = 0  # of the last request
        self._flights: dict[int, SentRequest] = {}  # {id: request}
        self._inbox: deque[tuple[float, float, bytes]] = deque()  # (when read, longest time unread, answer), up to 128
        self.recorder = Recorder()
        self._counts = [0] * len(OUTCOMES)
        self.stray = 0  # answers without a request
        self.broken = 0  # connections lost in this phase
        self.full = False  # no more requests can be recorded
        self._start_s = self._ends_s = 0.0
        self._late_s = 0.0  # delay of the last request sent
        self._unread = Unread(0.0)
        self._arrivals: Iterator[Arrival] = iter(())
        self._coming: Arrival | None = None  # next of the schedule
        self._pausing: list[
            tuple[float, int, ClosedLoopClient]
        ] = []  # heap: (time of the next request, tie-breaker, client)
        self._ties = 0
        self._timer: asyncio.TimerHandle | None = None  # of the next request
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of the sweep and the progress report, while a phase runs
        self._turning = False  # a turn is scheduled
        self._over: asyncio.Future[None] | None = None

    def connect(self) -> None:
        """Waits until a frontend answers at every address. Raises: TimeoutError."""
        self._port.connect()
        for model in range(len(self._start.targets)):
            self._template(model, self._start.rows, 0)
        self._loop.add_reader(self._port.fd, self._turn)

    def close(self) -> None:
        """The socket is closed."""
        self._loop.remove_reader(self._port.fd)
        self._port.close()

    # -- a phase ------------------------------------------------------------------------------------------------------

    def load(self, run: Run, arrivals: Arrivals) -> None:
        """Prepares the phase, so that it can begin."""
        self.recorder, self._counts, self.stray, self.full = Recorder(), [0] * len(OUTCOMES), 0, False
        self._ends_s = run.seconds
        self._arrivals = unpacked(arrivals)
        self._coming = next(self._arrivals, None)
        for group in run.clients:
            seed = [run.seed, group.stream, group.models[0]]
            client = ClosedLoopClient(group.stream, draws(group, np.random.default_rng(seed)))
            for due_s in first_asked(group.count, CLIENTS_SPREAD_S):
                self._pause(due_s, client)
        gc.collect()
        gc.freeze()

    async def run(self, start_s: float) -> None:
        """Runs the phase until every request is answered or given up. `start_s`: of the monotonic clock."""
        self._start_s = start_s
        self._unread = Unread(self._now())
        self._over = self._loop.create_future()
        self._port.look(time.monotonic())
        broken = self._port.broken
        self._sweep()
        self._tell()
        await self._over
        self._port.look(time.monotonic())
        self.broken = self._port.broken - broken
        for timer in (*self._timers.values(), *([self._timer] if self._timer is not None else [])):
            timer.cancel()

    def _now(self) -> float:
        return time.monotonic() - self._start_s

    def _turn(self) -> None:
        """Reads what has arrived, sends what is due, and sets the timer for the next request."""
        self._turning = False
        if self._over is None or self._over.done():
            self._read_between_phases()
            return
        sent = len(self.recorder)
        more = self._read()
        self._send_due()
        while self._inbox:
            self._answered(*self._inbox.popleft())
            if self._coming is not None and self._coming[0] <= self._now():
                self._send_due()
        if more or len(self.recorder) > sent:
            self._turn_soon()  # a send may consume the edge that announces a message
        self._arm()
        self._unread.end(self._now())

    def _read_between_phases(self) -> None:
        """Discards what arrives now: its requests were given up already."""
        if self._read():
            self._turn_soon()
        self._inbox.clear()

    def _turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        coming = [self._coming[0]] if self._coming is not None else []
        if self._pausing:
            coming.append(self._pausing[0][0])
        if coming:
            self._timer = self._loop.call_at(self._start_s + min(coming), self._turn)
        elif not self._flights:
            assert self._over is not None
            self._over.set_result(None)

    def _send_due(self) -> None:
        """Sends what is due, at most a few hundred requests in a row."""
        now_s = self._now()
        for _ in range(SENDS_MAX):
            if self._coming is not None and self._coming[0] <= now_s:
                due_s, model, slo_s, rows, stream = self._coming
                self._coming = next(self._arrivals, None)
                self._send(due_s, model, slo_s, rows, stream)
            elif self._pausing and self._pausing[0][0] <= now_s:
                due_s, _, client = heapq.heappop(self._pausing)
                if due_s < self._ends_s:
                    self._ask(client, due_s)
            else:
                return
            now_s = self._now()

    def _ask(self, client: ClosedLoopClient, due_s: float) -> None:
        """Sends the next request of a closed loop's client, if another one can be recorded."""
        if len(self.recorder) >= ROWS_MAX:
            self.full = True
            return
        model, slo_s, pause_s = next(client.draws)
        self._send(due_s, model, slo_s, self._start.rows, client.stream, client, pause_s)

    def _send(
        self,
        due_s: float,
        model: int,
        slo_s: float,
        rows: int,
        stream: int,
        client: ClosedLoopClient | None = None,
        pause_s: float = 0.0,
    ) -> None:
        self._number += 1
        template = self._template(model, rows, self._number)
        now_s = self._now()
        self._late_s = now_s - due_s
        row = self.recorder.sent(due_s, now_s, slo_s, model, stream, template.size)
        head = template.encode(self._number, max(LEAST_SLO_MS, (slo_s - self._late_s) * 1e3))
        if self._port.send(head, template.frames):
            self._flights[self._number] = SentRequest(row, now_s, now_s + slo_s + GRACE_S, client, pause_s)
            return
        self.recorder.not_sent(row)
        self._counts[NO_ANSWER] += 1
        if client is not None:
            self._pause(now_s + GRACE_S, client)

    def _template(self, model: int, rows: int, number: int) -> Template:
        variants = self._templates.get((model, rows))
        if variants is None:
            variants = self._templates[(model, rows)] = templates(
                self._start.targets[model], rows, self._start.distinct_inputs, self._start.sizes, self._rng,
                cache=self._start.cache,
            )  # fmt: skip
        return variants[number % len(variants)]

    # -- answers ------------------------------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Takes in some of what has arrived. Returns True if there may be more."""
        self._unread.begin(self._now())
        for _ in range(READS_MAX):
            body = self._port.receive()
            now_s = self._now()
            if body is None:
                self._unread.nothing_left(now_s)
                return False
            self._inbox.append((now_s, self._unread.at_most_s(now_s), body))
        return True

    def _answered(self, now_s: float, unread_s: float, body: bytes) -> None:
        try:
            answer = read_answer(body)
        except msgspec.MsgspecError:
            self.stray += 1
            return
        flight = self._flights.pop(answer.id, None) if isinstance(answer.id, int) else None
        if flight is None:
            self.stray += 1
            return
        outcome = self.recorder.answered(
            flight.row, now_s, answer.status,
            code=answer.error.code if answer.error is not None else "", unread_ms=unread_s * 1e3,
            predicted_ms=answer.predicted_ms, latency_ms=answer.latency_ms, batch=answer.batch_size, cold=answer.cold,
        )  # fmt: skip
        self._counts[outcome] += 1
        if flight.client is None:
            return
        pause_s = flight.pause_s
        if self._start.back_off and answer.error is not None:
            pause_s += (answer.error.retry_after_ms or 0.0) / 1e3
        if pause_s > 0:
            self._pause(now_s + pause_s, flight.client)
        elif (asks_s := self._now()) < self._ends_s:
            self._ask(flight.client, asks_s)

    def _pause(self, until_s: float, client: ClosedLoopClient) -> None:
        """The client of a closed loop pauses, then sends its next request."""
        self._ties += 1
        heapq.heappush(self._pausing, (until_s, self._ties, client))

    # -- periodically --------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Gives up requests that will not be answered any more: too late, or their frontend is gone."""
        now_s = self._now()
        self._port.look(time.monotonic())
        down_s = self._port.down_s
        gone = down_s is not None and down_s - self._start_s + GRACE_S <= now_s
        for number, flight in list(self._flights.items()):
            if flight.until_s > now_s and not (gone and flight.sent_s + GRACE_S <= now_s):
                continue
            del self._flights[number]
            self._counts[NO_ANSWER] += 1
            if flight.client is not None:
                self._pause(now_s + flight.pause_s, flight.client)
        self._turn_soon()
        self._timers["sweep"] = self._loop.call_later(SWEEP_S, self._sweep)

    def _tell(self) -> None:
        tell(Progress(len(self.recorder), list(self._counts), len(self._flights), self._late_s * 1e3))
        self._timers["tell"] = self._loop.call_later(PROGRESS_S, self._tell)
