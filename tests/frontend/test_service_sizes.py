"""frontend/service.py: inputs of any length and strings, over real sockets; who asks what cannot be disturbs nobody."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from frontend.client.client import Failed, Invalid, Prediction
from mesh import wire
from mesh.strings import pack, unpack
from tests.frontend.service_mesh import Mesh, hear, hear_parts, mesh
from tests.loops import on_loop
from tests.messages import names

SEQ = wire.Dim(name="seq", least=2, most=512)
IDS = wire.TensorSpec(name="ids", dtype="int64", shape=(-1, -1), dims=("seq",))
MASK = wire.TensorSpec(name="mask", dtype="bool", shape=(-1, -1), dims=("seq",))
TEXT = wire.TensorSpec(name="text", dtype="string", shape=(-1,))
VECTOR = wire.TensorSpec(name="vector", dtype="float32", shape=(-1, 2))
STATES = wire.TensorSpec(name="states", dtype="float32", shape=(-1, -1), dims=("seq",))
BOXES = wire.TensorSpec(name="boxes", dtype="float32", shape=(-1, 2), owner="owner")
OWNER = wire.TensorSpec(name="owner", dtype="int64", shape=(-1,))
LABEL = wire.TensorSpec(name="label", dtype="string", shape=(-1,))
BLOB = wire.TensorSpec(name="blob", dtype="bytes", shape=(-1,))


def spec_of(inputs: Any, outputs: Any, dims: Any = (SEQ,), **fields: Any) -> wire.ModelSpec:
    return wire.ModelSpec(inputs=inputs, outputs=outputs, batch_max=2, slo_ms=60_000.0, dims=dims, **fields)


ENCODER = spec_of((IDS, MASK), (VECTOR, STATES))
FINDER = spec_of((IDS,), (BOXES, OWNER))
READER = spec_of((TEXT,), (LABEL, BLOB), dims=())


async def serve(at: Mesh, spec: wire.ModelSpec) -> None:
    """Model m is this one from now on, and the client knows it."""
    at.controller.caller.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=spec))
    wanted = [tensor.name for tensor in spec.outputs]
    await at.models(lambda models: [each["name"] for each in models["m"]["outputs"]] == wanted)


def answer(submit: wire.Submit, *outputs: bytes, shapes: Any = ()) -> wire.Answer:
    inline = tuple(memoryview(data) for data in outputs)
    return wire.Answer(
        request=submit.request, attempt=submit.attempt, rows=submit.rows, predicted_s=0.1, inline=inline, shapes=shapes
    )


def encoded(submit: wire.Submit) -> wire.Answer:
    """What the encoder gives: zeros, and the ids."""
    (seq,) = submit.extents
    ids = np.frombuffer(submit.inline[0], np.int64).astype(np.float32)
    shapes = ((submit.rows, 2), (submit.rows, seq))
    return answer(submit, bytes(8 * submit.rows), ids.tobytes(), shapes=shapes)


def tokens(rows: int, seq: int, first: int = 0) -> dict[str, Any]:
    ids = np.arange(first, first + rows * seq).reshape(rows, seq)
    return {"ids": ids, "mask": np.ones((rows, seq), bool)}


@on_loop
async def test_requests_of_any_length_are_submitted_with_it_and_answered_with_their_own_shapes(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, ENCODER)
        asked = [tokens(1, 2), tokens(2, 512), tokens(1, 77)]
        futures = [at.client.submit("m", x) for x in asked]
        submits = await at.controller.wait(wire.Submit, 3)
        assert [(submit.rows, submit.extents) for submit in submits] == [(1, (2,)), (2, (512,)), (1, (77,))]
        at.outputs(*map(encoded, submits))
        for x, future in zip(asked, futures, strict=True):
            prediction: Any = await future
            assert np.array_equal(prediction["states"], x["ids"].astype(np.float32))
            assert prediction["vector"].shape == (len(x["ids"]), 2)


@on_loop
async def test_one_row_needs_no_batch_dimension_whatever_its_length(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, ENCODER)
        future = at.client.submit("m", {"ids": np.arange(9), "mask": np.ones(9, bool)})
        at.outputs(*map(encoded, await at.controller.wait(wire.Submit, 1)))
        prediction: Any = await future
        assert prediction["states"].shape == (1, 9)


@on_loop
async def test_parts_of_a_large_request_have_its_extents_and_are_joined(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, ENCODER)
        x = tokens(5, 7)
        future = at.client.submit("m", x)
        submits = await at.controller.wait(wire.Submit, 3)
        assert [(submit.rows, submit.extents) for submit in submits] == [(2, (7,)), (2, (7,)), (1, (7,))]
        at.outputs(*map(encoded, reversed(submits)))
        prediction: Any = await future
        assert np.array_equal(prediction["states"], x["ids"].astype(np.float32))


@on_loop
async def test_what_is_found_comes_back_with_the_rows_of_the_request(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, FINDER)
        future = at.client.submit("m", tokens(3, 4)["ids"])
        first, second = await at.controller.wait(wire.Submit, 2)
        boxes = np.arange(4, dtype=np.float32).reshape(2, 2)
        one, two = np.array([1], np.int64), np.array([0, 0], np.int64)
        at.outputs(
            answer(first, boxes[:1].tobytes(), one.tobytes(), shapes=((1, 2), (1,))),
            answer(second, boxes.tobytes(), two.tobytes(), shapes=((2, 2), (2,))),
        )
        prediction: Any = await future
        assert prediction["owner"].tolist() == [1, 2, 2]
        assert prediction["boxes"].tolist() == [[0, 1], [0, 1], [2, 3]]


@pytest.mark.parametrize(
    "shapes",
    [((1, 2), (1, 512)), ((1, 2), (1, 6)), ((1, 2), (2, 7)), ((1, 2),), ((1, 2), (7,)), ((1, 1 << 39), (1, 7))],
)
@on_loop
async def test_outputs_of_other_shapes_never_reach_a_client(shapes: Any, tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, ENCODER)
        wrong, right = at.client.submit("m", tokens(1, 7)), at.client.submit("m", tokens(1, 7, first=9))
        first, second = await at.controller.wait(wire.Submit, 2)
        at.outputs(answer(first, bytes(8), bytes(28), shapes=shapes), encoded(second))
        failed = await wrong
        assert isinstance(failed, Failed)
        assert (failed.code, failed.status) == ("bad_outputs", "failed")
        assert names(failed.message, "cpu:0", "m:1")
        assert isinstance(await right, Prediction)


@on_loop
async def test_the_cache_tells_equal_bytes_of_other_shapes_apart_and_keeps_shapes(tmp_path: Path) -> None:
    async with mesh(tmp_path, cache_mb=16) as at:
        await serve(at, ENCODER)
        ids = np.arange(12)
        shaped = [{"ids": ids.reshape(r, -1), "mask": np.ones((r, 12 // r), bool)} for r in (1, 2, 1, 2)]
        futures = [at.client.submit("m", x) for x in shaped[:2]]
        submits = await at.controller.wait(wire.Submit, 2)
        at.outputs(*map(encoded, submits))
        first: list[Any] = [await future for future in futures]
        again: list[Any] = [await at.client.submit("m", x) for x in shaped[2:]]
        assert [prediction.cached for prediction in (*first, *again)] == [False, False, True, True]
        assert [prediction["states"].shape for prediction in (*first, *again)] == [(1, 12), (2, 6)] * 2
        assert len(at.controller.of(wire.Submit)) == 2


@on_loop
async def test_equal_requests_wait_for_one_and_all_get_its_shapes(tmp_path: Path) -> None:
    async with mesh(tmp_path, cache_mb=16) as at:
        await serve(at, ENCODER)
        futures = [at.client.submit("m", tokens(1, 7)) for _ in range(3)]
        at.outputs(*map(encoded, await at.controller.wait(wire.Submit, 1)))
        predictions: list[Any] = [await future for future in futures]
        assert [prediction["states"].shape for prediction in predictions] == [(1, 7)] * 3
        assert len(at.controller.of(wire.Submit)) == 1


@on_loop
async def test_models_tell_their_open_dimensions(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, ENCODER)
        (m,) = await at.client.models()
        assert m["dims"] == {"seq": [2, 512]}
        assert m["inputs"][0] == {"name": "ids", "dtype": "int64", "shape": [-1, -1], "dim_names": ["batch", "seq"]}
        assert m["outputs"] == [
            {"name": "vector", "dtype": "float32", "shape": [-1, 2]},
            {"name": "states", "dtype": "float32", "shape": [-1, -1], "dim_names": ["batch", "seq"]},
        ]
        await serve(at, FINDER)
        (m,) = await at.client.models()
        assert m["outputs"][0] == {"name": "boxes", "dtype": "float32", "shape": [-1, 2], "owner": "owner"}


@on_loop
async def test_rows_that_do_not_fit_together_at_their_length_are_asked_in_halves(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, ENCODER)
        x = tokens(2, 512)
        future = at.client.submit("m", x)
        (whole,) = await at.controller.wait(wire.Submit, 1)
        no = {"status": "failed", "code": "bad_batch", "message": "2 rows with seq 512 do not fit"}
        at.controller.send(wire.Refused(request=whole.request, attempt=0, **no))
        _, one, other = await at.controller.wait(wire.Submit, 3)
        assert [(part.rows, part.extents, part.call) for part in (one, other)] == [(1, (512,), whole.request)] * 2
        at.outputs(encoded(other), encoded(one))
        prediction: Any = await future
        assert np.array_equal(prediction["states"], x["ids"].astype(np.float32))
        assert prediction.request == whole.request
        cancels = await at.controller.wait(wire.Cancel, 1)
        assert [(each.request, each.outcome) for each in cancels] == [(whole.request, "in_time")]


@on_loop
async def test_a_single_row_that_does_not_fit_is_told(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, ENCODER)
        future = at.client.submit("m", tokens(1, 512))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        no = {"status": "failed", "code": "bad_batch", "message": "1 rows with seq 512 do not fit"}
        at.controller.send(wire.Refused(request=submit.request, attempt=0, **no))
        failed = await future
        assert isinstance(failed, Failed)
        assert failed.code == "bad_batch"


# -- strings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letters", [1, 50_000])
@on_loop
async def test_strings_travel_there_and_back_in_both_forms(letters: int, tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, READER)
        texts = ["ü" * letters, ""]
        future = at.client.submit("m", texts)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert (submit.rows, submit.extents) == (2, ())
        packed = pack(text.encode() for text in texts)
        at.ask(wire.Fetch(request=submit.request, attempt=0))
        mails = await at.told_worker.until(lambda mails: any(mail.frames for mail in mails))
        assert [bytes(frame) for mail in mails for frame in mail.frames] == [packed]
        assert submit.kept is None or submit.kept.sizes == (len(packed),)
        assert [*map(bytes, submit.inline)] == ([packed] if submit.kept is None else [])
        at.outputs(answer(submit, packed, pack([b"\xff\0", b"x"])))
        prediction: Any = await future
        assert prediction["label"].tolist() == texts
        assert prediction["blob"].tolist() == [b"\xff\0", b"x"]


@on_loop
async def test_a_request_of_many_strings_is_split_between_them(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, READER)
        texts = ["a", "", "ccc", "dd", "e"]
        future = at.client.submit("m", texts)
        submits = await at.controller.wait(wire.Submit, 3)
        assert [unpack(submit.inline[0], submit.rows) for submit in submits] == [[b"a", b""], [b"ccc", b"dd"], [b"e"]]
        at.outputs(*(answer(submit, bytes(submit.inline[0]), bytes(submit.inline[0])) for submit in submits))
        prediction: Any = await future
        assert prediction["label"].tolist() == texts


@pytest.mark.parametrize("framed", [False, True])
@on_loop
async def test_another_language_sends_and_gets_lists_or_packed_frames(framed: bool, tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, READER)
        sock = at.made.bare(zmq.DEALER)
        sock.connect(at.address)
        tensor: dict[str, Any] = {"name": "text", "dtype": "string", "shape": [2]}
        if not framed:
            tensor["data"] = ["a", b"b"]
        header = msgpack.packb({"op": "infer", "id": 7, "model": "m", "inputs": [tensor]})
        sock.send_multipart([header, pack([b"a", b"b"])] if framed else [header])
        (submit,) = await at.controller.wait(wire.Submit, 1)
        outputs = [pack([b"x", b"y"]), pack([b"\xff", b""])]
        at.outputs(answer(submit, *outputs))
        head, *frames = await hear_parts(sock)
        label, blob = msgpack.unpackb(head)["outputs"]
        if framed:
            assert frames == outputs
            assert "data" not in label
        else:
            assert (label["data"], blob["data"]) == (["x", "y"], [b"\xff", b""])


@on_loop
async def test_strings_of_a_model_that_are_none_never_reach_a_client(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, READER)
        future = at.client.submit("m", ["a"])
        (submit,) = await at.controller.wait(wire.Submit, 1)
        at.outputs(answer(submit, pack([b"\xff"]), pack([b""])))
        failed = await future
        assert isinstance(failed, Failed)
        assert failed.code == "bad_outputs"
        assert names(failed.message, "label", "UTF-8")


# -- bad input --------------------------------------------------------------------------------------------------------


def ids(shape: Any, data: Any = ..., **fields: Any) -> dict[str, Any]:
    size = int(np.prod([max(0, extent) for extent in shape])) if np.prod(shape) < 1e6 else 0
    return {
        "name": "ids",
        "dtype": "int64",
        "shape": list(shape),
        "data": bytes(8 * size) if data is ... else data,
        **fields,
    }


def mask(shape: Any) -> dict[str, Any]:
    return {"name": "mask", "dtype": "bool", "shape": list(shape), "data": bytes(int(np.prod(shape)))}


HOSTILE: list[tuple[wire.ModelSpec, list[dict[str, Any]], str, str, tuple[Any, ...]]] = [
    (ENCODER, [ids((1, 0)), mask((1, 0))], "bad_shape", "inputs[0].shape", ("ids", "seq", 2, 512, 0)),
    (ENCODER, [ids((1, 513)), mask((1, 513))], "bad_shape", "inputs[0].shape", ("ids", "seq", 2, 512, 513)),
    (ENCODER, [ids((1, 1 << 40)), mask((1, 7))], "bad_shape", "inputs[0].shape", ("ids", "seq", 2, 512)),
    (ENCODER, [ids((1, 7)), mask((1, 8))], "bad_shape", "inputs[1].shape", ("ids", "mask", "seq", 7, 8)),
    (ENCODER, [ids((1, 7), bytes(8)), mask((1, 7))], "bad_data", "inputs[0].data", ("ids", 56, 8)),
    (ENCODER, [ids((1, 7), ["a"] * 7), mask((1, 7))], "bad_data", "inputs[0].data", ("ids", "int64")),
    (ENCODER, [ids((1, 7), ["a"] * 7, dtype="string"), mask((1, 7))], "bad_dtype", "inputs[0].dtype", ("int64",)),
    (READER, [ids((1,), name="text")], "bad_dtype", "inputs[0].dtype", ("text", "string", "int64")),
    (READER, [{"name": "text", "dtype": "string", "shape": [1], "data": [b"\xc3\x28"]}], "bad_data",
     "inputs[0].data[0]", ("text", "UTF-8")),
    (READER, [{"name": "text", "dtype": "string", "shape": [0], "data": []}], "bad_shape",
     "inputs[0].shape", ("text",)),
    (READER, [{"name": "text", "dtype": "string", "shape": [1], "data": [7]}], "bad_data", "inputs[0].data[0]", ()),
    (READER, [{"name": "text", "dtype": "string", "shape": [1_000_000], "data": [""] * 1_000_000}], "bad_data",
     "inputs[0].data", (16384, 1_000_000)),
    (READER, [{"name": "text", "dtype": "string", "shape": [1], "data": ["x" * 10_000_000]}], "bad_data",
     "inputs[0].data", (4194304,)),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "inputs", "code", "field", "said"), HOSTILE)
@on_loop
async def test_bad_input_gets_one_clear_answer_and_nobody_else_notices(
    spec: wire.ModelSpec, inputs: Any, code: str, field: str, said: Any, tmp_path: Path
) -> None:
    async with mesh(tmp_path, rows_max=1 << 20) as at:
        await serve(at, spec)
        good = at.client.submit("m", ["a"] if spec is READER else tokens(1, 7))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        sock = at.made.bare(zmq.DEALER)
        sock.connect(at.address)
        sock.send(msgpack.packb({"op": "infer", "id": 7, "model": "m", "inputs": inputs}))
        told = await hear(sock)
        assert (told["id"], told["status"]) == (7, "invalid")
        assert (told["error"]["code"], told["error"]["field"]) == (code, field)
        assert names(told["error"]["message"], *said)
        assert len(told["error"]["message"]) < 300
        at.outputs(encoded(submit) if spec is ENCODER else answer(submit, pack([b"a"]), pack([b"a"])))
        assert isinstance(await good, Prediction)
        status = await at.status()
        assert (status["in_flight"], status["in_flight_bytes"], status["answers"]) == (0, 0, {"ok": 1, "invalid": 1})


@on_loop
async def test_the_python_client_raises_what_is_wrong_with_a_length(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        await serve(at, ENCODER)
        with pytest.raises(Invalid) as raised:
            await at.client.infer("m", tokens(1, 1))
        assert (raised.value.code, raised.value.field) == ("bad_shape", "inputs[0].shape")
        assert names(str(raised.value), "seq", 2, 512, 1)
