"""One generator process: sends the requests of its share when they are due, and notes what becomes of them.

    python -m scripts.load.generator      (started by `gearmesh load`; jobs.py says what goes over its pipes)

An open loop never waits: a request that is sent late has its latency counted from when it was due, and a budget shorter
by the lateness. The loop waits by select(), whose time-outs have microseconds where those of epoll and uvloop have
milliseconds.
"""

import asyncio
import gc
import heapq
import selectors
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import zmq

from broker.keys import Keys
from scripts.load.jobs import (
    Broken,
    Finished,
    FromCommand,
    FromGenerator,
    Progress,
    Ready,
    Run,
    Start,
    read_arrivals,
    write_records,
)
from scripts.load.messages import Template, random_inputs, read_answer
from scripts.load.records import NO_ANSWER, OUTCOMES, Recorder
from scripts.load.schedule import Arrivals, draws, first_asked

GRACE_S = 1.0  # after its budget a request without an answer is given up; the frontend promises 20 ms
SWEEP_S = 0.25
PROGRESS_S = 0.5
CONNECT_S = 5.0
ROWS_MAX = 20_000_000  # requests that one process can note in one phase (60 bytes each)
CLIENTS_SPREAD_S = 0.01  # clients of closed loops ask for the first time spread over this
LEAST_SLO_MS = 0.001


@dataclass(frozen=True, slots=True)
class Client:
    """One client of a closed loop."""

    stream: int
    draws: Iterator[tuple[int, float, float]]  # (model, slo_s, pause after the answer); shared with others of its group


class Generator:
    """The socket, and the requests in flight on it."""

    def __init__(self, start: Start) -> None:
        self._loop = asyncio.get_running_loop()
        self._start = start
        self._context = zmq.Context()
        self._sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.SNDHWM, 1_000_000), (zmq.RCVHWM, 1_000_000)):
            self._sock.setsockopt(option, value)
        if start.keys_dir:
            keys = Keys.read(Path(start.keys_dir))
            self._sock.setsockopt(zmq.CURVE_SERVERKEY, keys.public)
            self._sock.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
            self._sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        for address in start.addresses:
            self._sock.connect(address)
        self._fd = int(self._sock.getsockopt(zmq.FD))
        self._rng = np.random.default_rng(start.seed)
        self._templates: dict[tuple[int, int], list[Template]] = {}  # {(model, rows): one for each distinct input}
        self._number = 0  # of the last request
        self._flights: dict[
            int, tuple[int, float, Client | None, float]
        ] = {}  # {id: (row, given up at, client, pause)}
        self._recorder = Recorder()
        self._counts = [0] * len(OUTCOMES)
        self._stray = 0
        self._start_s = self._ends_s = 0.0
        self._late_s = 0.0
        self._arrivals: list[tuple[float, int, float, int, int]] = []  # (due_s, model, slo_s, rows, stream)
        self._next = 0
        self._pausing: list[tuple[float, int, Client]] = []  # heap: (asks next at, tie, client)
        self._ties = 0
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] | None = None
        self._checking = False

    async def connect(self) -> None:
        """Somebody answers. Raises: TimeoutError."""
        self._sock.send(msgspec.msgpack.encode({"op": "ping", "id": 0}))
        ends_s = time.monotonic() + CONNECT_S
        while not self._sock.poll(50):
            if time.monotonic() > ends_s:
                raise TimeoutError(f"nobody answers at {', '.join(self._start.addresses)} within {CONNECT_S:g} s")
        self._sock.recv_multipart()
        for model in range(len(self._start.targets)):
            self._template(model, self._start.rows, 0)
        self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """The socket is closed."""
        self._loop.remove_reader(self._fd)
        self._sock.close(0)
        self._context.term()

    # -- a phase ------------------------------------------------------------------------------------------------------

    async def run(self, run: Run, arrivals: Arrivals) -> None:
        """The phase is over: everything was answered, or given up."""
        self._recorder, self._counts, self._stray = Recorder(), [0] * len(OUTCOMES), 0
        self._start_s, self._ends_s = run.start_s, run.seconds
        columns = (arrivals.due_s, arrivals.model, arrivals.slo_s, arrivals.rows, arrivals.stream)
        self._arrivals = list(zip(*(column.tolist() for column in columns), strict=True))
        self._next = 0
        for group in run.clients:
            client = Client(
                group.stream, draws(group, np.random.default_rng([run.seed, group.stream, group.models[0]]))
            )
            for due_s in first_asked(group.count, CLIENTS_SPREAD_S):
                self._pause(due_s, client)
        self._over = self._loop.create_future()
        gc.collect()
        gc.freeze()
        self._sweep()
        self._tell()
        self._turn()
        await self._over
        if self._timer is not None:
            self._timer.cancel()

    @property
    def results(self) -> Recorder:
        """What became of the requests of the phase."""
        return self._recorder

    @property
    def stray(self) -> int:
        """Answers that nobody waited for."""
        return self._stray

    def _turn(self) -> None:
        """Sends what is due, and sets the timer for what comes next."""
        sent = len(self._recorder)
        now_s = time.monotonic() - self._start_s
        while self._next < len(self._arrivals) and self._arrivals[self._next][0] <= now_s:
            due_s, model, slo_s, rows, stream = self._arrivals[self._next]
            self._next += 1
            self._send(due_s, model, slo_s, rows, stream)
            now_s = time.monotonic() - self._start_s
        while self._pausing and self._pausing[0][0] <= now_s:
            due_s, _, client = heapq.heappop(self._pausing)
            if due_s < self._ends_s and len(self._recorder) < ROWS_MAX:
                model, slo_s, pause_s = next(client.draws)
                self._send(due_s, model, slo_s, self._start.rows, client.stream, client, pause_s)
        if len(self._recorder) > sent:
            self._check_soon()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        coming = [self._arrivals[self._next][0]] if self._next < len(self._arrivals) else []
        if self._pausing:
            coming.append(self._pausing[0][0])
        if coming:
            self._timer = self._loop.call_at(self._start_s + min(coming), self._turn)
        elif not self._flights and self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _send(
        self,
        due_s: float,
        model: int,
        slo_s: float,
        rows: int,
        stream: int,
        client: Client | None = None,
        pause_s: float = 0.0,
    ) -> None:
        self._number += 1
        template = self._template(model, rows, self._number)
        now_s = time.monotonic() - self._start_s
        self._late_s = now_s - due_s
        row = self._recorder.sent(due_s, now_s, slo_s, model, stream)
        self._flights[self._number] = (row, now_s + slo_s + GRACE_S, client, pause_s)
        head = template.encode(self._number, max(LEAST_SLO_MS, (slo_s - self._late_s) * 1e3))
        if template.frames:
            self._sock.send(head, zmq.SNDMORE | zmq.NOBLOCK)
            self._sock.send_multipart(template.frames, zmq.NOBLOCK, copy=False)
        else:
            self._sock.send(head, zmq.NOBLOCK)

    def _template(self, model: int, rows: int, number: int) -> Template:
        variants = self._templates.get((model, rows))
        if variants is None:
            target = self._start.targets[model]
            variants = [
                Template(target, random_inputs(target, rows, self._rng), cache=self._start.cache)
                for _ in range(self._start.distinct_inputs)
            ]
            self._templates[(model, rows)] = variants
        return variants[number % len(variants)]

    # -- answers ------------------------------------------------------------------------------------------------------

    def _check_soon(self) -> None:
        """A send may consume the edge that says there is something to read."""
        if not self._checking:
            self._checking = True
            self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        self._checking = False
        read = False
        while True:
            try:
                parts = self._sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._answered(parts[0], time.monotonic() - self._start_s)
            read = True
            if self._next < len(self._arrivals) and self._arrivals[self._next][0] <= time.monotonic() - self._start_s:
                self._check_soon()  # sending comes first: the loop is open
                break
        if read:
            self._turn()

    def _answered(self, body: bytes, now_s: float) -> None:
        try:
            answer = read_answer(body)
        except msgspec.MsgspecError:
            self._stray += 1
            return
        flight = self._flights.pop(answer.id, None) if isinstance(answer.id, int) else None
        if flight is None:
            self._stray += 1
            return
        row, _, client, pause_s = flight
        outcome = self._recorder.answered(
            row, now_s, answer.status,
            code=answer.error.code if answer.error is not None else "",
            predicted_ms=answer.predicted_ms, latency_ms=answer.latency_ms, batch=answer.batch_size, cold=answer.cold,
        )  # fmt: skip
        self._counts[outcome] += 1
        if client is None:
            return
        if self._start.back_off and answer.error is not None:
            pause_s += (answer.error.retry_after_ms or 0.0) / 1e3
        if pause_s > 0 or now_s >= self._ends_s:
            self._pause(now_s + pause_s, client)
        elif len(self._recorder) < ROWS_MAX:
            model, slo_s, pause_s = next(client.draws)
            self._send(now_s, model, slo_s, self._start.rows, client.stream, client, pause_s)
            self._check_soon()

    def _pause(self, until_s: float, client: Client) -> None:
        """The client of a closed loop thinks, then asks again."""
        self._ties += 1
        heapq.heappush(self._pausing, (until_s, self._ties, client))

    # -- now and again ------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Gives up what will not be answered any more."""
        now_s = time.monotonic() - self._start_s
        for number in [number for number, flight in self._flights.items() if flight[1] <= now_s]:
            _, _, client, pause_s = self._flights.pop(number)
            self._counts[NO_ANSWER] += 1
            if client is not None:
                self._pause(now_s + pause_s, client)
        if self._over is not None and not self._over.done():
            self._turn()
            self._loop.call_later(SWEEP_S, self._sweep)

    def _tell(self) -> None:
        if self._over is not None and not self._over.done():
            tell(Progress(len(self._recorder), list(self._counts), len(self._flights), self._late_s * 1e3))
            self._loop.call_later(PROGRESS_S, self._tell)


def tell(message: FromGenerator) -> None:
    """One line to the command."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 30)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    decoder = msgspec.json.Decoder(FromCommand)
    generator: Generator | None = None
    try:
        while line := await reader.readline():
            message = decoder.decode(line)
            if isinstance(message, Start):
                generator = Generator(message)
                await generator.connect()
                tell(Ready())
                continue
            assert generator is not None
            began_s = time.process_time()
            await generator.run(message, read_arrivals(Path(message.arrivals)))
            write_records(generator.results.records(), Path(message.results))
            tell(Finished(list(generator.results.codes), time.process_time() - began_s, generator.stray))
    except (TimeoutError, OSError, ValueError, zmq.ZMQError) as error:
        tell(Broken(str(error)))
    finally:
        if generator is not None:
            generator.close()


def main() -> None:
    """Serves its pipes until they are closed."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
