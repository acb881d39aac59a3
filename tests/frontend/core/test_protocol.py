"""frontend/core/protocol.py: the valid messages, and one clear answer to every other one."""

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.core import protocol
from frontend.core.protocol import AnswerTensor, ClientAnswer, Error, RequestRefused
from tests.frontend.core.client_messages import decode, infer, outcome, refused, tensor
from tests.messages import names

# -- good messages ----------------------------------------------------------------------------------------------------


def test_an_infer_request_is_understood_with_its_defaults() -> None:
    assert decode(infer()) == protocol.InferRequest(
        id=7,
        inputs=[protocol.RequestTensor("x", "float32", [1, 2, 3], memoryview(bytes(24)))],
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
    ("op", "kind"),
    [("models", protocol.ModelsRequest), ("status", protocol.StatusRequest), ("ping", protocol.PingRequest)],
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
    (infer(inputs=[tensor(data=0.5)]), "bad_field", "inputs[0].data"),
    (infer(inputs=[tensor(data={"x": [0.0]})]), "bad_field", "inputs[0].data"),
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


@given(body=st.binary(max_size=120))
def test_no_bytes_whatever_do_more_than_be_refused(body: bytes) -> None:
    found = outcome(protocol.decode, body)
    if isinstance(found, RequestRefused):
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
    if not isinstance(found, RequestRefused):
        assert found.id == (value if name == "id" else 7)
        return
    assert found.status == "invalid"
    assert name in ("op", "id") or found.id == 7
    assert found.field is not None
    assert found.field.startswith(name)


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_invalid_request_becomes_an_answer_that_says_so() -> None:
    invalid = RequestRefused("bad_slo", "slo_ms must be", "slo_ms", 7)
    assert invalid.answer() == ClientAnswer(id=7, status="invalid", error=Error("bad_slo", "slo_ms must be", "slo_ms"))
    full = RequestRefused("frontend_full", "full", None, "a", "rejected", 50.0)
    assert full.answer() == ClientAnswer(id="a", status="rejected", error=Error("frontend_full", "full", None, 50.0))


def test_fields_that_do_not_apply_are_absent_and_an_unknown_id_is_null() -> None:
    assert msgpack.unpackb(msgspec.msgpack.encode(RequestRefused("malformed", "not msgpack").answer())) == {
        "id": None,
        "status": "invalid",
        "error": {"code": "malformed", "message": "not msgpack"},
    }
    ok = ClientAnswer(id=1, status="ok", outputs=[AnswerTensor("y", "float32", (1, 2), b"12345678")], cached=False)
    assert msgpack.unpackb(msgspec.msgpack.encode(ok)) == {
        "id": 1,
        "status": "ok",
        "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 2], "data": b"12345678"}],
        "cached": False,
    }
