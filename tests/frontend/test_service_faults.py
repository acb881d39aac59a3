"""frontend/service.py: controllers, workers and brokers that fail, are late, or are replaced."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from frontend.client.client import Failed, Prediction, TimedOut
from frontend.service import FrontendService
from mesh import wire
from tests.frontend.client.fakes import ROW
from tests.frontend.service_mesh import QUICK, SPEC, Controller, hear, mesh, request
from tests.loops import on_loop
from tests.mesh.net.brokers import Broker, Caller, package
from tests.mesh.net.processes import Processes, processes


@on_loop
async def test_what_a_lost_controller_had_goes_to_its_successor_with_the_budget_that_is_left(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        futures = [at.client.submit("m", ROW * i, slo_ms=60_000) for i in range(2)]
        first = await at.controller.wait(wire.Submit, 2)
        at.controller.leave()
        successor = Controller(at.made, at.broker, "controller-2")
        again = await successor.wait(wire.Submit, 2)
        assert [submit.request for submit in again] == [submit.request for submit in first]
        assert [submit.attempt for submit in again] == [1, 1]
        assert all(0 < late.budget_s < early.budget_s for late, early in zip(again, first, strict=True))
        at.finish(again[0])
        at.finish(first[1])  # a worker that got it from the first controller is faster
        assert [type(await future) for future in futures] == [Prediction] * 2
        assert (await at.status())["answers"] == {"ok": 2}


@dataclass
class Starting:
    """A frontend whose broker is down, but knew model m in version 1; a bare client; and how the broker comes back."""

    made: Processes
    frontend: FrontendService
    sock: Any
    start_broker: Callable[[], Broker]
    quiet_s: float  # the frontend has seen the client's socket empty since: it counts budgets from then on


@contextlib.asynccontextmanager
async def starting(folder: Path, **settings: Any) -> AsyncIterator[Starting]:
    """A frontend that starts before its broker."""
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
        sock = made.bare(zmq.DEALER)
        sock.connect(frontend.address)
        quiet_s = time.monotonic()
        sock.send(msgpack.packb({"op": "ping", "id": "first"}))
        await hear(sock)  # the frontend has just seen its socket empty: what comes now has not waited there for long
        brokers: list[Broker] = []

        def start_broker() -> Broker:
            brokers.append(Broker(made, folder, broker.number))
            return brokers[-1]

        try:
            yield Starting(made, frontend, sock, start_broker, quiet_s)
        finally:
            frontend.stop()
            for other in brokers:
                other.stop()


@on_loop
async def test_a_frontend_that_does_not_know_the_models_yet_holds_requests_until_it_does(tmp_path: Path) -> None:
    async with starting(tmp_path) as at:
        sock = at.sock
        sock.send(request(1, slo_ms=60_000))
        sock.send(request(2, slo_ms=60_000, model="nosuch"))
        sock.send(request(1, slo_ms=60_000))
        sock.send(request(3, slo_ms=-1))
        sock.send(msgpack.packb({"op": "models", "id": 4}))
        sock.send(msgpack.packb({"op": "ping", "id": 5}))
        again, bad, ping = [await hear(sock) for _ in range(3)]
        assert (again["id"], again["error"]["code"]) == (1, "duplicate_id")
        assert (bad["id"], bad["error"]["code"]) == (3, "bad_slo")
        assert ping == {"id": 5, "status": "ok"}
        held_s = time.monotonic()
        broker = at.start_broker()
        started_s = time.monotonic()
        unknown, models = [await hear(sock) for _ in range(2)]
        assert (unknown["id"], unknown["error"]["code"]) == (2, "unknown_model")
        assert [model["name"] for model in models["models"]] == ["m"]
        (submit,) = await Controller(at.made, broker, "controller-2").wait(wire.Submit, 1)
        assert (submit.ref, [bytes(data) for data in submit.inline]) == ("m:1", [ROW.tobytes()])
        most_s = time.monotonic() - at.quiet_s
        assert 60 - most_s <= submit.budget_s <= 60 - (started_s - held_s), "since it was received"


@on_loop
async def test_what_is_held_longer_than_its_budget_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with starting(tmp_path, in_flight_max=1) as at:
        for number in (1, 2):
            at.sock.send(request(number, slo_ms=500))
        full = await hear(at.sock)
        late = await hear(at.sock)
        assert time.monotonic() - at.quiet_s >= 0.5
        assert (full["id"], full["status"], full["error"]["code"]) == (2, "rejected", "frontend_full")
        assert (late["id"], late["status"], late["error"]["code"]) == (1, "rejected", "not_ready")
        assert late["error"]["retry_after_ms"] > 0
        assert at.frontend.drain() is True, "nothing is held any more"


@on_loop
async def test_a_frontend_stopped_before_it_knew_anything_answers_what_it_held(tmp_path: Path) -> None:
    async with starting(tmp_path) as at:
        at.sock.send(msgpack.packb({"op": "models", "id": 1}))
        at.sock.send(msgpack.packb({"op": "ping", "id": 2}))
        assert (await hear(at.sock))["id"] == 2, "and so the first one is held"
        assert at.frontend.drain() is False
        at.sock.send(msgpack.packb({"op": "infer", "id": 3, "app": "a", "inputs": []}))
        refused = await hear(at.sock)
        assert (refused["id"], refused["status"]) == (3, "rejected")
        at.frontend.stop()
        stopped = await hear(at.sock)
        assert (stopped["id"], stopped["status"], stopped["error"]["code"]) == (1, "failed", "stopping")


@on_loop
async def test_without_a_controller_requests_wait_as_long_as_their_budget_lasts(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.controller.leave()
        await at.models(lambda models: not models["m"]["ready"])
        await at.status(  # gone from the table as well, or the frontend would call it once more
            lambda status: all(member["role"] != "controller" for member in status["members"])
        )
        short, long = at.client.submit("m", ROW, slo_ms=200), at.client.submit("m", ROW, slo_ms=60_000)
        outcome: Any = await short
        assert isinstance(outcome, TimedOut)
        assert outcome.code == "deadline"
        successor = Controller(at.made, at.broker, "controller-2")
        (submit,) = await successor.wait(wire.Submit, 1)
        assert submit.attempt == 0
        at.finish(submit)
        assert isinstance(await long, Prediction)


@on_loop
async def test_a_controller_that_was_replaced_at_its_address_is_left(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.controller.send(wire.Serving(added=("m:1",), removed=(), reset=True, controller="controller-9"))
        await at.models(lambda models: not models["m"]["ready"])


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
        await at.models(lambda models: models["m"]["version"] == "2")
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
        at.runtime.hub.loop.set_exception_handler(lambda _, fault: None)  # only what the client is told matters here
        bad, good = (at.client.submit("m", ROW, slo_ms=60_000) for _ in range(2))
        first, second = await at.controller.wait(wire.Submit, 2)
        at.finish(first, **fields)
        at.finish(second)
        later = at.client.submit("m", ROW, slo_ms=60_000)
        at.finish((await at.controller.wait(wire.Submit, 3))[2])
        assert [type(await future) for future in (good, later)] == [Prediction] * 2
        assert isinstance(await bad, Failed)
