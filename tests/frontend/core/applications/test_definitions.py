"""Which models an application can have: their answers must have equal shapes, of numbers."""

from typing import Any

import numpy as np
import pytest

from frontend.core import protocol
from frontend.core.applications.definitions import Application, make_application, read_definition
from frontend.core.applications.messages import Ask, ClientAsked, ModelAnswered, Refuse, SendAnswer
from frontend.core.protocol import RequestRefused
from mesh import wire
from tests.frontend.core.applications.cores import Core, definition, entry
from tests.messages import names

SEQ = wire.Dim(name="seq", least=1, most=8)
IDS = wire.TensorSpec(name="ids", dtype="int64", shape=(-1, -1), dims=("seq",))
TEXT = wire.TensorSpec(name="text", dtype="string", shape=(-1,))
TAGS = wire.TensorSpec(name="tags", dtype="float32", shape=(-1, -1, 2), dims=("seq", ""))
KIND = wire.TensorSpec(name="kind", dtype="float32", shape=(-1, 4))


def spec(*outputs: wire.TensorSpec, dims: Any = (SEQ,), **fields: Any) -> wire.ModelSpec:
    return wire.ModelSpec(inputs=(IDS,), outputs=outputs, batch_max=8, slo_ms=100.0, dims=dims, **fields)


def made(first: wire.ModelSpec, second: wire.ModelSpec | None = None, *, strict: bool = True, **fields: Any) -> Any:
    specs = {"a": first, "b": second or first}
    read = read_definition(definition(**{"models": ["a", "b"], **fields}))
    try:
        return make_application(read, 1, specs, slo_ms_max=1e4, strict=strict)
    except RequestRefused as refused:
        return refused


@pytest.mark.parametrize("outputs", [(KIND,), (TAGS,), (KIND, TAGS)])
def test_models_with_open_dimensions_are_combined(outputs: Any) -> None:
    assert isinstance(made(spec(*outputs)), Application)


def test_models_of_strings_in_and_numbers_out_are_combined() -> None:
    assert isinstance(made(wire.ModelSpec(inputs=(TEXT,), outputs=(KIND,), batch_max=8, slo_ms=1.0)), Application)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("output", "fields"),
    [
        (wire.TensorSpec(name="label", dtype="string", shape=(-1,)), {}),
        (wire.TensorSpec(name="label", dtype="bytes", shape=(-1,)), {}),
        (wire.TensorSpec(name="label", dtype="float32", shape=(-1, 4), owner="owner"), {}),
        (wire.TensorSpec(name="label", dtype="float32", shape=(-1, 5, 4), count="count"), {}),
        (wire.TensorSpec(name="label", dtype="float32", shape=(-1, -1), dims=("",)), {"exact": True}),
    ],
)
def test_answers_that_cannot_be_combined_are_refused_with_the_reason(output: Any, fields: Any, strict: bool) -> None:
    refused = made(spec(output, **fields), strict=strict)
    assert (refused.code, refused.field) == ("bad_app", "app.models")
    assert names(refused.message, "label", "a")


def test_models_of_other_ranges_do_not_fit() -> None:
    refused = made(spec(KIND), spec(KIND, dims=(wire.Dim(name="seq", least=1, most=9),)))
    assert (refused.code, refused.field) == ("models_differ", "app.models")
    assert names(refused.message, "a", "b", "seq", 8, 9)


def test_there_is_no_default_as_large_as_the_request() -> None:
    data = np.zeros((1, 3, 2), np.float32).tobytes()
    default = [{"name": "tags", "dtype": "float32", "shape": [1, 3, 2], "data": data}]
    refused = made(spec(TAGS), default=default)
    assert (refused.code, refused.field) == ("bad_app", "app.default")
    assert names(refused.message, "tags", "seq")


def test_members_answer_with_the_extents_of_the_question() -> None:
    at = Core()
    models = tuple(
        wire.ModelEntry(name=name, current="1", target=None, versions=("1",), owner=None, spec=spec(TAGS))
        for name in ("a", "b")
    )
    app = entry(definition("majority", models=["a", "b"]), revision=2)
    at.handle(wire.Table(epoch=2, members=(), models=models, apps=(app,)))
    ids = protocol.RequestTensor("ids", "int64", [2, 3], memoryview(bytes(48)))
    orders = at.ask(protocol.InferRequest(id=1, inputs=[ids], app="app"))
    asks = [order for order in orders if isinstance(order, Ask)] or [
        order for order in at.read() if isinstance(order, Ask)
    ]
    assert [(ask.model, ask.rows, ask.extents) for ask in asks] == [("a", 2, (3,)), ("b", 2, (3,))]
    said = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    at.handle(ModelAnswered(asks[0].number, [said.tobytes()]))
    (sent,) = [o for o in at.handle(ModelAnswered(asks[1].number, [said.tobytes()])) if isinstance(o, SendAnswer)]
    ((_, array),) = sent.outputs
    assert np.array_equal(array, said)


def test_a_question_with_extents_out_of_range_is_refused() -> None:
    at = Core()
    model = wire.ModelEntry(name="a", current="1", target=None, versions=("1",), owner=None, spec=spec(TAGS))
    app = entry(definition("single", models=["a"]), revision=2)
    at.handle(wire.Table(epoch=2, members=(), models=(model,), apps=(app,)))
    ids = protocol.RequestTensor("ids", "int64", [1, 9], memoryview(bytes(72)))
    (refusal,) = [
        o
        for o in at.handle(ClientAsked("client", protocol.InferRequest(id=1, inputs=[ids], app="app"), (), 0.0))
        if isinstance(o, Refuse)
    ]
    assert names(refusal.invalid.message, "seq", 8, 9)
