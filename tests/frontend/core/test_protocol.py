"""frontend/core/protocol.py: the valid messages, and one clear answer to every other one."""

import math
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.core import checks, protocol
from frontend.core.checks import Checked, InputRules
from frontend.core.protocol import Answer, Error, Invalid, TensorOut
from mesh import wire
from mesh.names import NAME
from tests.messages import names


def spec_of(*inputs: tuple[str, str, tuple[int, ...]]) -> wire.ModelSpec:
    tensors = tuple(wire.TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in inputs)
    return wire.ModelSpec(inputs=tensors, outputs=tensors, batch_max=8, slo_ms=50.0)


ONE = spec_of(("x", "float32", (-1, 2, 3)))
TWO = spec_of(("x", "float32", (-1, 2)), ("y", "int64", (-1,)))
ROWS_MAX = 16


def tensor(**fields: Any) -> dict[str, Any]:
    """A valid tensor for ONE with these changes; a field set to `...` is left out."""
    made = {"name": "x", "dtype": "float32", "shape": [1, 2, 3], "data": bytes(24), **fields}
    return {name: value for name, value in made.items() if value is not ...}


def infer(**fields: Any) -> dict[str, Any]:
    """A valid request with id 7 and these changes; a field set to `...` is left out."""
    made = {"op": "infer", "id": 7, "model": "m", "inputs": [tensor()], **fields}
    return {name: value for name, value in made.items() if value is not ...}


def decode(message: Any) -> Any:
    return protocol.decode(msgpack.packb(message))


def refused(message: Any) -> Invalid:
    """The decoder's refusal of a message, or of bytes."""
    with pytest.raises(Invalid) as raised:
        protocol.decode(message if isinstance(message, bytes) else msgpack.packb(message))
    return raised.value


def checked(request: Any, frames: Any = (), spec: wire.ModelSpec = ONE) -> Checked:
    return InputRules(spec, ROWS_MAX).check(decode(request), frames)


def misfit(request: Any, frames: Any = (), spec: wire.ModelSpec = ONE) -> Invalid:
    """The refusal of a decoded request by the rules for its inputs."""
    with pytest.raises(Invalid) as raised:
        checked(request, frames, spec)
    return raised.value


# -- good messages ----------------------------------------------------------------------------------------------------


def test_an_infer_request_is_understood_with_its_defaults() -> None:
    assert decode(infer()) == protocol.Infer(
        id=7,
        inputs=[protocol.Tensor("x", "float32", [1, 2, 3], memoryview(bytes(24)))],
        model="m",
        app=None,
        version=None,
        slo_ms=None,
        context=None,
        cache=True,
        weight=1.0,
    )


def test_every_field_of_an_infer_request_may_be_given() -> None:
    request = decode(infer(model=None, app="a", version="3", slo_ms=50, context="user-17", cache=False, weight=2))
    assert (request.model, request.app, request.version, request.slo_ms) == (None, "a", "3", 50.0)
    assert (request.context, request.cache, request.weight) == ("user-17", False, 2.0)


@pytest.mark.parametrize(
    ("op", "kind"), [("models", protocol.Models), ("status", protocol.Status), ("ping", protocol.Ping)]
)
def test_the_other_messages_bear_only_an_id(op: str, kind: Any) -> None:
    assert decode({"op": op, "id": "a"}) == kind(id="a")


@pytest.mark.parametrize("known", [0, -1, 2**63 - 1, 2**64 - 1, -(2**63), "", "a", "é", "x" * 256])
def test_an_id_is_any_integer_or_short_string(known: Any) -> None:
    assert decode({"op": "ping", "id": known}).id == known


def test_the_order_of_the_fields_does_not_matter() -> None:
    assert decode(dict(reversed(infer().items()))) == decode(infer())


def test_the_data_of_a_tensor_is_not_copied() -> None:
    header = bytearray(msgpack.packb(infer(inputs=[tensor(data=b"\1" * 24)])))
    request = protocol.decode(memoryview(header))
    header[header.index(b"\1" * 24)] = 9
    assert bytes(request.inputs[0].data)[0] == 9  # type: ignore[union-attr,arg-type]


# -- messages that cannot be decoded ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x83\xa2op",
        msgpack.packb(infer())[:-1],
        msgpack.packb(infer()) + b"\0",
        msgpack.packb(infer()) * 2,
        b"hello",
        b'{"op": "ping", "id": 1}',
        b"\x82\xa2op\xa4ping\xa2id\xa2\xff\xfe",  # a string that is not UTF-8
        b"\x81\x80\x01",  # a map as a key
        b"\x91" * 5000 + b"\x90",
        b"\x91" * 500_000 + b"\x90",
        b"\x83\xa2id\x07\xa3foo" + b"\x91" * 5000 + b"\x90" + b"\xa2op\xa4ping",
        msgpack.packb({"op": "infer", "id": 7, "inputs": [0]})[:-1] + b"\xc6\x40\0\0\0" + b"0123456789",  # 1 GB
        b"\x82\xa2op\xa5infer\xa6inputs\xdd\xff\xff\xff\xff",  # four thousand million tensors
    ],
)
def test_what_is_not_msgpack_is_answered_with_no_id(body: bytes) -> None:
    invalid = refused(body)
    assert (invalid.code, invalid.field, invalid.id, invalid.status) == ("malformed", None, None, "invalid")
    assert 10 < len(invalid.message) < 250


@pytest.mark.parametrize("body", [None, 1, 1.5, True, "infer", b"infer", [], [infer()], [1, 2, 3]])
def test_a_message_that_is_no_map_says_so(body: Any) -> None:
    invalid = refused(msgpack.packb(body))
    assert (invalid.code, invalid.field, invalid.id) == ("malformed", None, None)
    assert invalid.message


def test_five_thousand_nested_arrays_in_place_of_the_inputs_are_refused_by_name() -> None:
    body = b"\x83\xa2op\xa5infer\xa2id\x07\xa6inputs" + b"\x91" * 5000 + b"\x90"
    invalid = refused(body)
    assert invalid.field is not None
    assert invalid.field.startswith("inputs")


# -- fields -----------------------------------------------------------------------------------------------------------

FIELDS: list[tuple[dict[str, Any], str, str]] = [  # (request, code, field)
    ({"id": 7}, "bad_op", "op"),
    ({"id": 7, "op": "frobnicate"}, "bad_op", "op"),
    ({"id": 7, "op": ""}, "bad_op", "op"),
    ({"id": 7, "op": "x" * 100_000}, "bad_op", "op"),
    ({"id": 7, "op": None}, "bad_op", "op"),
    ({"id": 7, "op": 5}, "bad_op", "op"),
    ({"id": 7, "op": ["infer"]}, "bad_op", "op"),
    (infer(foo=1), "bad_field", "foo"),
    ({"op": "ping", "id": 7, "model": "m"}, "bad_field", "model"),
    (infer(inputs=...), "bad_field", "inputs"),
    (infer(inputs=None), "bad_field", "inputs"),
    (infer(inputs={"x": [1.0]}), "bad_field", "inputs"),
    (infer(inputs=[1.0]), "bad_field", "inputs[0]"),
    (infer(inputs=[tensor(), "y"]), "bad_field", "inputs[1]"),
    (infer(inputs=[tensor(), tensor(dtype=1)]), "bad_field", "inputs[1].dtype"),
    (infer(inputs=[tensor(name=None)]), "bad_field", "inputs[0].name"),
    (infer(inputs=[tensor(shape="1x6")]), "bad_field", "inputs[0].shape"),
    (infer(inputs=[tensor(shape=6)]), "bad_field", "inputs[0].shape"),
    (infer(inputs=[tensor(shape=[1, 2.0, 3])]), "bad_field", "inputs[0].shape[1]"),
    (infer(inputs=[tensor(shape=[1, None, 3])]), "bad_field", "inputs[0].shape[1]"),
    (infer(inputs=[tensor(data="text")]), "bad_field", "inputs[0].data"),
    (infer(inputs=[tensor(data=[0.0] * 6)]), "bad_field", "inputs[0].data"),
    (infer(model=5), "bad_field", "model"),
    (infer(model=["m"]), "bad_field", "model"),
    (infer(app=5), "bad_field", "app"),
    (infer(version=1), "bad_field", "version"),
    (infer(slo_ms="50"), "bad_field", "slo_ms"),
    (infer(slo_ms=True), "bad_field", "slo_ms"),
    (infer(slo_ms=[50]), "bad_field", "slo_ms"),
    (infer(context=17), "bad_field", "context"),
    (infer(cache=1), "bad_field", "cache"),
    (infer(cache=None), "bad_field", "cache"),
    (infer(weight="heavy"), "bad_field", "weight"),
    (infer(weight=None), "bad_field", "weight"),
]


@pytest.mark.parametrize(("request_", "code", "field"), FIELDS)
def test_a_wrong_field_is_named_and_the_id_kept(request_: Any, code: str, field: str) -> None:
    invalid = refused(request_)
    assert (invalid.code, invalid.field, invalid.id, invalid.status) == (code, field, 7, "invalid")
    assert field in invalid.message
    assert len(invalid.message) < 400


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (infer(inputs=[tensor(foo=1)]), "foo"),
        (infer(inputs=[tensor(dtype=...)]), "dtype"),
        (infer(inputs=[tensor(), tensor(shape=...)]), "shape"),
    ],
)
def test_a_field_of_a_tensor_that_is_missing_or_unknown_is_named_with_its_tensor(request_: Any, field: str) -> None:
    invalid = refused(request_)
    place = f"inputs[{len(request_['inputs']) - 1}]"
    assert (invalid.code, invalid.field, invalid.id) == ("bad_field", f"{place}.{field}", 7)


def test_a_key_that_is_no_string_is_not_taken_for_a_field_name() -> None:
    invalid = refused({"op": "ping", "id": 7, 3: 4})
    assert (invalid.code, invalid.id) == ("bad_field", 7)
    assert invalid.field is None
    invalid = refused(infer(inputs=[{**tensor(), 3: 4}]))
    assert (invalid.code, invalid.id, invalid.field) == ("bad_field", 7, "inputs[0]")


def test_a_field_of_a_very_long_name_is_named_by_its_beginning() -> None:
    for message in (infer(**{"k" * 100_000: 1}), infer(inputs=[tensor(**{"k" * 100_000: 1})])):
        invalid = refused(message)
        assert (invalid.code, "kkk" in (invalid.field or "")) == ("bad_field", True)
        assert len(invalid.message) + len(invalid.field or "") < 300


@pytest.mark.parametrize(
    ("op", "field"),
    [("create_app", "app"), ("update_app", "app"), ("delete_app", "app"), ("feedback", "decision_id")],
)
def test_an_op_about_applications_names_what_it_lacks(op: str, field: str) -> None:
    invalid = refused({"op": op, "id": 7})
    assert (invalid.code, invalid.field, invalid.id) == ("bad_field", field, 7)


def test_an_unknown_op_is_answered_with_those_that_there_are() -> None:
    assert names(refused({"op": "frobnicate", "id": 7}).message, "infer", "models", "status", "ping")


@pytest.mark.parametrize("known", [None, 1.5, True, b"seven", [7], {"id": 7}])
def test_an_id_of_another_type_is_refused_and_not_given_back(known: Any) -> None:
    invalid = refused({"op": "ping", "id": known})
    assert (invalid.code, invalid.field, invalid.id) == ("bad_field", "id", None)


def test_a_missing_id_is_named() -> None:
    invalid = refused({"op": "ping"})
    assert (invalid.code, invalid.field, invalid.id) == ("bad_field", "id", None)


@pytest.mark.parametrize("op", ["ping", "frobnicate"])
def test_an_id_of_more_than_256_characters_is_not_given_back(op: str) -> None:
    invalid = refused({"op": op, "id": "x" * 257})
    assert invalid.id is None
    assert decode({"op": "ping", "id": "x" * 256}).id == "x" * 256


@pytest.mark.parametrize("known", ["", "a-7", "x" * 256, 0, 2**64 - 1])
def test_any_id_that_may_be_is_given_back_with_a_refusal(known: Any) -> None:
    assert refused({"op": "frobnicate", "id": known}).id == known


def outcome(call: Any, *arguments: Any) -> Any:
    """What a call returns, or its refusal."""
    try:
        return call(*arguments)
    except Invalid as invalid:
        return invalid


@given(body=st.binary(max_size=120))
def test_no_bytes_whatever_do_more_than_be_refused(body: bytes) -> None:
    found = outcome(protocol.decode, body)
    if isinstance(found, Invalid):
        assert msgpack.unpackb(msgspec.msgpack.encode(found.answer()))["status"] == "invalid"


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(infer(version=1, slo_ms=1, context=1, cache=1, weight=1, app=1))), value=ANYTHING)
def test_no_value_of_any_field_does_more_than_be_refused_with_the_id(name: str, value: Any) -> None:
    found = outcome(decode, infer(**{name: value}))
    if not isinstance(found, Invalid):
        assert found.id == (value if name == "id" else 7)
        return
    assert found.status == "invalid"
    assert name in ("op", "id") or found.id == 7
    assert found.field is not None
    assert found.field.startswith(name)


# -- budget, weight, names --------------------------------------------------------------------------------------------


def budget(**fields: Any) -> float:
    return checks.check_budget(decode(infer(**fields)), slo_ms_default=80.0, slo_ms_max=1000.0)


@pytest.mark.parametrize(
    ("slo_ms", "budget_s"), [(..., 0.08), (None, 0.08), (50, 0.05), (0.001, 1e-6), (5e-324, 5e-324 / 1e3), (1000, 1.0)]
)
def test_a_budget_is_above_zero_and_at_most_the_largest(slo_ms: Any, budget_s: float) -> None:
    assert budget(slo_ms=slo_ms) == budget_s


@pytest.mark.parametrize("slo_ms", [0, 0.0, -0.0, -1, -50.5, math.nan, math.inf, -math.inf, 1000.001, 1e300, 2**63])
def test_any_other_budget_is_refused(slo_ms: float) -> None:
    with pytest.raises(Invalid) as raised:
        budget(slo_ms=slo_ms)
    invalid = raised.value
    assert (invalid.code, invalid.field, invalid.id) == ("bad_slo", "slo_ms", 7)
    assert names(invalid.message, "slo_ms", 1000, f"{float(slo_ms):.12g}")


@pytest.mark.parametrize(("weight", "good"), [(0.01, True), (1, True), (100, True), (0.0099, False), (100.1, False)])
def test_a_weight_lies_between_a_hundredth_and_a_hundred(weight: float, good: bool) -> None:
    request = decode(infer(weight=weight))
    if good:
        assert checks.check_weight(request) == weight
        return
    with pytest.raises(Invalid, match="weight") as raised:
        checks.check_weight(request)
    assert (raised.value.code, raised.value.field, raised.value.id) == ("bad_weight", "weight", 7)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_no_positive_number_is_refused(weight: float) -> None:
    with pytest.raises(Invalid) as raised:
        checks.check_weight(decode(infer(weight=weight)))
    assert raised.value.code == "bad_weight"


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"model": None}, "bad_target", "model"),
        ({"model": "m", "app": "a"}, "bad_target", "model"),
        ({"model": ""}, "unknown_model", "model"),
        ({"model": "no spaces"}, "unknown_model", "model"),
        ({"model": "m\n"}, "unknown_model", "model"),
        ({"model": "x" * 65}, "unknown_model", "model"),
        ({"model": "../../etc/passwd"}, "unknown_model", "model"),
        ({"model": None, "app": ""}, "unknown_app", "app"),
        ({"model": None, "app": "ä"}, "unknown_app", "app"),
        ({"version": ""}, "unknown_version", "version"),
        ({"version": "v1"}, "unknown_version", "version"),
        ({"version": "1.0"}, "unknown_version", "version"),
        ({"version": "1\n"}, "unknown_version", "version"),
        ({"version": "9" * 19}, "unknown_version", "version"),
    ],
)
def test_a_target_that_cannot_be_is_refused(fields: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(Invalid) as raised:
        checks.check_names(decode(infer(**fields)))
    assert (raised.value.code, raised.value.field, raised.value.id) == (code, field, 7)


@pytest.mark.parametrize("fields", [{}, {"model": "x" * 64}, {"version": "9" * 18}, {"model": None, "app": "a.b-c_d"}])
def test_a_target_that_can_be_is_let_pass(fields: dict[str, Any]) -> None:
    checks.check_names(decode(infer(**fields)))


def test_a_wrong_name_is_answered_with_what_a_name_is_like_and_is_not_repeated_at_length() -> None:
    with pytest.raises(Invalid) as raised:
        checks.check_names(decode(infer(model="x" * 100_000)))
    assert NAME.pattern in raised.value.message
    assert len(raised.value.message) < 200


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_inputs_that_fit_come_back_as_they_are() -> None:
    data = bytes(range(24))
    assert checked(infer(inputs=[tensor(data=data)])) == Checked(1, [data])
    assert checked(infer(inputs=[tensor(shape=[3, 2, 3], data=data * 3)])) == Checked(3, [data * 3])


def test_tensors_in_frames_come_back_as_they_are() -> None:
    frame = memoryview(bytes(range(24)))
    assert checked(infer(inputs=[tensor(data=...)]), [frame]).tensors[0] is frame


@pytest.mark.parametrize("framed", [True, False])
def test_several_inputs_come_in_the_order_of_the_model(framed: bool) -> None:
    x, y = b"x" * 24, b"y" * 24
    inputs = [
        tensor(name="y", dtype="int64", shape=[3], data=... if framed else y),
        tensor(shape=[3, 2], data=... if framed else x),
    ]
    assert checked(infer(inputs=inputs), [y, x] if framed else [], TWO) == Checked(3, [x, y])


@pytest.mark.parametrize("rows", [1, ROWS_MAX])
def test_the_number_of_rows_may_be_one_to_the_largest(rows: int) -> None:
    assert checked(infer(inputs=[tensor(shape=[rows, 2, 3], data=bytes(24 * rows))])).rows == rows


MISFITS: list[tuple[dict[str, Any], str, str]] = [  # (changes to the tensor, code, field of the tensor)
    ({"dtype": "float64", "data": bytes(48)}, "bad_dtype", "dtype"),
    ({"dtype": "int32"}, "bad_dtype", "dtype"),
    ({"dtype": ">f4"}, "bad_dtype", "dtype"),
    ({"dtype": "FLOAT32"}, "bad_dtype", "dtype"),
    ({"dtype": "object"}, "bad_dtype", "dtype"),
    ({"dtype": ""}, "bad_dtype", "dtype"),
    ({"dtype": "x" * 100_000}, "bad_dtype", "dtype"),
    ({"shape": []}, "bad_shape", "shape"),
    ({"shape": [6]}, "bad_shape", "shape"),
    ({"shape": [2, 3]}, "bad_shape", "shape"),
    ({"shape": [1, 1, 2, 3]}, "bad_shape", "shape"),
    ({"shape": [1, 3, 2]}, "bad_shape", "shape"),
    ({"shape": [1, 2, -3]}, "bad_shape", "shape"),
    ({"shape": [1, -1, 3]}, "bad_shape", "shape"),
    ({"shape": [1] * 100_000}, "bad_shape", "shape"),
    ({"shape": [0, 2, 3], "data": b""}, "bad_shape", "shape"),
    ({"shape": [-1, 2, 3]}, "bad_shape", "shape"),
    ({"shape": [ROWS_MAX + 1, 2, 3], "data": bytes(24 * (ROWS_MAX + 1))}, "bad_shape", "shape"),
    ({"shape": [2**63, 2, 3]}, "bad_shape", "shape"),
    ({"shape": [41_666_667, 2, 3], "data": bytes(10)}, "bad_shape", "shape"),  # 1 GB declared, 10 bytes sent
    ({"shape": [ROWS_MAX, 2, 3], "data": bytes(10)}, "bad_data", "data"),
    ({"data": b""}, "bad_data", "data"),
    ({"data": bytes(23)}, "bad_data", "data"),
    ({"data": bytes(25)}, "bad_data", "data"),
    ({"data": bytes(48)}, "bad_data", "data"),
    ({"data": None}, "bad_data", "data"),
    ({"data": ...}, "bad_data", "data"),
]


@pytest.mark.parametrize(("changes", "code", "field"), MISFITS)
def test_a_tensor_that_does_not_fit_is_refused_by_field(changes: dict[str, Any], code: str, field: str) -> None:
    invalid = misfit(infer(inputs=[tensor(**changes)]))
    assert (invalid.code, invalid.field, invalid.id, invalid.status) == (code, f"inputs[0].{field}", 7, "invalid")
    assert "x" in invalid.message
    assert len(invalid.message) < 300


@pytest.mark.parametrize(("changes", "code", "field"), [row for row in MISFITS if "data" not in row[0]])
def test_a_tensor_that_does_not_fit_is_refused_by_field_in_a_frame_too(
    changes: dict[str, Any], code: str, field: str
) -> None:
    invalid = misfit(infer(inputs=[tensor(data=..., **changes)]), [memoryview(bytes(24))])
    assert (invalid.code, invalid.field, invalid.id) == (code, f"inputs[0].{field}", 7)


def test_the_answer_says_what_would_be_right() -> None:
    for changes, named in (
        ({"dtype": "float64"}, ("float32", "float64")),
        ({"dtype": "half"}, ("float32", "float64", "half")),
        ({"shape": [2, 3]}, ("[-1, 2, 3]", "[2, 3]")),
        ({"shape": [17, 2, 3]}, (16, 17)),
        ({"data": bytes(10)}, ("[1, 2, 3]", "float32", 24, 10)),
    ):
        assert names(misfit(infer(inputs=[tensor(**changes)])).message, "x", *named)


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [tensor(name="z")],
        [tensor(name="")],
        [tensor(), tensor()],
        [tensor(), tensor(name="y")],
        [tensor(name="x" * 100_000)],
        [tensor(name=f"x{i}") for i in range(1000)],
    ],
)
def test_inputs_of_other_names_are_refused_with_those_that_the_model_takes(inputs: list[Any]) -> None:
    invalid = misfit(infer(inputs=inputs))
    assert (invalid.code, invalid.field, invalid.id) == ("bad_inputs", "inputs", 7)
    assert "x" in invalid.message
    assert len(invalid.message) < 400


def test_a_request_without_inputs_is_told_that_it_has_none() -> None:
    assert names(misfit(infer(inputs=[])).message, "x")
    assert names(misfit(infer(inputs=[tensor(name="z")])).message, "x", "z")


@pytest.mark.parametrize("names", [["x"], ["y"], ["x", "x"], ["x", "y", "y"], ["x", "y", "z"]])
def test_a_model_of_two_inputs_takes_exactly_these(names: list[str]) -> None:
    assert misfit(infer(inputs=[tensor(name=name) for name in names]), spec=TWO).code == "bad_inputs"


def test_all_inputs_have_the_same_number_of_rows() -> None:
    inputs = [tensor(shape=[3, 2], data=bytes(24)), tensor(name="y", dtype="int64", shape=[2], data=bytes(16))]
    invalid = misfit(infer(inputs=inputs), spec=TWO)
    assert (invalid.code, invalid.field) == ("bad_shape", "inputs[1].shape")
    assert names(invalid.message, "y", 2, 3)


@pytest.mark.parametrize("count", [2, 3, 100])
def test_there_is_one_frame_for_each_tensor(count: int) -> None:
    invalid = misfit(infer(inputs=[tensor(data=...)]), [bytes(24)] * count)
    assert (invalid.code, invalid.field, invalid.id) == ("bad_frames", "inputs", 7)
    assert names(invalid.message, count, 1)


def test_a_tensor_has_either_data_or_a_frame() -> None:
    invalid = misfit(infer(), [bytes(24)])
    assert (invalid.code, invalid.field, invalid.id) == ("bad_frames", "inputs[0].data", 7)


@pytest.mark.parametrize("frame", [b"", bytes(23), bytes(25)])
def test_a_frame_of_the_wrong_size_is_refused(frame: bytes) -> None:
    invalid = misfit(infer(inputs=[tensor(data=...)]), [frame])
    assert (invalid.code, invalid.field, invalid.id) == ("bad_data", "inputs[0].data", 7)


TENSORS = st.builds(
    tensor,
    name=st.sampled_from(["x", "y"]),
    dtype=st.sampled_from(["float32", "int64", "half"]),
    shape=st.lists(st.sampled_from([-1, 0, 1, 2, 3, 16, 17]), max_size=3),
    data=st.sampled_from([..., None, b"", bytes(8), bytes(16), bytes(24), bytes(48), bytes(384)]),
)


@given(
    inputs=st.lists(TENSORS, max_size=3),
    frames=st.lists(st.sampled_from([b"", bytes(8), bytes(16), bytes(24), bytes(48), bytes(384)]), max_size=3),
    spec=st.sampled_from([ONE, TWO, spec_of(("x", "float32", (-1, 2))), spec_of(("x", "int64", (-1,)))]),
)
def test_the_quick_check_and_the_thorough_one_always_agree(inputs: Any, frames: Any, spec: wire.ModelSpec) -> None:
    request = decode(infer(inputs=inputs))

    quick = outcome(InputRules(spec, ROWS_MAX).check, request, frames)
    assert quick == outcome(checks.check_inputs, request, frames, spec, ROWS_MAX)


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_invalid_request_becomes_an_answer_that_says_so() -> None:
    invalid = Invalid("bad_slo", "slo_ms must be", "slo_ms", 7)
    assert invalid.answer() == Answer(id=7, status="invalid", error=Error("bad_slo", "slo_ms must be", "slo_ms"))
    full = Invalid("frontend_full", "full", None, "a", "rejected", 50.0)
    assert full.answer() == Answer(id="a", status="rejected", error=Error("frontend_full", "full", None, 50.0))


def test_fields_that_do_not_apply_are_absent_and_an_unknown_id_is_null() -> None:
    assert msgpack.unpackb(msgspec.msgpack.encode(Invalid("malformed", "not msgpack").answer())) == {
        "id": None,
        "status": "invalid",
        "error": {"code": "malformed", "message": "not msgpack"},
    }
    ok = Answer(id=1, status="ok", outputs=[TensorOut("y", "float32", (1, 2), b"12345678")], cached=False)
    assert msgpack.unpackb(msgspec.msgpack.encode(ok)) == {
        "id": 1,
        "status": "ok",
        "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 2], "data": b"12345678"}],
        "cached": False,
    }
