"""frontend/service.py: a real frontend and a real broker; the controller and the worker do as a test tells them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import zmq

from broker import wire
from broker.links import Link
from frontend.client import AsyncClient, Failed, Invalid, Prediction, Rejected, TimedOut
from frontend.reports import describe_models
from frontend.service import FrontendService
from tests.broker.brokers import Broker, Caller, package
from tests.broker.processes import Listening, Processes, processes
from tests.loops import Told, on_loop

QUICK = {"heartbeat_ms": 20.0, "silence_ms_max": 500.0, "cache_mb": 0}
FROM_RESULTS: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.FromResults])
SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, 4)),),
    batch_max=8,
    slo_ms=5000.0,
    labels=("cat", "dog"),
    batch_sizes=(1, 8),
)
ROW = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)


class Controller:
    """A controller that only keeps what it is sent."""

    def __init__(self, made: Processes, broker: Broker, name: str) -> None:
        self.name = name
        runtime = made.runtime()
        self.listening = Listening(runtime, "control")
        self.caller = Caller(runtime, broker.addresses, name)
        endpoints = {"control": self.listening.addresses}
        member = wire.Member(id=name, role="controller", host="here", endpoints=endpoints)
        self.caller.link.send(wire.Register(member=member))

    @property
    def frontend(self) -> str:
        """The frontend that called first."""
        return str(self.listening.mail.items[0].peer)

    def send(self, *messages: Any) -> None:
        for message in messages:
            assert self.listening.port.send(self.frontend, message)

    def report(self, ref: str) -> None:
        """The version is prepared, and served here."""
        self.caller.link.send(wire.PrepareReport(ref=ref, ok=True, spec=SPEC))

    async def hello(self) -> wire.FrontendHello:
        hello: wire.FrontendHello = (await self.listening.messages(1))[0]
        return hello

    def of(self, kind: Any) -> list[Any]:
        """All messages of this kind that came."""
        return [message for mail in self.listening.mail.items for message in mail.messages if isinstance(message, kind)]

    async def wait(self, kind: Any, number: int) -> list[Any]:
        """All messages of this kind, once there are so many."""
        await self.listening.mail.until(lambda _: len(self.of(kind)) >= number)
        return self.of(kind)

    def leave(self) -> None:
        """Nothing is left of it, without a word."""
        self.listening.port.close()
        self.caller.link.close()


class Mesh:
    """A frontend with model m in version 1, which controller-1 serves; a client; and a worker."""

    def __init__(self, made: Processes, folder: Path, **settings: Any) -> None:
        package(folder / "repository", "m", "1")
        self.made = made
        self.broker = Broker(made, folder)
        self.controller = Controller(made, self.broker, "controller-1")
        self.runtime = made.runtime(frontend_port=0, **settings)
        self.frontend = FrontendService(self.runtime, self.broker.addresses)
        self.frontend.start()
        self.address = self.frontend._registrar.member.endpoints["clients"][0]  # type: ignore[union-attr]
        self.client = AsyncClient(self.address)
        self._link: Link[Any, Any] | None = None

    async def begin(self) -> None:
        hello = await self.controller.hello()
        self._link = Link(
            self.made.runtime().transport, "gpu_worker-1", hello.member, FROM_RESULTS, Told(), Told(), watch=False
        )
        self._link.call(hello.results)
        self.controller.report("m:1")
        self.controller.send(wire.Serving(added=("m:1",), removed=(), reset=True, controller="controller-1"))
        await self.until(lambda: self.frontend._targets.bound and self.ready())
        await self.client.models()

    def ready(self) -> bool:
        """What `models` says of the first model."""
        return bool(describe_models(self.frontend._targets.models, self.frontend._controllers)[0]["ready"])

    async def until(self, holds: Any) -> None:
        """Returns after the frontend's turn in which it came to hold."""
        turns = Told()
        self.runtime.hub.on_turn(turns)
        self.runtime.hub.schedule_turn()
        await turns.until(lambda _: holds())

    def finish(self, *submits: wire.Submit, framed: bool = False, **fields: Any) -> None:
        """The worker sends what these ask for: twice the input."""
        answers, tensors = [], []
        for submit in submits:
            x = np.frombuffer(submit.inline[0], np.float32) if submit.inline else np.zeros(4 * submit.rows, np.float32)
            y = (x * 2).tobytes()
            tensors += [y] if framed else []
            answer = wire.Answer(
                request=submit.request,
                attempt=submit.attempt,
                rows=submit.rows,
                predicted_s=0.25,
                inline=() if framed else (memoryview(y),),
                frames=int(framed),
            )
            answers.append(msgspec.structs.replace(answer, **fields))
        self.outputs(*answers, frames=tensors)

    def outputs(self, *answers: wire.Answer, frames: Any = ()) -> None:
        assert self._link is not None
        outputs = wire.Outputs(ref="m:1", device="cpu:0", batch=4, exec_s=0.001, answers=answers)
        self._link.send(outputs, frames)

    def close(self) -> None:
        self.client.close()
        self.frontend.stop()
        self.broker.stop()


@contextlib.asynccontextmanager
async def mesh(folder: Path, **settings: Any) -> AsyncIterator[Mesh]:
    async with processes(**QUICK) as made:
        begun = Mesh(made, folder, **settings)
        try:
            await begun.begin()
            yield begun
        finally:
            begun.close()


# -- one request ------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_request_goes_to_the_controller_and_its_outputs_to_the_client(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW, slo_ms=4000, weight=2.0)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert (submit.attempt, submit.ref, submit.rows, submit.weight, submit.frames) == (0, "m:1", 1, 2.0, 0)
        assert [bytes(data) for data in submit.inline] == [ROW.tobytes()]
        assert 3.0 < submit.budget_s <= 4.0
        at.finish(submit)
        prediction = await future
        assert isinstance(prediction, Prediction)
        np.testing.assert_array_equal(prediction["y"], ROW * 2, strict=True)
        assert (prediction.model, prediction.version, prediction.batch_size) == ("m", "1", 4)
        assert (prediction.predicted_ms, prediction.device) == (250.0, "cpu:0")
        assert 0 < prediction.latency_ms < 4000
        assert prediction.answer["cached"] is False


@on_loop
async def test_the_models_own_budget_counts_where_none_is_given(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.client.submit("m", ROW)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert 4.0 < submit.budget_s <= 5.0


@pytest.mark.parametrize("rows", [8, 2048, 2049])
@on_loop
async def test_tensors_of_more_than_32_kib_travel_as_frames_between_services(rows: int, tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.client.submit("m", np.zeros((8, 4), np.float32))
        spec = msgspec.structs.replace(SPEC, batch_max=4096)
        at.controller.caller.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=spec))
        await at.until(lambda: at.frontend._targets.bound["m"].spec.batch_max == 4096)
        at.client.submit("m", np.ones((rows, 4), np.float32))
        _, submit = await at.controller.wait(wire.Submit, 2)
        large = rows * 16 > wire.INLINE_BYTES_MAX
        assert (submit.rows, len(submit.inline), submit.frames) == (rows, int(not large), int(large))
        frames = [bytes(frame) for mail in at.controller.listening.mail.items for frame in mail.frames]
        assert frames == ([np.ones((rows, 4), np.float32).tobytes()] if large else [])


@pytest.mark.parametrize("framed", [True, False])
@on_loop
async def test_outputs_come_inside_the_message_or_as_frames_whatever_the_client_sent(
    framed: bool, tmp_path: Path
) -> None:
    async with mesh(tmp_path, rows_max=10_000) as at:
        futures = [at.client.submit("m", ROW), at.client.submit("m", ROW * 3)]
        at.finish(*await at.controller.wait(wire.Submit, 2), framed=framed)
        outcomes: list[Any] = [await future for future in futures]
        assert [outcome["y"].tolist() for outcome in outcomes] == [(ROW * 2).tolist(), (ROW * 6).tolist()]


@on_loop
async def test_a_request_in_frames_is_answered_in_frames(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = at.made.bare(zmq.DEALER)
        sock.connect(at.address)
        header = {"op": "infer", "id": 7, "model": "m", "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 4]}]}
        sock.send_multipart([msgpack.packb(header), ROW.tobytes()])
        at.finish(*await at.controller.wait(wire.Submit, 1))
        await at.until(lambda: at.frontend._answers == {"ok": 1})
        answer, frame = sock.recv_multipart()
        assert msgpack.unpackb(answer)["outputs"] == [{"name": "y", "dtype": "float32", "shape": [1, 4]}]
        assert frame == (ROW * 2).tobytes()


@on_loop
async def test_more_rows_than_the_largest_batch_are_split_and_answered_as_one(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        x = np.arange(80, dtype=np.float32).reshape(20, 4)
        future = at.client.submit("m", x)
        submits = await at.controller.wait(wire.Submit, 3)
        assert [submit.rows for submit in submits] == [8, 8, 4]
        at.finish(*reversed(submits))
        prediction: Any = await future
        np.testing.assert_array_equal(prediction["y"], x * 2, strict=True)


# -- refusals and deadlines -------------------------------------------------------------------------------------------


@on_loop
async def test_a_refusal_reaches_the_client_with_the_prediction_and_when_to_come_back(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        refused = wire.Refused(
            request=submit.request, attempt=0, status="rejected", code="late", message="no", predicted_s=0.5,
            retry_after_s=0.25,
        )  # fmt: skip
        at.controller.send(refused)
        outcome: Any = await future
        assert isinstance(outcome, Rejected)
        assert (outcome.code, outcome.message, outcome.predicted_ms, outcome.retry_after_ms) == (
            "late",
            "no",
            500.0,
            250.0,
        )


@on_loop
async def test_a_refused_part_ends_the_whole_request_and_the_other_parts_are_cancelled(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", np.zeros((20, 4), np.float32))
        first, second, third = await at.controller.wait(wire.Submit, 3)
        at.finish(first)
        await at.until(lambda: at.frontend._requests._parts.keys() == {second.request, third.request})
        refused = wire.Refused(request=second.request, attempt=0, status="failed", code="device_error", message="no")
        at.controller.send(refused)
        assert isinstance(await future, Failed)
        (cancel,) = await at.controller.wait(wire.Cancel, 1)
        assert cancel.request == third.request
        assert len(at.frontend._requests) == 0


@on_loop
async def test_a_request_that_nobody_answers_times_out_at_its_deadline_and_is_cancelled(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        began = time.monotonic()
        outcome: Any = await at.client.submit("m", ROW, slo_ms=60)
        assert 0.06 <= time.monotonic() - began < 1.0
        assert isinstance(outcome, TimedOut)
        assert (outcome.code, outcome.message) == ("deadline", "no answer came within the budget")
        assert outcome.latency_ms is not None
        assert 60 <= outcome.latency_ms < 1000
        (submit,), (cancel,) = at.controller.of(wire.Submit), await at.controller.wait(wire.Cancel, 1)
        assert cancel.request == submit.request
        at.finish(submit)  # too late: nobody hears of it
        assert (await at.client.call("ping"))["status"] == "ok"
        assert at.frontend._answers == {"timed_out": 1}


@on_loop
async def test_what_comes_after_the_answer_changes_nothing(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        at.finish(submit, submit)
        at.finish(submit)
        assert isinstance(await future, Prediction)
        refused = wire.Refused(request=submit.request, attempt=9, status="failed", code="lost", message="no")
        at.controller.send(refused, refused)
        again = at.client.submit("m", ROW)
        at.finish((await at.controller.wait(wire.Submit, 2))[1])
        await again
        assert at.frontend._answers == {"ok": 2}


# -- bad requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "code", "field"),
    [
        ({"model": "nowhere"}, Invalid, "unknown_model", "model"),
        ({"model": "n"}, Rejected, "not_ready", "model"),
        ({"version": "2"}, Invalid, "unknown_version", "version"),
        ({"version": "v1"}, Invalid, "unknown_version", "version"),
        ({"model": "m", "app": "a"}, Invalid, "bad_target", "model"),
        ({"model": None}, Invalid, "bad_target", "model"),
        ({"model": None, "app": "a"}, Invalid, "unknown_app", "app"),
        ({"slo_ms": 600_000.1}, Invalid, "bad_slo", "slo_ms"),
        ({"weight": 0.0}, Invalid, "bad_weight", "weight"),
        ({"inputs": []}, Invalid, "bad_inputs", "inputs"),
    ],
)
@on_loop
async def test_a_request_that_cannot_be_obeyed_is_answered_at_once(
    fields: dict[str, Any], kind: Any, code: str, field: str, tmp_path: Path
) -> None:
    package(tmp_path / "repository", "n", "1")  # which nobody prepares
    async with mesh(tmp_path) as at:
        tensor = {"name": "x", "dtype": "float32", "shape": [1, 4], "data": ROW.tobytes()}
        with pytest.raises(kind) as raised:
            await at.client.call("infer", **{"model": "m", "inputs": [tensor], **fields})
        assert (raised.value.code, raised.value.field) == (code, field)
        assert at.controller.of(wire.Submit) == []


@on_loop
async def test_a_model_that_could_not_be_prepared_says_why(tmp_path: Path) -> None:
    package(tmp_path / "repository", "n", "1")
    async with mesh(tmp_path) as at:
        at.controller.caller.link.send(wire.PrepareReport(ref="n:1", ok=False, faults=("no graph",)))
        await at.until(lambda: at.frontend._targets.models["n"].fault)
        with pytest.raises(Rejected, match="no graph"):
            await at.client.infer("n", ROW)


@on_loop
async def test_bad_input_leaves_the_connection_and_everybody_else_as_they_were(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        going_on = at.client.submit("m", ROW)
        sock = at.made.bare(zmq.DEALER)
        sock.connect(at.address)
        bad = [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"op": "frobnicate", "id": 1}), b"\x91" * 5000 + b"\x90"]
        for body in bad:
            sock.send(body)
        sock.send(msgpack.packb({"op": "ping", "id": 99}))
        await at.until(lambda: at.frontend._answers.get("invalid") == len(bad))
        answers = [msgpack.unpackb(sock.recv()) for _ in (*bad, "ping")]
        assert [answer["id"] for answer in answers] == [None, None, None, 1, None, 99]
        assert [answer["status"] for answer in answers] == ["invalid"] * len(bad) + ["ok"]
        at.finish(*await at.controller.wait(wire.Submit, 1))
        assert isinstance(await going_on, Prediction)


@on_loop
async def test_an_id_in_flight_on_the_same_connection_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        socks = [at.made.bare(zmq.DEALER) for _ in range(2)]
        tensor = {"name": "x", "dtype": "float32", "shape": [1, 4], "data": ROW.tobytes()}
        body = msgpack.packb({"op": "infer", "id": "same", "model": "m", "inputs": [tensor]})
        for sock in socks:
            sock.connect(at.address)
            sock.send(body)
        await at.controller.wait(wire.Submit, 2)  # on two connections it is two requests
        socks[0].send(body)
        await at.until(lambda: at.frontend._answers == {"invalid": 1})
        refused = msgpack.unpackb(socks[0].recv())
        assert (refused["id"], refused["error"]["code"], refused["error"]["field"]) == ("same", "duplicate_id", "id")
        at.finish(*at.controller.of(wire.Submit))
        await at.until(lambda: at.frontend._answers.get("ok") == 2)
        assert [msgpack.unpackb(sock.recv())["status"] for sock in socks] == ["ok", "ok"]


@on_loop
async def test_more_requests_than_the_limit_are_rejected_with_when_to_come_back(tmp_path: Path) -> None:
    async with mesh(tmp_path, in_flight_max=2) as at:
        futures = [at.client.submit("m", ROW) for _ in range(3)]
        outcome: Any = await futures[2]
        assert isinstance(outcome, Rejected)
        assert (outcome.code, outcome.retry_after_ms) == ("frontend_full", 50.0)
        assert outcome.message == "2 requests are in flight at this frontend, which is its limit"
        at.finish(*await at.controller.wait(wire.Submit, 2))
        assert [type(await future) for future in futures[:2]] == [Prediction] * 2
        assert len(at.controller.of(wire.Submit)) == 2


# -- controllers and workers that fail --------------------------------------------------------------------------------


@on_loop
async def test_what_a_lost_controller_had_goes_to_its_successor_with_the_budget_that_is_left(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        futures = [at.client.submit("m", ROW * i, slo_ms=5000) for i in range(2)]
        first = await at.controller.wait(wire.Submit, 2)
        at.controller.leave()
        successor = Controller(at.made, at.broker, "controller-2")
        again = await successor.wait(wire.Submit, 2)
        assert [submit.request for submit in again] == [submit.request for submit in first]
        assert [submit.attempt for submit in again] == [1, 1]
        assert all(0 < late.budget_s < early.budget_s for late, early in zip(again, first, strict=True))
        at.finish(again[0])
        at.finish(first[1])  # a worker that had it from the first controller is quicker
        assert [type(await future) for future in futures] == [Prediction] * 2
        assert at.frontend._answers == {"ok": 2}


@on_loop
async def test_thousands_of_requests_that_end_at_one_instant_are_all_answered(tmp_path: Path) -> None:
    number = 6000
    async with mesh(tmp_path, in_flight_max=number) as at:
        sock = at.made.bare(zmq.DEALER)
        sock.setsockopt(zmq.RCVHWM, 0)
        sock.connect(at.address)
        row = {"name": "x", "dtype": "float32", "shape": [1, 4], "data": ROW.tobytes()}

        def ask() -> None:
            for i in range(number):
                sock.send(msgpack.packb({"op": "infer", "id": i, "model": "m", "inputs": [row], "slo_ms": 600_000}))

        await asyncio.to_thread(ask)
        await at.controller.wait(wire.Submit, number)
        at.frontend._ring(time.monotonic() + 600)
        assert at.frontend._clients.answers_dropped == 0
        answers = [await hear(sock) for _ in range(number)]
        assert sorted(answer["id"] for answer in answers) == list(range(number))
        assert {answer["status"] for answer in answers} == {"timed_out"}


@contextlib.asynccontextmanager
async def starting(folder: Path, **settings: Any) -> AsyncIterator[Any]:
    """A frontend whose broker is down, but knew model m in version 1; and a bare client, with how to ask."""
    package(folder / "repository", "m", "1")
    async with processes(**QUICK) as made:
        broker = Broker(made, folder)
        before = Caller(made.runtime(), broker.addresses, "controller-1")
        before.register("controller")
        before.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=SPEC))
        await before.table(lambda table: table.models[0].current)
        broker.stop()
        runtime = made.runtime(frontend_port=0, **settings)
        frontend = FrontendService(runtime, broker.addresses)
        frontend.start()
        (address,) = frontend._registrar.member.endpoints["clients"]  # type: ignore[union-attr]
        sock = made.bare(zmq.DEALER)
        sock.connect(address)
        brokers: list[Broker] = []
        try:
            yield frontend, runtime, sock, lambda: brokers.append(Broker(made, folder, broker.number))
        finally:
            frontend.stop()
            for other in brokers:
                other.stop()


async def held(frontend: FrontendService, runtime: Any, number: int) -> None:
    """Returns once so many requests are held."""
    turns = Told()
    runtime.hub.on_turn(turns)
    await turns.until(lambda _: len(frontend._early) == number)


async def hear(sock: Any) -> Any:
    """The next answer, while the loop goes on."""
    return msgpack.unpackb(await asyncio.to_thread(sock.recv))


@on_loop
async def test_a_frontend_that_does_not_know_the_models_yet_holds_requests_until_it_does(tmp_path: Path) -> None:
    async with starting(tmp_path) as (frontend, _, sock, start_broker):
        row = {"name": "x", "dtype": "float32", "shape": [1, 4], "data": ROW.tobytes()}
        sock.send(msgpack.packb({"op": "infer", "id": 1, "model": "m", "inputs": [row], "slo_ms": 9000}))
        sock.send(msgpack.packb({"op": "infer", "id": 2, "model": "nosuch", "inputs": [row], "slo_ms": 9000}))
        sock.send(msgpack.packb({"op": "infer", "id": 1, "model": "m", "inputs": [row], "slo_ms": 9000}))
        sock.send(msgpack.packb({"op": "infer", "id": 3, "model": "m", "inputs": [row], "slo_ms": -1}))
        sock.send(msgpack.packb({"op": "models", "id": 4}))
        sock.send(msgpack.packb({"op": "ping", "id": 5}))
        again, bad, ping = [await hear(sock) for _ in range(3)]
        assert (again["id"], again["error"]["code"]) == (1, "duplicate_id")
        assert (bad["id"], bad["error"]["code"]) == (3, "bad_slo")
        assert ping == {"id": 5, "status": "ok"}
        assert len(frontend._early) == 3
        start_broker()
        unknown, models = [await hear(sock) for _ in range(2)]
        assert (unknown["id"], unknown["error"]["code"]) == (2, "unknown_model")
        assert [model["name"] for model in models["models"]] == ["m"]
        (part,) = frontend._requests.unsubmitted()  # for a controller to come
        assert part.call.id == 1
        assert part.call.deadline_s - part.call.received_s == pytest.approx(9)


@on_loop
async def test_what_is_held_longer_than_its_budget_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with starting(tmp_path, in_flight_max=1) as (frontend, _, sock, _):
        row = {"name": "x", "dtype": "float32", "shape": [1, 4], "data": ROW.tobytes()}
        for number in (1, 2):
            sock.send(msgpack.packb({"op": "infer", "id": number, "model": "m", "inputs": [row], "slo_ms": 100}))
        full, late = await hear(sock), await hear(sock)
        assert (full["id"], full["status"], full["error"]["code"]) == (2, "rejected", "frontend_full")
        assert (late["id"], late["status"], late["error"]["code"]) == (1, "rejected", "not_ready")
        assert late["error"]["retry_after_ms"] > 0
        assert len(frontend._early) == 0


@on_loop
async def test_a_frontend_stopped_before_it_knew_anything_answers_what_it_held(tmp_path: Path) -> None:
    async with starting(tmp_path) as (frontend, runtime, sock, _):
        sock.send(msgpack.packb({"op": "models", "id": 1}))
        await held(frontend, runtime, 1)
        assert frontend.drain() is False
        sock.send(msgpack.packb({"op": "infer", "id": 2, "app": "a", "inputs": []}))
        refused = await hear(sock)
        assert (refused["id"], refused["status"]) == (2, "rejected")
        frontend.stop()
        stopped = await hear(sock)
        assert (stopped["id"], stopped["status"], stopped["error"]["code"]) == (1, "failed", "stopping")
        frontend.stop = lambda: None


@on_loop
async def test_without_a_controller_requests_wait_as_long_as_their_budget_lasts(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.controller.leave()
        registrar = at.frontend._registrar
        assert registrar is not None
        await at.until(  # gone from the table as well, or the frontend would call it once more
            lambda: (
                registrar.table is not None
                and all(member.role != "controller" for member in registrar.table.members)
                and at.frontend._controllers.owner("m") is None
            )
        )
        short, long = at.client.submit("m", ROW, slo_ms=30), at.client.submit("m", ROW, slo_ms=5000)
        outcome: Any = await short
        assert isinstance(outcome, TimedOut)
        assert outcome.message == "no controller could be reached"
        successor = Controller(at.made, at.broker, "controller-2")
        (submit,) = await successor.wait(wire.Submit, 1)
        assert submit.attempt == 0
        at.finish(submit)
        assert isinstance(await long, Prediction)


@on_loop
async def test_a_controller_that_was_replaced_at_its_address_is_left(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.controller.send(wire.Serving(added=("m:1",), removed=(), reset=True, controller="controller-9"))
        await at.until(lambda: at.frontend._controllers.owner("m") is None)


@on_loop
async def test_a_controller_that_forgot_the_frontend_is_told_again_who_it_is(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.controller.send(wire.Introduce())
        first, second = await at.controller.wait(wire.FrontendHello, 2)
        assert first == second


@on_loop
async def test_a_request_stays_bound_to_the_version_that_was_current_when_it_came(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        old = at.client.submit("m", ROW)
        await at.controller.wait(wire.Submit, 1)
        package(tmp_path / "repository", "m", "2")
        operator = Caller(at.made.runtime(), at.broker.addresses, "operator-1")
        operator.link.send(wire.Deploy(call=1, name="m", version="2"))
        await at.controller.caller.table(lambda table: table.models[0].target == "2")
        at.controller.report("m:2")
        await at.until(lambda: at.frontend._targets.bound["m"].ref == "m:2")
        new = at.client.submit("m", ROW)
        await at.controller.wait(wire.Submit, 2)
        at.controller.leave()
        successor = Controller(at.made, at.broker, "controller-2")
        submits = await successor.wait(wire.Submit, 2)
        assert [submit.ref for submit in submits] == ["m:1", "m:2"]
        at.finish(*submits)
        outcomes: list[Any] = [await old, await new]
        assert [outcome.version for outcome in outcomes] == ["1", "2"]


BAD_OUTPUTS = {
    "too many": {"inline": (memoryview(bytes(16)), memoryview(bytes(16)))},
    "none": {"inline": (), "frames": 0},
    "frames that did not come": {"inline": (), "frames": 1},
    "too short": {"inline": (memoryview(bytes(12)),)},
}


@pytest.mark.parametrize("fields", BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
@on_loop
async def test_a_worker_that_sends_bad_outputs_fails_that_request_and_no_other(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    async with mesh(tmp_path) as at:
        at.runtime.hub.loop.set_exception_handler(lambda _, fault: None)  # what the client is told is looked at here
        bad, good = (at.client.submit("m", ROW, slo_ms=1000) for _ in range(2))
        first, second = await at.controller.wait(wire.Submit, 2)
        at.finish(first, **fields)
        at.finish(second)
        later = at.client.submit("m", ROW, slo_ms=1000)
        at.finish((await at.controller.wait(wire.Submit, 3))[2])
        assert [type(await future) for future in (good, later)] == [Prediction] * 2
        assert isinstance(await bad, Failed)


# -- what there is ----------------------------------------------------------------------------------------------------


@on_loop
async def test_models_are_described_with_all_that_a_client_needs(tmp_path: Path) -> None:
    package(tmp_path / "repository", "n", "1")
    async with mesh(tmp_path) as at:
        m, n = await at.client.models()
        assert m == {
            "name": "m",
            "version": "1",
            "versions": ["1"],
            "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 4]}],
            "slo_ms": 5000.0,
            "batch_sizes": [1, 8],
            "batch_max": 8,
            "labels": ["cat", "dog"],
            "ready": True,
            "preparing": None,
            "fault": None,
        }
        assert (n["version"], n["ready"], n["preparing"], n["inputs"], n["slo_ms"]) == (None, False, "1", [], None)


@on_loop
async def test_a_model_is_ready_while_a_worker_has_it(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        for serving, ready in (
            (wire.Serving(added=(), removed=("m:1",), controller="controller-1"), False),
            (wire.Serving(added=("m:1", "n:1"), removed=(), controller="controller-1"), True),
            (wire.Serving(added=("n:1",), removed=(), reset=True, controller="controller-1"), False),
        ):
            at.controller.send(serving)
            await at.until(lambda ready=ready: at.ready() is ready)


@on_loop
async def test_the_status_tells_who_is_there_and_how_requests_were_answered(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.client.submit("m", ROW)
        await at.controller.wait(wire.Submit, 1)
        with pytest.raises(Invalid):
            await at.client.infer("nowhere", ROW)
        status = await at.client.call("status")
        assert {member["role"] for member in status["members"]} == {"controller", "frontend"}
        assert (status["in_flight"], status["answers"]) == (1, {"invalid": 1})
        assert (status["connections"], status["disconnections"], status["answers_dropped"]) == (1, 0, 0)


# -- stopping ---------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_draining_frontend_takes_nothing_new_and_finishes_what_it_has(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert at.frontend.drain() is False
        outcome: Any = await at.client.submit("m", ROW)
        assert isinstance(outcome, Rejected)
        assert outcome.retry_after_ms is not None
        at.finish(submit)
        assert isinstance(await future, Prediction)
        assert at.frontend.drain() is True


@on_loop
async def test_a_stopped_frontend_answers_what_is_open_and_tells_everybody(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW)
        await at.controller.wait(wire.Submit, 1)
        at.frontend.stop()
        outcome: Any = await future
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.message) == ("stopping", "the frontend is being stopped")
        await at.controller.wait(wire.Goodbye, 1)
        table = await at.controller.caller.table(lambda table: len(table.members) == 1)
        assert table.members[0].role == "controller"
        at.frontend.stop = lambda: None  # type: ignore[method-assign]
