"""The generator process: what it reports, and what it does if the mesh is not there."""

import asyncio
import threading

import msgspec
import pytest
import zmq

from gearmesh.load.generating import generator, schedule
from gearmesh.load.generating.generator import Generator
from gearmesh.load.generating.jobs import Run, StartGenerator
from gearmesh.load.generating.port import GeneratorSocket
from gearmesh.load.generating.schedule import open_arrivals, unpacked
from gearmesh.load.generating.unread import Unread
from gearmesh.load.plan import LoadPhase, LoadTarget, ModelInput, Open, RequestStream, Slo
from gearmesh.load.reporting.records import NO_ANSWER
from gearmesh.simulation.parts import Workload
from tests.loops import on_loop
from tests.mesh.net.processes import Processes, processes

TARGET = LoadTarget("a", (ModelInput("x", "float32", (4,)),))


class Frontend:
    """Answers each ping from a thread of its own until the block ends; then it is silent, and may be closed."""

    def __init__(self, made: Processes) -> None:
        self.sock = made.bare(zmq.ROUTER)
        self.address = f"tcp://127.0.0.1:{self.sock.bind_to_random_port('tcp://127.0.0.1')}"
        self._thread = threading.Thread(target=self._answer)

    def __enter__(self) -> "Frontend":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _answer(self) -> None:
        client, _ = self.sock.recv_multipart()
        self.sock.send_multipart([client, msgspec.msgpack.encode({"id": 0, "status": "ok"})])


def test_an_answer_lay_unread_no_longer_than_the_generator_was_busy():
    unread = Unread(0.0)
    unread.begin(5.0)  # the loop had waited until the answer came
    assert unread.at_most_s(5.001) == pytest.approx(0.001)
    unread.nothing_left(5.002)
    unread.end(5.010)  # it may have arrived at 5.002
    unread.begin(5.011)
    assert unread.at_most_s(5.012) == pytest.approx(0.009)
    unread.end(5.050)  # it was not the last message
    unread.begin(5.050)
    assert unread.at_most_s(5.051) == pytest.approx(0.049)
    unread.nothing_left(5.060)
    unread.end(5.060)
    unread.begin(9.0)
    assert unread.at_most_s(9.0) == 0


def test_a_schedule_is_unpacked_in_order_whatever_its_length(monkeypatch):
    monkeypatch.setattr(schedule, "ARRIVALS_BLOCK", 7)
    phase = LoadPhase("p", 1.0, (RequestStream("s", ("a",), Open(Workload("poisson", 100.0)), Slo((50.0,))),))
    arrivals = open_arrivals(phase, {"a": 0}, {"a": TARGET}, 0)
    found = list(unpacked(arrivals))
    assert [arrival[0] for arrival in found] == arrivals.due_s.tolist()
    assert set(found) == {(arrival[0], 0, 0.05, 1, 0) for arrival in found}


@on_loop
async def test_addresses_where_nobody_answers_are_named():
    async with processes() as made:
        with Frontend(made) as frontend:
            port = GeneratorSocket([frontend.address, "tcp://127.0.0.1:9"])
            with pytest.raises(TimeoutError, match=r"tcp://127\.0\.0\.1:9\b"):
                port.connect(0.3)
            port.close()


@on_loop
async def test_a_request_for_which_there_is_no_room_is_said_not_waited_for(monkeypatch):
    monkeypatch.setattr("gearmesh.load.generating.port.QUEUED_MAX", 10)
    async with processes() as made:
        with Frontend(made) as frontend:
            port = GeneratorSocket([frontend.address])
            port.connect()
        frontend.sock.close(0)
        sent = 0
        while port.send(b"x" * 1000):
            sent += 1
        assert sent >= 10
        port.close()


@on_loop
async def test_what_a_frontend_took_with_it_is_given_up_long_before_its_budget_ends(monkeypatch):
    monkeypatch.setattr(generator, "GRACE_S", 0.02)
    monkeypatch.setattr(generator, "SWEEP_S", 0.01)
    async with processes() as made:
        with Frontend(made) as frontend:
            asking = Generator(StartGenerator([frontend.address], [TARGET], 1, False, 1, 0))
            asking.connect()
        phase = LoadPhase("p", 0.01, (RequestStream("s", ("a",), Open(Workload("fixed", 1000.0)), Slo((3.6e6,))),))
        arrivals = open_arrivals(phase, {"a": 0}, {"a": TARGET}, 0)
        asking.load(Run("", [], 0.01, 0, ""), arrivals)
        over = asyncio.ensure_future(asking.run(asyncio.get_running_loop().time()))
        await asyncio.to_thread(frontend.sock.recv_multipart)
        frontend.sock.close(0)
        await over
        assert asking.broken == 1
        assert asking.recorder.records()["outcome"].tolist() == [NO_ANSWER] * len(arrivals)
        asking.close()
