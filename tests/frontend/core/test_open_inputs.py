"""Inputs with open dimensions: extents that can be, and one clear answer to those that cannot."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.core.checks import Checked, InputRules, check_inputs
from frontend.core.protocol import RequestRefused
from mesh import wire
from tests.frontend.core.client_messages import ROWS_MAX, decode, infer, outcome
from tests.messages import names

SEQ = wire.Dim(name="seq", least=2, most=512)
IDS = wire.TensorSpec(name="ids", dtype="int64", shape=(-1, -1), dims=("seq",))
MASK = wire.TensorSpec(name="mask", dtype="bool", shape=(-1, -1), dims=("seq",))
IMAGE = wire.TensorSpec(name="x", dtype="uint8", shape=(-1, 3, -1, -1), dims=("", "h", "w"))


def model(*inputs: wire.TensorSpec, dims: tuple[wire.Dim, ...] = (SEQ,)) -> wire.ModelSpec:
    return wire.ModelSpec(inputs=inputs, outputs=inputs, batch_max=8, slo_ms=50.0, dims=dims)


TEXT = model(IDS, MASK)
FIXED = model(
    wire.TensorSpec(name="ids", dtype="int64", shape=(-1, 3)),
    wire.TensorSpec(name="mask", dtype="bool", shape=(-1, 3)),
    dims=(),
)
PICTURE = model(IMAGE, dims=(wire.Dim(name="w", least=1, most=640), wire.Dim(name="h", least=1, most=480)))


def tokens(rows: int, seq: int, mask: int | None = None, **changes: Any) -> dict[str, Any]:
    """A request with ids and mask of these lengths."""
    ids = {"name": "ids", "dtype": "int64", "shape": [rows, seq], "data": bytes(8 * rows * seq), **changes}
    length = seq if mask is None else mask
    return infer(inputs=[{"name": "mask", "dtype": "bool", "shape": [rows, length], "data": bytes(rows * length)}, ids])


def checked(request: Any, spec: wire.ModelSpec = TEXT) -> Checked:
    return InputRules(spec, ROWS_MAX).check(decode(request), [])


def misfit(request: Any, spec: wire.ModelSpec = TEXT) -> RequestRefused:
    with pytest.raises(RequestRefused) as raised:
        checked(request, spec)
    return raised.value


@pytest.mark.parametrize("seq", [2, 7, 512])
def test_a_request_has_the_extents_of_its_inputs(seq: int) -> None:
    assert checked(tokens(3, seq)) == Checked(3, [bytes(24 * seq), bytes(3 * seq)], (seq,))


def test_extents_come_in_the_order_of_the_models_dimensions() -> None:
    image = {"name": "x", "dtype": "uint8", "shape": [2, 3, 48, 640], "data": bytes(2 * 3 * 48 * 640)}
    assert checked(infer(inputs=[image]), PICTURE).extents == (640, 48)


@pytest.mark.parametrize("seq", [0, 1, 513, 1 << 40, -1])
def test_an_extent_out_of_range_is_refused_with_the_dimension_and_its_range(seq: int) -> None:
    request = infer(inputs=[{"name": "ids", "dtype": "int64", "shape": [1, seq], "data": b""}])
    invalid = misfit(request, model(IDS))
    assert (invalid.code, invalid.field, invalid.id) == ("bad_shape", "inputs[0].shape", 7)
    assert names(invalid.message, "ids", "seq", 2, 512, seq)


@pytest.mark.parametrize("mask", [6, 8, 512])
def test_a_mask_of_another_length_is_refused_with_both_inputs_and_the_dimension(mask: int) -> None:
    invalid = misfit(tokens(1, 7, mask))
    assert (invalid.code, invalid.field, invalid.id) == ("bad_shape", "inputs[0].shape", 7)  # where the mask stands
    assert names(invalid.message, "ids", "mask", "seq", 7, mask)


@pytest.mark.parametrize("shape", [[1], [7], [1, 7, 1], [], [7, 1, 1]])
def test_a_shape_of_other_dimensions_is_refused_with_the_names_of_the_open_ones(shape: list[int]) -> None:
    invalid = misfit(tokens(1, 7, shape=shape))
    assert (invalid.code, invalid.field) == ("bad_shape", "inputs[1].shape")
    assert names(invalid.message, "ids", "[-1, seq]", 2, 512)


def test_a_fixed_extent_beside_open_ones_is_checked_as_ever() -> None:
    image = {"name": "x", "dtype": "uint8", "shape": [1, 1, 10, 10], "data": bytes(100)}
    invalid = misfit(infer(inputs=[image]), PICTURE)
    assert (invalid.code, invalid.field) == ("bad_shape", "inputs[0].shape")
    assert names(invalid.message, "[-1, 3, h, w]", 480, 640)


@pytest.mark.parametrize("size", [0, 55, 57, 112])
def test_the_bytes_are_those_of_the_extents(size: int) -> None:
    invalid = misfit(tokens(1, 7, data=bytes(size)))
    assert (invalid.code, invalid.field) == ("bad_data", "inputs[1].data")
    assert names(invalid.message, "ids", 56, size)


def test_rows_differ_before_lengths_do() -> None:
    request = tokens(2, 7)
    request["inputs"][0]["shape"] = [1, 14]
    assert names(misfit(request).message, "rows", 1, 2)


TENSORS = st.builds(
    lambda name, dtype, shape, data: {"name": name, "dtype": dtype, "shape": shape, "data": data},
    st.sampled_from(["ids", "mask", "ids"]),
    st.sampled_from(["int64", "bool"]),
    st.lists(st.sampled_from([-1, 0, 1, 2, 3, 512, 513]), max_size=3),
    st.sampled_from([None, [], b"", bytes(2), bytes(3), bytes(4), bytes(16), bytes(24), bytes(32), bytes(48)]),
)


@given(
    inputs=st.lists(TENSORS, max_size=3),
    frames=st.lists(st.sampled_from([b"", bytes(2), bytes(3), bytes(16), bytes(24)]), max_size=2),
    spec=st.sampled_from([TEXT, model(IDS), FIXED]),
)
def test_the_quick_check_and_the_thorough_one_always_agree(inputs: Any, frames: Any, spec: wire.ModelSpec) -> None:
    request = decode(infer(inputs=inputs))
    quick = outcome(InputRules(spec, ROWS_MAX).check, request, frames)
    assert quick == outcome(check_inputs, request, frames, spec, ROWS_MAX)


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_good_requests_are_found_good_by_both_checks(framed: bool, turned: bool) -> None:
    request = decode(tokens(2, 3))
    if turned:
        request.inputs.reverse()
    data = [tensor.data for tensor in request.inputs]
    if framed:
        for tensor in request.inputs:
            tensor.data = None
    for spec in (TEXT, FIXED):
        found = InputRules(spec, ROWS_MAX).check(request, data if framed else ())
        assert found == check_inputs(request, data if framed else (), spec, ROWS_MAX)
        assert [len(tensor) for tensor in found.tensors] == [48, 6]
        assert found.extents == ((3,) if spec is TEXT else ())
