"""frontend/service.py: a real frontend and a real broker, with a controller and a worker that act as a test says."""

from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import zmq

from frontend.client.client import Failed, Invalid, Prediction, Rejected
from mesh import wire
from tests.frontend.client.fakes import ROW
from tests.frontend.service_mesh import SPEC, hear_parts, mesh
from tests.loops import on_loop
from tests.mesh.net.brokers import package

# -- one request ------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_request_goes_to_the_controller_and_its_outputs_to_the_client(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW, slo_ms=30_000, weight=2.0)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert (submit.attempt, submit.ref, submit.rows, submit.weight, submit.frames) == (0, "m:1", 1, 2.0, 0)
        assert [bytes(data) for data in submit.inline] == [ROW.tobytes()]
        assert 0 < submit.budget_s <= 30.0
        at.finish(submit)
        prediction = await future
        assert isinstance(prediction, Prediction)
        np.testing.assert_array_equal(prediction["y"], ROW * 2, strict=True)
        assert (prediction.model, prediction.version, prediction.batch_size) == ("m", "1", 4)
        assert (prediction.predicted_ms, prediction.device) == (250.0, "cpu:0")
        assert 0 < prediction.latency_ms < 30_000
        assert prediction.answer["cached"] is False


@on_loop
async def test_a_controller_is_told_the_clients_of_one_connection_apart_by_their_source(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        for number, source in enumerate((None, "a", "b", "a", None)):
            at.client.submit("m", ROW + number, source=source)
        plain, one, other, again, plainly = [each.client for each in await at.controller.wait(wire.Submit, 5)]
        assert len({plain, one, other}) == 3
        assert (again, plainly) == (one, plain)
        assert 0 not in (plain, one, other)


@on_loop
async def test_the_models_own_budget_counts_where_none_is_given(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.client.submit("m", ROW)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert 30.0 < submit.budget_s <= 60.0


@pytest.mark.parametrize("rows", [8, 2048, 2049])
@on_loop
async def test_inputs_of_more_than_32_kib_stay_here(rows: int, tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.client.submit("m", np.zeros((8, 4), np.float32))
        spec = msgspec.structs.replace(SPEC, batch_max=4096)
        at.controller.caller.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=spec))
        await at.models(lambda models: models["m"]["batch_max"] == 4096)
        at.client.submit("m", np.ones((rows, 4), np.float32))
        _, submit = await at.controller.wait(wire.Submit, 2)
        large = rows * 16 > wire.INLINE_BYTES_MAX
        assert (submit.rows, len(submit.inline), submit.kept is not None) == (rows, int(not large), large)
        assert submit.kept is None or submit.kept.sizes == (rows * 16,)
        assert not any(mail.frames for mail in at.controller.listening.mail.items)


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
        answer, frame = await hear_parts(sock)
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
            "slo_ms": 60_000.0,
            "batch_sizes": [1, 8],
            "batch_max": 8,
            "labels": ["cat", "dog"],
            "ready": True,
            "preparing": None,
            "fault": None,
            "fault_code": None,
            "unserved": None,
            "starting": None,
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
            await at.models(lambda models, ready=ready: models["m"]["ready"] is ready)


@on_loop
async def test_the_status_tells_who_is_there_and_how_requests_were_answered(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.client.submit("m", ROW)
        await at.controller.wait(wire.Submit, 1)
        with pytest.raises(Invalid):
            await at.client.infer("nowhere", ROW)
        status = await at.status()
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
        at.stop_frontend()
        outcome: Any = await future
        assert isinstance(outcome, Failed)
        assert outcome.code == "stopping"
        await at.controller.wait(wire.Goodbye, 1)
        table = await at.controller.caller.table(lambda table: len(table.members) == 1)
        assert table.members[0].role == "controller"
