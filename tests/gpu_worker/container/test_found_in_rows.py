"""What a container's function finds in rows: told apart by request, cut to its extents, also where nothing is found."""

from typing import Any

import numpy as np
import pytest

from gpu_worker.container.child.open_batches import Part
from gpu_worker.container.child.splitting import split

PARTS: list[Part] = [(1, [2]), (2, [3])]
DIMS, JOINT = ["seq"], [3]
COUNTS: dict[str, Any] = {"name": "n", "dtype": "int64", "shape": [-1]}
Spec = dict[str, Any]


def boxes(shape: list[Any], **more: str) -> Spec:
    return {"name": "boxes", "dtype": "float32", "shape": shape, **more}


def parts_of(result: Any, spec: Spec) -> list[list[Any]]:
    """[[boxes, owners or counts] of each part]"""
    return split(result, [spec, COUNTS], DIMS, PARTS, JOINT)


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 4)), np.zeros(0)], ids=["list", "boxes", "numbers"])
@pytest.mark.parametrize("how", ["owner", "count"])
def test_nothing_is_found_in_any_row(nothing: Any, how: str) -> None:
    spec = boxes([-1, 4] if how == "owner" else [-1, 10, 4], **{how: "n"})
    for found, (rows, _) in zip(parts_of([nothing] * 3, spec), PARTS, strict=True):
        assert found[0].shape == ((0, 4) if how == "owner" else (rows, 0, 4))
        assert found[1].tolist() == ([] if how == "owner" else [0] * rows)


@pytest.mark.parametrize("own_sizes", [False, True], ids=["filled_up", "as_asked"])
def test_masks_of_what_is_found_are_cut_to_the_extents_of_their_request(own_sizes: bool) -> None:
    first, last = np.arange(6.0).reshape(2, 3), np.ones((1, 3))
    rows = [first[:, :2] if own_sizes else first, np.zeros((0, 3)), last]
    one, two = parts_of(rows, boxes([-1, "seq"], owner="n"))
    assert [piece.tolist() for piece in one] == [[[0, 1], [3, 4]], [0, 0]]
    assert [piece.tolist() for piece in two] == [[[1, 1, 1]], [1]]
    one, two = parts_of(rows, boxes([-1, 5, "seq"], count="n"))
    assert [piece.tolist() for piece in one] == [[[[0, 1], [3, 4]]], [2]]
    assert [piece.tolist() for piece in two] == [[[[0, 0, 0]], [[1, 1, 1]]], [0, 1]]


def test_owners_that_are_given_take_elements_in_any_order() -> None:
    given = {"boxes": np.arange(12.0).reshape(4, 3), "n": np.array([2, 0, 1, 2])}
    one, two = parts_of(given, boxes([-1, "seq"], owner="n"))
    assert [piece.tolist() for piece in one] == [[[3, 4]], [0]]
    assert [piece.tolist() for piece in two] == [[[0, 1, 2], [6, 7, 8], [9, 10, 11]], [1, 0, 1]]
