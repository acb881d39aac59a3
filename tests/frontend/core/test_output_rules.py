"""Outputs with shapes of their own: what a worker says is checked, and parts are joined as if they were one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from frontend.core.elements import ELEMENTS_MAX
from frontend.core.output_rules import OutputFault, OutputPart, OutputRules, rules_of
from mesh import wire
from mesh.strings import pack, unpack
from mesh.tensors import view
from tests.messages import names

SEQ = wire.Dim(name="seq", least=1, most=64)
IDS = wire.TensorSpec(name="ids", dtype="int64", shape=(-1, -1), dims=("seq",))
VECTOR = wire.TensorSpec(name="vector", dtype="float32", shape=(-1, 2))
STATES = wire.TensorSpec(name="states", dtype="float32", shape=(-1, -1, 2), dims=("seq", ""))
BOXES = wire.TensorSpec(name="boxes", dtype="float32", shape=(-1, 4), owner="owner")
OWNER = wire.TensorSpec(name="owner", dtype="int64", shape=(-1,))
SCORES = wire.TensorSpec(name="scores", dtype="float32", shape=(-1, 5, 2), count="found")
FOUND = wire.TensorSpec(name="found", dtype="int64", shape=(-1,))
LABEL = wire.TensorSpec(name="label", dtype="string", shape=(-1, 2))
OWN = wire.TensorSpec(name="map", dtype="float32", shape=(-1, -1, -1), dims=("", ""))


def model(*outputs: wire.TensorSpec, **fields: Any) -> wire.ModelSpec:
    return wire.ModelSpec(inputs=(IDS,), outputs=outputs, batch_max=4, slo_ms=50.0, dims=(SEQ,), **fields)


def rules(*outputs: wire.TensorSpec, **fields: Any) -> OutputRules:
    made = rules_of(model(*outputs, **fields))
    assert made is not None
    return made


def floats(*shape: int, first: int = 0) -> bytes:
    return np.arange(first, first + int(np.prod(shape)), dtype=np.float32).tobytes()


def ints(*numbers: int) -> bytes:
    return np.array(numbers, np.int64).tobytes()


def refused(made: OutputRules, rows: int, told: Any, outputs: Sequence[bytes], extents: Any = (3,)) -> str:
    with pytest.raises(OutputFault) as raised:
        made.checked(rows, extents, told, outputs)
    return str(raised.value)


def test_most_models_need_no_rules() -> None:
    assert rules_of(model(VECTOR)) is None
    assert all(rules_of(model(output, OWNER, FOUND)) for output in (STATES, BOXES, SCORES, LABEL))


def test_an_output_of_an_open_dimension_has_the_requests_extent() -> None:
    made = rules(VECTOR, STATES)
    outputs = [floats(2, 2), floats(2, 3, 2)]
    shapes = ((2, 2), (2, 3, 2))
    assert made.checked(2, (3,), shapes, outputs) == shapes
    assert made.checked(2, (3,), (), outputs) == shapes  # nothing is left to be told


@pytest.mark.parametrize(
    ("told", "outputs"),
    [
        (((2, 2), (2, 4, 2)), [floats(2, 2), floats(2, 4, 2)]),  # not cut
        (((2, 2), (2, 2, 3)), [floats(2, 2), floats(2, 2, 3)]),  # turned
        (((1, 2), (2, 3, 2)), [floats(1, 2), floats(2, 3, 2)]),  # a row is missing
        (((2, 2), (2, 3, 2)), [floats(2, 2), floats(2, 2, 2)]),  # other bytes than it says
        (((2, 2), (2, 3)), [floats(2, 2), floats(2, 3)]),
        (((2, 2),), [floats(2, 2), floats(2, 3, 2)]),
        (((2, 2), (2, 3, 2)), [floats(2, 2)]),
        ((), [floats(2, 2), floats(2, 4, 2)]),
    ],
)
def test_outputs_of_other_shapes_are_refused(told: Any, outputs: list[bytes]) -> None:
    assert refused(rules(VECTOR, STATES), 2, told, outputs)


def test_an_exact_model_may_say_the_extents_of_an_output() -> None:
    made = rules(OWN, exact=True)
    assert made.checked(1, (3,), ((1, 5, 2),), [floats(1, 5, 2)]) == ((1, 5, 2),)
    assert names(refused(made, 1, ((1, 5, 2),), [floats(1, 5, 3)]), "map")
    assert names(refused(made, 1, ((2, 5, 1),), [floats(2, 5, 1)]), "map")


def test_what_is_found_belongs_to_rows_of_the_request() -> None:
    made = rules(BOXES, OWNER)
    shapes = ((3, 4), (3,))
    assert made.checked(2, (3,), shapes, [floats(3, 4), ints(0, 1, 1)]) == shapes
    assert made.checked(2, (3,), ((0, 4), (0,)), [b"", b""]) == ((0, 4), (0,))
    for owners in (ints(0, 1, 2), ints(-1, 0, 1)):  # rows of others
        assert names(refused(made, 2, shapes, [floats(3, 4), owners]), "owner")
    assert names(refused(made, 2, ((3, 4), (2,)), [floats(3, 4), ints(0, 1)]), "boxes", "owner")
    assert refused(rules(BOXES, VECTOR), 1, ((1, 4), (1, 2)), [floats(1, 4), floats(1, 2)])  # nothing tells the rows


def test_a_row_has_no_more_elements_than_it_counts() -> None:
    made = rules(SCORES, FOUND)
    shapes = ((2, 3, 2), (2,))
    assert made.checked(2, (3,), shapes, [floats(2, 3, 2), ints(3, 0)]) == shapes
    assert names(refused(made, 2, shapes, [floats(2, 3, 2), ints(4, 0)]), "found", 4, 3)
    assert names(refused(made, 2, shapes, [floats(2, 3, 2), ints(-1, 0)]), "found")
    assert refused(made, 2, ((2, 6, 2), (2,)), [floats(2, 6, 2), ints(6, 0)])  # beyond the model's greatest


def test_strings_of_models_are_strings_and_not_too_many() -> None:
    made = rules(LABEL)
    good = pack([b"a", b"b", b"c", b"d"])
    assert made.checked(2, (3,), (), [good]) == ((2, 2),)
    assert names(refused(made, 2, (), [good[:-1]]), "label")
    assert names(refused(made, 2, (), [pack([b"a", b"b", b"\xff", b"d"])]), "label", 2, "UTF-8")
    rows = ELEMENTS_MAX // 2 + 1
    assert names(refused(made, rows, (), [bytes(8 * rows)]), ELEMENTS_MAX)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_parts_are_joined_by_rows() -> None:
    made = rules(STATES, LABEL)
    parts = [
        OutputPart(2, [floats(2, 3, 2), pack([b"a", b"", b"b", b"c"])], ((2, 3, 2), (2, 2))),
        OutputPart(1, [floats(1, 3, 2, first=12), pack([b"d", b"e"])], ((1, 3, 2), (1, 2))),
    ]
    (states, label), shapes = made.joined(parts)
    assert shapes == ((3, 3, 2), (3, 2))
    assert states == floats(3, 3, 2)
    assert unpack(label, 6) == [b"a", b"", b"b", b"c", b"d", b"e"]


def test_what_parts_found_belongs_to_the_rows_of_the_whole() -> None:
    made = rules(BOXES, OWNER)
    parts = [
        OutputPart(2, [floats(2, 4), ints(1, 1)], ((2, 4), (2,))),
        OutputPart(4, [b"", b""], ((0, 4), (0,))),
        OutputPart(1, [floats(1, 4, first=8), ints(0)], ((1, 4), (1,))),
    ]
    (boxes, owner), shapes = made.joined(parts)
    assert shapes == ((3, 4), (3,))
    assert bytes(boxes) == floats(3, 4)
    assert view(owner, "int64", (3,)).tolist() == [1, 1, 6]


def test_rows_of_parts_have_room_for_the_greatest_count_of_all() -> None:
    made = rules(SCORES, FOUND)
    parts = [
        OutputPart(1, [floats(1, 1, 2, first=1), ints(1)], ((1, 1, 2), (1,))),
        OutputPart(1, [floats(1, 2, 2, first=3), ints(2)], ((1, 2, 2), (1,))),
        OutputPart(1, [b"", ints(0)], ((1, 0, 2), (1,))),
    ]
    (scores, found), shapes = made.joined(parts)
    assert shapes == ((3, 2, 2), (3,))
    assert view(scores, "float32", (3, 2, 2)).tolist() == [[[1, 2], [0, 0]], [[3, 4], [5, 6]], [[0, 0], [0, 0]]]
    assert view(found, "int64", (3,)).tolist() == [1, 2, 0]
    assert made.checked(3, (3,), shapes, [scores, found]) == shapes


def test_strings_that_are_found_are_filled_up_with_empty_ones() -> None:
    made = rules(wire.TensorSpec(name="words", dtype="string", shape=(-1, 5), count="found"), FOUND)
    parts = [
        OutputPart(1, [pack([b"a"]), ints(1)], ((1, 1), (1,))),
        OutputPart(1, [pack([b"b", b"c"]), ints(2)], ((1, 2), (1,))),
    ]
    (words, found), shapes = made.joined(parts)
    assert shapes == ((2, 2), (2,))
    assert unpack(words, 4) == [b"a", b"", b"b", b"c"]
    assert made.checked(2, (3,), shapes, [words, found]) == shapes


def test_parts_of_other_extents_do_not_go_together() -> None:
    made = rules(OWN, exact=True)
    parts = [OutputPart(1, [floats(1, n, 2)], ((1, n, 2),)) for n in (2, 3)]
    with pytest.raises(OutputFault, match="map"):
        made.joined(parts)
