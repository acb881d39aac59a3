"""The bytes of requests, and reading of answers."""

import msgpack
import numpy as np
import pytest

from frontend.core import protocol
from frontend.core.checks import InputRules
from gearmesh.load.generating.messages import SIZES, Template, random_inputs, read_answer, templates
from gearmesh.load.plan import LoadTarget, ModelInput
from mesh import wire
from mesh.strings import unpack

SMALL = LoadTarget(
    "m", (ModelInput("x", "float32", (4,)), ModelInput("flags", "bool", ()), ModelInput("ids", "int64", (2,)))
)
LARGE = LoadTarget("m", (ModelInput("x", "float32", (3, 224, 224)),))


def test_a_request_is_one_that_the_frontend_understands():
    inputs = random_inputs(SMALL, 3, np.random.default_rng(0))
    request = protocol.decode(Template(SMALL, inputs, cache=False).encode(70_000, 12.5))
    assert isinstance(request, protocol.InferRequest)
    assert (request.id, request.model, request.slo_ms, request.cache) == (70_000, "m", 12.5, False)
    assert [(t.name, t.dtype, t.shape) for t in request.inputs] == [
        ("x", "float32", [3, 4]), ("flags", "bool", [3]), ("ids", "int64", [3, 2]),
    ]  # fmt: skip
    assert np.array_equal(np.frombuffer(request.inputs[0].data, "<f4").reshape(3, 4), inputs[0])


def test_a_large_input_travels_as_a_frame_of_its_own():
    template = Template(LARGE, random_inputs(LARGE, 1, np.random.default_rng(0)), cache=True)
    request = protocol.decode(template.encode(1, 50.0))
    assert isinstance(request, protocol.InferRequest)
    assert request.inputs[0].data is None
    assert [len(frame) for frame in template.frames] == [3 * 224 * 224 * 4]


def test_answers_are_read_without_their_outputs():
    error = {"code": "overload", "message": "m", "retry_after_ms": 3.0}
    head = read_answer(msgpack.packb({"id": 7, "status": "rejected", "predicted_ms": 4.0, "error": error}))
    assert (head.id, head.status, head.predicted_ms) == (7, "rejected", 4.0)
    assert head.error is not None
    assert head.error.code == "overload"
    outputs = [{"name": "y", "dtype": "float32", "shape": [1, 2], "data": b"12345678"}]
    assert read_answer(msgpack.packb({"id": 8, "status": "ok", "batch_size": 3, "outputs": outputs})).batch_size == 3
    assert read_answer(msgpack.packb({"id": None, "status": "invalid"})).id is None


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8", "int32", "bool"])
def test_inputs_have_the_dtype_and_rows_asked_for(dtype):
    (array,) = random_inputs(LoadTarget("m", (ModelInput("x", dtype, (2, 3)),)), 5, np.random.default_rng(0))
    assert (array.dtype.name, array.shape) == (dtype, (5, 2, 3))


ENCODER = LoadTarget(
    "m",
    (
        ModelInput("ids", "int64", (-1,), ("seq",)),
        ModelInput("mask", "bool", (-1,), ("seq",)),
        ModelInput("k", "bool", ()),
    ),
    dims=(wire.Dim(name="seq", least=2, most=512),),
)
TEXTS = LoadTarget("m", (ModelInput("text", "string", ()), ModelInput("blob", "bytes", (2,))))


def test_requests_of_drawn_sizes_fit_the_model_and_their_masks_are_true():
    made = templates(ENCODER, 2, 1, "uniform:2-9", np.random.default_rng(0), cache=False)
    assert len(made) == SIZES
    assert {template.size for template in made} == set(range(2, 10))
    tensors = [wire.TensorSpec(name=t.name, dtype=t.dtype, shape=(-1, *t.shape), dims=t.dims) for t in ENCODER.inputs]
    spec = wire.ModelSpec(inputs=tuple(tensors), outputs=(), batch_max=4, slo_ms=1.0, dims=ENCODER.dims)
    for template in made[:20]:
        request = protocol.decode(template.encode(1, 50.0))
        assert isinstance(request, protocol.InferRequest)
        checked = InputRules(spec, 4).check(request, ())
        assert (checked.rows, checked.extents) == (2, (template.size,))
        assert all(bytes(checked.tensors[1]))


def test_without_a_law_of_sizes_there_are_as_many_requests_as_were_asked_for():
    for target, size in ((ENCODER, 512), (SMALL, 0)):
        made = templates(target, 1, 3, "", np.random.default_rng(0), cache=False)
        assert [template.size for template in made] == [size] * 3


@pytest.mark.parametrize("rows", [1, 2000])
def test_strings_are_words_in_a_list_or_packed_in_a_frame(rows):
    template = Template(TEXTS, random_inputs(TEXTS, rows, np.random.default_rng(0)), cache=False)
    request = protocol.decode(template.encode(1, 50.0))
    assert isinstance(request, protocol.InferRequest)
    assert bool(template.frames) == (rows > 1)
    tensors = [wire.TensorSpec(name=t.name, dtype=t.dtype, shape=(-1, *t.shape)) for t in TEXTS.inputs]
    spec = wire.ModelSpec(inputs=tuple(tensors), outputs=(), batch_max=4, slo_ms=1.0)
    checked = InputRules(spec, 4096).check(request, template.frames)
    assert [len(unpack(data, count)) for data, count in zip(checked.tensors, (rows, 2 * rows), strict=True)]
