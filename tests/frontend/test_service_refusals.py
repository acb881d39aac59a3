"""What a frontend refuses, and what it answers at a deadline: beside a real broker, controller and worker as told."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
import structlog
import zmq

from frontend.client.client import Failed, Invalid, Prediction, Rejected, TimedOut
from frontend.core import protocol
from mesh import wire
from tests.frontend.client.fakes import ROW
from tests.frontend.service_mesh import hear, mesh, request, tensor
from tests.loops import on_loop
from tests.mesh.net.brokers import package
from tests.messages import names

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
        behind = at.client.submit("m", ROW)
        at.finish((await at.controller.wait(wire.Submit, 4))[3])
        assert isinstance(await behind, Prediction), "and so the first part is answered"
        refused = wire.Refused(request=second.request, attempt=0, status="failed", code="device_error", message="no")
        at.controller.send(refused)
        assert isinstance(await future, Failed)
        (cancel,) = await at.controller.wait(wire.Cancel, 1)
        assert cancel.request == third.request
        assert (await at.status())["in_flight"] == 0


@on_loop
async def test_a_request_that_nobody_answers_times_out_at_its_deadline_and_is_cancelled(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        began = time.monotonic()
        await at.client.call("ping")  # the frontend counts from when it had last seen nothing there: since then
        outcome: Any = await at.client.submit("m", ROW, slo_ms=200)
        assert time.monotonic() - began >= 0.2
        assert isinstance(outcome, TimedOut)
        assert outcome.code == "deadline"
        assert outcome.latency_ms is not None
        assert outcome.latency_ms >= 200
        (cancel,), (submit,) = await at.controller.wait(wire.Cancel, 1), at.controller.of(wire.Submit)
        assert cancel.request == submit.request
        at.finish(submit)  # too late: nobody hears of it
        assert (await at.client.call("ping"))["status"] == "ok"
        assert (await at.status())["answers"] == {"timed_out": 1}


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
        assert (await at.status())["answers"] == {"ok": 2}


class AlarmByHand:
    """The service's alarm, which rings when the test says so and not before."""

    made: ClassVar[list["AlarmByHand"]] = []

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[float], None]) -> None:
        self.ring = ring
        self.made.append(self)

    def by(self, at: float | None) -> None:
        """Nothing happens by itself."""

    def close(self) -> None:
        """There is nothing to close."""


@on_loop
async def test_thousands_of_requests_that_end_at_one_instant_are_all_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, slo_s = 6000, 600.0
    monkeypatch.setattr(AlarmByHand, "made", [])
    monkeypatch.setattr("frontend.service.Alarm", AlarmByHand)
    async with mesh(tmp_path, in_flight_max=2 * number) as at:  # one client may not have all
        sock = at.made.bare(zmq.DEALER)
        sock.setsockopt(zmq.RCVHWM, 0)
        sock.connect(at.address)

        def ask() -> None:
            for i in range(number):
                sock.send(request(i, slo_ms=slo_s * 1e3))

        await asyncio.to_thread(ask)
        await at.controller.wait(wire.Submit, number)
        (alarm,) = AlarmByHand.made
        alarm.ring(time.monotonic() + slo_s)  # late, as on a busy machine: all deadlines have passed meanwhile
        answers = [await hear(sock) for _ in range(number)]
        assert sorted(answer["id"] for answer in answers) == list(range(number))
        assert {answer["status"] for answer in answers} == {"timed_out"}
        assert (await at.status())["answers_dropped"] == 0


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
        ({"source": "x" * 65}, Invalid, "bad_field", "source"),
        ({"source": 7}, Invalid, "bad_field", "source"),
        ({"inputs": []}, Invalid, "bad_inputs", "inputs"),
    ],
)
@on_loop
async def test_a_request_that_cannot_be_obeyed_is_answered_at_once(
    fields: dict[str, Any], kind: Any, code: str, field: str, tmp_path: Path
) -> None:
    package(tmp_path / "repository", "n", "1")  # which nobody prepares
    async with mesh(tmp_path) as at:
        with pytest.raises(kind) as raised:
            await at.client.call("infer", **{"model": "m", "inputs": [tensor()], **fields})
        assert (raised.value.code, raised.value.field) == (code, field)
        assert at.controller.of(wire.Submit) == []


@on_loop
async def test_a_model_that_could_not_be_prepared_says_why(tmp_path: Path) -> None:
    package(tmp_path / "repository", "n", "1")
    async with mesh(tmp_path) as at:
        at.controller.caller.link.send(wire.PrepareReport(ref="n:1", ok=False, faults=("no graph",)))
        await at.models(lambda models: models["n"]["fault"])
        with pytest.raises(Rejected) as refused:
            await at.client.infer("n", ROW)
        assert refused.value.code == "not_ready"
        assert names(refused.value.message, "no graph"), "what the worker said"


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
        answers = [await hear(sock) for _ in (*bad, "ping")]
        assert [answer["id"] for answer in answers] == [None, None, None, 1, None, 99]
        assert [answer["status"] for answer in answers] == ["invalid"] * len(bad) + ["ok"]
        at.finish(*await at.controller.wait(wire.Submit, 1))
        assert isinstance(await going_on, Prediction)


@on_loop
async def test_an_id_in_flight_on_the_same_connection_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        socks = [at.made.bare(zmq.DEALER) for _ in range(2)]
        for sock in socks:
            sock.connect(at.address)
            sock.send(request("same"))
        await at.controller.wait(wire.Submit, 2)  # on two connections it is two requests
        socks[0].send(request("same"))
        refused = await hear(socks[0])
        assert (refused["id"], refused["error"]["code"], refused["error"]["field"]) == ("same", "duplicate_id", "id")
        at.finish(*at.controller.of(wire.Submit))
        assert [(await hear(sock))["status"] for sock in socks] == ["ok", "ok"]
        assert (await at.status())["answers"] == {"invalid": 1, "ok": 2}


@on_loop
async def test_more_bytes_than_the_limit_are_rejected_with_when_to_come_back_and_counted(tmp_path: Path) -> None:
    async with mesh(tmp_path, in_flight_mb=1, cache_mb=0, rows_max=1 << 16) as at:
        mebibyte = np.zeros((1 << 16, 4), np.float32)
        large = at.client.submit("m", mebibyte)
        outcome: Any = await at.client.submit("m", ROW)
        assert isinstance(outcome, Rejected)
        assert (outcome.code, outcome.retry_after_ms) == ("memory_full", 50.0)
        status = await at.status()
        assert (status["in_flight_bytes"], status["refused"]) == (1 << 20, {"memory_full": 1})
        large.cancel()
        at.finish(*await at.controller.wait(wire.Submit, (1 << 16) // 8))
        await at.status(lambda status: status["in_flight"] == 0)
        small = at.client.submit("m", ROW)
        at.finish((await at.controller.wait(wire.Submit, (1 << 16) // 8 + 1))[-1])
        assert isinstance(await small, Prediction)


@on_loop
async def test_a_client_that_knows_the_models_does_not_lose_its_connection_over_a_large_input(tmp_path: Path) -> None:
    async with mesh(tmp_path, request_bytes_max=1 << 20) as at:
        assert (await at.client.call("apps"))["frame_bytes_max"] == 1 << 20
        with pytest.raises(Invalid) as refused:
            await at.client.infer("m", np.zeros(((1 << 16) + 1, 4), np.float32))
        assert (refused.value.code, refused.value.field) == ("too_large", "inputs")
        assert names(refused.value.message, 1 << 20)
        assert (await at.status())["disconnections"] == 0


@on_loop
async def test_more_requests_than_the_limit_are_rejected_with_when_to_come_back(tmp_path: Path) -> None:
    async with mesh(tmp_path, in_flight_max=2) as at:
        futures = [at.client.submit("m", ROW) for _ in range(3)]
        outcome: Any = await futures[2]
        assert isinstance(outcome, Rejected)
        assert (outcome.code, outcome.retry_after_ms) == ("frontend_full", 50.0)
        at.finish(*await at.controller.wait(wire.Submit, 2))
        assert [type(await future) for future in futures[:2]] == [Prediction] * 2
        assert len(at.controller.of(wire.Submit)) == 2


# -- what nobody foresaw ----------------------------------------------------------------------------------------------


@on_loop
async def test_a_message_that_makes_a_check_raise_is_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh(tmp_path) as at:
        real = protocol.decode

        def check(asked: Any) -> Any:
            if b"odd" in asked:
                raise ZeroDivisionError("nobody foresaw that")
            return real(asked)

        monkeypatch.setattr(protocol, "decode", check)
        good = at.client.submit("m", ROW)
        with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
            sock.setsockopt(zmq.LINGER, 0)
            sock.connect(at.address)
            with structlog.testing.capture_logs() as logged:
                sock.send(request("odd"))
                answer = await hear(sock)
        assert (answer["status"], answer["error"]["code"]) == ("failed", "internal_error")
        assert answer["id"] is None
        (line,) = [line for line in logged if line["event"] == "request_error"]
        assert isinstance(line["exc_info"], ZeroDivisionError)
        at.finish(*await at.controller.wait(wire.Submit, 1))
        assert isinstance(await good, Prediction)
        assert (await at.status())["refused"] == {"internal_error": 1}
