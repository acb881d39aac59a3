"""frontend/service.py and frontend/transport.py, where more comes than can be taken in, or what nobody can read."""

import asyncio
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from frontend import service
from frontend import transport as port
from frontend.core import protocol
from frontend.core.junk import JUNK_MAX
from mesh import wire
from tests.frontend.service_mesh import Mesh, hear, mesh, request
from tests.loops import LIMIT_S, on_loop

MANY = 300


def client(at: Mesh, **options: int) -> "zmq.Socket[bytes]":
    sock = at.made.bare(zmq.DEALER)
    for option in (zmq.SNDHWM, zmq.RCVHWM):
        sock.setsockopt(option, 0)
    sock.connect(at.address)
    return sock


async def outcomes(sock: Any, count: int) -> list[str]:
    """The code of each answer, or ok, once there are so many; each has been answered once."""
    answers = [await hear(sock) for _ in range(count)]
    assert len({answer["id"] for answer in answers}) == count
    return [answer["error"]["code"] if "error" in answer else answer["status"] for answer in answers]


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message takes longer to process than there is time for before others get their turn."""
    monkeypatch.setattr(port, "SLICE_S", 0.0)
    monkeypatch.setattr(port, "WORK_S", 0.0)
    return


@on_loop
async def test_what_waits_for_its_turn_is_processed_in_order_and_once(tmp_path: Path, no_time: None) -> None:
    async with mesh(tmp_path) as at:
        sock, other = client(at), client(at)
        for i in range(MANY):
            sock.send(request(i, slo_ms=60_000))
        other.send(request("other", slo_ms=60_000))
        submits = await at.controller.wait(wire.Submit, MANY + 1)
        own = [submit.asked_id for submit in submits if submit.asked_id != "other"]
        assert own == [str(i) for i in range(MANY)]
        at.finish(*submits)
        assert await outcomes(sock, MANY) == ["ok"] * MANY
        assert (await hear(other))["status"] == "ok"
        status = await at.status()
        assert (status["requests_waiting"], status["refused"], status["answers"]) == (0, {}, {"ok": MANY + 1})


@on_loop
async def test_what_would_wait_for_too_much_of_its_budget_is_refused_unread_and_counted(
    tmp_path: Path, no_time: None
) -> None:
    async with mesh(tmp_path) as at:
        sock = client(at)
        refused = [msgpack.packb({"op": "infer", "id": i, "model": "m", "inputs": "unread", "slo_ms": 1}) for i in
                   range(4 * MANY)]  # fmt: skip
        for i, body in enumerate(refused):
            sock.send(body if i else request(0, slo_ms=60_000))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        at.finish(submit)
        found = await outcomes(sock, 4 * MANY)
        assert found.count("ok") == 1
        busy = found.count("frontend_busy")
        assert busy >= MANY, "some had their turn soon enough, and were looked at"
        assert found.count("bad_field") == 4 * MANY - 1 - busy
        status = await at.status()
        assert status["refused"]["frontend_busy"] == busy
        tally = status["outcomes"]["models"].get("m") or status["outcomes"]["other_models"]
        assert tally["rejected"] == busy


@on_loop
async def test_a_cancel_is_never_refused(tmp_path: Path, no_time: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh(tmp_path) as at:
        sock = client(at)
        sock.send(request("asked", slo_ms=60_000))
        await at.controller.wait(wire.Submit, 1)
        monkeypatch.setattr(service, "may_wait", lambda waited_s, more_s, budget_s: False)
        for i in range(MANY):
            sock.send(request(i, slo_ms=60_000))
        sock.send(msgpack.packb({"op": "cancel", "id": "asked"}))
        answers = {}
        while "asked" not in answers:
            answer = await hear(sock)
            answers[answer["id"]] = answer
        assert answers["asked"]["error"]["code"] == "cancelled"


@pytest.mark.parametrize("slo_ms", [float("nan"), 0.0, -5.0])
@on_loop
async def test_a_time_that_cannot_be_is_told_however_long_it_waited(
    slo_ms: float, tmp_path: Path, no_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh(tmp_path) as at:
        monkeypatch.setattr(service, "may_wait", lambda waited_s, more_s, budget_s: budget_s > 0.0)
        sock = client(at)
        for i in range(MANY):
            sock.send(request(i, slo_ms=slo_ms))
        assert await outcomes(sock, MANY) == ["bad_slo"] * MANY


@on_loop
async def test_at_the_end_what_waits_is_answered_too(tmp_path: Path, no_time: None) -> None:
    async with mesh(tmp_path) as at:
        sock = client(at)
        for i in range(100):
            sock.send(request(i, slo_ms=60_000))
        await at.status(lambda status: status["requests_waiting"] + status["in_flight"] == 100)  # all have been read
        at.stop_frontend()  # all has left then, though no turn follows
        answers = []
        while len(answers) < 100 and sock.poll(LIMIT_S * 1e3):
            answers.append(msgpack.unpackb(sock.recv()))
        assert {answer["error"]["code"] for answer in answers} == {"stopping"}
        assert {answer["id"] for answer in answers} == set(range(100))


@on_loop
async def test_one_client_leaves_room_for_another_where_requests_are_bounded(tmp_path: Path) -> None:
    async with mesh(tmp_path, in_flight_max=10) as at:
        greedy, honest = client(at), client(at)
        for i in range(10):
            greedy.send(request(i, slo_ms=60_000))
        assert await outcomes(greedy, 2) == ["frontend_full"] * 2
        honest.send(request("honest", slo_ms=60_000))
        submits = await at.controller.wait(wire.Submit, 9)
        assert [submit.asked_id for submit in submits][-1] == "honest"


@on_loop
async def test_sources_of_one_connection_are_clients_of_their_own(tmp_path: Path) -> None:
    async with mesh(tmp_path, in_flight_max=10) as at:
        gateway = client(at)
        for i in range(10):
            gateway.send(request(i, slo_ms=60_000, source="greedy"))
        assert await outcomes(gateway, 2) == ["frontend_full"] * 2
        gateway.send(request("honest", slo_ms=60_000, source="honest"))
        await at.controller.wait(wire.Submit, 9)


@on_loop
async def test_a_frontend_whose_controller_is_behind_lets_fewer_in_until_it_is_not(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = client(at)
        for i in range(MANY):
            sock.send(request(i, slo_ms=60_000))
        submits = await at.controller.wait(wire.Submit, MANY)
        at.controller.send(wire.IntakeLag(lag_s=20.0))  # a third of the budgets
        fewer = await at.status(lambda status: status["in_flight_limit"] < MANY // 2)
        assert fewer["in_flight"] == MANY
        sock.send(request("more", slo_ms=60_000))
        assert await outcomes(sock, 1) == ["frontend_busy"]
        sock.send(msgpack.packb({"op": "ping", "id": "ping"}))
        assert await outcomes(sock, 1) == ["ok"]
        honest = client(at)
        honest.send(request("honest", slo_ms=60_000))
        await at.controller.wait(wire.Submit, MANY + 1)
        at.controller.send(wire.IntakeLag(lag_s=0.0))
        await at.status(lambda status: status["in_flight_limit"] == at.frontend.settings.in_flight_max)
        sock.send(request("again", slo_ms=60_000))
        await at.controller.wait(wire.Submit, MANY + 2)
        at.finish(*submits)
        assert await outcomes(sock, MANY) == ["ok"] * MANY


@on_loop
async def test_time_outs_show_that_services_are_behind(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock, most = client(at), at.frontend.settings.in_flight_max
        behind = asyncio.create_task(at.status(lambda status: status["in_flight_limit"] < most))  # for a moment only
        for i in range(MANY):
            sock.send(request(i, slo_ms=100))
        assert set(await outcomes(sock, MANY)) <= {"deadline", "frontend_busy"}
        await behind
        await at.status(lambda status: status["in_flight_limit"] == most)


@on_loop
async def test_time_outs_without_a_controller_say_nothing_of_services(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = client(at)
        at.controller.leave()
        await at.models(lambda models: not models["m"]["ready"])
        seen: set[int] = set()
        for i in range(10):
            sock.send(request(i, slo_ms=100))
            assert await outcomes(sock, 1) == ["deadline"]
            seen.add((await at.status())["in_flight_limit"])
        assert seen == {at.frontend.settings.in_flight_max}


@on_loop
async def test_a_frontend_that_rests_between_readings_reads_all(tmp_path: Path, no_time: None) -> None:
    async with mesh(tmp_path) as at:
        sock = client(at)
        at.controller.send(wire.IntakeLag(lag_s=10.0))
        for i in range(4 * MANY):
            sock.send(request(i, slo_ms=100))
        assert set(await outcomes(sock, 4 * MANY)) <= {"deadline", "frontend_busy"}


# -- junk -------------------------------------------------------------------------------------------------------------

JUNK = [b"\xc1", b"", b"GET / HTTP/1.1", msgpack.packb({"op": "nothing", "id": 1}), msgpack.packb([1, 2])]


@on_loop
async def test_a_connection_that_goes_on_sending_junk_is_told_and_closed_and_no_other(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        bad, good = client(at), client(at)
        bad.setsockopt(zmq.RECONNECT_IVL, -1)
        good.send(request("good", slo_ms=60_000))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        for i in range(JUNK_MAX + 1 + MANY):
            bad.send(JUNK[i % len(JUNK)])
        told = [await hear(bad) for _ in range(JUNK_MAX + 2)]
        while told[-1]["error"]["code"] != "junk":  # a slow machine lets more of it pass
            told.append(await hear(bad))
        assert {answer["status"] for answer in told} == {"invalid"}
        assert len(told) <= JUNK_MAX + 1 + MANY
        status = await at.status(lambda status: status["disconnections"] == 1)
        assert (status["expelled"], status["refused"]["junk"]) == (1, 1)
        at.finish(submit)
        assert (await hear(good))["status"] == "ok"


@on_loop
async def test_a_connection_that_sends_some_junk_among_good_messages_lives(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = client(at)
        for i in range(2 * JUNK_MAX):
            sock.send(JUNK[i % len(JUNK)])
            for _ in range(2):
                sock.send(msgpack.packb({"op": "ping", "id": i}))
        answers = [await hear(sock) for _ in range(6 * JUNK_MAX)]
        assert [answer["status"] for answer in answers].count("ok") == 4 * JUNK_MAX
        assert (await at.status())["expelled"] == 0


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"\x83\xa2op\xa5infer\xa2id\x07\xa6inputs\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20), "bad_field", "inputs"),
        (
            b"\x83\xa2op\xa5infer\xa2id\x07\xa6inputs\x91\x81\xa5shape\xdd\x00\x20\x00\x00" + b"\x01" * (1 << 21),
            "bad_shape",
            "inputs[0].shape",
        ),
        (msgpack.packb({"op": "create_app", "id": 7, "app": {"x": [0] * (1 << 21)}}), "bad_field", "app"),
        (
            msgpack.packb({"op": "feedback", "id": 7, "decision_id": "d", "label": [0] * (1 << 21)}),
            "bad_field",
            "label",
        ),
        (msgpack.packb({"id": 7, "op": "frobnicate", "x": [0] * (1 << 21)}), "bad_op", "op"),
    ],
)
def test_large_messages_of_many_small_values_are_refused_without_making_these(
    body: bytes, code: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(protocol.RequestRefused) as refused:
        protocol.decode(body)
    assert (refused.value.code, refused.value.field, refused.value.id) == (code, field, 7)


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [1, 100, 127, 129, 200])
@on_loop
async def test_a_connection_goes_on_whatever_sizes_its_messages_have(tmp_path: Path, before: int) -> None:
    """ZeroMQ stops reading a connection for good if its high-water mark is lowered while messages were counted."""
    async with mesh(tmp_path) as at:
        sock = client(at)
        for number in range(before):
            sock.send(msgpack.packb({"op": "ping", "id": number}))
            assert (await hear(sock))["id"] == number
        sock.send(msgpack.packb({"op": "ping", "id": "large", "x": bytes(16 << 20)}))
        assert (await hear(sock))["error"]["code"] == "bad_field"
        for number in range(300):
            sock.send(msgpack.packb({"op": "ping", "id": number}))
            assert (await hear(sock))["id"] == number
