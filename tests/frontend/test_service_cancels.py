"""Requests that their clients end, or whose clients are gone: beside a real broker, controller and worker as told."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from frontend.client.client import Prediction
from frontend.service import FrontendService
from mesh import wire
from tests.frontend.client.fakes import ROW
from tests.frontend.ensembles import ensemble
from tests.frontend.service_mesh import Mesh, hear, mesh, request, tensor
from tests.loops import on_loop
from tests.mesh.net.processes import processes

NAME = b"ann"


def connect(at: Any, name: bytes = NAME, address: str = "") -> "zmq.Socket[bytes]":
    """A client that names its connection itself."""
    sock: zmq.Socket[bytes] = at.made.bare(zmq.DEALER)
    sock.setsockopt(zmq.ROUTING_ID, name)
    sock.connect(address or at.address)
    return sock


def cancel(call: Any, **fields: Any) -> bytes:
    body: bytes = msgpack.packb({"op": "cancel", "id": call, **fields})
    return body


def ask_app(call: Any, **fields: Any) -> bytes:
    body: bytes = msgpack.packb({"op": "infer", "id": call, "app": "app", "inputs": [tensor()], **fields})
    return body


async def cancelled(at: Mesh, count: int) -> set[int]:
    """The numbers of the requests that the controller was told to drop, once there are so many."""
    told = await at.controller.wait(wire.Cancel, count)
    assert len(told) == count
    return {message.request for message in told}


async def is_there(sock: "zmq.Socket[bytes]") -> None:
    """The next answer is the pong: nothing else was said."""
    sock.send(msgpack.packb({"op": "ping", "id": "ping"}))
    assert await hear(sock) == {"id": "ping", "status": "ok"}


# -- a message --------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_request_that_is_cancelled_is_answered_once_and_all_its_parts_are_dropped(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = connect(at)
        sock.send(request(9, inputs=[tensor(np.zeros((20, 4), np.float32))]))
        submits = await at.controller.wait(wire.Submit, 3)
        sock.send(cancel(9))
        answer = await hear(sock)
        assert (answer["id"], answer["status"], answer["error"]["code"]) == (9, "failed", "cancelled")
        assert (answer["model"], answer["version"]) == ("m", "1")
        assert await cancelled(at, 3) == {submit.request for submit in submits}
        sock.send(cancel(9))
        await is_there(sock)
        at.finish(*submits)
        status = await at.status(lambda status: status["computed_for_nobody"] == 3)
        assert (status["cancelled"], status["rows_for_nobody"], status["in_flight"]) == (1, 20, 0)
        assert status["answers"] == {"failed": 1}


@on_loop
async def test_only_what_has_no_outputs_yet_is_dropped(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = connect(at)
        sock.send(request(9, inputs=[tensor(np.zeros((20, 4), np.float32))]))
        first, second, third = await at.controller.wait(wire.Submit, 3)
        at.finish(first)
        sock.send(request(10))
        at.finish((await at.controller.wait(wire.Submit, 4))[3])
        assert (await hear(sock))["id"] == 10, "and so the first part has its outputs"
        sock.send(cancel(9))
        assert (await hear(sock))["error"]["code"] == "cancelled"
        assert await cancelled(at, 2) == {second.request, third.request}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (msgpack.packb({"op": "cancel"}), "bad_field"),
        (cancel(None), "bad_field"),
        (cancel("a" * 300), "bad_id"),
        (cancel(9, model="m"), "bad_field"),
    ],
)
@on_loop
async def test_a_cancel_of_nothing_has_no_answer_and_a_malformed_one_has(
    body: bytes, code: str, tmp_path: Path
) -> None:
    async with mesh(tmp_path) as at:
        sock, other = connect(at), connect(at, b"ben")
        other.send(request(9))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        sock.send(cancel(9))  # the other connection's goes on
        sock.send(cancel("what"))
        await is_there(sock)
        sock.send(body)
        answer = await hear(sock)
        assert (answer["status"], answer["error"]["code"]) == ("invalid", code)
        at.finish(submit)
        assert (await hear(other))["status"] == "ok"
        assert at.controller.of(wire.Cancel) == []


@on_loop
async def test_what_waits_for_the_first_table_can_be_cancelled(tmp_path: Path) -> None:
    async with processes() as made:
        runtime = made.runtime(frontend_port=0)
        frontend = FrontendService(runtime, ("tcp://127.0.0.1:9",))
        frontend.start()
        sock: zmq.Socket[bytes] = made.bare(zmq.DEALER)
        sock.setsockopt(zmq.ROUTING_ID, NAME)
        sock.connect(frontend.address)
        for body in (request(1), ask_app(2), msgpack.packb({"op": "models", "id": 3})):
            sock.send(body)
        for call in (2, 3):
            sock.send(cancel(call))
        answers = [await hear(sock) for _ in range(2)]
        assert [(answer["id"], answer["error"]["code"]) for answer in answers] == [(2, "cancelled"), (3, "cancelled")]
        await is_there(sock)
        sock.close(0)
        other: zmq.Socket[bytes] = made.bare(zmq.DEALER)
        other.connect(frontend.address)
        status: Any = {"cancelled": 2}
        while status["cancelled"] == 2:
            other.send(msgpack.packb({"op": "status", "id": 4}))
            status = await hear(other)
        assert (status["cancelled"], status["refused"]) == (3, {})
        assert frontend.drain()
        frontend.stop()


@on_loop
async def test_an_application_s_models_are_not_asked_any_more_unless_somebody_else_asks_them_the_same(
    tmp_path: Path,
) -> None:
    async with ensemble(tmp_path, settings={"cache_mb": 1}) as at:
        sock, other = connect(at), connect(at, b"ben")
        sock.send(ask_app(9))
        asked = await at.asked(3)
        other.send(request(1, model="a"))
        await at.status(lambda status: status["in_flight"] == 4)
        sock.send(cancel(9))
        answer = await hear(sock)
        assert (answer["id"], answer["status"], answer["error"]["code"]) == (9, "failed", "cancelled")
        assert (answer["app"], "decision_id" in answer) == ("app", False)
        assert await cancelled(at, 2) == {asked["m"].request, asked["b"].request}
        at.say(asked["a"], 1)
        assert (await hear(other))["status"] == "ok"
        assert len(at.controller.of(wire.Submit)) == 3
        status = await at.status()
        assert (status["cancelled"], status["in_flight"], status["applications"]["open"]) == (1, 0, 0)
        assert status["applications"]["apps"]["app"]["cancelled"] == 1


# -- joined -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_what_one_of_a_joined_pair_still_wants_goes_on_and_is_not_asked_for_twice(tmp_path: Path) -> None:
    async with mesh(tmp_path, cache_mb=1) as at:
        sock, other = connect(at), connect(at, b"ben")
        sock.send(request(1))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        other.send(request(1))
        await at.status(lambda status: status["in_flight"] == 2)
        sock.send(cancel(1))
        assert (await hear(sock))["error"]["code"] == "cancelled"
        at.finish(submit)
        assert (await hear(other))["status"] == "ok"
        assert (len(at.controller.of(wire.Submit)), at.controller.of(wire.Cancel)) == (1, [])
        assert (await at.status())["computed_for_nobody"] == 0


@on_loop
async def test_a_refusal_for_the_budget_of_one_who_left_is_none_for_those_who_stayed(tmp_path: Path) -> None:
    async with mesh(tmp_path, cache_mb=1) as at:
        sock, other = connect(at), connect(at, b"ben")
        sock.send(request(1, slo_ms=20_000))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        other.send(request(1, slo_ms=50_000))
        await at.status(lambda status: status["in_flight"] == 2)
        sock.send(cancel(1))
        await hear(sock)
        no = {"status": "rejected", "code": "deadline", "message": "no"}
        at.controller.send(wire.Refused(request=submit.request, attempt=0, **no))
        again = (await at.controller.wait(wire.Submit, 2))[1]
        assert (again.request, again.attempt, again.budget_s > 20.0) == (submit.request, 1, True)
        at.controller.send(wire.Refused(request=submit.request, attempt=1, **no))
        assert (await hear(other))["error"]["code"] == "deadline"


@pytest.mark.parametrize("left", [False, True])
@on_loop
async def test_identical_requests_that_fail_by_themselves_fail_once_for_all_and_are_not_tried_one_by_one(
    tmp_path: Path, left: bool
) -> None:
    """Also if who was submitted has left: the inputs are the same. `alone` says that it is they that failed."""
    async with mesh(tmp_path, cache_mb=1) as at:
        sock, other = connect(at), connect(at, b"ben")
        sock.send(request(1))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        for call in range(20):
            other.send(request(call))
        await at.status(lambda status: status["in_flight"] == 21)
        if left:
            sock.send(cancel(1))
            await hear(sock)
        why = {"status": "failed", "code": "model_error", "message": "row out of range"}
        at.controller.send(wire.Refused(request=submit.request, attempt=0, alone=True, **why))
        answers = [await hear(other) for _ in range(20)]
        assert {answer["id"] for answer in answers} == set(range(20))
        assert {(answer["status"], answer["error"]["code"]) for answer in answers} == {("failed", "model_error")}
        status = await at.status()
        assert (len(at.controller.of(wire.Submit)), status["in_flight"]) == (1, 0)
        assert status["outcomes"]["total"]["failed"] == 21 - left
        assert sum(status["outcomes"]["unlogged"].values()) == 20


@on_loop
async def test_of_identical_requests_the_next_is_tried_if_what_failed_was_not_their_inputs(tmp_path: Path) -> None:
    async with mesh(tmp_path, cache_mb=1) as at:
        sock, other = connect(at), connect(at, b"ben")
        sock.send(request(1))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        other.send(request(1))
        await at.status(lambda status: status["in_flight"] == 2)
        at.controller.send(
            wire.Refused(request=submit.request, attempt=0, status="failed", code="batch_failed", message="no")
        )
        assert (await hear(sock))["error"]["code"] == "batch_failed"
        at.finish((await at.controller.wait(wire.Submit, 2))[1])
        assert (await hear(other))["status"] == "ok"


# -- a connection that is gone ----------------------------------------------------------------------------------------


@on_loop
async def test_nothing_goes_on_for_a_connection_that_is_gone_and_nothing_is_said_to_it(tmp_path: Path) -> None:
    async with ensemble(tmp_path) as at:
        sock, other = connect(at), connect(at, b"ben")
        for call in range(300):
            sock.send(request(call))
        sock.send(ask_app("app"))
        other.send(request(0))
        await at.controller.wait(wire.Submit, 304)
        sock.close(0)
        dropped = await cancelled(at, 303)
        (left,) = (submit for submit in at.controller.of(wire.Submit) if submit.request not in dropped)
        at.finish(left)
        assert (await hear(other))["status"] == "ok"
        status = await at.status()
        assert (status["cancelled"], status["in_flight"], status["in_flight_bytes"]) == (301, 0, 0)
        assert (status["answers"], status["answers_dropped"]) == ({"ok": 1}, 0)
        assert status["applications"]["open"] == 0


@on_loop
async def test_a_client_that_stops_waiting_is_one_whose_work_is_dropped(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        futures = [at.client.submit("m", ROW * i) for i in range(3)]
        submits = await at.controller.wait(wire.Submit, 3)
        futures[1].cancel()
        assert await cancelled(at, 1) == {submits[1].request}
        at.finish(submits[0], submits[2])
        assert [type(await future) for future in (futures[0], futures[2])] == [Prediction] * 2
        assert (await at.status())["cancelled"] == 1
