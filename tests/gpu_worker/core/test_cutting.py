"""gpu_worker/core/cutting.py: each request gets its own rows at its own extents, and nothing of another's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.cutting import Cut, Indivisible, Portion, check_shapes, cut_outputs, hollow, promised, varies
from gpu_worker.core.outputs import outputs_by_frontend
from mesh import wire
from mesh.codes import ActionCode
from mesh.strings import pack, unpack
from mesh.tensors import DTYPES, VARIABLE, raw

Array = npt.NDArray[Any]
SEQ = wire.Dim(name="seq", least=1, most=512)
IDS = wire.TensorSpec(name="ids", dtype="int64", shape=(-1, -1), dims=("seq",))
TOKENS = wire.TensorSpec(name="tokens", dtype="float32", shape=(-1, -1, 3), dims=("seq", ""))
POOLED = wire.TensorSpec(name="pooled", dtype="float32", shape=(-1, 3))
BOXES = wire.TensorSpec(name="boxes", dtype="float32", shape=(-1, 4), owner="owner")
OWNER = wire.TensorSpec(name="owner", dtype="int64", shape=(-1,))
FOUND = wire.TensorSpec(name="found", dtype="float32", shape=(-1, 5, 4), count="count")
COUNT = wire.TensorSpec(name="count", dtype="int64", shape=(-1,))
LABEL = wire.TensorSpec(name="label", dtype="string", shape=(-1,))
TAGS = wire.TensorSpec(name="tags", dtype="string", shape=(-1, -1), dims=("seq",))


def spec(*outputs: wire.TensorSpec, dims: Sequence[wire.Dim] = (SEQ,), **fields: Any) -> wire.ModelSpec:
    inputs = (IDS,) if dims else (wire.TensorSpec(name="x", dtype="float32", shape=(-1, 3)),)
    made = wire.ModelSpec(inputs=inputs, outputs=outputs, batch_max=64, slo_ms=1.0, dims=tuple(dims), **fields)
    assert made.fault() == ""
    return made


def order(parts: Sequence[tuple[int, tuple[int, ...]]], extents: tuple[int, ...] = (), batch: int = 0) -> wire.Infer:
    """A batch of parts, each (rows, extents)."""
    made = tuple(
        wire.Part(frontend="f", request=i, attempt=0, rows=rows, predicted_s=0.1, extents=own)
        for i, (rows, own) in enumerate(parts)
    )
    rows = sum(rows for rows, _ in parts)
    return wire.Infer(
        action=1, ref="m:1", earliest_s=0.0, latest_s=1.0, expected_s=0.1, batch=batch or rows, parts=made,
        extents=extents,
    )  # fmt: skip


def cut(model: wire.ModelSpec, action: wire.Infer, *outputs: Array, **how: Any) -> Cut:
    packed = [
        memoryview(pack(array.reshape(-1).tolist())) if array.dtype == object else raw(array) for array in outputs
    ]
    return cut_outputs(model, action, packed, [array.shape for array in outputs], **how)


def arrays(model: wire.ModelSpec, portion: Portion) -> list[Array]:
    """The outputs of one request, which have as many bytes as their shapes say."""
    found: list[Array] = []
    for tensor, data, shape in zip(model.outputs, portion.tensors, portion.shapes, strict=True):
        if tensor.dtype in VARIABLE:
            elements = np.empty(int(np.prod(shape)), object)
            elements[:] = unpack(data, len(elements))
            found.append(elements.reshape(shape))
        else:
            found.append(np.frombuffer(data, DTYPES[tensor.dtype]).reshape(shape))
    return found


def texts(*rows: Sequence[bytes]) -> Array:
    made = np.empty((len(rows), len(rows[0])), object)
    made[:] = rows
    return made


def test_each_request_gets_its_rows_cut_to_its_own_extents() -> None:
    model = spec(TOKENS, POOLED)
    tokens = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
    pooled = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = cut(model, order([(1, (2,)), (2, (6,)), (1, (5,))], (6,)), tokens, pooled)
    wanted = [(tokens[:1, :2], pooled[:1]), (tokens[1:3], pooled[1:3]), (tokens[3:, :5], pooled[3:])]
    for portion, (of_tokens, of_pooled) in zip(found.portions, wanted, strict=True):
        got = arrays(model, portion)
        assert np.array_equal(got[0], of_tokens)
        assert np.array_equal(got[1], of_pooled)
        assert portion.shapes == (of_tokens.shape, of_pooled.shape)


def test_only_what_lies_in_pieces_is_copied_and_what_stays_in_memory_is_told() -> None:
    model = spec(TOKENS)
    tokens = np.ones((4, 6, 3), np.float32)
    lying = cut(model, order([(1, (2,)), (3, (6,))], (6,)), tokens)
    assert lying.held_bytes == tokens.nbytes
    assert all(np.shares_memory(np.frombuffer(portion.tensors[0], np.float32), tokens) for portion in lying.portions)
    some = cut(model, order([(2, (2,)), (2, (6,))], (6,)), tokens)
    assert some.held_bytes == tokens.nbytes + 2 * 2 * 3 * 4
    none = cut(model, order([(2, (2,)), (2, (3,))], (6,)), tokens)
    assert none.held_bytes == 2 * 5 * 3 * 4
    lent = cut(model, order([(1, (2,)), (3, (6,))], (6,)), tokens, lent=True)
    assert lent.held_bytes == 2 * 3 * 4 + 3 * 6 * 3 * 4
    tokens[:] = 7
    assert all((array == 1).all() for portion in lent.portions for array in arrays(model, portion))


@given(
    parts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=6),
    spare=st.integers(0, 2),
    seed=st.integers(0, 2**16),
)
def test_two_open_dimensions_are_cut_as_slices_say(parts: list[tuple[int, int, int]], spare: int, seed: int) -> None:
    dims = (wire.Dim(name="h", least=1, most=16), wire.Dim(name="w", least=1, most=16))
    image = wire.TensorSpec(name="x", dtype="uint8", shape=(-1, 2, -1, -1), dims=("", "h", "w"))
    columns = wire.TensorSpec(name="y", dtype="int64", shape=(-1, -1, 2), dims=("w", ""))
    model = wire.ModelSpec(inputs=(image,), outputs=(image, columns), batch_max=64, slo_ms=1.0, dims=dims)
    h, w = max(h for _, h, _ in parts), max(w for _, _, w in parts)
    rows = sum(rows for rows, _, _ in parts)
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 255, (rows + spare, 2, h, w)).astype(np.uint8)
    other = rng.integers(0, 255, (rows + spare, w, 2))
    action = order([(n, (own_h, own_w)) for n, own_h, own_w in parts], (h, w), rows + spare)
    row = 0
    for portion, (n, own_h, own_w) in zip(cut(model, action, whole, other).portions, parts, strict=True):
        got = arrays(model, portion)
        assert np.array_equal(got[0], whole[row : row + n, :, :own_h, :own_w])
        assert np.array_equal(got[1], other[row : row + n, :own_w])
        row += n


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ((4, 6, 3), None),
        ((4, 5, 3), ActionCode.BAD_OUTPUTS),
        ((4, 6, 2), ActionCode.BAD_OUTPUTS),
        ((4, 18), ActionCode.BAD_OUTPUTS),
        ((3, 6, 3), ActionCode.ROWS_CHANGED),
        ((), ActionCode.ROWS_CHANGED),
    ],
)
def test_outputs_that_are_not_as_promised_are_refused(shape: tuple[int, ...], code: ActionCode | None) -> None:
    model, action = spec(TOKENS), order([(1, (2,)), (3, (6,))], (6,))
    if code is None:
        cut(model, action, np.zeros(shape, np.float32))
        return
    with pytest.raises(Indivisible, match="tokens") as raised:
        cut(model, action, np.zeros(shape, np.float32))
    assert raised.value.code is code


def test_as_many_outputs_as_are_promised() -> None:
    with pytest.raises(Indivisible, match=r"2 outputs.* 1 "):
        check_shapes(spec(POOLED), 1, (4,), [(1, 3), (1, 3)])


def test_an_exact_model_chooses_extents_of_its_own() -> None:
    own = wire.TensorSpec(name="map", dtype="float32", shape=(-1, -1), dims=("",))
    model = spec(own, exact=True)
    found = cut(model, order([(1, (9,)), (2, (9,))], (9,)), np.arange(12, dtype=np.float32).reshape(3, 4))
    assert [portion.shapes for portion in found.portions] == [((1, 4),), ((2, 4),)]


# -- detection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owners", [[0, 0, 1, 3, 3, 3, 4], [3, 0, 4, 3, 1, 0, 3]])
def test_elements_go_to_the_requests_of_their_rows_in_their_order(owners: list[int]) -> None:
    model = spec(BOXES, OWNER, dims=())
    boxes = np.arange(28, dtype=np.float32).reshape(7, 4)
    tells = np.array(owners)
    found = cut(model, order([(1, ()), (2, ()), (1, ())], batch=6), boxes, tells)
    for portion, (first, end) in zip(found.portions, [(0, 1), (1, 3), (3, 4)], strict=True):
        mine = (tells >= first) & (tells < end)
        got, of = arrays(model, portion)
        assert np.array_equal(got, boxes[mine])
        assert np.array_equal(of, tells[mine] - first)


@pytest.mark.parametrize("owners", [[0, 1, -1], [0, 1, 4], [0, 1], [0, 1, 2, 3]])
def test_an_element_of_no_row_or_of_none_that_is_told_fails_the_whole_batch(owners: list[int]) -> None:
    model = spec(BOXES, OWNER, dims=())
    with pytest.raises(Indivisible, match="owner"):
        cut(model, order([(2, ()), (2, ())]), np.zeros((3, 4), np.float32), np.array(owners))


def test_who_has_nothing_found_gets_no_elements() -> None:
    model = spec(BOXES, OWNER, dims=())
    found = cut(model, order([(1, ()), (1, ())]), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert [portion.shapes for portion in found.portions] == [((0, 4), (0,))] * 2


def test_a_row_has_as_many_elements_as_it_counts_and_zeros_behind_them() -> None:
    model = spec(FOUND, COUNT, dims=())
    whole = np.arange(1, 61, dtype=np.float32).reshape(3, 5, 4)
    one, two = (arrays(model, s) for s in cut(model, order([(2, ()), (1, ())]), whole, np.array([1, 3, 0])).portions)
    assert one[0].shape == (2, 3, 4)
    assert np.array_equal(one[0][0, :1], whole[0, :1])
    assert not one[0][0, 1:].any(), "a model may leave anything there, of whomever"
    assert np.array_equal(one[0][1], whole[1, :3])
    assert one[1].tolist() == [1, 3]
    assert (two[0].shape, two[1].tolist()) == ((1, 0, 4), [0])
    assert whole.all(), "what the model gave is as it was"


@pytest.mark.parametrize("counts", [[6, 0, 0], [0, -1, 0]])
def test_a_count_of_more_than_there_is_room_for_fails_the_whole_batch(counts: list[int]) -> None:
    model = spec(FOUND, COUNT, dims=())
    with pytest.raises(Indivisible, match="count"):
        cut(model, order([(3, ())]), np.zeros((3, 5, 4), np.float32), np.array(counts))


def test_a_row_counts_no_elements_beyond_its_request_s_own_extent() -> None:
    named = wire.TensorSpec(name="spans", dtype="int64", shape=(-1, -1, 2), dims=("seq", ""), count="count")
    model, whole = spec(named, COUNT), np.ones((2, 6, 2), np.int64)
    action = order([(1, (2,)), (1, (6,))], (6,))
    one, two = (arrays(model, portion) for portion in cut(model, action, whole, np.array([2, 5])).portions)
    assert (one[0].shape, two[0].shape) == ((1, 2, 2), (1, 5, 2))
    with pytest.raises(Indivisible, match=r"3 .* 2"):
        cut(model, action, whole, np.array([3, 5]))


# -- strings ----------------------------------------------------------------------------------------------------------


def test_strings_are_split_where_rows_end_and_cut_as_other_elements() -> None:
    model = spec(LABEL, TAGS)
    labels = np.empty(3, object)
    labels[:] = [b"", "grün".encode(), b"\xff\x00"]
    tags = texts([b"a", b"bb", b"", b""], [b"c", b"d", b"e", b"f"], [b"g", b"", b"h", b"i"])
    found = cut(model, order([(1, (2,)), (2, (4,))], (4,)), labels, tags)
    one, two = (arrays(model, portion) for portion in found.portions)
    assert [one[0].tolist(), two[0].tolist()] == [labels[:1].tolist(), labels[1:].tolist()]
    assert [one[1].tolist(), two[1].tolist()] == [tags[:1, :2].tolist(), tags[1:].tolist()]


def test_names_of_what_was_found_are_strings_too() -> None:
    names = wire.TensorSpec(name="names", dtype="string", shape=(-1,), owner="owner")
    kinds = wire.TensorSpec(name="kinds", dtype="bytes", shape=(-1, 2), count="count")
    model = spec(names, OWNER, kinds, COUNT, dims=())
    told = np.empty(3, object)
    told[:] = [b"cat", b"dog", b"eel"]
    found = cut(
        model, order([(1, ()), (1, ())]), told, np.array([1, 0, 1]), texts([b"x", b"y"], [b"z", b"w"]), np.array([1, 2])
    )
    one, two = (arrays(model, portion) for portion in found.portions)
    assert [one[0].tolist(), two[0].tolist()] == [[b"dog"], [b"cat", b"eel"]]
    assert [one[2].tolist(), two[2].tolist()] == [[[b"x"]], [[b"z", b"w"]]]


@pytest.mark.parametrize("data", [b"", b"\x01\0\0\0", pack([b"a", b"b", b"c"]), pack([b"a", b"b"]) + b"x"])
@pytest.mark.parametrize("tensor", [LABEL, TAGS])
def test_bytes_that_are_not_so_many_strings_fail_the_whole_batch(tensor: wire.TensorSpec, data: bytes) -> None:
    model = spec(tensor)
    shape = (2,) if tensor is LABEL else (2, 1)
    with pytest.raises(Indivisible, match=tensor.name):
        cut_outputs(model, order([(2, (1,))], (1,)), [memoryview(data)], [shape])


# -- what follows -----------------------------------------------------------------------------------------------------


def test_answers_tell_their_shapes_where_rows_differ() -> None:
    model = spec(TOKENS)
    action = order([(1, (2,)), (1, (4,))], (4,))
    tokens = np.zeros((2, 4, 3), np.float32)
    message, frames = outputs_by_frontend(action, [raw(tokens)], "cpu:0", 0.1, cut(model, action, tokens))["f"]
    assert [answer.shapes for answer in message.answers] == [((1, 2, 3),), ((1, 4, 3),)]
    assert [len(answer.inline[0]) for answer in message.answers] == [24, 48]
    assert frames == []


def test_hollow_outputs_are_as_promised() -> None:
    model = spec(TOKENS, BOXES, OWNER, FOUND, COUNT, LABEL, TAGS)
    outputs, shapes = hollow(model, 3, (5,))
    assert shapes == [(3, 5, 3), (0, 4), (0,), (3, 5, 4), (3,), (3,), (3, 5)]
    assert promised(model, 3, (5,))[1:3] == ((-1, 4), (-1,))
    found = cut_outputs(model, order([(1, (2,)), (2, (5,))], (5,)), outputs, shapes)
    assert [portion.shapes[0] for portion in found.portions] == [(1, 2, 3), (2, 5, 3)]


def test_a_model_whose_rows_are_all_alike_is_not_cut() -> None:
    assert not varies(spec(POOLED, dims=()))
    assert all(varies(spec(tensor, dims=())) for tensor in (LABEL,))
    assert varies(spec(BOXES, OWNER, dims=()))
    assert varies(spec(POOLED))


@pytest.mark.parametrize(
    "outputs",
    [
        (BOXES,),
        (BOXES, wire.TensorSpec(name="owner", dtype="int32", shape=(-1,))),
        (FOUND, wire.TensorSpec(name="count", dtype="int64", shape=(-1, 1))),
        (wire.TensorSpec(name="n", dtype="int64", shape=(-1,), count="count"), COUNT),
        (wire.TensorSpec(name="n", dtype="int64", shape=(-1, 4), count="count", owner="owner"), COUNT, OWNER),
    ],
)
def test_what_tells_of_elements_is_an_int64_output_for_each(outputs: tuple[wire.TensorSpec, ...]) -> None:
    model = wire.ModelSpec(inputs=(POOLED,), outputs=outputs, batch_max=4, slo_ms=1.0)
    assert model.fault() != ""
