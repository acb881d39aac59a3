"""frontend/core/checks.py: budget, weight, names and inputs, and one clear answer to what is wrong with them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.core import checks
from frontend.core.checks import Checked, InputRules
from frontend.core.protocol import RequestRefused
from mesh import wire
from mesh.names import NAME
from tests.frontend.core.client_messages import (
    ONE,
    ROWS_MAX,
    TWO,
    checked,
    decode,
    infer,
    misfit,
    outcome,
    spec_of,
    tensor,
)
from tests.messages import names

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
    with pytest.raises(RequestRefused) as raised:
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
    with pytest.raises(RequestRefused, match="weight") as raised:
        checks.check_weight(request)
    assert (raised.value.code, raised.value.field, raised.value.id) == ("bad_weight", "weight", 7)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_no_positive_number_is_refused(weight: float) -> None:
    with pytest.raises(RequestRefused) as raised:
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
    with pytest.raises(RequestRefused) as raised:
        checks.check_names(decode(infer(**fields)))
    assert (raised.value.code, raised.value.field, raised.value.id) == (code, field, 7)


@pytest.mark.parametrize("fields", [{}, {"model": "x" * 64}, {"version": "9" * 18}, {"model": None, "app": "a.b-c_d"}])
def test_a_target_that_can_be_is_let_pass(fields: dict[str, Any]) -> None:
    checks.check_names(decode(infer(**fields)))


def test_a_wrong_name_is_answered_with_what_a_name_is_like_and_is_not_repeated_at_length() -> None:
    with pytest.raises(RequestRefused) as raised:
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
    ({"data": [0.0] * 6}, "bad_data", "data"),
    ({"data": ["a"] * 24}, "bad_data", "data"),  # as many items as there would be bytes
    ({"data": []}, "bad_data", "data"),
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
    data=st.sampled_from([..., None, [], [1] * 24, b"", bytes(8), bytes(16), bytes(24), bytes(48), bytes(384)]),
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
